"""Scorers `number` and `quantity`: they compare values, not spellings; a quantity also has a unit.

A value is a string of digits throughout, so that a million digits take linear time and no float rounds. Powers
(``10^3``), number words and decimal commas are not read. Units are converted by powers of ten only.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import ClassVar, Literal

from suffice.scoring.text import AnnouncementPattern, ByNormalForm, last_boxed, last_part

MAX_DIGITS = 1_000
_MAX_FRACTION_DIGITS = 18  # longer ones are compared as written …
_MAX_PLACES = 60  # … and if a shorter one is a finite decimal, it has at most so many places
_MAX_ANNOUNCED_GAP = 80  # characters between "answer is" and its number
_MAX_OPERATOR_GAP = 24  # characters between two numbers of one sum
_MINUS = {ord(dash): "-" for dash in "−–‐‑－﹣"}

# A group gives back its last digits if too many follow; possessive groups would restart at each comma,
# so that a long list of groups would take quadratic time.
_WHOLE = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d++)"
_NUMBER = rf"""
    (?=[\d.$€£¥+-])                          # all that a number can begin with: most characters end here
    (?:(?<![\w)\]}}])(?P<sign>[+-]))?        # a minus behind a digit or a letter subtracts
    (?:[$€£¥]\s?)?
    (?:
        (?<![A-Za-z_\d])(?<!\d\.)(?<!/)      # not inside a name, a version or a date
        (?P<above>{_WHOLE})\s?/\s?(?P<below>\d++)(?!\s?/\s?\d)(?![.,]\d)
      |
        (?:(?<![A-Za-z_\d])(?<!\d\.)(?P<whole>{_WHOLE})(?:\.(?P<part>\d++))?+
          |(?<![\w.])\.(?P<bare_part>\d++))
        (?:[eE](?P<exponent>[+-]?\d{{1,3}})(?![\d.])
          |\s?(?:×|\*|\\times|\\cdot)\s?10\s?\^\s?\{{?(?P<power>[+-]?\d{{1,3}})(?!\d)\}}?)?
    )
    (?P<percent>\s?\\?%(?!\s?\d)|\s?(?i:per\s?cent)\b)?
"""
_NUMBER_ONLY = re.compile(_NUMBER, re.VERBOSE)
_WALK = AnnouncementPattern(lambda announcement: rf"(?P<announcement>(?-x:{announcement}))|{_NUMBER}", re.VERBOSE)
_OPERATORS = re.compile(r"[\s$€£¥+*/×÷·()^=\\-]*+")
_BRACED = r"\s{0,4}\{\s{0,4}([+-]?\d++)\s{0,4}\}\s{0,4}"
_LATEX_FRACTION = re.compile(rf"(?P<glued>(?<=\d)\s?)?\\[dt]?frac(?:{_BRACED}{_BRACED}|\s?(\d)\s?(\d))")
_MIXED = re.compile(r"(?<![\w.,/])(\d{1,9}) (\d{1,9})/(\d{1,9})(?![\w/]|[.,]\d)")
VULGAR_FRACTIONS = {
    chr(code): unicodedata.normalize("NFKC", chr(code)).replace("\u2044", "/")
    for code in (0xBC, 0xBD, 0xBE, *range(0x2150, 0x215F))
}
_VULGAR_SIGN = re.compile(f"(?P<glued>(?<=\\d))?([{''.join(VULGAR_FRACTIONS)}])")


@dataclass(frozen=True, slots=True)
class NumberScorer(ByNormalForm):
    """Compares numbers by value, exactly.

    Normal form: ``1,234.50``, ``+1234.5`` and ``1.2345e3`` are ``1234.5``; ``-0`` is ``0``. A simple fraction becomes
    its decimal if that ends (``1/2`` is ``0.5``) and otherwise is reduced (``2/6`` is ``1/3``, which ``0.333`` is not);
    a mixed number is its sum (``2 1/2`` is ``2.5``). Currency signs and units are dropped. ``50%`` is neither ``50``
    nor ``0.5`` unless `percent` is ``drop`` or ``share``. A number of more than 1,000 digits is not an answer.
    """

    name: ClassVar[str] = "number"

    percent: Literal["keep", "drop", "share"] = "keep"

    def extract(self, text: str) -> str | None:
        """Return the number in the last box, else the one announced last, else the last one in the text.

        Announced: within 80 characters of "answer is", "answer:" or "####"; of a sum its result ("3 + 4 = 7" gives 7).
        """
        number = _choose_number(text)
        return None if number is None else _value(number, self.percent)

    def normalise(self, answer: str) -> str | None:
        return self.extract(answer)


def exact_number(written: str) -> str | None:
    """Return the normal form of a text that is exactly one number; None otherwise."""
    number = _NUMBER_ONLY.fullmatch(written if written.isascii() else written.translate(_MINUS))
    return None if number is None else _value(number)


def _choose_number(text: str) -> re.Match[str] | None:
    plain = _plain(text)
    boxed = last_boxed(plain)
    if boxed is not None:
        first = _NUMBER_ONLY.search(boxed)
        if first is not None and _value(in_box := _result(first)) is not None:
            return in_box
    last = None
    announced = None
    announced_at = -1
    for match in _WALK.finditer(plain):
        if match["announcement"] is not None:
            announced_at = match.end()
            continue
        last = match
        if announced_at >= 0 and match.start() - announced_at <= _MAX_ANNOUNCED_GAP:
            announced = match
        announced_at = -1
    return last if announced is None else _result(announced)


def _plain(text: str) -> str:
    text = last_part(text)
    if not text.isascii():
        text = _VULGAR_SIGN.sub(_vulgar, text.translate(_MINUS))
    if "\\" in text:
        text = _LATEX_FRACTION.sub(_latex_fraction, text)
    if "/" in text:
        text = _MIXED.sub(_mixed, text)
    return text.replace("{,}", ",").replace("####", "\nanswer: ")


def _latex_fraction(match: re.Match[str]) -> str:
    above, below = (group for group in match.groups()[1:] if group is not None)
    return f"{'' if match['glued'] is None else ' '}{above}/{below}"


def _vulgar(match: re.Match[str]) -> str:
    return f"{'' if match['glued'] is None else ' '}{VULGAR_FRACTIONS[match[2]]}"


def _mixed(match: re.Match[str]) -> str:
    whole, above, below = map(int, match.groups())
    return f"{whole * below + above}/{below}" if above < below else match[0]


def _result(first: re.Match[str]) -> re.Match[str]:
    """Return the last number behind an equals sign of the sum that begins with `first`, or `first` itself."""
    text = first.string
    result = first
    end = first.end()
    while (following := _NUMBER_ONLY.search(text, end, end + _MAX_OPERATOR_GAP)) is not None:
        gap = text[end : following.start()]
        # The search stops at a fixed distance and may have cut the digits.
        whole = _NUMBER_ONLY.match(text, following.start())
        if not gap or _OPERATORS.fullmatch(gap) is None or whole is None:
            break
        end = whole.end()
        if "=" in gap:
            result = whole
    return result


def _value(number: re.Match[str], percent: str = "keep", power: int = 0) -> str | None:
    """Return the normal form of a number times 10**power; None if it is too long or divides by zero."""
    sign = "-" if number["sign"] == "-" else ""
    is_percent = number["percent"] is not None
    power -= 2 if is_percent and percent == "share" else 0
    if number["below"] is not None:
        value = _fraction(_digits(number["above"]) + "0" * power, _digits(number["below"]) + "0" * -power)
    else:
        whole, part = _digits(number["whole"] or ""), _digits(number["part"] or number["bare_part"] or "")
        value = _decimal(whole, part, int(number["exponent"] or number["power"] or 0) + power)
    if value is None or len(value) > MAX_DIGITS + 1:  # the point is not a digit
        return None
    return f"{'' if value == '0' else sign}{value}{'%' if is_percent and percent == 'keep' else ''}"


def _digits(written: str) -> str:
    plain = written.replace(",", "")
    if plain.isascii():
        return plain
    return "".join(str(unicodedata.decimal(digit)) for digit in plain)


def _decimal(whole: str, part: str, exponent: int) -> str:
    plain = format(Decimal(f"{whole or 0}.{part}e{exponent}"), "f")  # exact: only arithmetic rounds
    return plain.rstrip("0").rstrip(".") if "." in plain else plain


def _fraction(above: str, below: str) -> str | None:
    above, below = above.lstrip("0") or "0", below.lstrip("0")
    if not below:
        return None
    if above == "0":
        return "0"
    if max(len(above), len(below)) > _MAX_FRACTION_DIGITS:
        return f"{above}/{below}"
    value = Fraction(int(above), int(below))
    if 10**_MAX_PLACES % value.denominator:
        return f"{value.numerator}/{value.denominator}"
    return _decimal(str(value.numerator * 10**_MAX_PLACES // value.denominator), "", -_MAX_PLACES)


_PREFIXES = {"n": -9, "µ": -6, "μ": -6, "m": -3, "c": -2, "d": -1, "k": 3, "M": 6, "G": 9, "T": 12}
_PREFIX_WORDS = {"nano": -9, "micro": -6, "milli": -3, "centi": -2, "deci": -1, "kilo": 3, "mega": 6, "giga": 9}
_PREFIX_WORDS |= {"tera": 12}
# Each symbol with its words. These take prefixes.
_METRIC = (
    "m metre meter|g gram gramme|s second sec|L litre liter l|W watt|V volt|J joule|N newton|Pa pascal|Hz hertz"
    "|A ampere amp|Ω ohm|B byte|eV electronvolt|mol mole|cal calorie"
)
# These do not. One-letter words of English are left out: "in" is not an inch, "a" not a year.
_PLAIN = (
    "min minute min|h hour hr h|day day|week week|month month|year year yr|inch inch inches|ft foot feet ft|yd yard yd"
    "|mi mile mi|lb pound lb|oz ounce oz|K kelvin K|°C °C celsius|°F °F fahrenheit|° ° degree|t tonne|bar bar"
    "|$ $ dollar USD|€ € euro EUR|£ £ GBP|¥ ¥ yen JPY|cent cent"
)


def _all_units() -> dict[str, tuple[str, int]]:
    """Map every spelling of a unit to (its symbol in normal form, the power of ten to it)."""
    units: dict[str, tuple[str, int]] = {}
    for symbol, *words in map(str.split, _PLAIN.split("|")):
        for word in words:
            units[word] = (symbol, 0)
            if len(word) > 1 and word.isalpha():
                units[f"{word}s"] = (symbol, 0)
    for symbol, *words in map(str.split, _METRIC.split("|")):
        units[symbol] = (symbol, 0)
        units |= {prefix + symbol: (symbol, power) for prefix, power in _PREFIXES.items()}
        for word in words:
            for prefix, power in ({"": 0} | (_PREFIX_WORDS if len(word) > 1 else _PREFIXES)).items():
                units[prefix + word] = (symbol, power)
                if len(word) > 1:
                    units[f"{prefix}{word}s"] = (symbol, power)
    return units | {"min": ("min", 0), "h": ("h", 0), "ft": ("ft", 0), "kph": ("m/h", 3), "mph": ("mi/h", 0)}


_UNITS = _all_units()
_NAME = r"(°\s?[CF](?![A-Za-z])|[A-Za-zµμΩ]{1,16}|[°$€£¥])"
_POWER = r"\s?\}?\s?(⁻?[¹²³])?"
_UNIT = re.compile(
    r"(?:\s|\\[,;! ]|~|-|\\(?:text|mathrm|textrm)\s?\{){0,4}"
    rf"{_NAME}{_POWER}(?:\s?(?:/|per\s)\s?{_NAME}{_POWER})?(?![A-Za-z])"
)
_PRODUCT = re.compile(r"\s?(?:[·*⋅]|\\cdot)\s?[A-Za-zµμΩ]|\s[A-Za-zµμΩ]{1,4}⁻?[¹²³]")
# Written as superscripts, powers of units are not mistaken for the answer's number.
_WRITTEN_POWER = re.compile(r"(?<=[A-Za-zΩ}])\s?\^\s?\{?\s?(-?)([123])(?!\d)\s?\}?")
_POWERS = {"1": "¹", "2": "²", "3": "³"}
_CURRENCY = re.compile(r"[$€£¥]")


@dataclass(frozen=True, slots=True)
class QuantityScorer(ByNormalForm):
    """Compares numbers with their units.

    Normal form: the number and the unit's symbol, metric prefixes multiplied out: `1.5 km` and `1,500 metres` are `1500
    m`, `90 km/h` is `90000 m/h`, `$5` is `5 $`. Words that are not units are dropped. Products of units (`kg m^-3`) are
    not answers.
    """

    name: ClassVar[str] = "quantity"

    def extract(self, text: str) -> str | None:
        """Return the number that scorer `number` would extract, with the unit after it or the currency before it."""
        number = _choose_number(_WRITTEN_POWER.sub(_as_sign, last_part(text)) if "^" in text else text)
        value = None if number is None else _value(number)
        if number is None or value is None or value.endswith("%"):
            return value
        written = _UNIT.match(number.string, number.end())
        unit = None if written is None else _unit(*written.groups())
        if written is None or unit is None:
            sign = _CURRENCY.search(number.group())
            return value if sign is None else f"{value} {sign.group()}"
        if _PRODUCT.match(number.string, written.end()):
            return None
        symbol, power = unit
        value = _value(number, power=power)
        return None if value is None else f"{value} {symbol}"

    def normalise(self, answer: str) -> str | None:
        return self.extract(answer)


def _as_sign(written: re.Match[str]) -> str:
    return ("⁻" if written[1] else "") + _POWERS[written[2]]


def _unit(above: str, power: str | None, below: str | None, power_below: str | None) -> tuple[str, int] | None:
    """Return the symbol of a unit such as km/h and the power of ten to it; None if it is not a unit."""
    first = _simple_unit(above, power)
    second = None if below is None else _simple_unit(below, power_below)
    return first if first is None or second is None else (f"{first[0]}/{second[0]}", first[1] - second[1])


def _simple_unit(name: str, power: str | None) -> tuple[str, int] | None:
    bare = name.replace(" ", "")
    known = _UNITS.get(bare) or _UNITS.get(bare.lower() if len(bare) > 3 else bare)
    if known is None:
        return None
    times = 1
    if power and bare.isalpha():  # there are no square dollars or square degrees
        times = ("¹²³".index(power[-1]) + 1) * (-1 if power.startswith("⁻") else 1)
    return (known[0] if times == 1 else f"{known[0]}^{times}", known[1] * times)

"""Scorer `quantity`: a number and its unit.

Knows units as people write them and the powers of ten between them; refuses to convert anything else:
an hour stays an hour, and no float rounds a mile into kilometres.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from suffice.scoring.answer import last_part
from suffice.scoring.normal import ByNormalForm
from suffice.scoring.number import chosen_number, shifted, value_of

_PREFIXES = {"n": -9, "µ": -6, "μ": -6, "m": -3, "c": -2, "d": -1, "k": 3, "M": 6, "G": 9, "T": 12}
_PREFIX_WORDS = {
    "nano": -9,
    "micro": -6,
    "milli": -3,
    "centi": -2,
    "deci": -1,
    "kilo": 3,
    "mega": 6,
    "giga": 9,
    "tera": 12,
}
# Symbol: the words for it. These take prefixes.
_METRIC = {
    "m": "metre meter",
    "g": "gram gramme",
    "s": "second sec",
    "L": "litre liter l",
    "W": "watt",
    "V": "volt",
    "J": "joule",
    "N": "newton",
    "Pa": "pascal",
    "Hz": "hertz",
    "A": "ampere amp",
    "Ω": "ohm",
    "B": "byte",
    "eV": "electronvolt",
    "mol": "mole",
    "cal": "calorie",
}
# These do not. One-letter words of English are not among them: "in" is no inch, "a" no year.
_PLAIN = {
    "min": "minute min",
    "h": "hour hr h",
    "day": "day",
    "week": "week",
    "month": "month",
    "year": "year yr",
    "inch": "inch inches",
    "ft": "foot feet ft",
    "yd": "yard yd",
    "mi": "mile mi",
    "lb": "pound lb",
    "oz": "ounce oz",
    "K": "kelvin K",
    "°C": "°C celsius",
    "°F": "°F fahrenheit",
    "°": "° degree",
    "t": "tonne",
    "bar": "bar",
    "$": "$ dollar USD",
    "€": "€ euro EUR",
    "£": "£ GBP",
    "¥": "¥ yen JPY",
    "cent": "cent",
}


def _units() -> dict[str, tuple[str, int]]:
    """Every way of writing a unit → (its name in a normal form, the power of ten to it)."""
    units: dict[str, tuple[str, int]] = {}
    for symbol, words in _PLAIN.items():
        for word in words.split():
            units[word] = (symbol, 0)
            if len(word) > 1 and word.isalpha():
                units[f"{word}s"] = (symbol, 0)
    for symbol, words in _METRIC.items():
        units[symbol] = (symbol, 0)
        units |= {prefix + symbol: (symbol, power) for prefix, power in _PREFIXES.items()}
        for word in words.split():
            for prefix, power in ({"": 0} | (_PREFIX_WORDS if len(word) > 1 else _PREFIXES)).items():
                units[prefix + word] = (symbol, power)
                if len(word) > 1:
                    units[f"{prefix}{word}s"] = (symbol, power)
    return units | {"min": ("min", 0), "h": ("h", 0), "ft": ("ft", 0), "kph": ("m/h", 3), "mph": ("mi/h", 0)}


_UNITS = _units()
_NAME = r"(°\s?[CF](?![A-Za-z])|[A-Za-zµμΩ]{1,16}|[°$€£¥])"
_POWER = r"\s?\}?\s?(⁻?[¹²³])?"
_UNIT = re.compile(
    r"(?:\s|\\[,;! ]|~|-|\\(?:text|mathrm|textrm)\s?\{){0,4}"
    rf"{_NAME}{_POWER}(?:\s?(?:/|per\s)\s?{_NAME}{_POWER})?(?![A-Za-z])"
)
_PRODUCT = re.compile(r"\s?(?:[·*⋅]|\\cdot)\s?[A-Za-zµμΩ]|\s[A-Za-zµμΩ]{1,4}⁻?[¹²³]")
# Written as a sign, a power is no number that somebody could take for the answer.
_WRITTEN_POWER = re.compile(r"(?<=[A-Za-zΩ}])\s?\^\s?\{?\s?(-?)([123])(?!\d)\s?\}?")
_POWERS = {"1": "¹", "2": "²", "3": "³"}
_CURRENCY = re.compile(r"[$€£¥]")


@dataclass(frozen=True, slots=True)
class QuantityScorer(ByNormalForm):
    """Compare numbers with their units.

    Normal form: the number as `number` writes it and the unit's symbol, metric prefixes multiplied out:
    `1.5 km` and `1,500 metres` are `1500 m`, `90 km/h` is `90000 m/h`, `$5` is `5 $`. Words that are no unit are
    dropped: `42 apples` is `42`, which `42 m` is not. Units that are multiplied (`kg m^-3`) are no answer.
    """

    name: ClassVar[str] = "quantity"

    def extract(self, text: str) -> str | None:
        """The number that `number` would find, with the unit behind it or the currency before it."""
        found = chosen_number(_WRITTEN_POWER.sub(_as_sign, last_part(text)) if "^" in text else text)
        value = None if found is None else value_of(found[1])
        if found is None or value is None or value.endswith("%"):
            return value
        plain, number = found
        written = _UNIT.match(plain, number.end())
        unit = _read(written)
        if written is None or unit is None:
            sign = _CURRENCY.search(number.group())
            return value if sign is None else f"{value} {sign.group()}"
        if _PRODUCT.match(plain, written.end()):
            return None
        symbol, power = unit
        moved = shifted(value, power)
        return None if moved is None else f"{moved} {symbol}"

    def normalise(self, answer: str) -> str | None:
        """The normal form of a bare answer: the same reading as `extract`."""
        return self.extract(answer)


def _as_sign(written: re.Match[str]) -> str:
    return ("⁻" if written.group(1) else "") + _POWERS[written.group(2)]


def _read(found: re.Match[str] | None) -> tuple[str, int] | None:
    """The unit's symbol and the power of ten to it; None: no unit stands there."""
    if found is None:
        return None
    above, power, below, power_below = found.groups()
    first = _named(above, power)
    if first is None or below is None:
        return first
    second = _named(below, power_below)
    return first if second is None else (f"{first[0]}/{second[0]}", first[1] - second[1])


def _named(name: str, power: str | None) -> tuple[str, int] | None:
    bare = name.replace(" ", "")
    known = _UNITS.get(bare) or _UNITS.get(bare.lower() if len(bare) > 3 else bare)
    if known is None:
        return None
    times = 1
    if power and bare.isalpha():  # there are no square dollars and no square degrees
        times = ("¹²³".index(power[-1]) + 1) * (-1 if power.startswith("⁻") else 1)
    return (known[0] if times == 1 else f"{known[0]}^{times}", known[1] * times)

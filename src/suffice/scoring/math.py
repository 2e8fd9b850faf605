r"""Scorer `math`: formulas are equal if their normal forms are, or if a `MathJudge` (`edge.math`) proves it."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import ClassVar, Protocol

from suffice.scoring.number import VULGAR_FRACTIONS, NumberScorer, exact_number
from suffice.scoring.text import (
    MAX_ANSWER_CHARS,
    TextScorer,
    digest_text,
    is_digest,
    last_announced,
    last_boxed_raw,
    last_part,
    says_something,
    settle,
    strip_control_characters,
)

_NUMBER = NumberScorer()
_EXACT = re.compile(r"-?\d+(?:\.\d+|/\d+)?")
_SPAN = re.compile(r"\$\$([^$]{1,2000})\$\$|\$([^$\n]{1,2000})\$|\\\[(.{1,2000}?)\\\]|\\\((.{1,2000}?)\\\)", re.DOTALL)
_PROSE = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}(?:[,;:]? [A-Za-z]+)+")


class MathJudge(Protocol):
    """Decides whether two formulas have the same value. It may take seconds and may not know."""

    def equivalent(self, one: str, other: str) -> bool | None:
        """Return whether two different normal forms are equal; None if unknown. Never raise."""
        ...


@dataclass(frozen=True, slots=True)
class MathScorer:
    """Compares formulas: first as strings, then as numbers, then by a judge that knows algebra.

    A judge compares pairs, which form no classes that a vote could count, so it only compares an answer with a
    reference. Two answers in different normal forms count as different, which costs savings and never EM.
    """

    name: ClassVar[str] = "math"

    judge: MathJudge | None = None

    def extract(self, text: str) -> str | None:
        r"""Return the formula in the last box, else in the last announcement, else in the last line.

        Of a line: its last formula between dollar signs or ``\( \)``; in prose without one its number; else all of it.
        A last line without any gives the last number of the text.
        """
        text = last_part(text)
        boxed = last_boxed_raw(text)
        if boxed is not None and (answer := normal_formula(boxed)) is not None:
            return answer
        line = last_announced(text) or text.rstrip().rpartition("\n")[2]
        spans = [next(filter(None, span.groups())) for span in _SPAN.finditer(line[-4_000:])]
        if spans and (answer := normal_formula(spans[-1])) is not None:
            return answer
        if _PROSE.search(line) is None or not any(map(str.isdecimal, line)):
            return normal_formula(line)
        return _NUMBER.extract(text)

    def normalise(self, answer: str) -> str | None:
        boxed = last_boxed_raw(answer)
        inside = None if boxed is None else normal_formula(boxed)
        return normal_formula(answer) if inside is None else inside

    def match(self, answer: str | None, gold: str) -> bool:
        """Compare strings and numbers, in microseconds, and ask the judge only about what these cannot decide."""
        mine = None if answer is None else self.normalise(answer)
        other = mine if answer == gold else self.normalise(gold)
        if mine is None or other is None or mine == other:
            return mine is not None and mine == other
        pair = sorted((mine, other))  # so that it is symmetric
        if any(is_words(one) or is_digest(one) for one in pair) or all(_EXACT.fullmatch(one) for one in pair):
            return False
        return self.judge is not None and self.judge.equivalent(*pair) is True


_COMMANDS = "×times ·cdot ⋅cdot ∙cdot πpi ∞infty √sqrt ≤le ≥ge ≠ne ∪cup ∩cap ∈in ∅emptyset"
_SIGNS = str.maketrans(
    {word[0]: f"\\{word[1:]} " for word in _COMMANDS.split()}
    | dict.fromkeys("−–‐‑", "-")
    | dict.fromkeys("°\u2061\u2062", "")
    | {"÷": "/", "′": "'", "$": " "}
    | {sign: r"\frac{" + fraction.replace("/", "}{") + "}" for sign, fraction in VULGAR_FRACTIONS.items()}
)
_RAISED = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿ", "0123456789+-()n", strict=True))
_LOWERED = dict(zip("₀₁₂₃₄₅₆₇₈₉₊₋₍₎", "0123456789+-()", strict=True))
_RAISED_RUN = re.compile(f"[{''.join(_RAISED)}]+")
_LOWERED_RUN = re.compile(f"[{''.join(_LOWERED)}]+")

_SPACING = r"(?:left|right|[bB]igg?[lr]?|displaystyle|textstyle|quad|qquad|limits)(?![A-Za-z])"
_TEXTUAL = "text|textbf|textit|textrm|textnormal|mathrm|mathbf|mathit|mbox|operatorname|boldsymbol"

# Each pass applies all rules in this order; passes are repeated until nothing changes.
_RULES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (rf"(?<!\\)\\(?:[()\[\],;:!]|{_SPACING}|(?= ))", " "),
        (r"\^ ?(?:\{ ?\\circ ?\}|\\circ(?![A-Za-z]))|\\degree(?![A-Za-z])", " "),
        (r"\\\$", ""),
        (r"\\%", "%"),
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (r"\\leq(?![A-Za-z])", r"\\le"),
        (r"\\geq(?![A-Za-z])", r"\\ge"),
        (r"\\neq(?![A-Za-z])", r"\\ne"),
        (r"(?<=[\d})]) ?\\(?:text|mathrm|mbox|textrm|textnormal) ?\{[^{}]*\}(?:\^ ?\{? ?[23] ?\}?)?$", ""),  # units
        (rf"\\(?:{_TEXTUAL}) ?\{{([^{{}}]*)\}}", r"\1 "),
        (r"\\frac ?([0-9a-zA-Z]) ?([0-9a-zA-Z])", r"\\frac{\1}{\2}"),
        (r"\\frac ?([0-9a-zA-Z]) ?\{", r"\\frac{\1}{"),
        (r"(\\frac ?\{[^{}]*\}) ?([0-9a-zA-Z])", r"\1{\2}"),
        (r"\\sqrt ?([0-9a-zA-Z])", r"\\sqrt{\1}"),
        (r"([\^_]) ?\{ ?([0-9a-zA-Z]) ?\}", r"\1\2"),
        (r"^\{([^{}]*)\}$", r"\1"),
        (r"\{,\}", ","),
        (r"^[A-Za-z](?:_\w|_\{\w{1,9}\})? ?= ?(?=[^=]+$)", ""),
        (r" +", " "),
        # A space is kept between letters and between digits: \pi r, no solution, 1 2.
        (r"(?<![A-Za-z\d]) |(?<=[A-Za-z]) (?![A-Za-z])|(?<=\d) (?!\d)", ""),
        (r"[.,;:!]+$", ""),
    )
)
_FRACTION = re.compile(r"(-?)(\d{0,18})\\frac\{(-?)(\d{1,18})\}\{(\d{1,18})\}")
_GROUPED = re.compile(r"-?\d{1,3}(?: \d{3})+(?:\.\d+)?")
_WORDS = re.compile(r"[^\W\d_]{3,}(?:[ '’-][^\W\d_]+)*")
_TEXT = TextScorer()


def normal_formula(written: str) -> str | None:
    r"""Return the normal form of one formula, or of an answer in words; None if it is empty.

    It drops dollar signs, spacing, ``\left``, ``\text``, degrees, units after a number and a leading ``x =``. A plain
    number gets its exact value as in scorer `number`; nothing else is computed: ``x+x`` is not ``2x``. Words are
    lower-cased.
    """
    if is_digest(written):
        return written
    text = " ".join(strip_control_characters(written).split())
    if len(text) > MAX_ANSWER_CHARS:
        return digest_text(text)
    normal = settle(text, _one_pass)
    return normal if says_something(normal) else None


def is_words(normal: str) -> bool:
    return _WORDS.fullmatch(normal) is not None


def _one_pass(text: str) -> str:
    if not text.isascii():
        text = _RAISED_RUN.sub(lambda run: f"^{{{''.join(_RAISED[sign] for sign in run.group())}}}", text)
        text = _LOWERED_RUN.sub(lambda run: f"_{{{''.join(_LOWERED[sign] for sign in run.group())}}}", text)
        text = strip_control_characters(unicodedata.normalize("NFKC", text.translate(_SIGNS)))
    elif "$" in text:
        text = text.replace("$", " ")
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    text = text.strip()
    if _GROUPED.fullmatch(text):
        text = text.replace(" ", "")
    number = exact_number(_FRACTION.sub(_as_quotient, text) if "\\frac" in text else text)
    if number is not None:
        return number
    return _TEXT.normalise(text) or "" if is_words(text) else text


def _as_quotient(match: re.Match[str]) -> str:
    sign, whole, other_sign, above, below = match.groups()
    if match.group() != match.string or (whole and other_sign):
        return match.group()
    if whole:
        return f"{sign}{int(whole) * int(below) + int(above)}/{below}"
    return f"{'-' if bool(sign) != bool(other_sign) else ''}{above}/{below}"

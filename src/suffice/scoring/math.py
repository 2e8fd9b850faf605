"""Scorer `math`: two formulas are the same answer when they have the same value.

Knows where a formula stands, its normal form, and that somebody may be asked for the rest; refuses to
know algebra and processes: a `MathJudge` does (`edge.math`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar, Protocol

from suffice.scoring.answer import last_announced, last_boxed_raw, last_part
from suffice.scoring.latex import is_words, normal_formula
from suffice.scoring.normal import is_digest
from suffice.scoring.number import NumberScorer

_NUMBER = NumberScorer()
_EXACT = re.compile(r"-?\d+(?:\.\d+|/\d+)?")
_SPAN = re.compile(r"\$\$([^$]{1,2000})\$\$|\$([^$\n]{1,2000})\$|\\\[(.{1,2000}?)\\\]|\\\((.{1,2000}?)\\\)", re.DOTALL)
_PROSE = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}(?:[,;:]? [A-Za-z]+)+")


class MathJudge(Protocol):
    """Says whether two formulas have the same value. It may take seconds and may not know."""

    def equivalent(self, one: str, other: str) -> bool | None:
        """Are two different normal forms the same? None: it cannot tell. Never raises."""
        ...


@dataclass(frozen=True, slots=True)
class MathScorer:
    r"""Compare formulas: first as strings, then as numbers, then by a judge that knows algebra.

    Normal form: see `scoring.latex`. Votes and streaks count normal forms, which are classes; the judge compares
    pairs, and pairs make no classes that a vote could count in one pass. So it only joins an answer to a
    reference. Two answers in different normal forms count as different, which costs savings and never EM.

    judge  asked when both differ as strings and are not both numbers; None: then they are different
    """

    name: ClassVar[str] = "math"

    judge: MathJudge | None = None

    def extract(self, text: str) -> str | None:
        r"""The formula in the last box, else in the last announcement, else in the last line.

        Of a line: its last formula between dollar signs or ``\( \)``; in prose without one, its number as `number`
        reads it; else the whole line. A last line without any gives the last number of the text.
        """
        text = last_part(text)
        boxed = last_boxed_raw(text)
        if boxed is not None and (answer := normal_formula(boxed)) is not None:
            return answer
        line = last_announced(text) or text.rstrip().rpartition("\n")[2]
        spans = [next(filter(None, found.groups())) for found in _SPAN.finditer(line[-4_000:])]
        if spans and (answer := normal_formula(spans[-1])) is not None:
            return answer
        if _PROSE.search(line) is None or not any(map(str.isdecimal, line)):
            return normal_formula(line)
        return _NUMBER.extract(text)

    def normalise(self, answer: str) -> str | None:
        """The normal form of a bare answer; a box around it is opened."""
        boxed = last_boxed_raw(answer)
        inside = None if boxed is None else normal_formula(boxed)
        return normal_formula(answer) if inside is None else inside

    def quick(self, answer: str | None, gold: str) -> bool | None:
        """What strings and numbers say alone, in microseconds; None: only the judge can tell.

        answer, gold  in normal form or not
        """
        mine = None if answer is None else self.normalise(answer)
        other = mine if answer == gold else self.normalise(gold)
        if mine is None or other is None:
            return False
        if mine == other:
            return True
        is_clear = any(is_words(one) or is_digest(one) for one in (mine, other))
        return False if is_clear or all(_EXACT.fullmatch(one) for one in (mine, other)) else None

    def match(self, answer: str | None, gold: str) -> bool:
        """Is `answer` the reference? None never is. It may wait for the judge: not on an event loop."""
        verdict = self.quick(answer, gold)
        if verdict is not None or self.judge is None or answer is None:
            return verdict is True
        one, other = sorted(str(self.normalise(text)) for text in (answer, gold))  # so it is symmetric
        return self.judge.equivalent(one, other) is True

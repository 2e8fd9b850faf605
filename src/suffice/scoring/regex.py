"""Scorer `regex`: the answer stands where a pattern says.

Knows the owner's pattern; refuses patterns that could take more than linear time (`scoring.pattern`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from suffice.errors import ConfigError
from suffice.scoring.pattern import BadPattern, Pattern, compile_pattern
from suffice.scoring.spec import Comparer, check_flag, check_text
from suffice.scoring.text import TextScorer


@dataclass(frozen=True, slots=True)
class RegexScorer:
    """Find the answer by a pattern and compare it by another scorer.

    pattern      as `scoring.pattern` reads it; the group named `answer` counts, else the first one, else the
                 whole match; of several matches the last one. Only the last 4,000 characters are searched
    ignore_case  do capitals and small letters match each other?
    compare      a scorer's name or table: normal form and comparison of what was found
    """

    name: ClassVar[str] = "regex"

    pattern: str
    ignore_case: bool = False
    compare: Comparer = field(default_factory=TextScorer)
    _pattern: Pattern = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Read the pattern. Raises ConfigError."""
        check_text("scorer.pattern", self.pattern)
        check_flag("scorer.ignore_case", self.ignore_case)
        try:
            compiled = compile_pattern(self.pattern, ignore_case=self.ignore_case)
        except BadPattern as error:
            raise ConfigError(f"scorer.pattern: {error}") from None
        object.__setattr__(self, "_pattern", compiled)

    def extract(self, text: str) -> str | None:
        """The normal form of what the pattern finds last; None: it finds nothing, or no answer."""
        found = self._pattern.last(text)
        return None if found is None else self.compare.normalise(found)

    def normalise(self, answer: str) -> str | None:
        """The normal form of a bare answer. The pattern is not asked: a reference stands alone."""
        return self.compare.normalise(answer)

    def match(self, answer: str | None, gold: str) -> bool:
        """Is `answer` the reference? None never is."""
        return self.compare.match(answer, gold)

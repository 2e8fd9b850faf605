"""What a scorer is, and the table of all of them. The only yardstick of Exact Match.

Knows the protocol and the names; refuses to know any answer format (one file for each) and any
label: a scorer compares two answers, it never decides who is right.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Protocol

from suffice.errors import ConfigError
from suffice.scoring.choice import ChoiceScorer
from suffice.scoring.number import NumberScorer
from suffice.scoring.text import TextScorer


class Scorer(Protocol):
    """One way to read an answer and to compare it.

    Holds for every scorer and every string: no method raises, time is linear, `normalise` is
    idempotent, and what `extract` returns is already normal and can be encoded as UTF-8.
    """

    name: str

    def extract(self, text: str) -> str | None:
        """The normalised answer in a model's text; None: there is no answer in it."""
        ...

    def normalise(self, answer: str) -> str | None:
        """The normal form of a bare answer, such as a reference; None: it is no answer."""
        ...

    def match(self, answer: str | None, gold: str) -> bool:
        """Is `answer` the reference, both in normal form? None never matches."""
        ...


SCORERS: dict[str, Callable[..., Scorer]] = {
    "choice": ChoiceScorer,
    "number": NumberScorer,
    "text": TextScorer,
}


def build_scorer(name: str) -> Scorer:
    """The scorer of that name. Raises ConfigError with the known names."""
    if name not in SCORERS:
        near = difflib.get_close_matches(name[:100], SCORERS, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ConfigError(f"scorer: unknown name {name!r:.100}; {hint}known: {', '.join(sorted(SCORERS))}")
    return SCORERS[name]()

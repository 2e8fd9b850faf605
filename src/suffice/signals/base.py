"""What a fold is, and the table of all of them.

A fold reads the steps of one run in order, keeps a small state, and fills some fields of `Signals`.
This file knows the names that a policy may put into its `needs`; it refuses to know policies,
thresholds and where steps come from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from suffice.signals.confidence import Confidence
from suffice.signals.stability import Stability
from suffice.signals.text import Hedges, Loops
from suffice.signals.votes import Votes
from suffice.types import Step

ALWAYS_FILLED = ("step", "tokens_used", "answer")  # by the observer, whatever folds run


class Fold(Protocol):
    """A small state that grows with each step of one run.

    Holds for every fold: it never raises, its values depend on the steps alone, a step costs time in
    its own length, and no two folds fill the same field.
    """

    fields: tuple[str, ...]  # of Signals, filled by this fold alone

    def update(self, step: Step) -> None:
        """Take the next step in."""
        ...

    def values(self) -> Mapping[str, int | float | None]:
        """One value for each of `fields`; None: unknown at this step."""
        ...


FOLDS: dict[str, Callable[..., Fold]] = {
    "confidence": Confidence,
    "hedges": Hedges,
    "loops": Loops,
    "stability": Stability,
    "votes": Votes,
}

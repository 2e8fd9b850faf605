"""Two groups of runs compared class by class: a mean over all may say the opposite of every class (Simpson).

Audits are compared with themselves, so their mean drop is a weighted mean of those of the classes and cannot lie like
this, though gains can still hide harm (`guard`). Stopped runs against full ones, or two arms, are different questions:
if one side has more of the easy ones, it looks better and is worse. Standardised to one mix of classes, it is not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from suffice.assurance.ledger import KNOWN_AUDITS


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """Labelled runs of one class on both sides."""

    query_class: str
    n_full: int
    n_full_right: int
    n_stopping: int        # of the side that stops, whether this run was stopped or not
    n_stopping_right: int

    @property
    def n(self) -> int:
        """Runs of this class, both sides."""
        return self.n_full + self.n_stopping

    @property
    def known(self) -> bool:
        """Are there runs enough on both sides to compare them?"""
        return min(self.n_full, self.n_stopping) >= KNOWN_AUDITS

    @property
    def drop(self) -> float | None:
        """EM(full) - EM(stopping) in this class; None: one side has no runs."""
        if not self.n_full or not self.n_stopping:
            return None
        return self.n_full_right / self.n_full - self.n_stopping_right / self.n_stopping


@dataclass(frozen=True, slots=True, kw_only=True)
class Standardised:
    """The same comparison made twice. Believe the second."""

    pooled_drop: float | None        # all runs of one side against all of the other
    standardised_drop: float | None  # drops of the classes, weighted by their part of all runs; None: not for each
    harmed: tuple[str, ...]          # known classes that lose more than the margin
    unknown: tuple[str, ...]         # classes with under 200 runs on a side

    @property
    def misleading(self) -> bool:
        """Does the pooled number promise a gain, or no loss, where the classes lose?"""
        pooled, true = self.pooled_drop, self.standardised_drop
        return pooled is not None and true is not None and pooled <= 0 < true


def standardise(cells: Sequence[Cell], *, margin: float = 0.0) -> Standardised:
    """Compare both sides over all runs, and over the classes as they are mixed in all runs together.

    margin  EM that a class may lose, a fraction; point estimates are compared, no interval is made
    """
    everything = Cell(
        query_class="", n_full=sum(cell.n_full for cell in cells),
        n_full_right=sum(cell.n_full_right for cell in cells), n_stopping=sum(cell.n_stopping for cell in cells),
        n_stopping_right=sum(cell.n_stopping_right for cell in cells),
    )  # fmt: skip
    filled = [cell for cell in cells if cell.n]
    drops = [(cell, cell.drop) for cell in filled]
    weighted = [cell.n * drop for cell, drop in drops if drop is not None]
    complete = filled and len(weighted) == len(filled)
    return Standardised(
        pooled_drop=everything.drop,
        standardised_drop=sum(weighted) / everything.n if complete else None,
        harmed=tuple(cell.query_class for cell, drop in drops if cell.known and drop is not None and drop > margin),
        unknown=tuple(cell.query_class for cell in cells if not cell.known),
    )

"""Groups of runs compared class by class: a mean over all may say the opposite of every class (Simpson).

Audits are compared with themselves, so their mean drop is a weighted mean of those of the classes and cannot lie like
this, though gains can still hide harm (`guard`). Stopped runs against full ones, or two arms, are different questions:
if one side has more of the easy ones, it looks better and is worse. Standardised to one mix of classes, it is not.

Audits of the past speak of the past mix of classes. `post_stratify` weights them to the present one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist
from typing import Final

from suffice.assurance.ledger import KNOWN_AUDITS

MIN_STRATUM: Final = 20  # audits of a class; smaller classes are taken together
POST_CONFIDENCE: Final = 0.99  # of the lower bound: it is looked at again and again


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """Labelled runs of one class on both sides."""

    query_class: str
    n_full: int
    n_full_right: int
    n_stopping: int  # of the side that stops, whether this run was stopped or not
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
class StandardisedDrop:
    """The same comparison made twice. Believe the second."""

    pooled_drop: float | None  # all runs of one side against all of the other
    standardised_drop: float | None  # drops of the classes, weighted by their part of all runs; None: not for each
    harmed: tuple[str, ...]  # known classes that lose more than the margin
    unknown: tuple[str, ...]  # classes with under 200 runs on a side

    @property
    def misleading(self) -> bool:
        """Does the pooled number promise a gain, or no loss, where the classes lose?"""
        pooled, true = self.pooled_drop, self.standardised_drop
        return pooled is not None and true is not None and pooled <= 0 < true


def standardise(cells: Sequence[Cell], *, margin: float = 0.0) -> StandardisedDrop:
    """Compare both sides over all runs, and over the classes as they are mixed in all runs together.

    margin  EM that a class may lose, a fraction; point estimates are compared, no interval is made
    """
    everything = Cell(
        query_class="",
        n_full=sum(cell.n_full for cell in cells),
        n_full_right=sum(cell.n_full_right for cell in cells),
        n_stopping=sum(cell.n_stopping for cell in cells),
        n_stopping_right=sum(cell.n_stopping_right for cell in cells),
    )
    filled = [cell for cell in cells if cell.n]
    drops = [(cell, cell.drop) for cell in filled]
    weighted = [cell.n * drop for cell, drop in drops if drop is not None]
    complete = filled and len(weighted) == len(filled)
    return StandardisedDrop(
        pooled_drop=everything.drop,
        standardised_drop=sum(weighted) / everything.n if complete else None,
        harmed=tuple(cell.query_class for cell, drop in drops if cell.known and drop is not None and drop > margin),
        unknown=tuple(cell.query_class for cell in cells if not cell.known),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcomes:
    """The audits of one class at one level."""

    n: int
    n_gained: int  # Z = -1
    n_lost: int  # Z = +1


@dataclass(frozen=True, slots=True, kw_only=True)
class PostStratifiedDrop:
    """The drop of a mix of classes, from audits of another mix."""

    drop: float  # fraction, of the classes that audits know
    low: float  # lower confidence bound of the drop, at least 0
    unseen: float  # part of the mix in classes without audits, [0, 1]; 1: nothing is known and the drop is 0

    def alarm(self, max_em_drop: float) -> str | None:
        """Say that the present mix loses more than the budget, or None."""
        if self.low <= max_em_drop:
            return None
        return f"audits lose more than the budget at the present mix of classes: {100 * self.drop:.1f} points"


def post_stratify(
    audits: Mapping[str, Outcomes], mix: Mapping[str, float], *, confidence: float = POST_CONFIDENCE
) -> PostStratifiedDrop:
    """Estimate the drop of recent traffic from audits and from the class mix of that traffic.

    The drops of the classes are weighted with their shares of the mix (Holt and Smith 1979, JRSS A 142(1)). Classes
    with fewer than MIN_STRATUM audits form one class. Classes without audits cannot be estimated: they are taken to be
    like the others, and `unseen` says how much that is. The bound is the gamma interval of Fay and Feuer (1997,
    Statistics in Medicine 16, 791-801) with the variance of losses and gains, its quantile by Wilson and Hilferty
    (1931). It holds for one look and weights that are known.

    audits      by class
    mix         weight of each class in recent traffic, at least 0; need not sum to 1
    confidence  of the one-sided bound, in (0.5, 1)
    """
    total = sum(mix.values())
    if not total > 0 or min(mix.values()) < 0 or not 0.5 < confidence < 1:
        raise ValueError(f"need a mix with weights and 0.5 < confidence < 1; got {mix=} {confidence=}")
    names = set(audits) | set(mix)
    small = {name for name in names if name not in audits or audits[name].n < MIN_STRATUM}
    groups = [{name} for name in names - small] + [small]
    mean = variance = unseen = 0.0
    for group in groups:
        weight = sum(mix.get(name, 0.0) for name in group) / total
        found = [audits[name] for name in group if name in audits]
        n = sum(one.n for one in found)
        if not n:
            unseen += weight
            continue
        n_lost, n_gained = sum(one.n_lost for one in found), sum(one.n_gained for one in found)
        mean += weight * (n_lost - n_gained) / n
        variance += (weight / n) ** 2 * (n_lost + n_gained)
    if unseen >= 1 or mean <= 0:
        return PostStratifiedDrop(drop=mean / (1 - unseen) if unseen < 1 else 0.0, low=0.0, unseen=min(1.0, unseen))
    nine = 9 * mean * mean / variance
    root = 1 - 1 / nine - NormalDist().inv_cdf(confidence) / sqrt(nine)
    return PostStratifiedDrop(drop=mean / (1 - unseen), low=mean / (1 - unseen) * max(0.0, root) ** 3, unseen=unseen)

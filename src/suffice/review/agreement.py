"""Agreement between reviewers, EM of delivered answers by review, and the effect of one verdict."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import log, sqrt
from statistics import NormalDist
from typing import Final

import numpy as np

from suffice.arrays import Floats
from suffice.assurance.estimate import IntervalEstimate
from suffice.review.items import ControlDraw
from suffice.review.queue import ItemState, Queue
from suffice.types import Feedback

CONFIDENCE: Final = 0.95  # of every interval
LEAST_ITEMS: Final = 20  # below this, a large-sample interval is too narrow


@dataclass(frozen=True, slots=True, kw_only=True)
class Kappa:
    value: float | None  # None: all verdicts are equal, which chance alone would explain
    low: float | None  # ends of the interval; None: too few items
    high: float | None
    observed: float  # share of pairs of verdicts that are equal
    n_items: int


def fleiss(counts: Sequence[Sequence[int]]) -> Kappa:
    """Fleiss' kappa of any number of raters, who may differ between items, with its large-sample interval.

    Fleiss (1971), Psychol. Bull. 76(5); standard error after Gwet (2021), Educ. Psychol. Meas. 81(4), which does not
    assume that the raters agree by chance alone.

    counts  verdicts by item (rows) and category (columns), of at least one item; at least two for each
    """
    table = np.array(counts, dtype=np.float64)
    raters = table.sum(axis=1)
    same: Floats = (table * (table - 1)).sum(axis=1) / (raters * (raters - 1))
    shares: Floats = (table / raters[:, np.newaxis]).mean(axis=0)
    observed = float(same.mean())
    chance = float(shares @ shares)
    n = len(table)
    if 1 - chance < 1e-12:
        return Kappa(value=None, low=None, high=None, observed=observed, n_items=n)
    value = (observed - chance) / (1 - chance)
    low = None
    high = None
    if n >= LEAST_ITEMS:
        each = (same - chance) / (1 - chance)
        by_chance = (table / raters[:, np.newaxis]) @ shares
        moved = each - 2 * (1 - value) * (by_chance - chance) / (1 - chance)
        error = sqrt(float(((moved - value) ** 2).sum()) / (n * (n - 1)))
        radius = NormalDist().inv_cdf((1 + CONFIDENCE) / 2) * error
        low, high = max(-1.0, value - radius), min(1.0, value + radius)
    return Kappa(value=value, low=low, high=high, observed=observed, n_items=n)


def agreement(places: Iterable[ItemState]) -> Kappa | None:
    """Fleiss' kappa of the independent verdicts; None: no item has two."""
    judged = [place for place in places if len(place.verdicts) >= 2 and len(place.independent) >= 2]
    categories = [[one.category for one in place.independent] for place in judged]
    names = sorted({category for one in categories for category in one})
    return fleiss([[one.count(name) for name in names] for one in categories]) if categories else None


METHOD = "control share, weighted by its odds; Hoeffding"


def reviewed_correctness(queue: Queue, episode_id: str) -> bool | None:
    """Whether the delivered answer was right, by its reviewers' verdicts; None: not known (yet)."""
    place = queue.places.get(episode_id)
    resolution = None if place is None else place.resolution
    if place is None or resolution is None:
        return None
    return resolution.early_right if place.item.shows == "early" else resolution.full_right


def em_of(queue: Queue, route: str) -> IntervalEstimate | None:
    """EM of all delivered answers, from draws without an open item, as easy ones are settled first; None: none."""
    drawings = queue.drawings.get(route, ())
    judged = ((one, [reviewed_correctness(queue, name) for name in one.drawn]) for one in drawings)
    return estimate_em(judged)


def estimate_em(drawings: Iterable[tuple[ControlDraw, list[bool | None]]]) -> IntervalEstimate | None:
    """Estimate EM from draws and the known correctness of each drawn run.

    The interval is Hoeffding's (1963, JASA 58(301), eq. 2.3 and section 6 for draws without replacement): with strata
    of n_h of N runs and k_h draws, the radius is sqrt(log(2/alpha)/2 * sum (n_h/N)^2 / k_h). It holds for every number
    of draws, and one look at it.
    """
    whole, n_pending = [], 0
    for drawing, right in drawings:
        if not drawing.drawn:
            continue
        known = [one for one in right if one is not None]
        if len(known) < len(drawing.drawn):
            n_pending += 1
        else:
            whole.append((drawing.n_candidates, known))
    n_runs = sum(n for n, _ in whole)
    if not n_runs:
        return None
    value = sum(n / n_runs * sum(known) / len(known) for n, known in whole)
    spread = sum((n / n_runs) ** 2 / len(known) for n, known in whole)
    radius = sqrt(log(2 / (1 - CONFIDENCE)) / 2 * spread)
    return IntervalEstimate(
        value=value,
        low=max(0.0, value - radius),
        high=min(1.0, value + radius),
        n=sum(len(known) for _, known in whole),
        method=METHOD,
        note=f"{n_pending} drawings wait for reviewers and are left out" if n_pending else None,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelEffect:
    n_audits: int  # that count
    n_pending: int  # of them, unlabelled with a disagreement at an eligible level
    level: int  # that these audits certify; 0 never stops
    n_missing: int | None  # audits to the next level, at the rates observed; None: not known, or there is no next level
    em: IntervalEstimate | None  # of delivered answers, from the random control share; None: no completed draw


@dataclass(frozen=True, slots=True, kw_only=True)
class VerdictEffect:
    item: str
    route: str
    label: Feedback | None  # from the verdicts; None: none yet
    before: LabelEffect
    after: LabelEffect
    active_level: int  # as published; the worker looks at every hundredth request of the route
    is_drawn: bool  # from the random control share, which alone affects the EM estimate
    in_window: bool  # whether the run is among the audits that certify now
    waits: bool = False  # nothing is learned in this epoch yet, so the label has no effect until then

    @property
    def sentence(self) -> str:
        if self.label is None:
            return "it has no label yet, so nothing has changed"
        if self.waits:
            return f"nothing is learned in this epoch yet, and the label is read when something is; {self._em()}"
        parts = [] if self.in_window else ["the run is not among the audits that certify now"]
        parts += [_pending(self.before, self.after), _missing(self.before, self.after)]
        if self.after.level == self.before.level:
            parts.append(f"level {self.after.level} as before")
        else:
            parts.append(f"the audits certify level {self.after.level} instead of {self.before.level}")
            parts.append(f"{self.active_level} stays active until the worker evaluates it")
        return "; ".join([*parts, self._em()])

    def _em(self) -> str:
        if not self.is_drawn:
            return "picked on purpose, so the estimate of EM does not read it"
        before, after = self.before.em, self.after.em
        if after is None:
            return "the estimate of EM waits for the rest of its drawing"
        now = f"{after.value:.1%} [{after.low or 0:.1%}, {after.high or 0:.1%}]"
        return f"EM of delivered answers is {now}" + (f", before {before.value:.1%}" if before is not None else "")


def _pending(before: LabelEffect, after: LabelEffect) -> str:
    if before.n_pending == after.n_pending:
        return f"{after.n_pending:,} disagreements without a label, as before"
    return f"{before.n_pending:,} → {after.n_pending:,} disagreements without a label, each of which counts as lost"


def _missing(before: LabelEffect, after: LabelEffect) -> str:
    def count(n: int | None) -> str:
        return "no number of" if n is None else f"{n:,}"

    if before.n_missing is None and after.n_missing is None:
        return "no next level in reach, as before"
    if before.n_missing == after.n_missing:
        return f"{count(after.n_missing)} audits to the next level, as before"
    return f"{count(before.n_missing)} → {count(after.n_missing)} audits to the next level"

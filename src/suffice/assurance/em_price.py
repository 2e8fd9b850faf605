"""The price of EM in satisfaction: how much less people like an answer because it is wrong, or because it was stopped.

Runs that have both a rating and a label of correctness are compared within their query class by least squares, with
standard errors that hold for unequal variances (White 1980, Econometrica 48(4)). It is the price only as far as people
who differ in nothing but the answer would rate so: what else makes hard questions unpopular is a class's own mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import floor, sqrt
from statistics import NormalDist
from typing import Final, NamedTuple

import numpy as np

from suffice.assurance.estimate import IntervalEstimate
from suffice.assurance.label_propensity import covariates

LEAST_RUNS: Final = 100  # with a rating and a label
LEAST_WRONG: Final = 20  # of them, and as many right
METHOD: Final = "least squares within query classes, robust standard errors, for one look"


class RatedRun(NamedTuple):
    query_class: str
    satisfaction: float  # [0, 1]
    correct: bool
    full: bool  # it ran in full by design
    stopped: bool
    weight: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EMPrice:
    n: int  # runs
    per_point: IntervalEstimate  # points of satisfaction lost with each lost point of EM
    by_stop: IntervalEstimate | None  # lost by a stop whose answer is as right, a fraction; None: no stop, or all
    full: float  # mean satisfaction of full runs, a fraction

    def affordable_drop(self, least_satisfaction: float) -> float | None:
        """The largest EM drop, in tenths of a point, that keeps the floor by the cautious ends; None: unknown."""
        low, high = self.per_point.low, self.per_point.high
        if low is None or high is None or low <= 0:
            return None
        by_stop = 0.0 if self.by_stop is None or (self.by_stop.low or 0.0) <= 0 else self.by_stop.high or 0.0
        drop = floor(1_000 * (self.full - by_stop - least_satisfaction) / high + 1e-9) / 1_000
        return min(drop, 1.0) if drop > 0 else None

    @property
    def sentence(self) -> str:
        one = self.per_point
        if one.low is None or one.high is None or one.low <= 0:
            return f"what a lost point of EM costs in satisfaction is not known from {self.n:,} rated and labelled runs"
        return (
            f"a lost point of EM costs {one.value:.2f} points of satisfaction here, between {one.low:.2f} and"
            f" {one.high:.2f} (from {self.n:,} rated and labelled runs)"
        )


def em_price(runs: Sequence[RatedRun], *, confidence: float = 0.95) -> EMPrice | None:
    """Estimate the price; None: too few runs.

    confidence  of each interval by itself, in (0, 1)
    """
    full = [run for run in runs if run.full]
    n_wrong = sum(not run.correct for run in runs)
    if len(runs) < LEAST_RUNS or min(n_wrong, len(runs) - n_wrong) < LEAST_WRONG or not full:
        return None
    classes = covariates([run.query_class for run in runs], np.zeros((len(runs), 0)))
    wrong, stopped = np.array([(not run.correct, run.stopped) for run in runs], dtype=np.float64).T
    has_both = 0 < stopped.sum() < len(runs)
    x = np.column_stack([wrong, *([stopped] if has_both else []), classes])
    y, weight = np.array([(run.satisfaction, run.weight) for run in runs], dtype=np.float64).T
    inverse = np.linalg.pinv((x * weight[:, np.newaxis]).T @ x)
    slope = inverse @ (x.T @ (weight * y))
    away = (weight * (y - x @ slope))[:, np.newaxis] * x
    variance = inverse @ (away.T @ away) @ inverse * len(x) / max(1, len(x) - np.linalg.matrix_rank(x))
    z = NormalDist().inv_cdf((1 + confidence) / 2)

    def loss(at: int) -> IntervalEstimate:
        value, radius = -float(slope[at]), z * sqrt(max(0.0, float(variance[at, at])))
        return IntervalEstimate(value=value, low=value - radius, high=value + radius, n=len(runs), method=METHOD)

    mean = sum(run.weight * run.satisfaction for run in full) / sum(run.weight for run in full)
    return EMPrice(n=len(runs), per_point=loss(0), by_stop=loss(1) if has_both else None, full=mean)

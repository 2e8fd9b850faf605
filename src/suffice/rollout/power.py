"""What an experiment can find, before it starts: the difference that its plan finds in four of five experiments."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist, stdev
from typing import Final

from suffice.assurance.planned import SHARE, planned_quantile
from suffice.rollout.analysis import FOR_WHOLE, alphas
from suffice.rollout.experiment import RunningExperiment
from suffice.rollout.results import metric_of

POWER: Final = 0.8
LEAST_VALUES: Final = 20  # of the metric, from which its spread is estimated


@dataclass(frozen=True, slots=True, kw_only=True)
class RecentRuns:
    """Recent live runs of an experiment's routes."""

    n_runs: int  # with rows in the log
    n_units: float  # that they belong to, unlogged requests included; 0: unknown
    days: float  # from the first to the last
    values: tuple[float, ...]  # of the primary metric


@dataclass(frozen=True, slots=True, kw_only=True)
class Power:
    metric: str
    planned_units: int
    difference: float | None  # found with 80 % power at the plan, without covariates; None: unknown
    mean: float | None  # of the metric now
    days: float | None  # until the plan is complete, at the present rate; None: unknown

    @property
    def sentence(self) -> str:
        metric, size = metric_of(self.metric), self.difference
        when = "" if self.days is None else f", in about {self.days:,.1f} days at the present rate"
        if size is None:
            why = f"recent runs have fewer than {LEAST_VALUES} values of it"
            plan = f"the plan of {self.planned_units:,} units is complete{when}"
            return f"{plan}; what it finds in {self.metric} is unknown, because {why}"
        part = "" if metric.high is not None or not self.mean else f" ({size / self.mean:.0%})"
        where = "" if metric.margin == self.metric else f" in {self.metric}"
        effect = f"a difference of {metric.size(size)} {metric.margin}{part}{where} with {POWER:.0%} power"
        return f"with {self.planned_units:,} units it finds {effect}{when}; known covariates make it smaller"


def power_of(one: RunningExperiment, recent: RecentRuns) -> Power:
    days = None
    if recent.days > 0 and recent.n_units:
        days = one.planned_units / (recent.n_units / recent.days * one.share)
    known = len(recent.values) >= LEAST_VALUES
    return Power(
        metric=one.primary,
        planned_units=one.planned_units,
        difference=_difference(one, recent) if known else None,
        mean=sum(recent.values) / len(recent.values) if known else None,
        days=days,
    )


def _difference(one: RunningExperiment, recent: RecentRuns) -> float:
    """For the smallest arm; the half of the interval at the plan, and what the effect varies by."""
    odds = one.odds()
    least = min(share for arm, share in odds.items() if arm != one.control and share > 0)
    valued = min(1.0, len(recent.values) / recent.n_runs)
    n = max(1.0, (one.planned_units - one.warmup_units) * valued)
    error = stdev(recent.values) * sqrt((1 / least + 1 / odds[one.control]) / n)
    end = alphas(one)[one.primary] * FOR_WHOLE * SHARE / 2
    return (planned_quantile(end) + NormalDist().inv_cdf(POWER)) * error

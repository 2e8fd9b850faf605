"""What a replay as traffic found: one record a seed, one a set. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from suffice.assurance.bounds import Interval, exact_binomial
from suffice.learn.audits import Floats
from suffice.types import Promise

TOO_SMALL_ROWS, TOO_SMALL_QUESTIONS = 1_000, 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """One stream over time, in blocks of requests; each tuple has one number a block."""

    requests: tuple[int, ...]  # requests so far, at the block's end
    level: tuple[float, ...]  # in force, as part of the most aggressive one
    reduction: tuple[float, ...]  # token reduction of the block
    drop: tuple[float, ...]  # mean EM drop of the block
    audits: tuple[float, ...]  # part of the block that was audited
    alarms: tuple[tuple[int, str], ...]  # request, reason
    bursts: tuple[tuple[int, int], ...]  # first request, end


@dataclass(frozen=True, slots=True, kw_only=True)
class Seed:
    """What one stream came to; rates are fractions."""

    seed: int
    n: int
    reduction: float
    reduction_late: float  # second half; with `disjoint` the other half of the questions
    reduction_late_free: float  # … without probes
    drop_late: float  # EM drop of all requests of the second half, audits as 0
    audits: int
    alarms: int
    alarm_delay: int | None  # requests from the drift to the first alarm; None: none came, or no drift
    false_alarms: int | None  # before the drift; None: there is none
    recovery: int | None  # requests from the drift until the deployed level keeps the budget for good
    loss_above_budget: float | None  # after the drift, of all requests that were no audits; points x requests
    course: Course


@dataclass(frozen=True, slots=True, kw_only=True)
class OnlineReport:
    """What all streams of one set came to."""

    set: str
    max_em_drop: float
    confidence: float
    n_rows: int
    n_questions: int
    seeds: tuple[Seed, ...]
    resampled: bool = False
    disjoint: bool = False
    drift: str | None = None
    drift_at: int | None = None  # request
    warm_up: int = 0
    promise: Promise = "certified"

    @property
    def too_small(self) -> bool:
        """Is the set too small to certify?"""
        return self.n_rows < TOO_SMALL_ROWS or self.n_questions < TOO_SMALL_QUESTIONS

    @property
    def n_violations(self) -> int:
        """Seeds whose EM drop in the second half exceeds the budget."""
        return sum(one.drop_late > self.max_em_drop for one in self.seeds)

    @property
    def violations_interval(self) -> Interval:
        """Of the share of such seeds, exact, 95 %; seeds reorder the same rows, so it is no more than a guide."""
        return exact_binomial(self.n_violations, len(self.seeds), 0.95)

    def mean(self, field: str) -> float:
        """Mean of a figure over the seeds."""
        return float(self.values(field).mean())

    def values(self, field: str) -> Floats:
        """A figure of each seed that has it."""
        known = [getattr(one, field) for one in self.seeds if getattr(one, field) is not None]
        return np.array(known, dtype=np.float64)

    def median(self, field: str) -> float | None:
        """Median over the seeds that have the figure; None: none has."""
        known = self.values(field)
        return float(np.median(known)) if len(known) else None

    @property
    def recovery(self) -> float | None:
        """Requests after a drift until the budget is kept for good, median; None: half of the seeds never come back."""
        known = [np.inf if one.recovery is None else one.recovery for one in self.seeds]
        middle = float(np.median(known))
        return middle if np.isfinite(middle) else None

    @property
    def loss_above_budget(self) -> float | None:
        """Points of EM above the budget times the requests that met them, after a drift, mean; None: not known."""
        return self._mean_known("loss_above_budget")

    @property
    def false_alarms(self) -> float | None:
        """Alarms of a stream before a drift, mean; None: not known."""
        return self._mean_known("false_alarms")

    def _mean_known(self, field: str) -> float | None:
        known = self.values(field)
        return float(known.mean()) if len(known) else None

    def plain(self) -> dict[str, object]:
        """The JSON object of the set."""
        ends = self.violations_interval
        found: dict[str, object] = {
            "set": self.set,
            "max_em_drop": self.max_em_drop,
            "confidence": self.confidence,
            "seeds": len(self.seeds),
            "token_reduction": self.mean("reduction"),
            "token_reduction_second_half": self.mean("reduction_late"),
            "em_drop_second_half": self.mean("drop_late"),
            "violations": self.n_violations / len(self.seeds),
            "violations_interval": [ends.low, ends.high],
            "token_reduction_second_half_without_probes": self.mean("reduction_late_free"),
            "n_requests": self.seeds[0].n,
            "n_rows": self.n_rows,
            "n_questions": self.n_questions,
            "too_small": self.too_small,
            "resampled": self.resampled,
            "disjoint": self.disjoint,
            "warm_up": self.warm_up,
            "promise": self.promise,
            "audits": self.mean("audits"),
            "alarms": self.mean("alarms"),
        }
        if self.drift is not None:
            found |= {
                "drift": self.drift,
                "drift_at": self.drift_at,
                "recovery_requests": self.recovery,
                "recovered": len(self.values("recovery")) / len(self.seeds),
                "alarm_delay_requests": self.median("alarm_delay"),
                "alarmed": len(self.values("alarm_delay")) / len(self.seeds),
                "false_alarms": self.false_alarms,
                "loss_above_budget": self.loss_above_budget,
            }
        return found

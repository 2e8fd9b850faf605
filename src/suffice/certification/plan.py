"""What a certifier promises, and how much it audits for that."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from suffice.assurance.certify import restart_share
from suffice.assurance.exposure import EXPOSURES, ON_ALL, Exposure
from suffice.learn.version import N_LEVELS, Split
from suffice.types import Promise

BURST_LAW: Final = 24.0  # full runs at the start of an epoch, times the budget
HORIZON: Final = 20_000  # requests over which the full runs of a live route must pay for themselves
FIT_PART: Final = 0.5  # of the audits of a burst, at which a ramp first fits a version
BURST_PART: Final = 0.4  # of the horizon: the most full runs that pay for themselves


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The guarantee and the settings of the control loop; times in the unit of `AuditRuns.at`."""

    max_em_drop: float = 0.02  # fraction
    confidence: float = 0.95  # fraction
    promise: Promise = "certified"  # "budgeted": an average, see `certification.certificate`
    label_free: bool = False  # disagreement instead of the drop: needs no label, costs half the saving
    split: Split = "folds"
    warm_up: float = 1_000  # full runs at a cold start
    burst: float = 1_000  # full runs after an alarm; audits of a ramp's start, see `claims`
    window: int = 800  # audits of a certificate
    share: float = 0.05  # of requests that are audited in normal operation
    most_share: float = 0.5  # of requests that are audited in doubt
    free_audits: bool = True  # audit all requests while nothing is certified: they run in full anyway
    refit_every: float = 1_000
    label_timeout: float = 0.0  # after an audit's return; then it counts with or without a label
    n_levels: int = N_LEVELS
    cost_exponent: float = 0.5
    watches_signals: bool = True
    watches_outcomes: bool = True
    ramps: bool = False  # a level acts on a share of the requests as soon as it is proved for it, instead of a burst

    @property
    def exposures(self) -> tuple[Exposure, ...]:
        return EXPOSURES if self.ramps else (ON_ALL,)

    def is_learning(self, n_audits: int) -> bool:
        """Whether an epoch of a ramp with so many audits has fewer than a burst would."""
        return self.ramps and n_audits < self.burst

    @property
    def delta(self) -> float:
        return 1 - self.confidence

    def label_age(self, run_timeout: float) -> float:
        """Age at which an audit has returned, which it does within `run_timeout`, and its label is there or late."""
        return run_timeout + self.label_timeout

    def restart_share(self, n_requests: float) -> float:
        """Part of delta for an epoch that an alarm from audits begins `n_requests` after the last one began."""
        return restart_share(n_requests, window=self.window, share=self.share)


def full_runs(max_em_drop: float, horizon: float = HORIZON) -> int:
    """Requests that run in full at the start of an epoch, early so that all later ones profit from the evidence."""
    return max(1, min(round(BURST_LAW / max_em_drop), int(BURST_PART * horizon)))

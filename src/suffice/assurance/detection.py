"""Detection of drift that only audits show: when to alarm, when to audit more, and how long that takes.

    certifying audits ──▶ Reference ─┐
    audits as they return ───────────┴▶ AuditWatch ──▶ an alarm's sentence, or doubt ──▶ audit_share_in_doubt
    Reference, budget, audit share ──▶ detection_law ──▶ "a silent loss of 3 points would be noticed within …"

The reference is frozen: it is a rate among the audits that certified the first level of the epoch. A refit or a change
of level reads the rate of the new level among the same audits, so a slow ramp is never taken for the normal state.

Pure: no clock, no store, no randomness.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, log
from typing import Final

from suffice.assurance.bounds import exact_binomial
from suffice.assurance.drift import ShiryaevRoberts

RISES: Final = (1.0, 2.5, 6.0)  # of a rate above its reference, in budgets: the alternatives that are tested
THRESHOLD: Final = 200.0  # of the wealth of a rate: a guaranteed mean number of audits to a false alarm
QUANTILE: Final = 0.85  # of what the certifying audits leave possible as the normal rate
HARMLESS: Final = 0.5  # part of the budget up to which a rate is never called a rise
LARGEST_RATE: Final = 0.99  # that can be told from its alternatives
DOUBT_BEGINS: Final = 0.25  # suspicion from which audits are drawn more often …
DOUBT_ENDS: Final = 0.05  # … and at which they are not any more
DOUBT_SHARE: Final = 0.5  # of requests that are audited in doubt
LAW_FIT: Final = 0.87  # of the two delays of `detection_law`: a sum of medians is above the median of a sum
LAW_HORIZON: Final = 20_000  # requests after which a drift counts as not noticed


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """What the certifying audits showed at one level.

    Raises ValueError unless 0 <= n_disagreeing, n_lost <= n and n >= 1.
    """

    n_disagreeing: int
    n_lost: int  # audits with Z = +1
    n: int

    def __post_init__(self) -> None:
        """Refuse counts that are none."""
        if self.n < 1 or not 0 <= self.n_disagreeing <= self.n or not 0 <= self.n_lost <= self.n:
            raise ValueError(f"reference: got {self}; counts of at least one audit")


class _RateWatch:
    """An e-detector for a Bernoulli rate above `normal`: W_r <- max(1, W_r) LR_r, averaged over the alternatives r.

    The e-CUSUM of Shin, Ramdas, Rinaldo (2023), arXiv:2203.03532: while the rate is at most `normal`, an alarm comes
    on average after at least `THRESHOLD` audits, and much later in practice.
    """

    def __init__(self) -> None:
        self._wealth = (1.0,) * len(RISES)

    def expect(self, count: int, n: int, max_em_drop: float) -> None:
        """Set the normal rate from `count` of `n` certifying audits; the wealth stays."""
        normal = normal_rate(count, n, max_em_drop)  # at LARGEST_RATE all ratios are 1: no rise can be told
        rates = [min(normal + rise * max_em_drop, LARGEST_RATE) for rise in RISES]
        self._if_so = tuple(rate / normal for rate in rates)
        self._if_not = tuple((1 - rate) / (1 - normal) for rate in rates)

    @property
    def suspicion(self) -> float:
        return min(1.0, max(0.0, log(sum(self._wealth) / len(RISES)) / log(THRESHOLD)))

    def add(self, happened: bool, weight: float) -> bool:
        ratios = self._if_so if happened else self._if_not
        self._wealth = tuple(
            max(1.0, w) * (1 + weight * (ratio - 1)) for w, ratio in zip(self._wealth, ratios, strict=True)
        )
        return sum(self._wealth) >= THRESHOLD * len(RISES)


class AuditWatch:
    """Watch audits at the level in force for a drop above the budget and for a rise above the frozen reference.

    Three e-detectors: the EM drop against the budget (`ShiryaevRoberts`), the rate of disagreement and the rate of
    losses, each against what the certifying audits leave possible. While no rate is above its reference, the mean
    number of audits to a false alarm is at least THRESHOLD by construction for each rate; `tests.claims.test_detection`
    measures it in requests. After an alarm, begin an epoch and a new watch.

    max_em_drop  the budget, a fraction in (0, 1)
    reference    of the level in force
    """

    def __init__(self, *, max_em_drop: float, reference: Reference) -> None:
        self._max_em_drop = max_em_drop
        self._drop = ShiryaevRoberts(max_em_drop)
        self._disagreement, self._loss = _RateWatch(), _RateWatch()
        self._in_doubt = False
        self.rebase(reference)

    def rebase(self, reference: Reference) -> None:
        """Compare with another level from now on, counted on the same certifying audits; the evidence stays."""
        self._disagreement.expect(reference.n_disagreeing, reference.n, self._max_em_drop)
        self._loss.expect(reference.n_lost, reference.n, self._max_em_drop)

    @property
    def suspicion(self) -> float:
        """How near the alarm for a rising rate is, in [0, 1]: 0 is no sign of a rise, 1 is an alarm."""
        return max(self._disagreement.suspicion, self._loss.suspicion)

    @property
    def in_doubt(self) -> bool:
        """Is there a suspicion that audits should settle? It begins at DOUBT_BEGINS and ends at DOUBT_ENDS."""
        return self._in_doubt

    def add(self, z: int | None, disagrees: bool | None, weight: float = 1.0) -> str | None:
        """Take in one audit, in the order in which audits return; the alarm's sentence, or None.

        z          -1 the stop gained the right answer, 0 the same, +1 it lost it; None: not known (yet)
        disagrees  the stop's answer is not the full run's; None: told before, when the run returned without a label
        weight     c/rho in (0, 1] where the audit share depended on the request itself; 1 where it did not, however
                   the share moved from request to request
        """
        if not 0 < weight <= 1:
            raise ValueError(f"weight: got {weight}; in (0, 1]")
        alarm = None
        if disagrees is not None and self._disagreement.add(disagrees, weight):
            alarm = "audits disagree more often than when the level was certified"
        if z is not None:
            if self._loss.add(z == 1, weight):
                alarm = "audits lose more often than when the level was certified"
            if self._drop.add(z):
                alarm = "audits lose more than the budget"
        self._in_doubt = self.suspicion >= (DOUBT_ENDS if self._in_doubt else DOUBT_BEGINS)
        return alarm


def audit_share_in_doubt(watch: AuditWatch, base_share: float, cap: float) -> float:
    """The share of the next requests to audit: DOUBT_SHARE while the watch is in doubt, `base_share` otherwise.

    Never above `cap` in doubt, and never below `base_share`. The extra audits are evidence for the watch;
    a certificate weights them with c/rho.
    """
    return max(base_share, min(cap, DOUBT_SHARE)) if watch.in_doubt else base_share


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectionLaw:
    """How soon `AuditWatch` notices a silent loss, and what is lost until then."""

    drop: float  # above the reference, a fraction
    median_requests: int | None  # from the beginning of the loss to the alarm; None: longer than LAW_HORIZON
    lost_requests: float  # number of answers lost until then; times 100: points x requests

    def __str__(self) -> str:
        points = f"{100 * self.drop:g} point{'' if self.drop == 0.01 else 's'}"
        if self.median_requests is None:
            return f"a silent loss of {points} might not be noticed within {LAW_HORIZON:,} requests"
        about = float(f"{self.median_requests:.2g}")
        return f"a silent loss of {points} would be noticed within about {about:,.0f} requests"


def detection_law(
    drop: float, *, max_em_drop: float, reference: Reference, audit_share: float, cap: float, labels: bool = True
) -> DetectionLaw:
    """Estimate the delay of the alarm after a sudden loss that no signal shows.

    The wait for the first audit in trouble, ln 2 / (share p) requests, and then ln(THRESHOLD) / KL(p || normal) audits
    at the share in doubt, where p is the rate after the loss and normal the rate that is expected; the sum of both,
    times LAW_FIT, is within a quarter of the median in simulations (`tests.claims.test_detection`). Audits return at
    once here: add the time that a full run takes.

    drop         above the reference, a fraction in (0, 1)
    audit_share  in quiet times, in (0, 1)
    cap          of the share in doubt
    labels       False: losses are not known and disagreement alone is watched
    """
    if not 0 < drop < 1 or not 0 < audit_share < 1:
        raise ValueError(f"need 0 < drop < 1 and 0 < audit_share < 1; got {drop=} {audit_share=}")
    counts = (reference.n_disagreeing, reference.n_lost) if labels else (reference.n_disagreeing,)
    shortest = min(_delay(drop, count, reference.n, max_em_drop, audit_share, cap) for count in counts)
    requests = min(float(LAW_HORIZON), shortest)
    return DetectionLaw(
        drop=drop,
        median_requests=None if requests >= LAW_HORIZON else round(requests),
        lost_requests=drop * requests * (1 - audit_share),
    )


def _delay(drop: float, count: int, n: int, max_em_drop: float, share: float, cap: float) -> float:
    normal, p = normal_rate(count, n, max_em_drop), min(LARGEST_RATE, count / n + drop)
    if p <= normal:
        return inf
    growth = p * log(p / normal) + (1 - p) * log((1 - p) / (1 - normal))
    in_doubt = max(share, min(cap, DOUBT_SHARE))
    return LAW_FIT * (log(2) / (share * p) + log(THRESHOLD) / growth / in_doubt)


def normal_rate(count: int, n: int, max_em_drop: float) -> float:
    """The rate that is expected after `count` of `n` certifying audits; one below half the budget is never a rise."""
    found = max(exact_binomial(count, n, 2 * QUANTILE - 1).high, HARMLESS * max_em_drop)
    return min(found, LARGEST_RATE)

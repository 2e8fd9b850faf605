"""Drift detectors: compare the signals and outcomes of the traffic with those under which the level was certified.

The caller resets a detector after an alarm.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import lru_cache
from math import inf, log
from typing import Final

import numpy as np

from suffice.arrays import Floats
from suffice.assurance.bounds import exact_binomial
from suffice.assurance.certify import check_budget

SR_SHARES: Final = tuple(float(share) for share in np.geomspace(0.02, 0.9, 8))  # of the largest bet
SR_ALARM: Final = 2_000.0
_LEAST_SD: Final = 1e-9  # a feature that never moved in the reference has no sd to measure with

# --------------------------------------------------------------------------- known changes


@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint:
    """What a certificate assumes of the upstream. None: unknown, which never counts as a change."""

    model: str | None = None
    system_fingerprint: str | None = None  # of the engine and the weights, where the upstream reports it
    sampling: str | None = None  # the route's setup: prompt, temperature, top_p and so on, in one canonical text


def find_changes(before: Fingerprint, after: Fingerprint) -> tuple[str, ...]:
    """A sentence for each part that is known on both sides and differs."""
    parts = ((part.name, getattr(before, part.name), getattr(after, part.name)) for part in fields(Fingerprint))
    return tuple(
        f"{name} changed from {old!r} to {new!r}"
        for name, old, new in parts
        if old is not None and new is not None and old != new
    )


# --------------------------------------------------------------------------- signals of all traffic

BATCH: Final = 100  # requests whose signals are averaged
REFERENCE: Final = 15  # batches that define the normal state
SLACK: Final = 0.95
LIMIT: Final = 8.5


class Cusum:
    """Watch F signals of all traffic, batch by batch, for a lasting shift up or down.

    Two-sided cumulative sums (Page 1954, Biometrika 41) of batch means, standardised by the first `REFERENCE` batches.
    Slack and limit are in sd of a batch mean: the larger of the spread between the reference batches, which sees
    clusters but is imprecise (15 means know their sd to a fifth), and the spread of requests inside them.
    """

    def __init__(self, n_features: int) -> None:
        self._means: list[Floats] = []
        self._within: list[Floats] = []  # variance of each batch's mean if its requests are independent
        self.up = np.zeros(n_features)  # sums towards larger means, shape (F,)
        self.down = np.zeros(n_features)  # sums towards smaller means

    def add(self, batch: Floats) -> bool:
        """Add one batch of finite signals, shape (n, F); return True for an alarm."""
        n_features = len(self.up)
        if batch.ndim != 2 or not len(batch) or batch.shape[1] != n_features or not np.isfinite(batch).all():
            raise ValueError(f"batch: got {batch!r}; rows of {n_features} finite signals")
        mean = batch.mean(axis=0)
        if len(self._means) < REFERENCE:
            self._means.append(mean)
            self._within.append(batch.var(axis=0, ddof=1) / len(batch) if len(batch) > 1 else np.zeros_like(mean))
            return False
        usual = np.mean(self._means, axis=0)
        variance = np.maximum(np.var(self._means, axis=0, ddof=1), np.mean(self._within, axis=0))
        shift = (mean - usual) / np.maximum(np.sqrt(variance), _LEAST_SD * (1 + np.abs(usual)))
        self.up = np.maximum(0.0, self.up + shift - SLACK)
        self.down = np.maximum(0.0, self.down - shift - SLACK)
        return bool(max(self.up.max(), self.down.max()) >= LIMIT)


# --------------------------------------------------------------------------- outcomes of audits


class ShiryaevRoberts:
    """Watch the outcomes of audits at the deployed level for an EM drop above the budget.

    An e-detector: M_b <- (M_b + 1)(1 + nu_b (Z - eps)) for eight bets, alarm when their mean reaches `alarm_at`. While
    the drop is within the budget, the mean number of audits to an alarm is at least that (Shin, Ramdas, Rinaldo 2023,
    arXiv:2203.03532).
    """

    def __init__(self, max_em_drop: float, *, alarm_at: float = SR_ALARM) -> None:
        check_budget(max_em_drop)
        self._alarm_at = alarm_at
        bets = [share / (1 + max_em_drop) for share in SR_SHARES]
        self._factors = {z: tuple(1 + bet * (z - max_em_drop) for bet in bets) for z in (-1, 0, 1)}
        self.reset()

    def reset(self) -> None:
        self._sums: tuple[float, ...] = (0.0,) * len(SR_SHARES)

    @property
    def mean(self) -> float:
        return sum(self._sums) / len(self._sums)

    def add(self, z: int) -> bool:
        """Add Z of one audit (+1 the stop lost the right answer, -1 it gained it, 0 neither); True is an alarm."""
        factors = self._factors[z]
        self._sums = tuple((m + 1) * factor for m, factor in zip(self._sums, factors, strict=True))
        return self.mean >= self._alarm_at


# --------------------------------------------------------------------------- drift that only audits show
#
# The reference is frozen: a rate among the audits that certified the first level of the epoch. After a refit or a
# change of level it is the new level's rate among the same audits, so a slow ramp never becomes the normal state.

RISES: Final = (1.0, 2.5, 6.0)  # of a rate above its reference, in budgets: the alternatives that are tested
THRESHOLD: Final = 10_000.0  # of the wealth of a detector: a guaranteed mean number of audits to a false alarm
QUANTILE: Final = 0.85  # confidence of the upper bound from the certifying audits that is the normal rate
HARMLESS: Final = 0.5  # part of the budget up to which a rate is never a rise
LARGEST_RATE: Final = 0.99  # that can be distinguished from its alternatives
DOUBT_BEGINS: Final = 0.144  # suspicion from which audits are drawn more often: a wealth of 3.8
DOUBT_ENDS: Final = 0.029  # suspicion at which that ends: a wealth of 1.3
DOUBT_SHARE: Final = 0.5  # of requests that are audited in doubt
LAW_FIT: Final = 0.87  # in `detection_law`: the sum of the medians of its two delays is above the median of their sum
LAW_HORIZON: Final = 20_000  # requests after which a drift counts as not noticed


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    n_disagreeing: int
    n_lost: int  # audits with Z = +1
    n: int

    def __post_init__(self) -> None:
        if self.n < 1 or not 0 <= self.n_disagreeing <= self.n or not 0 <= self.n_lost <= self.n:
            raise ValueError(f"reference: got {self}; counts of at least one audit")


class _RateWatch:
    """An e-detector for a Bernoulli rate above `normal`: W_r <- max(1, W_r) LR_r, averaged over the alternatives r.

    The e-CUSUM of Shin, Ramdas, Rinaldo (2023), arXiv:2203.03532; mean number of audits to a false alarm >=
    `THRESHOLD`.
    """

    def __init__(self) -> None:
        self._wealth = (1.0,) * len(RISES)

    def expect(self, count: int, n: int, max_em_drop: float) -> None:
        normal = normal_rate(count, n, max_em_drop)  # at LARGEST_RATE all ratios are 1: no rise can be detected
        rates = [min(normal + rise * max_em_drop, LARGEST_RATE) for rise in RISES]
        self._if_so = tuple(rate / normal for rate in rates)
        self._if_not = tuple((1 - rate) / (1 - normal) for rate in rates)

    @property
    def suspicion(self) -> float:
        return min(1.0, max(0.0, log(sum(self._wealth) / len(RISES)) / log(THRESHOLD)))

    def add(self, happened: bool) -> bool:
        ratios = self._if_so if happened else self._if_not
        self._wealth = tuple(max(1.0, w) * ratio for w, ratio in zip(self._wealth, ratios, strict=True))
        return sum(self._wealth) >= THRESHOLD * len(RISES)


class AuditWatch:
    """Watch audits at the active level for a drop above the budget and for rates above the frozen reference.

    Three e-detectors: the EM drop against the budget (`ShiryaevRoberts`), and the rates of disagreement and of losses
    against the certifying audits. While a rate is at most its reference, its mean number of audits to a false alarm is
    at least THRESHOLD, as it is for the drop at the budget; `tests.claims.test_detection` measures it in requests.
    After an alarm, begin an epoch and a new watch.
    """

    def __init__(self, *, max_em_drop: float, reference: Reference) -> None:
        self._max_em_drop = max_em_drop
        self._drop = ShiryaevRoberts(max_em_drop, alarm_at=THRESHOLD)
        self._disagreement, self._loss = _RateWatch(), _RateWatch()
        self.in_doubt = False
        self.rebase(reference)

    def rebase(self, reference: Reference, *, max_em_drop: float | None = None) -> None:
        """Expect the rates of this reference from now on, and at most this drop; None: as before."""
        if max_em_drop is not None and max_em_drop != self._max_em_drop:
            self._max_em_drop = max_em_drop
            self._drop = ShiryaevRoberts(max_em_drop, alarm_at=THRESHOLD)
        self._disagreement.expect(reference.n_disagreeing, reference.n, self._max_em_drop)
        self._loss.expect(reference.n_lost, reference.n, self._max_em_drop)

    @property
    def suspicion(self) -> float:
        """Nearness of the alarm for a rising rate, in [0, 1]; 1 is an alarm."""
        return max(self._disagreement.suspicion, self._loss.suspicion)

    def add(self, z: int | None, disagrees: bool | None) -> str | None:
        """Add one audit, in the order in which audits return; return the alarm's sentence or None.

        z          +1: the stop lost the right answer, -1: it gained it, 0: the same; None: not known (yet)
        disagrees  the stop's answer differs from the full run's; None: already added, when the run returned unlabelled
        """
        alarm = None
        if disagrees is not None and self._disagreement.add(disagrees):
            alarm = "audits disagree more often than when the level was certified"
        if z is not None:
            if self._loss.add(z == 1):
                alarm = "audits lose more often than when the level was certified"
            if self._drop.add(z):
                alarm = "audits lose more than the budget"
        self.in_doubt = self.suspicion >= (DOUBT_ENDS if self.in_doubt else DOUBT_BEGINS)
        return alarm


def share_in_doubt(share: float, cap: float) -> float:
    """DOUBT_SHARE, at most `cap`, and never below the usual share. Certificates weight extra audits with c/rho."""
    return max(share, min(cap, DOUBT_SHARE))


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectionLaw:
    drop: float  # above the reference, a fraction
    median_requests: int | None  # from the beginning of the loss to the alarm; None: longer than LAW_HORIZON

    def __str__(self) -> str:
        points = f"{100 * self.drop:g} point{'' if self.drop == 0.01 else 's'}"
        if self.median_requests is None:
            return f"a silent loss of {points} might not be noticed within {LAW_HORIZON:,} requests"
        about = float(f"{self.median_requests:.2g}")
        return f"a silent loss of {points} would be noticed within about {about:,.0f} requests"


@lru_cache(maxsize=1_024)
def detection_law(
    drop: float, *, max_em_drop: float, reference: Reference, audit_share: float, cap: float, labels: bool = True
) -> DetectionLaw:
    """Estimate the median delay of the alarm after a sudden loss that no signal shows.

    LAW_FIT times the sum of the wait for the first affected audit, ln 2 / (share p) requests, and of ln(THRESHOLD) /
    KL(p || normal) audits at the share in doubt (at most `cap`), with p the rate after the loss. Within a quarter of
    the median in simulations (`tests.claims.test_detection`). Add the duration of a full run, which is 0 here. Without
    labels only disagreement is watched.
    """
    if not 0 < drop < 1 or not 0 < audit_share < 1:
        raise ValueError(f"need 0 < drop < 1 and 0 < audit_share < 1; got {drop=} {audit_share=}")
    counts = (reference.n_disagreeing, reference.n_lost) if labels else (reference.n_disagreeing,)
    shortest = min(_delay(drop, count, reference.n, max_em_drop, audit_share, cap) for count in counts)
    return DetectionLaw(drop=drop, median_requests=None if shortest >= LAW_HORIZON else round(shortest))


def _delay(drop: float, count: int, n: int, max_em_drop: float, share: float, cap: float) -> float:
    normal, p = normal_rate(count, n, max_em_drop), min(LARGEST_RATE, count / n + drop)
    if p <= normal:
        return inf
    growth = p * log(p / normal) + (1 - p) * log((1 - p) / (1 - normal))
    return LAW_FIT * (log(2) / (share * p) + log(THRESHOLD) / growth / share_in_doubt(share, cap))


def normal_rate(count: int, n: int, max_em_drop: float) -> float:
    """The expected rate after `count` of `n` certifying audits; at least HARMLESS times the budget."""
    rate = max(exact_binomial(count, n, 2 * QUANTILE - 1).high, HARMLESS * max_em_drop)
    return min(rate, LARGEST_RATE)

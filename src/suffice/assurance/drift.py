"""Drift detectors: do the signals and outcomes of the traffic still look as they did when the level was certified?

    changed             a known change: model, prompt, sampling, scorer, index       at once, no statistics
    Cusum               signals of all traffic, in batches of 100                    drift that can be seen
    ShiryaevRoberts     outcomes of audits at the deployed level                     drift that cannot

Each detector holds a few numbers and says True at an alarm; after one, the caller resets it. The loop is a fold over
the log, so they are kept in memory alone; only `ShiryaevRoberts` gives its sums as plain data and takes them back, for
guard-rails and tuners, which are written down. ASSURANCE.md §3.5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, log
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from suffice.assurance.bounds import exact_binomial

Floats = NDArray[np.float64]

SR_SHARES: Final = tuple(float(share) for share in np.geomspace(0.02, 0.9, 8))  # of the largest bet
_LEAST_SD: Final = 1e-9  # a feature that never moved in the reference has no sd to measure with

# --------------------------------------------------------------------------- known changes

Part = Literal["model", "system_fingerprint", "prompt", "sampling", "scorer", "index"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint:
    """What a certificate silently takes for granted. None: nobody told; that is no change and no promise."""

    model: str | None = None  # the upstream's name for it
    system_fingerprint: str | None = None  # of the engine and the weights, where the upstream tells it
    prompt: str | None = None  # version of the prompt or the chat template
    sampling: str | None = None  # temperature, top_p and their like, in one canonical text
    scorer: str | None = None  # version of the normaliser and the scorer
    index: str | None = None  # version of the retriever and its index


@dataclass(frozen=True, slots=True, kw_only=True)
class PartChange:
    part: Part
    before: str
    after: str

    def __str__(self) -> str:
        return f"{self.part} changed from {self.before!r} to {self.after!r}"


_PARTS: Final[tuple[Part, ...]] = ("model", "system_fingerprint", "prompt", "sampling", "scorer", "index")


def changed(before: Fingerprint, after: Fingerprint) -> tuple[PartChange, ...]:
    """What is known to have changed. A part that is None on either side is unknown."""
    parts = ((part, getattr(before, part), getattr(after, part)) for part in _PARTS)
    return tuple(
        PartChange(part=part, before=old, after=new)
        for part, old, new in parts
        if old is not None and new is not None and old != new
    )


# --------------------------------------------------------------------------- signals of all traffic

BATCH: Final = 100  # requests whose signals are averaged
REFERENCE: Final = 15  # batches that say what is normal


class Cusum:
    """Watch F signals of all traffic, batch by batch, for a shift up or down that stays.

    Two-sided cumulative sums (Page 1954, Biometrika 41) of batch means, standardised by the first `reference_batches`,
    at least 2. The sd of a batch mean is taken from the spread between those batches, or from the spread of requests
    inside them where that says more: 15 means know their own sd to a fifth only, and where they happen to lie close
    together every later one looks like drift; 1,500 requests know theirs, but not what comes in clusters of several
    batches. The slack and the limit of a sum are in sd of a batch mean.
    """

    def __init__(
        self, n_features: int, *, reference_batches: int = REFERENCE, slack: float = 0.75, limit: float = 9.0
    ) -> None:
        if n_features < 1 or reference_batches < 2:
            raise ValueError(f"need n_features >= 1 and reference_batches >= 2; got {n_features=} {reference_batches=}")
        self._n_features, self._n_reference = n_features, reference_batches
        self._slack, self._limit = slack, limit
        self.reset()

    def reset(self) -> None:
        self._means: list[Floats] = []
        self._within: list[Floats] = []  # variance of each batch's mean, if its requests are independent
        self.up = np.zeros(self._n_features)  # sums towards larger means, shape (F,)
        self.down = np.zeros(self._n_features)  # … towards smaller ones

    def add(self, batch: Floats) -> bool:
        """Take in the signals of the requests of one batch, shape (n, F), all finite; True: alarm."""
        if batch.ndim != 2 or not len(batch) or batch.shape[1] != self._n_features or not np.isfinite(batch).all():
            raise ValueError(f"batch: got {batch!r}; rows of {self._n_features} finite signals")
        mean = batch.mean(axis=0)
        if len(self._means) < self._n_reference:
            self._means.append(mean)
            self._within.append(batch.var(axis=0, ddof=1) / len(batch) if len(batch) > 1 else np.zeros_like(mean))
            return False
        usual = np.mean(self._means, axis=0)
        variance = np.maximum(np.var(self._means, axis=0, ddof=1), np.mean(self._within, axis=0))
        shift = (mean - usual) / np.maximum(np.sqrt(variance), _LEAST_SD * (1 + np.abs(usual)))
        self.up = np.maximum(0.0, self.up + shift - self._slack)
        self.down = np.maximum(0.0, self.down - shift - self._slack)
        return bool(max(self.up.max(), self.down.max()) >= self._limit)


# --------------------------------------------------------------------------- outcomes of audits


class ShiryaevRoberts:
    """Watch the outcomes of audits at the deployed level for an EM drop above the budget.

    An e-detector: M_b <- (M_b + 1)(1 + nu_b (Z - eps)) for eight bets, alarm when their mean reaches `threshold`.
    While the drop is within the budget an alarm comes on average after at least `threshold` audits, by construction
    (Shin, Ramdas, Rinaldo 2023, arXiv:2203.03532).
    """

    def __init__(self, max_em_drop: float, *, threshold: float = 2_000.0) -> None:
        if not 0 < max_em_drop < 1 or threshold <= 1:
            raise ValueError(f"need 0 < max_em_drop < 1 and threshold > 1; got {max_em_drop=} {threshold=}")
        self._threshold = threshold
        bets = [share / (1 + max_em_drop) for share in SR_SHARES]
        self._factors = {z: tuple(1 + bet * (z - max_em_drop) for bet in bets) for z in (-1, 0, 1)}
        self.reset()

    def reset(self) -> None:
        self._sums: tuple[float, ...] = (0.0,) * len(SR_SHARES)

    @property
    def mean(self) -> float:
        """The evidence against "within the budget" so far; compare with `threshold`."""
        return sum(self._sums) / len(self._sums)

    def add(self, z: int) -> bool:
        """Take in one audit: z = -1 the stop gained the right answer, 0 the same, +1 it lost it; True: alarm."""
        factors = self._factors[z]
        self._sums = tuple((m + 1) * factor for m, factor in zip(self._sums, factors, strict=True))
        return self.mean >= self._threshold

    def state(self) -> tuple[float, ...]:
        return self._sums

    def restore(self, state: Sequence[float]) -> None:
        if len(state) != len(SR_SHARES):
            raise ValueError(f"state: got {len(state)} numbers; {len(SR_SHARES)}")
        self._sums = tuple(state)


# --------------------------------------------------------------------------- drift that only audits show
#
# certifying audits ──▶ Reference ─┐
# audits as they return ───────────┴▶ AuditWatch ──▶ an alarm's sentence, or doubt ──▶ audit_share_in_doubt
# Reference, budget, audit share ──▶ detection_law ──▶ "a silent loss of 3 points would be noticed within …"
#
# The reference is frozen: it is a rate among the audits that certified the first level of the epoch. A refit or a
# change of level reads the rate of the new level among the same audits, so a slow ramp is never taken for the normal
# state.

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
    """What the certifying audits showed at one level."""

    n_disagreeing: int
    n_lost: int  # audits with Z = +1
    n: int

    def __post_init__(self) -> None:
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
    """Watch audits at the active level for a drop above the budget and for a rise above the frozen reference.

    Three e-detectors: the EM drop against the budget (`ShiryaevRoberts`), the rate of disagreement and the rate of
    losses, each against what the certifying audits leave possible. While no rate is above its reference, the mean
    number of audits to a false alarm is at least THRESHOLD by construction for each rate; `tests.claims.test_detection`
    measures it in requests. After an alarm, begin an epoch and a new watch.
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
        disagrees  the stop's answer is not the full run's; None: added before, when the run returned without a label
        weight     c/rho in (0, 1] where the audit share depended on the request itself, else 1
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

    Never above `cap` in doubt, and never below `base_share`. A certificate weights the extra audits with c/rho.
    """
    return max(base_share, min(cap, DOUBT_SHARE)) if watch.in_doubt else base_share


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


def detection_law(
    drop: float, *, max_em_drop: float, reference: Reference, audit_share: float, cap: float, labels: bool = True
) -> DetectionLaw:
    """Estimate the delay of the alarm after a sudden loss that no signal shows.

    The wait for the first audit in trouble, ln 2 / (share p) requests, and then ln(THRESHOLD) / KL(p || normal) audits
    at the share in doubt (`cap` limits it), where p is the rate after the loss and normal the rate that is expected;
    the sum of both, times LAW_FIT, is within a quarter of the median in simulations (`tests.claims.test_detection`).
    Audits return at once here: add the time that a full run takes. Without labels disagreement alone is watched.
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
    in_doubt = max(share, min(cap, DOUBT_SHARE))
    return LAW_FIT * (log(2) / (share * p) + log(THRESHOLD) / growth / in_doubt)


def normal_rate(count: int, n: int, max_em_drop: float) -> float:
    """The rate that is expected after `count` of `n` certifying audits; one below half the budget is never a rise."""
    rate = max(exact_binomial(count, n, 2 * QUANTILE - 1).high, HARMLESS * max_em_drop)
    return min(rate, LARGEST_RATE)

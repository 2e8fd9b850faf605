"""Alarms: what says that the world of the certificate is no longer the world of the traffic.

    changed             a known change: model, prompt, sampling, scorer, index       at once, no statistics
    Cusum               signals of all traffic, in batches of 100                    drift that can be seen
    ShiryaevRoberts     outcomes of audits at the deployed level                     drift that cannot
    DisagreementRatio   audits that disagree, no labels needed                       … while labels are late

Each detector holds a few numbers and says True at an alarm; after one, the caller resets it. `state` gives the numbers
as plain data and `restore` takes them back, so that a worker that was killed goes on where it was. Pure: no clock, no
store. What an alarm leads to (a new epoch, full runs, a new certificate) is not decided here. ASSURANCE.md §3.5.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, fields
from math import log
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

SR_SHARES: Final = tuple(float(share) for share in np.geomspace(0.02, 0.9, 8))  # of the largest bet
LEAST_RATE: Final = 1 / 800  # a certification set of 800 audits cannot tell a lower rate from none
_LEAST_SD: Final = 1e-9  # a feature that never moved in the reference has no sd to measure with

# --------------------------------------------------------------------------- known changes

Part = Literal["model", "system_fingerprint", "prompt", "sampling", "scorer", "index"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint:
    """What a certificate silently takes for granted. None: nobody told; that is no change and no promise."""

    model: str | None = None               # the upstream's name for it
    system_fingerprint: str | None = None  # of the engine and the weights, where the upstream tells it
    prompt: str | None = None              # version of the prompt or the chat template
    sampling: str | None = None            # temperature, top_p and their like, in one canonical text
    scorer: str | None = None              # version of the normaliser and the scorer
    index: str | None = None               # version of the retriever and its index


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One part that is known to be another one now."""

    part: Part
    before: str
    after: str

    def __str__(self) -> str:
        return f"{self.part} changed from {self.before!r} to {self.after!r}"


_PARTS: Final[tuple[Part, ...]] = ("model", "system_fingerprint", "prompt", "sampling", "scorer", "index")


def changed(before: Fingerprint, after: Fingerprint) -> tuple[Change, ...]:
    """What is known to have changed; empty: nothing. A part that is None on either side is unknown."""
    found = []
    for part in _PARTS:
        old, new = getattr(before, part), getattr(after, part)
        if old is not None and new is not None and old != new:
            found.append(Change(part=part, before=old, after=new))
    return tuple(found)


def latest_known(before: Fingerprint, after: Fingerprint) -> Fingerprint:
    """`after`, with the parts that it does not tell carried over from `before`.

    Compare the next fingerprint with this one: a reply without a fingerprint must not hide the change behind it.
    """
    told = {field.name: getattr(after, field.name) for field in fields(after)}
    return Fingerprint(**{name: getattr(before, name) if value is None else value for name, value in told.items()})


# --------------------------------------------------------------------------- signals of all traffic


@dataclass(frozen=True, slots=True, kw_only=True)
class CusumState:
    """What a `Cusum` knows, in plain data."""

    reference: tuple[tuple[float, ...], ...]  # the first batches, each with F means
    up: tuple[float, ...]                     # F sums towards larger means, in sd of a batch mean
    down: tuple[float, ...]                   # F sums towards smaller means


class Cusum:
    """Watch F signals of all traffic, batch by batch, for a shift up or down that stays.

    Two-sided cumulative sums (Page 1954, Biometrika 41) of batch means, standardised by the first batches.

    n_features         F, at least 1
    reference_batches  that say what is normal, at least 2; no alarm before they are there
    slack              shift that is put up with, in sd of a batch mean
    limit              of a sum, in sd of a batch mean
    """

    def __init__(
        self, n_features: int, *, reference_batches: int = 15, slack: float = 0.75, limit: float = 9.0
    ) -> None:
        if n_features < 1 or reference_batches < 2:
            raise ValueError(f"need n_features >= 1 and reference_batches >= 2; got {n_features=} {reference_batches=}")
        self._n_features, self._n_reference = n_features, reference_batches
        self._slack, self._limit = slack, limit
        self.reset()

    def reset(self) -> None:
        """Forget everything: the next batches are the new reference."""
        self._reference: list[tuple[float, ...]] = []
        self._up = np.zeros(self._n_features)
        self._down = np.zeros(self._n_features)

    def add(self, batch: NDArray[np.float64]) -> bool:
        """Take in the means of one batch, shape (F,), all finite; True: alarm."""
        if batch.shape != (self._n_features,) or not np.isfinite(batch).all():
            raise ValueError(f"batch: got {batch!r}; {self._n_features} finite means")
        if len(self._reference) < self._n_reference:
            self._reference.append(tuple(batch.tolist()))
            return False
        seen = np.array(self._reference)
        mean = seen.mean(axis=0)
        sd = np.maximum(seen.std(axis=0, ddof=1), _LEAST_SD * (1 + np.abs(mean)))
        shift = (batch - mean) / sd
        self._up = np.maximum(0.0, self._up + shift - self._slack)
        self._down = np.maximum(0.0, self._down - shift - self._slack)
        return bool(max(self._up.max(), self._down.max()) >= self._limit)

    def state(self) -> CusumState:
        """All it knows, to be kept."""
        return CusumState(
            reference=tuple(self._reference), up=tuple(self._up.tolist()), down=tuple(self._down.tolist())
        )

    def restore(self, state: CusumState) -> None:
        """Go on from what was kept."""
        self._reference = list(state.reference)
        self._up, self._down = np.array(state.up), np.array(state.down)


# --------------------------------------------------------------------------- outcomes of audits


class ShiryaevRoberts:
    """Watch the outcomes of audits at the deployed level for an EM drop above the budget.

    An e-detector: M_b <- (M_b + 1)(1 + nu_b (Z - eps)) for eight bets, alarm when their mean reaches `threshold`.
    While the drop is within the budget an alarm comes on average after at least `threshold` audits, by construction
    (Shin, Ramdas, Rinaldo 2023, arXiv:2203.03532). Its state is the eight numbers M_b.

    max_em_drop  eps, a fraction in (0, 1)
    threshold    mean number of audits to a false alarm, above 1
    """

    def __init__(self, max_em_drop: float, *, threshold: float = 2_000.0) -> None:
        if not 0 < max_em_drop < 1 or threshold <= 1:
            raise ValueError(f"need 0 < max_em_drop < 1 and threshold > 1; got {max_em_drop=} {threshold=}")
        self._threshold = threshold
        bets = [share / (1 + max_em_drop) for share in SR_SHARES]
        self._factors = {z: tuple(1 + bet * (z - max_em_drop) for bet in bets) for z in (-1, 0, 1)}
        self.reset()

    def reset(self) -> None:
        """Forget all audits."""
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
        """All it knows, to be kept."""
        return self._sums

    def restore(self, state: Sequence[float]) -> None:
        """Go on from what was kept."""
        if len(state) != len(SR_SHARES):
            raise ValueError(f"state: got {len(state)} numbers; {len(SR_SHARES)}")
        self._sums = tuple(state)


# --------------------------------------------------------------------------- disagreement, without labels


@dataclass(frozen=True, slots=True, kw_only=True)
class DisagreementState:
    """What a `DisagreementRatio` knows, in plain data."""

    rate: float
    recent: tuple[bool, ...]  # the latest audits, oldest first


class DisagreementRatio:
    """Watch how often the stop would have answered otherwise, against the rate in the certification set.

    The likelihood ratio of the last `window` audits, their own rate against `rate`; only a rise counts.

    rate    in the certification set, [0, 1]; below 1/800 it is read as 1/800, which no such set can tell from it
    window  audits looked at, at least 1
    limit   of the logarithm of the ratio; lowering it to ln 600 gave false alarms in most simulated seeds
    """

    def __init__(self, rate: float, *, window: int = 150, limit: float = log(4_000)) -> None:
        if window < 1:
            raise ValueError(f"window: got {window}; at least 1")
        self._window, self._limit = window, limit
        self.reset(rate)

    def reset(self, rate: float) -> None:
        """Forget all audits and compare with another rate from now on."""
        if not 0 <= rate <= 1:
            raise ValueError(f"rate: got {rate}; a fraction")
        self._rate = rate
        self._recent: deque[bool] = deque(maxlen=self._window)

    @property
    def log_ratio(self) -> float:
        """Logarithm of the likelihood ratio now; 0 where the audits disagree no more often than they did."""
        n, k = len(self._recent), sum(self._recent)
        before = max(self._rate, LEAST_RATE)
        if k <= n * before:
            return 0.0
        same = (n - k) * log((n - k) / n / (1 - before)) if k < n else 0.0
        return k * log(k / n / before) + same

    def add(self, disagrees: bool) -> bool:
        """Take in one audit; True: alarm."""
        self._recent.append(disagrees)
        return self.log_ratio >= self._limit

    def state(self) -> DisagreementState:
        """All it knows, to be kept."""
        return DisagreementState(rate=self._rate, recent=tuple(self._recent))

    def restore(self, state: DisagreementState) -> None:
        """Go on from what was kept."""
        self.reset(state.rate)
        self._recent.extend(state.recent)

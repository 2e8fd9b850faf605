"""Alarms: what says that the world of the certificate is no longer the world of the traffic.

    changed             a known change: model, prompt, sampling, scorer, index       at once, no statistics
    Cusum               signals of all traffic, in batches of 100                    drift that can be seen
    ShiryaevRoberts     outcomes of audits at the deployed level                     drift that cannot; see `detection`

Each detector holds a few numbers and says True at an alarm; after one, the caller resets it. The loop is a fold over
the log, so they are kept in memory alone; only `ShiryaevRoberts` gives its sums as plain data and takes them back
(`state`, `restore`), for guard-rails and tuners, which are written down. Pure: no clock, no store. What an alarm leads
to (a new epoch, full runs, a new certificate) is not decided here. ASSURANCE.md §3.5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

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
    """One part that is known to be another one now."""

    part: Part
    before: str
    after: str

    def __str__(self) -> str:
        return f"{self.part} changed from {self.before!r} to {self.after!r}"


_PARTS: Final[tuple[Part, ...]] = ("model", "system_fingerprint", "prompt", "sampling", "scorer", "index")


def changed(before: Fingerprint, after: Fingerprint) -> tuple[PartChange, ...]:
    """What is known to have changed; empty: nothing. A part that is None on either side is unknown."""
    found = []
    for part in _PARTS:
        old, new = getattr(before, part), getattr(after, part)
        if old is not None and new is not None and old != new:
            found.append(PartChange(part=part, before=old, after=new))
    return tuple(found)


# --------------------------------------------------------------------------- signals of all traffic

BATCH: Final = 100  # requests whose signals are averaged
REFERENCE: Final = 15  # batches that say what is normal


class Cusum:
    """Watch F signals of all traffic, batch by batch, for a shift up or down that stays.

    Two-sided cumulative sums (Page 1954, Biometrika 41) of batch means, standardised by the first batches. The sd of a
    batch mean is taken from the spread between those batches, or from the spread of requests inside them where that
    says more: 15 means know their own sd to a fifth only, and where they happen to lie close together every later one
    looks like drift; 1,500 requests know theirs, but not what comes in clusters of several batches.

    n_features         F, at least 1
    reference_batches  that say what is normal, at least 2; no alarm before they are there
    slack              shift that is put up with, in sd of a batch mean
    limit              of a sum, in sd of a batch mean
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
        """Forget everything: the next batches are the new reference."""
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

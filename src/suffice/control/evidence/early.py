"""What all traffic shows at its first step, stopped or not, in batches: what a drift that can be seen is seen by.

A policy cannot stop a run before its first step, so these signals are there for every request and no stop selects
them. Where only some requests have rows in the log, each counts for those that it stands for: the mean of a batch is
theirs, and another mix of rates moves it by chance alone. A signal that does not move while the reference is taken is
left out: with no spread of its own, any later value would look like drift.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from suffice.assurance.drift import BATCH, REFERENCE
from suffice.assurance.sampling import weight_of
from suffice.learn.audits import Floats
from suffice.learn.dataset import early_features
from suffice.types import Episode

SIGNALS: Final = ("log1p(tokens_used)", "has_answer", "logit(confidence)", "log1p(n_words)")
LEAST_SD: Final = 1e-3   # of a batch mean, over 1 plus its mean


@dataclass(frozen=True, slots=True)
class _First:
    """One run, as `learn.dataset` reads it."""

    episode: Episode
    labels: tuple[()] = ()
    seq: int = 0


def _weighted(signals: Floats, batch: list[_First]) -> Floats:
    """The signals with the mean, and its spread, that they have where each run counts for those that it stands for."""
    weights = np.array([weight_of(one.episode.request, one.episode.outcome) for one in batch])
    if (weights == 1).all():
        return signals
    mean = (weights[:, np.newaxis] * signals).sum(axis=0) / weights.sum()
    return np.asarray(mean + (signals - mean) * (weights / weights.mean())[:, np.newaxis])


@dataclass(slots=True)
class Early:
    """Requests that make up no batch yet, and the batches of the reference."""

    _firsts: list[_First] = field(default_factory=list)
    _reference: list[Floats] = field(default_factory=list)  # means of a batch

    def note(self, episode: Episode) -> None:
        """Take a run in, whatever became of it."""
        if episode.outcome.steps:
            self._firsts.append(_First(episode))

    def batches(self) -> Iterator[Floats]:
        """The signals of each whole batch since the last time, shape (100, F)."""
        while len(self._firsts) >= BATCH:
            batch, self._firsts = self._firsts[:BATCH], self._firsts[BATCH:]
            yield self._steady(_weighted(early_features(batch, SIGNALS), batch))

    def _steady(self, batch: Floats) -> Floats:
        """The batch, with signals that do not move in the reference held where they were."""
        if len(self._reference) < REFERENCE:
            self._reference.append(batch.mean(axis=0))
            return batch
        seen = np.array(self._reference)
        mean = seen.mean(axis=0)
        return np.where(seen.std(axis=0, ddof=1) < LEAST_SD * (1 + np.abs(mean)), mean, batch)

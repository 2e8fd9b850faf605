"""Prompts as the unit of every split, weight and bootstrap draw.

A prompt's hash decides its fold, so a model, its successor and its judge never share a question. One set of bootstrap
draws serves every number of a report, so differences between them are paired.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import Final, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from suffice.assurance.bounds import exact_binomial
from suffice.assurance.estimate import IntervalEstimate
from suffice.learn.audits import Floats

MOST_REPEATS: Final = 5  # total weight of one prompt, in runs
N_DRAWS: Final = 400
_CONFIDENCE: Final = 0.95  # of intervals
_LEAST_DEFINED: Final = 0.99  # share of draws; below it there is no interval
_FEW: Final = 20  # prompts below which an interval is only a sketch

Statistic: TypeAlias = Callable[[Floats], Floats]  # column sums, (draws, d) → (draws,); nan: undefined there


def weigh_repeats(keys: Sequence[str]) -> NDArray[np.float64]:
    """In (0, 1]: all runs of one prompt count for at most `MOST_REPEATS`."""
    number, n_groups = _numbered(keys)
    size = np.bincount(number, minlength=n_groups)[number] if len(keys) else np.zeros(0)
    return np.asarray(np.minimum(1.0, MOST_REPEATS / np.maximum(size, 1)))


def _numbered(groups: Sequence[Hashable]) -> tuple[NDArray[np.int64], int]:
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(group, len(numbers)) for group in groups], dtype=np.int64), len(numbers)


class BootstrapSums(NamedTuple):
    by_group: Floats  # (prompts, d)
    observed: Floats  # (1, d)
    drawn: Floats  # (draws, d)


class Resamples:
    """Bootstrap over prompts (`groups`, one per run) with replacement (Davison and Hinkley 1997, §3.8)."""

    def __init__(self, groups: Sequence[Hashable], rng: np.random.Generator) -> None:
        self._member, self.n_groups = _numbered(groups)
        n = self.n_groups
        drawn = rng.integers(n, size=(N_DRAWS, n)) if n else np.zeros((N_DRAWS, 0), dtype=np.int64)
        flat = (drawn + np.arange(N_DRAWS)[:, None] * n).ravel()
        self._times = np.bincount(flat, minlength=N_DRAWS * n).reshape(N_DRAWS, n).astype(np.float64)

    def sums(self, columns: Floats) -> BootstrapSums:
        """Observed and in each draw; `columns` has one row per run, shape (n, d)."""
        of_columns = [np.bincount(self._member, weights=column, minlength=self.n_groups) for column in columns.T]
        by_group = np.stack(of_columns, axis=1).astype(np.float64)
        return BootstrapSums(by_group, by_group.sum(axis=0)[None, :], self._times @ by_group)

    def estimate(self, sums: BootstrapSums, statistic: Statistic, *, n: int, pivot: bool = False) -> IntervalEstimate:
        """`pivot` mirrors the draws at the value (basic interval, ibid. §5.2): resampling inflates some statistics."""
        value = float(statistic(sums.observed)[0])
        drawn = statistic(sums.drawn)
        drawn = drawn[np.isfinite(drawn)]
        if self.n_groups < 2 or len(drawn) < _LEAST_DEFINED * len(self._times):
            why = "too few prompts for an interval"
            return IntervalEstimate(value=value, low=None, high=None, n=n, method="none", note=why)
        tail = (1 - _CONFIDENCE) / 2
        low, high = (float(end) for end in np.quantile(drawn, [tail, 1 - tail]))
        if pivot:
            low, high = max(0.0, 2 * value - high), max(0.0, 2 * value - low)
        note = f"only {self.n_groups} prompts: a sketch" if self.n_groups < _FEW else None
        method = f"bootstrap over {self.n_groups} prompts"
        return IntervalEstimate(value=value, low=low, high=high, n=n, method=method, note=note)

    def rate(self, sums: BootstrapSums, above: int, below: int, *, n: int) -> IntervalEstimate:
        """In [0, 1]; at 0 and 1 exact for the effective number of prompts (Clopper and Pearson 1934; Kish 1965)."""
        estimate = self.estimate(sums, ratio(above, below), n=n)
        if estimate.low is None or estimate.high is None or 0.0 < estimate.value < 1.0:
            return estimate
        weight = sums.by_group[:, below]
        worth = max(1, int(weight.sum() ** 2 / max((weight**2).sum(), 1e-300)))
        exact = exact_binomial(0 if estimate.value <= 0.0 else worth, worth, _CONFIDENCE)
        return replace(estimate, low=exact.low, high=exact.high, method=f"exact, {worth} prompts")


def ratio(above: int, below: int) -> Statistic:
    def of(sums: Floats) -> Floats:
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(np.where(sums[:, below] > 0, sums[:, above] / sums[:, below], np.nan))

    return of


def pick_level(z: Floats, weight: Floats, target: float) -> int:
    """The last level whose drop is a standard error (at least of one lost run) below the target; z: (n, M)."""
    if not len(z) or not weight.sum() > 0:
        return 0
    drop = weight @ z / weight.sum()
    error = np.sqrt(((weight[:, None] * (z - drop)) ** 2).sum(axis=0)) / weight.sum()
    least = np.sqrt((weight**2).sum()) / weight.sum() / np.sqrt(len(z))
    failed = np.flatnonzero(drop[1:] + np.maximum(error[1:], least) > target)
    return int(failed[0]) if len(failed) else z.shape[1] - 1

"""Estimates with intervals for many statistics at once, by drawing the same prompts again for all of them.

One set of draws serves every number of a report, so differences between them are paired. Rows of one prompt are drawn
together. Knows sums and refuses to know what they are of.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import Final, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from suffice.assurance.bounds import exact_binomial
from suffice.assurance.estimate import IntervalEstimate

Floats: TypeAlias = NDArray[np.float64]
Statistic: TypeAlias = Callable[[Floats], Floats]  # column sums, (draws, d) → (draws,); nan: undefined there

N_DRAWS: Final = 400
_LEAST_DEFINED: Final = 0.99  # of the draws; below it there is no interval
_FEW: Final = 20  # prompts below which an interval is a sketch


class BootstrapSums(NamedTuple):
    """Column sums."""

    by_group: Floats  # (prompts, d)
    seen: Floats  # (1, d)
    again: Floats  # (draws, d)


class Resamples:
    """Prompts drawn with replacement, as often as there are (Davison and Hinkley 1997, §3.8).

    groups  the prompt of each run, shape (n,); equal names belong together
    """

    def __init__(
        self, groups: Sequence[Hashable], rng: np.random.Generator, *, n_draws: int = N_DRAWS, confidence: float = 0.95
    ) -> None:
        numbers: dict[Hashable, int] = {}
        self._member = np.array([numbers.setdefault(group, len(numbers)) for group in groups], dtype=np.int64)
        self.n_groups, self._confidence = len(numbers), confidence
        n = self.n_groups
        drawn = rng.integers(n, size=(n_draws, n)) if n else np.zeros((n_draws, 0), dtype=np.int64)
        flat = (drawn + np.arange(n_draws)[:, None] * n).ravel()
        self._times = np.bincount(flat, minlength=n_draws * n).reshape(n_draws, n).astype(np.float64)

    def sums(self, columns: Floats) -> Floats:
        """Sums over each prompt's runs, shape (prompts, d). `columns` has a row a run, shape (n, d)."""
        return np.stack(
            [np.bincount(self._member, weights=column, minlength=self.n_groups) for column in columns.T], axis=1
        )

    def drawn(self, columns: Floats) -> BootstrapSums:
        """Column sums as they are and in each draw. `columns` has a row a run, shape (n, d)."""
        by_group = self.sums(columns)
        return BootstrapSums(by_group, by_group.sum(axis=0)[None, :], self._times @ by_group)

    def estimate(self, sums: BootstrapSums, statistic: Statistic, *, n: int, pivot: bool = False) -> IntervalEstimate:
        """A statistic of column sums, with its interval.

        n      observations behind it
        pivot  mirror the draws at the value (basic interval, ibid. §5.2): for what draws alone would make larger,
               such as a mean of absolute errors
        """
        value = float(statistic(sums.seen)[0])
        drawn = statistic(sums.again)
        drawn = drawn[np.isfinite(drawn)]
        if self.n_groups < 2 or len(drawn) < _LEAST_DEFINED * len(self._times):
            why = "too few prompts for an interval"
            return IntervalEstimate(value=value, low=None, high=None, n=n, method="none", note=why)
        tail = (1 - self._confidence) / 2
        low, high = (float(end) for end in np.quantile(drawn, [tail, 1 - tail]))
        if pivot:
            low, high = max(0.0, 2 * value - high), max(0.0, 2 * value - low)
        note = f"only {self.n_groups} prompts: a sketch" if self.n_groups < _FEW else None
        method = f"bootstrap over {self.n_groups} prompts"
        return IntervalEstimate(value=value, low=low, high=high, n=n, method=method, note=note)

    def rate(self, sums: BootstrapSums, above: int, below: int, *, n: int) -> IntervalEstimate:
        """The share of one column's weight in another's, [0, 1]; what was never seen, or always, is still not certain.

        Draws of runs without an event hold none either. Then the open end is exact for as many prompts as their
        weights are worth (Clopper and Pearson 1934; Kish 1965).
        """
        found = self.estimate(sums, ratio(above, below), n=n)
        if found.low is None or found.high is None or 0.0 < found.value < 1.0:
            return found
        weight = sums.by_group[:, below]
        worth = max(1, int(weight.sum() ** 2 / max((weight**2).sum(), 1e-300)))
        exact = exact_binomial(0 if found.value <= 0.0 else worth, worth, self._confidence)
        return replace(found, low=exact.low, high=exact.high, method=f"exact, {worth} prompts")


def ratio(above: int, below: int) -> Statistic:
    """Sum of one column over the sum of another; nan where that is 0."""

    def of(sums: Floats) -> Floats:
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(np.where(sums[:, below] > 0, sums[:, above] / sums[:, below], np.nan))

    return of

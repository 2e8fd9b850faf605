"""Intervals for rates and means, each with its source and its domain.

wilson              a rate, looked at once           reads well, covers on average
exact_binomial      a rate, looked at once           covers always, a little wide
mean_interval       a mean, watched all the time     covers at all n at once
bootstrap_interval  a function of column sums, once  for ratios; rows of one group stay together
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from math import exp, isfinite, lgamma, log, log1p, sqrt
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

_MIN_DEFINED_SHARE = 0.99  # of bootstrap draws; below it the statistic is too often undefined


@dataclass(frozen=True, slots=True)
class Interval:
    low: float
    high: float


def wilson(k: int, n: int, confidence: float) -> Interval:
    """Score interval for a rate, for one look: Wilson (1927), JASA 22(158).

    It covers near `confidence` on average over rates, and less at some: where a promise hangs on it, `exact_binomial`.
    """
    _check_counts(k, n, confidence)
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    rate, z2 = k / n, z * z
    centre = (rate + z2 / (2 * n)) / (1 + z2 / n)
    radius = z / (1 + z2 / n) * sqrt(rate * (1 - rate) / n + z2 / (4 * n * n))
    return Interval(0.0 if k == 0 else centre - radius, 1.0 if k == n else centre + radius)


def exact_binomial(k: int, n: int, confidence: float) -> Interval:
    """Interval for the rate behind `k` successes in `n` trials that covers at every rate; one look.

    Clopper and Pearson (1934), Biometrika 26(4): the ends are the rates at which a result as extreme as `k` has
    probability (1 - confidence)/2, by bisection. A one-sided bound at 95 % is an end of the interval at 90 %.
    """
    _check_counts(k, n, confidence)
    tail = (1 - confidence) / 2
    low = 0.0 if k == 0 else _bisect(lambda p: _upper_tail(k, n, p) < tail)
    # P(X <= k | p) is P(X' >= n - k) for the failures X', whose rate is 1 - p.
    high = 1.0 if k == n else 1 - _bisect(lambda q: _upper_tail(n - k, n, q) < tail)
    return Interval(low, high)


def mean_interval(
    mean: float, n: int, confidence: float, *, low: float = 0.0, high: float = 1.0, n_opt: int = 1_000
) -> Interval:
    """Confidence sequence for the mean of the first `n` data in [low, high]: valid at all n at once.

    Data in an interval are sub-Gaussian with sigma = (high - low)/2 (Hoeffding). It is tightest at `n_opt` data, to be
    chosen before looking at them.
    """
    if not low < high or not low <= mean <= high or n < 0:
        raise ValueError(f"need low <= mean <= high and n >= 0; got {mean=} {low=} {high=} {n=}")
    if n == 0:
        return Interval(low, high)
    variance = ((high - low) / 2) ** 2
    radius = mixture_bound(n * variance, confidence, n_opt * variance) / n
    return Interval(max(low, mean - radius), min(high, mean + radius))


def mixture_bound(v: float, confidence: float, v_opt: float) -> float:
    """Bound on |S| that a centred sum S with variance v (n sigma^2 if sigma-sub-Gaussian) leaves at no time.

    Two-sided normal mixture, tightest at the constant `v_opt`: Howard, Ramdas, McAuliffe, Sekhon (2021), Annals of
    Statistics 49(2), arXiv:1810.08240, equation (14) and section 3.5.
    """
    if v <= 0 or v_opt <= 0 or not 0 < confidence < 1:
        raise ValueError(f"need v > 0, v_opt > 0, 0 < confidence < 1; got {v=} {v_opt=} {confidence=}")
    rho = best_rho(v_opt, 1 - confidence)
    return sqrt((v + rho) * (log((v + rho) / rho) + 2 * log(1 / (1 - confidence))))


def best_rho(v_opt: float, alpha: float) -> float:
    """The mixture's width at which a two-sided bound is tightest at `v_opt`; for a one-sided one double alpha."""
    surprise = 2 * log(1 / alpha)
    return v_opt / (surprise + log(1 + surprise))


def bootstrap_interval(
    values: NDArray[np.float64],
    groups: Sequence[Hashable],
    statistic: Callable[[NDArray[np.float64]], float],
    confidence: float,
    n_draws: int,
    rng: np.random.Generator,
) -> Interval | None:
    """Percentile interval from resampling whole groups with replacement; for one look only.

    Rows of one group (one question asked again and again) are not independent; drawing groups keeps them together.
    Davison and Hinkley (1997), section 3.8. With few groups it is too narrow: below about 20 take it as a sketch. The
    statistic takes the d column sums of a resample of `values`, shape (n, d); nan: undefined there.

    None: fewer than two groups, or the statistic is undefined in more than 1 % of the draws.
    """
    if values.ndim != 2 or len(values) != len(groups):
        raise ValueError(f"need one group for each row of values; got {values.shape=} {len(groups)=}")
    if n_draws < 1 or not 0 < confidence < 1:
        raise ValueError(f"need n_draws >= 1 and 0 < confidence < 1; got {n_draws=} {confidence=}")
    numbers: dict[Hashable, int] = {}
    members = [numbers.setdefault(group, len(numbers)) for group in groups]
    if len(numbers) < 2:
        return None
    sums = np.zeros((len(numbers), values.shape[1]))
    np.add.at(sums, members, values)
    drawn = []
    for _ in range(n_draws):
        weights = np.bincount(rng.integers(len(sums), size=len(sums)), minlength=len(sums))
        drawn.append(statistic(weights @ sums))
    defined = [number for number in drawn if isfinite(number)]
    if len(defined) < _MIN_DEFINED_SHARE * n_draws:
        return None
    low, high = np.quantile(defined, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(low), float(high))


def binomial_at_most(k: int, n: int, p: float) -> float:
    """P(X <= k) for X binomial(n, p), 0 <= k <= n, n >= 1, p in (0, 1)."""
    if n < 1 or not 0 <= k <= n or not 0 < p < 1:
        raise ValueError(f"need n >= 1, 0 <= k <= n, 0 < p < 1; got {k=} {n=} {p=}")
    return _upper_tail(n - k, n, 1 - p)  # as many successes or fewer is as many failures or more


def _check_counts(k: int, n: int, confidence: float) -> None:
    if n < 1 or not 0 <= k <= n or not 0 < confidence < 1:
        raise ValueError(f"need n >= 1, 0 <= k <= n, 0 < confidence < 1; got {k=} {n=} {confidence=}")


def _bisect(below: Callable[[float], bool]) -> float:
    """The point in [0, 1] where `below` turns from true to false, to the last bit."""
    low, high = 0.0, 1.0
    while True:
        middle = (low + high) / 2
        if middle in (low, high):
            return middle
        low, high = (middle, high) if below(middle) else (low, middle)


def _upper_tail(k: int, n: int, p: float) -> float:
    """P(X >= k) for X binomial(n, p), 0 < p < 1, summed from the largest term of the smaller side."""
    if k > n * p:
        return _sum_from(k, n, p)
    # P(X <= k - 1), read as a tail of the failures: n - X >= n - k + 1.
    return 1 - _sum_from(n - k + 1, n, 1 - p) if k > 0 else 1.0


def _sum_from(k: int, n: int, p: float) -> float:
    """Sum of the binomial terms from k to n, k at or above the mean: they only get smaller."""
    if k > n:
        return 0.0
    log_term = lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1) + k * log(p) + (n - k) * log1p(-p)
    term = total = exp(log_term)
    odds = p / (1 - p)
    while k < n and term > total * 1e-17:
        term *= (n - k) / (k + 1) * odds
        total += term
        k += 1
    return min(1.0, total)

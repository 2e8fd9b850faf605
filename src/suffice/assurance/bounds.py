"""Intervals for rates, means and ratios, each with its source and its domain.

A confidence sequence covers the mean of the conditional expectations so far, also under drift and changes of the level.
An earlier one covers an earlier mean, so they are never intersected.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import exp, inf, lgamma, log, log1p, sqrt
from statistics import NormalDist
from typing import Final

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Interval:
    low: float
    high: float


def wilson(k: float, n: float, confidence: float) -> Interval:
    """Score interval for a single look: Wilson (1927), JASA 22(158). Guarantees need `exact_binomial` instead."""
    _check_counts(k, n, confidence)
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    rate, z2 = k / n, z * z
    centre = (rate + z2 / (2 * n)) / (1 + z2 / n)
    radius = z / (1 + z2 / n) * sqrt(rate * (1 - rate) / n + z2 / (4 * n * n))
    return Interval(0.0 if k == 0 else centre - radius, 1.0 if k == n else centre + radius)


def difference_between(lost: float, gained: float, n: float, confidence: float) -> Interval:
    """Interval at a single look for the difference of two shares of the same `n` runs, which exclude each other.

    From the Wilson intervals of both shares and their correlation: Zou and Donner (2008), Statistics in Medicine
    27(10), section 3. `n` may be an effective sample size.
    """
    first, second = wilson(lost * n, n, confidence), wilson(gained * n, n, confidence)
    others = (1 - lost) * (1 - gained)
    alike = -sqrt(lost * gained / others) if others > 0 else -1.0

    def radius(one: float, other: float) -> float:
        return sqrt(max(0.0, one * one + other * other - 2 * alike * one * other))

    return Interval(
        max(-1.0, lost - gained - radius(lost - first.low, second.high - gained)),
        min(1.0, lost - gained + radius(first.high - lost, gained - second.low)),
    )


def exact_binomial(k: int, n: int, confidence: float) -> Interval:
    """Interval for a rate at a single look that covers at every rate: Clopper and Pearson (1934), Biometrika 26(4).

    Each end has error (1 - confidence)/2, so a one-sided bound at 95 % is an end of the interval at 90 %.
    """
    _check_counts(k, n, confidence)
    tail = (1 - confidence) / 2
    low = 0.0 if k == 0 else _bisect(lambda p: _upper_tail(k, n, p) < tail)
    # P(X <= k | p) = P(X' >= n - k) for the failures X', whose rate is 1 - p.
    high = 1.0 if k == n else 1 - _bisect(lambda q: _upper_tail(n - k, n, q) < tail)
    return Interval(low, high)


def mean_interval(mean: float, n: int, confidence: float, *, low: float = 0.0) -> Interval:
    """Confidence sequence for the mean of `n` values in [low, 1], sub-Gaussian; tightest at 1,000 values."""
    if not low <= mean <= 1 or n < 0:
        raise ValueError(f"need low <= mean <= 1 and n >= 0; got {mean=} {low=} {n=}")
    if n == 0:
        return Interval(low, 1.0)
    variance = ((1 - low) / 2) ** 2
    radius = mixture_bound(n * variance, confidence, 1_000 * variance) / n
    return Interval(max(low, mean - radius), min(1.0, mean + radius))


def mixture_bound(v: float, confidence: float, v_opt: float) -> float:
    """Time-uniform bound on |S|, S a centred sum of variance v (n sigma^2 if sigma-sub-Gaussian); tightest at `v_opt`.

    Two-sided normal mixture: Howard, Ramdas, McAuliffe, Sekhon (2021), Annals of Statistics 49(2), arXiv:1810.08240,
    equation (14) and section 3.5.
    """
    if v <= 0 or v_opt <= 0 or not 0 < confidence < 1:
        raise ValueError(f"need v > 0, v_opt > 0, 0 < confidence < 1; got {v=} {v_opt=} {confidence=}")
    rho = best_rho(v_opt, 1 - confidence)
    return sqrt((v + rho) * (log((v + rho) / rho) + 2 * log(1 / (1 - confidence))))


def best_rho(v_opt: float, alpha: float) -> float:
    """Return the mixture width that is tightest at `v_opt` for a two-sided bound; double alpha for a one-sided one."""
    surprise = 2 * log(1 / alpha)
    return v_opt / (surprise + log(1 + surprise))


def binomial_at_most(k: int, n: int, p: float) -> float:
    """P(X <= k) for X binomial(n, p), 0 <= k <= n, n >= 1, p in (0, 1)."""
    if n < 1 or not 0 <= k <= n or not 0 < p < 1:
        raise ValueError(f"need n >= 1, 0 <= k <= n, 0 < p < 1; got {k=} {n=} {p=}")
    return _upper_tail(n - k, n, 1 - p)


def _check_counts(k: float, n: float, confidence: float) -> None:
    if n < 1 or not 0 <= k <= n or not 0 < confidence < 1:
        raise ValueError(f"need n >= 1, 0 <= k <= n, 0 < confidence < 1; got {k=} {n=} {confidence=}")


def _bisect(below: Callable[[float], bool]) -> float:
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
    # P(X <= k - 1) as a tail of the failures: n - X >= n - k + 1.
    return 1 - _sum_from(n - k + 1, n, 1 - p) if k > 0 else 1.0


def _sum_from(k: int, n: int, p: float) -> float:
    """Sum the binomial terms from k to n, for k at or above the mean, where they decrease."""
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


# --------------------------------------------------------------------------- confidence sequences
#
# The width follows the variance of the data, which for an EM drop near 0 is far below the range.

V_OPT: Final = 8.0  # squared deviations of values scaled to [0, 1] where the bound is tightest: about 1,000 audits
_DIGITS: Final = 1e-10
FIRST_GUESS: Final = 0.5  # prediction of the first scaled value; a later one is predicted by the mean before it


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceState:
    n: int = 0
    total: float = 0.0
    deviation: float = 0.0  # squared, each value from the mean of those before it

    @property
    def mean(self) -> float:
        """`FIRST_GUESS` before the first value."""
        return self.total / self.n if self.n else FIRST_GUESS

    def plus(self, value: float) -> SequenceState:
        """Add one value that is already scaled to [0, 1]."""
        away = value - self.mean
        return SequenceState(n=self.n + 1, total=self.total + value, deviation=self.deviation + away * away)


def watch(values: NDArray[np.float64], *, low: float = 0.0, high: float = 1.0) -> SequenceState:
    """The state after all values, shape (n,), in their order. Raise ValueError for one outside [low, high]."""
    if not low < high or not ((values >= low) & (values <= high)).all():
        raise ValueError(f"values: need all of them in [{low:g}, {high:g}]")
    scaled = (values - low) / (high - low)
    guesses = np.full(len(scaled), FIRST_GUESS)
    guesses[1:] = np.cumsum(scaled)[:-1] / np.arange(1, len(scaled))
    return SequenceState(n=len(scaled), total=float(scaled.sum()), deviation=float(((scaled - guesses) ** 2).sum()))


def mean_below(
    watched: SequenceState, alpha: float, *, low: float = 0.0, high: float = 1.0, v_opt: float = V_OPT
) -> float:
    """Time-uniform upper bound: the chance that it is ever below the running mean is at most `alpha`.

    Conjugate-mixture empirical Bernstein: a gamma-exponential mixture over S_t = sum of (X - mean) with V_t the squared
    deviations from predictable guesses, scale c = 1. Howard, Ramdas, McAuliffe, Sekhon (2021), Annals of Statistics
    49(2), arXiv:1810.08240, theorem 4 and proposition 9. Tightest at `v_opt` squared deviations, a constant.
    """
    return low + (high - low) * min(1.0, watched.mean + _radius(watched, alpha, v_opt))


def mean_above(watched: SequenceState, alpha: float, *, low: float = 0.0, high: float = 1.0) -> float:
    return low + (high - low) * max(0.0, watched.mean - _radius(watched, alpha, V_OPT))


def mean_between(watched: SequenceState, confidence: float, *, low: float = 0.0, high: float = 1.0) -> Interval:
    alpha = (1 - confidence) / 2
    return Interval(mean_above(watched, alpha, low=low, high=high), mean_below(watched, alpha, low=low, high=high))


def _radius(watched: SequenceState, alpha: float, v_opt: float) -> float:
    return gamma_exponential_bound(watched.deviation, alpha, v_opt=v_opt) / watched.n if watched.n else inf


# --------------------------------------------------------------------------- mixtures


def gamma_exponential_bound(v: float, alpha: float, *, v_opt: float) -> float:
    """One-sided bound on a sub-exponential sum (c = 1) with intrinsic variance v >= 0, tightest at `v_opt`.

    alpha  in (0, 1/2)
    """
    if v < 0 or not 0 < alpha < 0.5 or v_opt <= 0:
        raise ValueError(f"need v >= 0, 0 < alpha < 0.5, v_opt > 0; got {v=} {alpha=} {v_opt=}")
    return _reached(_gamma_exponential(v, alpha, v_opt), log(1 / alpha))


def gamma_exponential_log_wealth(s: float, v: float, alpha: float, *, v_opt: float) -> float:
    """Natural logarithm of the mixture supermartingale at sum s and variance v (Howard et al. 2021, proposition 9)."""
    return _gamma_exponential(v, alpha, v_opt)(s)


def _gamma_exponential(v: float, alpha: float, v_opt: float) -> Callable[[float], float]:
    start = best_rho(v_opt, 2 * alpha)
    begun = _log_lower_gamma(start, start)
    return lambda s: _log_lower_gamma(v + start, s + v + start) - begun


def _reached(log_wealth: Callable[[float], float], goal: float) -> float:
    """Return the smallest s, rounded up at ten digits, at which an increasing `log_wealth` reaches `goal`.

    False position by the Illinois method (Dowell and Jarratt 1971, BIT 11).
    """
    low, high = 0.0, 1.0
    below, above = log_wealth(low) - goal, log_wealth(high) - goal
    while above < 0:
        low = high
        below = above
        high = 2 * high
        above = log_wealth(high) - goal
    moved = 0  # last end that moved: -1 the lower, 1 the upper
    while high - low > _DIGITS * high:
        off = _DIGITS * high / 3  # keeps guesses off both ends, so that the two meet
        s = min(max((low * above - high * below) / (above - below), low + off), high - off)
        away = log_wealth(s) - goal
        if away < 0:
            low = s
            below = away
            above = above / 2 if moved == -1 else above
            moved = -1
        else:
            high = s
            above = away
            below = below / 2 if moved == 1 else below
            moved = 1
    return high


def _log_lower_gamma(a: float, x: float) -> float:
    """Logarithm of e^x x^-a times the lower incomplete gamma function at (a, x), a and x above 0; never overflows.

    Below a + 1 by the power series, above by the continued fraction of the upper function (Abramowitz and Stegun 6.5.29
    and 6.5.31, Lentz's method).
    """
    if x < a + 1:
        term = total = 1 / a
        step = a
        while term > total * 1e-17:
            step += 1
            term *= x / step
            total += term
        return log(total)
    whole = lgamma(a) - a * log(x) + x
    return whole + log1p(-exp(log(_upper_gamma_fraction(a, x)) - whole))


def _upper_gamma_fraction(a: float, x: float) -> float:
    """The continued fraction of the upper incomplete gamma function, x >= a + 1."""
    b = x + 1 - a
    c, d = 1e300, 1 / b
    fraction = d
    for i in range(1, 100_000):
        part = i * (a - i)
        b += 2
        d = 1 / (part * d + b)
        c = b + part / c
        fraction *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return fraction


# --------------------------------------------------------------------------- ratios
#
# A ratio r of means, such as tokens spent over tokens of the same runs in full, is refuted when part - r whole cannot
# have mean 0; the interval holds every r that is not refuted. The sums are quadratic in r, so one pass over the pairs
# serves every r. Valid at every look and under drift, for the ratio of both means of conditional expectations so far.

MOST: Final = 4.0  # the largest ratio considered


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchedPairs:
    part: float = 0.0
    whole: float = 0.0
    part_deviation: float = 0.0  # squared, each from the mean of those before it
    cross_deviation: float = 0.0  # products of both
    whole_deviation: float = 0.0


def watch_pairs(part: NDArray[np.float64], whole: NDArray[np.float64], *, cap: float) -> WatchedPairs:
    """The state after all pairs, shape (n,). Raise ValueError for one outside [0, cap]; fix `cap` before the data."""
    both = np.stack([part, whole], axis=1)
    if not cap > 0 or not ((both >= 0) & (both <= cap)).all():
        raise ValueError(f"pairs: need all of them in [0, {cap:g}]")
    scaled = both / cap
    guesses = np.full(scaled.shape, FIRST_GUESS)
    guesses[1:] = (np.cumsum(scaled, axis=0) - scaled)[1:] / np.arange(1, len(scaled))[:, np.newaxis]
    away = scaled - guesses
    squares, total = away.T @ away, scaled.sum(axis=0)
    return WatchedPairs(
        part=float(total[0]),
        whole=float(total[1]),
        part_deviation=float(squares[0, 0]),
        cross_deviation=float(squares[0, 1]),
        whole_deviation=float(squares[1, 1]),
    )


def ratio_between(watched: WatchedPairs, confidence: float) -> Interval:
    """Confidence sequence for the ratio, within [0, 4]."""
    if not watched.whole:
        return Interval(0.0, MOST)
    alpha, middle = (1 - confidence) / 2, min(watched.part / watched.whole, MOST)
    return Interval(_edge(watched, alpha, middle, 0.0), _edge(watched, alpha, middle, MOST))


def weighted_between(
    values: NDArray[np.float64],
    weights: NDArray[np.float64],
    confidence: float,
    *,
    most_weight: float,
    low: float = 0.0,
    high: float = 1.0,
) -> tuple[float, Interval]:
    """A weighted mean of values in [low, high], shape (n,), and its confidence sequence.

    A weight is fixed before its value is known and lies in (0, most_weight], a bound that is fixed beforehand.
    """
    mean = float((weights * values).sum() / weights.sum())
    if (weights == 1).all():
        return mean, mean_between(watch(values, low=low, high=high), confidence, low=low, high=high)
    width = high - low
    ratio = ratio_between(watch_pairs(weights * (values - low) / width, weights, cap=most_weight), confidence)
    return mean, Interval(low + width * min(1.0, ratio.low), low + width * min(1.0, ratio.high))


def _edge(watched: WatchedPairs, alpha: float, inside: float, outside: float) -> float:
    if not _refuted(watched, outside, alpha):
        return outside
    while abs(outside - inside) > 1e-7:
        middle = (inside + outside) / 2
        inside, outside = (inside, middle) if _refuted(watched, middle, alpha) else (middle, outside)
    return outside


def _refuted(watched: WatchedPairs, ratio: float, alpha: float) -> bool:
    width = 1 + ratio
    deviation = (
        watched.part_deviation - 2 * ratio * watched.cross_deviation + ratio * ratio * watched.whole_deviation
    ) / width**2
    sum_away = abs(watched.part - ratio * watched.whole) / width
    return sum_away > gamma_exponential_bound(max(0.0, deviation), alpha, v_opt=V_OPT)

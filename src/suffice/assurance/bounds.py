"""Intervals for rates, means and ratios, each with its source and its domain.

    wilson              a rate, looked at once             reads well, covers on average
    exact_binomial      a rate, looked at once             covers always, a little wide
    bootstrap_interval  a function of column sums, once    for ratios; rows of one group stay together
    mean_interval       a mean, watched all the time       from its range alone
    mean_between        a mean, watched all the time       from the variance of the data
    ratio_between       a ratio of means, all the time     likewise

What may be watched all the time is a confidence sequence. It covers the mean of the conditional expectations so far, so
the world may drift and the deployed level may change meanwhile. For that reason no interval is cut with earlier ones:
an old one speaks of an old mean. ASSURANCE.md §3.4.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from math import exp, inf, isfinite, lgamma, log, log1p, sqrt
from statistics import NormalDist
from typing import Final

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


# --------------------------------------------------------------------------- confidence sequences
#
#     values in [low, high], in order ──▶ SequenceState (three sums) ──▶ mean_below, mean_above, mean_between
#
# The width follows the variance of the data, which for an EM drop near 0 is far below the range.

V_OPT: Final = 8.0  # squared deviations, of values scaled to [0, 1], where the bound is tightest: 1,000 audits or so
_DIGITS: Final = 1e-10
FIRST_GUESS: Final = 0.5  # of the first value, scaled; every later one is guessed by the mean before it


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceState:
    """The values so far, scaled to [0, 1]: all that an interval is made of."""

    n: int = 0
    total: float = 0.0
    deviation: float = 0.0  # squared, each value from the mean of those before it

    @property
    def mean(self) -> float:
        """Of the scaled values; `FIRST_GUESS` before there is one."""
        return self.total / self.n if self.n else FIRST_GUESS

    def plus(self, value: float) -> SequenceState:
        """With one more value, scaled to [0, 1]; `watch` takes many."""
        away = value - self.mean
        return SequenceState(n=self.n + 1, total=self.total + value, deviation=self.deviation + away * away)


def watch(
    values: NDArray[np.float64], before: SequenceState | None = None, *, low: float = 0.0, high: float = 1.0
) -> SequenceState:
    """Take in the next values, shape (n,), in their order, behind those `before`.

    Raises ValueError for a value outside of [low, high]: of -1 and 1 for an EM drop.
    """
    if not low < high or not ((values >= low) & (values <= high)).all():
        raise ValueError(f"values: need all of them in [{low:g}, {high:g}]")
    start = before or SequenceState()
    scaled = (values - low) / (high - low)
    totals = start.total + np.cumsum(scaled)
    guesses = np.empty(len(scaled))
    if len(scaled):
        guesses[0] = start.mean
        guesses[1:] = totals[:-1] / (start.n + np.arange(1, len(scaled)))
    return SequenceState(
        n=start.n + len(scaled),
        total=start.total + float(scaled.sum()),
        deviation=start.deviation + float(((scaled - guesses) ** 2).sum()),
    )


def mean_below(
    watched: SequenceState, alpha: float, *, low: float = 0.0, high: float = 1.0, v_opt: float = V_OPT
) -> float:
    """Upper bound: the chance that it is ever below the running mean is at most `alpha`.

    Conjugate-mixture empirical Bernstein: a gamma-exponential mixture over S_t = sum of (X - mean) with V_t the squared
    deviations from predictable guesses, scale c = 1. Howard, Ramdas, McAuliffe, Sekhon (2021), Annals of Statistics
    49(2), arXiv:1810.08240, theorem 4 and proposition 9. It is tightest at `v_opt` squared deviations, a constant.
    """
    return low + (high - low) * min(1.0, watched.mean + _radius(watched, alpha, v_opt))


def mean_above(watched: SequenceState, alpha: float, *, low: float = 0.0, high: float = 1.0) -> float:
    return low + (high - low) * max(0.0, watched.mean - _radius(watched, alpha, V_OPT))


def mean_between(watched: SequenceState, confidence: float, *, low: float = 0.0, high: float = 1.0) -> Interval:
    """Both ends, each with half of what `confidence` leaves."""
    alpha = (1 - confidence) / 2
    return Interval(mean_above(watched, alpha, low=low, high=high), mean_below(watched, alpha, low=low, high=high))


def _radius(watched: SequenceState, alpha: float, v_opt: float) -> float:
    return gamma_exponential_bound(watched.deviation, alpha, v_opt=v_opt) / watched.n if watched.n else inf


# --------------------------------------------------------------------------- mixtures


def gamma_exponential_bound(v: float, alpha: float, *, v_opt: float, scale: float = 1.0) -> float:
    """Bound above a sub-exponential sum with intrinsic variance v >= 0, one-sided, tightest at `v_opt`.

    alpha  in (0, 1/2): at twice an alpha of one half the tuning of the width has no meaning any more
    scale  c of the sub-exponential law: the largest step down, in the unit of the sum
    """
    if v < 0 or not 0 < alpha < 0.5 or v_opt <= 0:
        raise ValueError(f"need v >= 0, 0 < alpha < 0.5, v_opt > 0; got {v=} {alpha=} {v_opt=}")
    return _reached(_gamma_exponential(v, alpha, v_opt, scale), log(1 / alpha))


def gamma_exponential_log_wealth(s: float, v: float, alpha: float, *, v_opt: float, scale: float = 1.0) -> float:
    """Natural logarithm of the mixture supermartingale at sum s and variance v (Howard et al. 2021, proposition 9)."""
    return _gamma_exponential(v, alpha, v_opt, scale)(s)


def _gamma_exponential(v: float, alpha: float, v_opt: float, scale: float) -> Callable[[float], float]:
    """Its logarithm as a function of the sum alone; what does not depend on that is worked out once."""
    c2 = scale * scale
    start = best_rho(v_opt, 2 * alpha) / c2
    grown, begun = v / c2 + start, _log_lower_gamma(start, start)
    return lambda s: _log_lower_gamma(grown, (scale * s + v) / c2 + start) - begun


def _reached(log_wealth: Callable[[float], float], goal: float) -> float:
    """The smallest s, to ten digits and never below it, at which a wealth that grows with s reaches its goal.

    False position, the weight of an end that stays put halved each time: the Illinois method (Dowell and Jarratt 1971,
    BIT 11). A guess keeps a third of the last digit off both ends, so that the two meet.
    """
    low, high = 0.0, 1.0
    below, above = log_wealth(low) - goal, log_wealth(high) - goal
    while above < 0:
        low, below, high = high, above, 2 * high
        above = log_wealth(high) - goal
    moved = 0  # -1: the lower end came last, 1: the upper one
    while high - low > _DIGITS * high:
        off = _DIGITS * high / 3
        s = min(max((low * above - high * below) / (above - below), low + off), high - off)
        away = log_wealth(s) - goal
        if away < 0:
            low, below, above, moved = s, away, above / 2 if moved == -1 else above, -1
        else:
            high, above, below, moved = s, away, below / 2 if moved == 1 else below, 1
    return high


def _log_lower_gamma(a: float, x: float) -> float:
    """Logarithm of e^x x^-a times the lower incomplete gamma function at (a, x), a and x above 0.

    Below a + 1 by its power series, whose terms are all positive; above by what the continued fraction of the upper one
    leaves (Abramowitz and Stegun 6.5.29 and 6.5.31, the fraction by Lentz's method). So scaled, nothing overflows.
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
    """The continued fraction behind the upper incomplete gamma function, x >= a + 1."""
    tiny = 1e-300
    b = x + 1 - a
    c, d = 1 / tiny, 1 / b
    fraction = d
    for i in range(1, 100_000):
        part = i * (a - i)
        b += 2
        d = 1 / _off_zero(part * d + b, tiny)
        c = _off_zero(b + part / c, tiny)
        fraction *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return fraction


def _off_zero(number: float, tiny: float) -> float:
    return number if abs(number) > tiny else tiny


# --------------------------------------------------------------------------- ratios
#
# A ratio r of means, such as tokens spent over tokens of the same runs in full, is refuted when part - r whole cannot
# have mean 0; what is not refuted is the interval. The sums are quadratic in r, so the pairs are read once and every r
# is asked afterwards. Valid at every look, under drift: the ratio covered is that of the two means of conditional
# expectations so far.

MOST: Final = 4.0  # ratios looked at; stopping that costs more than four full runs needs no finer number


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchedPairs:
    """The pairs so far, scaled by their cap: all that an interval is made of."""

    n: int = 0
    part: float = 0.0
    whole: float = 0.0
    part_deviation: float = 0.0  # squared, each from the mean of those before it
    cross_deviation: float = 0.0  # products of both
    whole_deviation: float = 0.0

    @property
    def ratio(self) -> float | None:
        """Of the sums; None: the whole is nothing yet."""
        return self.part / self.whole if self.whole else None


def watch_pairs(
    part: NDArray[np.float64], whole: NDArray[np.float64], before: WatchedPairs | None = None, *, cap: float
) -> WatchedPairs:
    """Take in the next pairs, shape (n,) each, in their order, all in [0, cap]; the cap must be known beforehand.

    Raises ValueError for a value outside of it.
    """
    both = np.stack([part, whole], axis=1)
    if not cap > 0 or not ((both >= 0) & (both <= cap)).all():
        raise ValueError(f"pairs: need all of them in [0, {cap:g}]")
    start = before or WatchedPairs()
    scaled = both / cap
    so_far = np.array([start.part, start.whole])
    earlier = so_far + np.cumsum(scaled, axis=0) - scaled
    n_earlier = start.n + np.arange(len(scaled))[:, np.newaxis]
    guesses = np.where(n_earlier > 0, earlier / np.maximum(n_earlier, 1), FIRST_GUESS)
    away = scaled - guesses
    squares = away.T @ away
    total = so_far + scaled.sum(axis=0)
    return WatchedPairs(
        n=start.n + len(scaled),
        part=float(total[0]),
        whole=float(total[1]),
        part_deviation=start.part_deviation + float(squares[0, 0]),
        cross_deviation=start.cross_deviation + float(squares[0, 1]),
        whole_deviation=start.whole_deviation + float(squares[1, 1]),
    )


def ratio_between(watched: WatchedPairs, confidence: float) -> Interval:
    """From the smallest to the largest ratio that no look refutes with this confidence, in [0, 4]."""
    ratio = watched.ratio
    if ratio is None:
        return Interval(0.0, MOST)
    alpha, middle = (1 - confidence) / 2, min(ratio, MOST)
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
    """A weighted mean of values in [low, high], shape (n,), and its confidence sequence, valid at every look.

    A weight is fixed before its value is known, and is in (0, most_weight], which must be known beforehand.
    """
    mean = float((weights * values).sum() / weights.sum())
    if (weights == 1).all():
        return mean, mean_between(watch(values, low=low, high=high), confidence, low=low, high=high)
    width = high - low
    ratio = ratio_between(watch_pairs(weights * (values - low) / width, weights, cap=most_weight), confidence)
    return mean, Interval(low + width * min(1.0, ratio.low), low + width * min(1.0, ratio.high))


def _edge(watched: WatchedPairs, alpha: float, inside: float, outside: float) -> float:
    """Where, on the way from a ratio that holds to one that may not, the first is refuted."""
    if not _refuted(watched, outside, alpha):
        return outside
    while abs(outside - inside) > 1e-7:
        middle = (inside + outside) / 2
        inside, outside = (inside, middle) if _refuted(watched, middle, alpha) else (middle, outside)
    return outside


def _refuted(watched: WatchedPairs, ratio: float, alpha: float) -> bool:
    """Is the mean of part - ratio whole surely not 0? The difference lies in an interval of width 1 + ratio."""
    width = 1 + ratio
    deviation = (
        watched.part_deviation - 2 * ratio * watched.cross_deviation + ratio * ratio * watched.whole_deviation
    ) / width**2
    sum_away = abs(watched.part - ratio * watched.whole) / width
    return sum_away > gamma_exponential_bound(max(0.0, deviation), alpha, v_opt=V_OPT)

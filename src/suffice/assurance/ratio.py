"""A confidence sequence for a ratio of means, such as tokens spent over tokens of the same runs in full.

    pairs (part, whole), in order ──▶ WatchedPairs (six sums) ──▶ ratio_between

A ratio r is refuted when part - r whole cannot have mean 0; what is not refuted is the interval. The sums are quadratic
in r, so the pairs are read once and every r is asked afterwards. Valid at every look, under drift: the ratio covered is
that of the two means of conditional expectations so far.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from suffice.assurance.bounds import Interval
from suffice.assurance.sequence import FIRST_GUESS, V_OPT, gamma_exponential_bound, mean_between, watch

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
    """Take in the next pairs, in the order in which they came.

    part, whole  shape (n,), each in [0, cap]
    cap          the largest value there can be, above 0; it must be known beforehand
    Raises ValueError for a value outside.
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


def ratio_between(watched: WatchedPairs, confidence: float, *, v_opt: float = V_OPT) -> Interval:
    """From the smallest to the largest ratio that is not refuted, in [0, 4].

    confidence  in (0, 1): probability that no look ever misses
    """
    ratio = watched.ratio
    if ratio is None:
        return Interval(0.0, MOST)
    alpha = (1 - confidence) / 2
    middle = min(ratio, MOST)
    return Interval(_edge(watched, alpha, v_opt, middle, 0.0), _edge(watched, alpha, v_opt, middle, MOST))


def weighted_between(
    values: NDArray[np.float64],
    weights: NDArray[np.float64],
    confidence: float,
    *,
    most_weight: float,
    low: float = 0.0,
    high: float = 1.0,
) -> tuple[float, Interval]:
    """A weighted mean of values in [low, high] and its confidence sequence, valid at every look.

    values, weights  shape (n,), at least one, in the order in which they came; a weight is fixed before its value is
                     known, and is in (0, most_weight]
    most_weight      the largest weight there can be; it must be known beforehand
    """
    mean = float((weights * values).sum() / weights.sum())
    if (weights == 1).all():
        return mean, mean_between(watch(values, low=low, high=high), confidence, low=low, high=high)
    width = high - low
    ratio = ratio_between(watch_pairs(weights * (values - low) / width, weights, cap=most_weight), confidence)
    return mean, Interval(low + width * min(1.0, ratio.low), low + width * min(1.0, ratio.high))


def _edge(watched: WatchedPairs, alpha: float, v_opt: float, inside: float, outside: float) -> float:
    """Where, on the way from a ratio that stands to one that may not, the first is refuted."""
    if not _refuted(watched, outside, alpha, v_opt):
        return outside
    while abs(outside - inside) > 1e-7:
        middle = (inside + outside) / 2
        inside, outside = (inside, middle) if _refuted(watched, middle, alpha, v_opt) else (middle, outside)
    return outside


def _refuted(watched: WatchedPairs, ratio: float, alpha: float, v_opt: float) -> bool:
    """Is the mean of part - ratio whole surely not 0? The difference lies in an interval of width 1 + ratio."""
    width = 1 + ratio
    deviation = (
        watched.part_deviation - 2 * ratio * watched.cross_deviation + ratio * ratio * watched.whole_deviation
    ) / width**2
    sum_away = abs(watched.part - ratio * watched.whole) / width
    return sum_away > gamma_exponential_bound(max(0.0, deviation), alpha, v_opt=v_opt)

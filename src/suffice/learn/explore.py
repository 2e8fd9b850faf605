"""Lotteries with exact odds: which arm a live request gets, and which arm an audit asks beside the full run.

Both are plain tables of odds, computed before anything is drawn, so the propensity that is logged is the true one.
(Thompson sampling has no such table: its odds are integrals that one can only estimate.)
Knows numbers; refuses to know what an arm is.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def inverse_gap(
    values: Sequence[float],
    in_play: Sequence[int],
    incumbent: int,
    *,
    n_draws: float,
    floor: float,
    ceiling: float,
    sharpness: float = 4.0,
) -> tuple[float, ...]:
    """Odds of each arm for a live request, shape (K,): the incumbent, and a bounded share of arms that look good.

    Inverse gap weighting (SquareCB: Foster and Rakhlin 2020, arXiv:2002.04926): of the share that explores, an arm
    gets 1/(K + gamma x gap to the best value), the best the rest; gamma grows with the root of the draws. An arm in
    play keeps the floor, so that a change for the better is noticed; the incumbent never gets less than 1 - ceiling.

    values     estimated reward of every arm
    in_play    arms that may be shown to clients; others get 0
    incumbent  one of them
    n_draws    discounted number of draws behind the values, at least 0: bounded, so that exploring never ends
    floor      least share of an arm in play; lowered where all floors together would exceed the ceiling
    ceiling    largest share of all arms but the incumbent, in [0, 1)
    sharpness  how fast gamma grows, at least 0; 0: all arms in play alike
    """
    if incumbent not in in_play or not 0 <= floor <= ceiling < 1 or sharpness < 0:
        raise ValueError(f"need the incumbent in play, 0 <= floor <= ceiling < 1; got {incumbent=} {in_play=} {floor=}")
    odds = np.zeros(len(values))
    others = [arm for arm in in_play if arm != incumbent]
    if not others:
        odds[incumbent] = 1.0
        return tuple(odds.tolist())
    floor = min(floor, ceiling / len(others))
    best = max(values[arm] for arm in in_play)
    gamma = sharpness * sqrt(len(in_play) * n_draws)
    gaps = np.array([best - values[arm] for arm in in_play])
    weights = 1 / (len(in_play) + gamma * gaps)
    weights[int(gaps.argmin())] += 1 - weights.sum()
    free = ceiling - floor * len(others)
    for arm, weight in zip(in_play, weights, strict=True):
        odds[arm] += free * weight + (floor if arm != incumbent else 0.0)
    odds[incumbent] += 1 - ceiling
    return tuple((odds / odds.sum()).tolist())


def proportional(promise: Sequence[float], *, floor: float) -> tuple[float, ...]:
    """Odds of each arm in proportion to its promise, each that has any with at least `floor`, shape (K,).

    promise  at least 0; 0: never drawn. At least one above 0
    floor    in [0, 1], lowered to an even share where it is too much
    """
    size = np.array(promise, dtype=np.float64)
    if (size < 0).any() or not size.sum() > 0:
        raise ValueError(f"promise: got {list(promise)}; at least 0, one of them above")
    n = int((size > 0).sum())
    floor = min(floor, 1 / n)
    odds = np.where(size > 0, floor + (1 - n * floor) * size / size.sum(), 0.0)
    return tuple((odds / odds.sum()).tolist())


def pick_arm(odds: Sequence[float], point: float) -> int:
    """The arm on which a point in [0, 1) falls; arms without odds are never picked."""
    if not 0 <= point < 1:
        raise ValueError(f"point: got {point}; in [0, 1)")
    edges = np.cumsum(odds)
    last = int(np.flatnonzero(np.asarray(odds))[-1])
    return min(int(np.searchsorted(edges, point, side="right")), last)

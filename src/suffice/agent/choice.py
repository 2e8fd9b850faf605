"""How often each allowed action is drawn in one query class.

The best action gets all draws but a small exploring share. Of that, an action gets the share of inverse-gap weighting
(SquareCB: Foster and Rakhlin 2020, arXiv:2002.04926), 1 / (K + gamma x gap), and only while what could be learned from
it is worth more than it costs. Shares are tables computed before the draw, so the logged propensity is exact; with
posterior sampling it would have to be simulated.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import erf, exp, pi, sqrt

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChoiceBounds:
    explore_share: float = 0.1  # of live requests, at most
    explore_cost: float = 0.01  # expected loss of value per request for exploration, in full runs' tokens, at most
    least_gain: float = 0.01  # of a full run's tokens: a smaller improvement does not change the best action
    caution: float = 0.5  # standard errors subtracted from a value before it is compared


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ClassShares:
    best: int
    shares: tuple[float, ...]  # of every action; they sum to 1
    regret: float  # expected loss of value per request through exploration, in EM


def expected_improvement(gap: float, error: float) -> float:
    """Expected gain per request if an action that seems `gap` worse is known exactly: E[max(0, N(-gap, error))]."""
    if error <= 0:
        return 0.0
    z = -gap / error
    return error * (exp(-z * z / 2) / sqrt(2 * pi) + z * (1 + erf(z / sqrt(2))) / 2)


def choose(
    value: Floats,
    error: Floats,
    spread: Floats,
    *,
    allowed: Bools,
    hopes: Floats,
    incumbent: int,
    token_price: float,
    horizon: float,
    bounds: ChoiceBounds,
) -> ClassShares:
    """Return the shares of one class.

    value    expected reward of each action, in EM
    error    standard error of each value; 0 for the full run, which is action 0 and always allowed
    spread   standard deviation of one run's reward, in EM
    hopes    expected gain from trying an action that is not allowed for now; 0: it is not tried
    horizon  requests of the class over which what is learned stays true
    """
    careful = np.where(allowed, value - bounds.caution * error, -np.inf)
    best = int(np.argmax(careful))
    if allowed[incumbent] and careful[best] < careful[incumbent] + bounds.least_gain * token_price:
        best = incumbent
    others = [a for a in range(1, len(value)) if a != best and (allowed[a] or hopes[a] > 0)]
    gaps = {a: max(0.0, float(value[best] - value[a])) for a in others}
    shares = np.zeros(len(value))
    for a, gap in gaps.items():
        runs = (spread[a] / error[a]) ** 2 if error[a] > 0 else 0.0  # as many again halve its variance
        if horizon * max(float(hopes[a]), expected_improvement(gap, float(error[a]))) > runs * gap:
            shares[a] = 1 / (len(others) + 1 + gap / max(float(error[a]), 1e-9) * sqrt(len(others)))
    cost = sum(shares[a] * gap for a, gap in gaps.items())
    most_cost = bounds.explore_cost * token_price
    scale = min(1.0, bounds.explore_share / max(shares.sum(), 1e-12), most_cost / max(cost, 1e-12))
    shares *= scale
    shares[best] = 1 - shares.sum()
    return ClassShares(best=best, shares=tuple(shares.tolist()), regret=float(scale * cost))

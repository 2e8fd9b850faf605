"""A boundary that is tightest at a planned amount of evidence and holds at every look, as samples grow.

A sum S of contributions with mean 0 whose squared deviations add up to V behaves like Brownian motion at time V (the
martingale central limit theorem: Hall and Heyde 1980, theorem 3.2), whatever is served when, and however units of one
person resemble each other, since only the draws of arms are random. The boundary is flat up to the plan, v, as that of
O'Brien and Fleming (1979, Biometrics 35), and grows with V behind it, where the interval stays as wide as at the plan:

    P(B(t) >= c max(1, t) for some t) = 3 Q(c) - exp(4 c^2) Q(3 c),    Q(x) = P(N(0, 1) > x)

by the reflection principle up to t = 1, and by exp(-2 c (c - x)) for the line from a point x below it. Such a bound is
asymptotic, unlike those of `assurance.bounds`: it is used beside one of them, with a share of the error; never on less
than `LEAST_EVIDENCE`; and with the largest skew that the contributions may have in place of the one that they have.
"""

from __future__ import annotations

from functools import lru_cache
from math import exp, log, sqrt
from statistics import NormalDist
from typing import Final

SHARE: Final = 0.9  # of the error; the bound that needs no large sample has the rest
FIRST_PART: Final = 0.5  # of the planned units; the deviations up to there predict those at the plan
LEAST_EVIDENCE: Final = 50.0  # V over the squared size of a typical contribution: about the number of events
_NORMAL: Final = NormalDist()


@lru_cache(maxsize=1_024)
def planned_quantile(alpha: float) -> float:
    """Return c: Brownian motion ever reaches c max(1, t) with probability `alpha`, in (0, 1/2)."""
    if not 0 < alpha < 0.5:
        raise ValueError(f"need 0 < alpha < 0.5; got {alpha=}")
    low, high = 0.0, 10.0
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (middle, high) if ever_reached(middle) > alpha else (low, middle)
    return high


def ever_reached(c: float) -> float:
    """P(B(t) >= c max(1, t) for some t), c in [0, 10]."""
    beyond = _NORMAL.cdf(-3 * c)
    return 3 * _NORMAL.cdf(-c) - (exp(4 * c * c + log(beyond)) if beyond > 0 else 0.0)


def planned_bound(v: float, alpha: float, *, v_plan: float, size: float) -> float | None:
    """One-sided bound on a sum with squared deviations v; None: too little was seen for it.

    v_plan  squared deviations at the plan, predicted from the first part
    size    of a typical contribution: the sum of cubes |x|^3 over the sum of squares
    """
    if v_plan <= 0 or v < LEAST_EVIDENCE * size * size:
        return None
    c = planned_quantile(alpha)
    # Cornish and Fisher's term for skew, at its largest: a sum of cubes is at most `size` times that of squares.
    skew = size * (c * c - 1) / 6
    return c * sqrt(v_plan) * max(1.0, v / v_plan) + skew

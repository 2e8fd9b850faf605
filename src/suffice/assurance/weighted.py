"""Bounds for the mean of importance-weighted terms: valid at every look, and without a largest weight.

A term such as weight x reward can be huge and is never far below 0. That is enough for a lower bound; an upper bound
of a reward in [0, 1] is one minus the lower bound of what is missing to 1. Waudby-Smith, Wu, Ramdas, Karampatziakis,
Mineiro (2024), ACM/IMS J. Data Sci. 1(3), arXiv:2210.10768.

Knows numbers in their order; refuses to know arms, rewards and logs (`learn.ope`).
"""

from __future__ import annotations

from math import log
from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# Speeds at which the evidence may grow: any mixture is valid, this one is near the best for 30 to 100,000 terms.
SPEEDS: Final = tuple(float(speed) for speed in np.geomspace(0.006, 0.9, 10))


def lower_sequence(terms: Floats, *, floor: float, alpha: float) -> Floats:
    """Lower bounds for the mean of terms after 1, 2 … n of them; the chance that any of them is too high is alpha.

    The mean is that of the terms' conditional expectations so far, so it may drift, and terms may depend on earlier
    ones. It must lie in [0, 1]. Empirical Bernstein: with y = (term - centre) / (1 + floor) at least -1, and the centre
    a shrunken mean of earlier terms, exp(speed y - psi(speed) y^2) <= 1 + speed y for psi(s) = -log(1 - s) - s (Fan,
    Grama, Liu 2015, arXiv:1311.6273); a mixture over speeds is inverted by bisection.

    terms  in the order in which they came, each at least -floor, shape (n,)
    floor  at least 0
    alpha  in (0, 1)

    Returns shape (n,), each in [0, 1]. Raises ValueError for a term below -floor or one that is not finite.
    """
    _check(terms, floor, alpha)
    n = np.arange(1, len(terms) + 1)
    sums = np.cumsum(terms) / (1 + floor)
    spread = np.cumsum(((terms - _centres(terms)) / (1 + floor)) ** 2)
    return _inverted(sums, spread, n, floor, alpha)


def lower_bound(terms: Floats, *, floor: float, alpha: float) -> float:
    """The last of `lower_sequence`; 0 without terms."""
    _check(terms, floor, alpha)
    if not len(terms):
        return 0.0
    sums = np.array([terms.sum() / (1 + floor)])
    spread = np.array([(((terms - _centres(terms)) / (1 + floor)) ** 2).sum()])
    return float(_inverted(sums, spread, np.array([len(terms)]), floor, alpha)[0])


def _check(terms: Floats, floor: float, alpha: float) -> None:
    if floor < 0 or not 0 < alpha < 1:
        raise ValueError(f"need floor >= 0 and 0 < alpha < 1; got {floor=} {alpha=}")
    if not np.isfinite(terms).all() or (terms < -floor - 1e-9).any():
        raise ValueError(f"terms: got {terms.min():g} at the lowest; finite numbers, at least {-floor:g}")


def _centres(terms: Floats) -> Floats:
    """Before each term, the mean of those before it, one of 1/2 added, cut to [0, 1]."""
    before = np.cumsum(terms) - terms
    return np.clip((before + 0.5) / np.arange(1, len(terms) + 1), 0.0, 1.0)


def _inverted(sums: Floats, spread: Floats, n: NDArray[np.int64], floor: float, alpha: float) -> Floats:
    """The mean at which the mixture reaches 1/alpha, at each time; it falls with the mean."""
    speeds = np.array(SPEEDS)
    psi = -np.log1p(-speeds) - speeds
    fixed = speeds * sums[:, np.newaxis] - psi * spread[:, np.newaxis] - log(len(speeds))
    per_mean = speeds * n[:, np.newaxis] / (1 + floor)
    low, high = np.zeros(len(n)), np.ones(len(n))
    for _ in range(40):
        middle = (low + high) / 2
        exponents = fixed - per_mean * middle[:, np.newaxis]
        peak = exponents.max(axis=1)
        refuted = peak + np.log(np.exp(exponents - peak[:, np.newaxis]).sum(axis=1)) >= log(1 / alpha)
        low, high = np.where(refuted, middle, low), np.where(refuted, high, middle)
    return low

"""Paired calls: the EM drop of an arm that cannot be replayed, from a second call for the same question.

An audit delivers the full run and calls the arm, for Z = c_full - c_arm in {-1, 0, +1}, or sometimes a second full run,
for the model's disagreement with itself (`Repeats`). Independent draws add noise of mean 0, which costs audits
(`pairs_to_certify`) and not validity. Z <= D, so disagreement bounds the drop without labels. **Its excess over that of
repeats does not**: a model that is right half of the time differs from itself on half of the questions, and as often
from an arm that is never right.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, log
from typing import Final

import numpy as np
from numpy.typing import NDArray

from suffice.assurance.certify import Counts, check_budget, log_bets, mixed

Floats = NDArray[np.float64]

# Fractions of the largest bet. The best one is about (epsilon - drop) / (lost + gained), which noise makes small: the
# 0.25 of `certify` loses on pairs that differ by chance on every sixth question.
BETS: Final = (0.04, 0.1, 0.25, 0.5, 0.8)


def upper_drop(counts: Counts, *, delta: float) -> Floats:
    """The smallest drop that the pairs of each arm refute at `delta`, at every look, shape (M,); 1 if none."""
    if not 0 < delta < 1:
        raise ValueError(f"delta: got {delta}; above 0 and below 1")
    low, high = np.zeros(len(counts.same)), np.ones(len(counts.same))
    for _ in range(24):
        middle = np.clip((low + high) / 2, 1e-9, 1 - 1e-9)
        wealth = mixed(log_bets(counts.gained, counts.same, counts.lost, middle, bets=BETS))
        refuted = wealth >= log(1 / delta)
        low, high = np.where(refuted, low, middle), np.where(refuted, middle, high)
    return high


def pairs_to_certify(drop: float, flips: float, *, max_em_drop: float, delta: float) -> int:
    """Approximate number of pairs that certify an arm: the mixture earns 1/delta at the growth of its best bet.

    drop   E Z of the arm, a fraction below `max_em_drop`
    flips  P(Z = -1): the arm alone is right; for two full runs, half of the rate at which exactly one is right

    Raise ValueError for impossible rates, and where no number is enough.
    """
    lost = drop + flips
    if flips < 0 or lost < 0 or lost + flips > 1 or not 0 < delta < 1:
        raise ValueError(f"need flips >= 0, drop + flips >= 0, both together at most 1; got {drop=} {flips=} {delta=}")
    rates = (np.array([flips]), np.array([1 - flips - lost]), np.array([lost]))
    check_budget(max_em_drop)
    growth = float(log_bets(*rates, max_em_drop, bets=BETS).max())
    if growth <= 0:
        raise ValueError(f"no number of pairs certifies a drop of {drop:g} at {flips:g} flips within {max_em_drop:g}")
    return ceil((log(1 / delta) + log(len(BETS))) / growth)


@dataclass(frozen=True, slots=True, kw_only=True)
class Repeats:
    n: int  # pairs
    n_disagree: int  # with different answers

    @property
    def disagreement(self) -> float:
        return self.n_disagree / self.n if self.n else float("nan")


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedView:
    n: int  # pairs
    drop: float  # mean of Z; nan without pairs
    drop_high: float  # smallest refuted drop, valid at every look
    disagreement: float  # rate of answers that differ from the full run's; an upper bound of the drop
    repeats: Repeats  # of two full runs
    saved_share: float | None  # 1 - tokens of the arm / tokens of the full runs; None: not counted
    n_disagree: int = 0  # pairs with different answers
    n_gained: int = 0  # pairs in which the arm alone was right
    n_lost: int = 0  # pairs in which it lost the right answer, or is assumed to

    def sentence(self, arm: str) -> str:
        own = f"{self.repeats.disagreement:.1%}" if self.repeats.n else "unknown"
        return (
            f"{arm}: EM lower by {100 * self.drop:.2f} points on {self.n} pairs, less than {100 * self.drop_high:.2f}"
            f" proved; {self.disagreement:.1%} of answers differ from the full run's, and {own} between two full runs"
        )


# --------------------------------------------------------------------------- importance-weighted terms
#
# A lower bound for the mean of importance-weighted terms, valid at every look and without a largest weight: a term such
# as weight x reward can be huge but is never far below 0. An upper bound of a reward in [0, 1] is one minus the lower
# bound of 1 - reward. Waudby-Smith, Wu, Ramdas, Karampatziakis, Mineiro (2024), ACM/IMS J. Data Sci. 1(3),
# arXiv:2210.10768.

# Any mixture of speeds is valid; this one is near the best for 30 to 100,000 terms.
SPEEDS: Final = tuple(float(speed) for speed in np.geomspace(0.006, 0.9, 10))


def lower_bound(terms: Floats, *, floor: float, alpha: float) -> float:
    """A lower bound for the mean of terms that are at least -floor; the chance that it is ever too high is alpha.

    Covers the mean of the terms' conditional expectations so far, which must lie in [0, 1]. Empirical Bernstein: with y
    = (term - centre) / (1 + floor) >= -1, the centre a shrunken mean of earlier terms, and psi(s) = -log(1 - s) - s,
    exp(speed y - psi(speed) y^2) <= 1 + speed y (Fan, Grama, Liu 2015, arXiv:1311.6273); a mixture over speeds is
    inverted by bisection. Raise ValueError for a term below -floor or one that is not finite.
    """
    if floor < 0 or not 0 < alpha < 1:
        raise ValueError(f"need floor >= 0 and 0 < alpha < 1; got {floor=} {alpha=}")
    if not np.isfinite(terms).all() or (terms < -floor - 1e-9).any():
        raise ValueError(f"terms: got {terms.min():g} at the lowest; finite numbers, at least {-floor:g}")
    n = len(terms)
    if not n:
        return 0.0
    # Before each term, the mean of 1/2 and all earlier terms, clipped to [0, 1].
    centres = np.clip((np.cumsum(terms) - terms + 0.5) / np.arange(1, n + 1), 0.0, 1.0)
    total, spread = terms.sum() / (1 + floor), (((terms - centres) / (1 + floor)) ** 2).sum()
    speeds = np.array(SPEEDS)
    psi = -np.log1p(-speeds) - speeds
    fixed, per_mean = speeds * total - psi * spread - log(len(speeds)), speeds * n / (1 + floor)
    low, high = 0.0, 1.0
    for _ in range(40):  # the mixture falls with the mean
        middle = (low + high) / 2
        exponents = fixed - per_mean * middle
        peak = exponents.max()
        refuted = peak + np.log(np.exp(exponents - peak).sum()) >= log(1 / alpha)
        low, high = (middle, high) if refuted else (low, middle)
    return low

"""Paired double calls: what an arm loses, where nothing can be replayed and the same question has to be asked twice.

    audit ──▶ the full run, shown  +  one more call with the arm, not shown ──▶ Z = c_full - c_arm, in {-1, 0, +1}
          ──▶ or, now and then, a second full run                         ──▶ Repeats: how often it differs from itself

The two answers are independent draws, unlike two points of one run. What can be known then:

- E Z is EM(full) - EM(arm), for the draws' own noise has mean 0 in both. A certificate on E Z is right for EM.
- Z is noisier: a question that is answered right half of the time gives +1 and -1 without any arm being worse. The
  noise costs audits (`pairs_to_certify`), never validity.
- "Against this very run" (ASSURANCE.md §6.11) cannot be told from it: part of the disagreement is the model
  disagreeing with itself. Two full runs say how large that part is, and it is printed beside the other.
- Still Z <= D, so disagreement bounds the drop without labels. **Its excess over the noise does not**: a model that is
  right half of the time differs from itself on half of the questions, and as often from an arm that is never right.

Knows outcomes of pairs; refuses to know calls, routes and how an arm is asked for (`learn.effort`).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, log
from typing import Final

import numpy as np
from numpy.typing import NDArray

from suffice.assurance.bounds import Interval, exact_binomial
from suffice.assurance.certify import Counts, log_bets, mixed

Floats = NDArray[np.float64]

# Fractions of the largest bet. Those of `certify` begin at 0.25, which loses on pairs that differ by chance on every
# sixth question: the best fraction is about (epsilon - drop) / (lost + gained), and noise makes that small.
BETS: Final = (0.04, 0.1, 0.25, 0.5, 0.8)


def paired_log_wealth(counts: Counts, *, max_em_drop: float) -> Floats:
    """Natural logarithm of the e-process of each arm, shape (M,): that of `certify` with smaller bets in its mixture.

    An e-value at each look against "the arm's EM is lower by max_em_drop or more"; 1/delta refutes it. Depends on the
    counts alone, so late labels and replicas add up.

    max_em_drop  a fraction in (0, 1)
    Raises ValueError outside of it.
    """
    gained, same, lost = (np.asarray(n, dtype=np.float64) for n in (counts.gained, counts.same, counts.lost))
    return mixed(log_bets(gained, same, lost, max_em_drop, bets=BETS))


def upper_drop(counts: Counts, *, delta: float) -> Floats:
    """The smallest drop that the pairs of each arm refute at `delta`, shape (M,); 1 where they refute none.

    An upper confidence bound that may be looked at after every pair, found by bisection over the drop.

    delta  in (0, 1)
    """
    if not 0 < delta < 1:
        raise ValueError(f"delta: got {delta}; above 0 and below 1")
    low, high = np.zeros(len(counts.same)), np.ones(len(counts.same))
    for _ in range(24):
        middle = np.clip((low + high) / 2, 1e-9, 1 - 1e-9)
        each = [float(paired_log_wealth(_one(counts, a), max_em_drop=float(m))[0]) for a, m in enumerate(middle)]
        refuted = np.array(each) >= log(1 / delta)
        low, high = np.where(refuted, low, middle), np.where(refuted, middle, high)
    return high


def pairs_to_certify(drop: float, flips: float, *, max_em_drop: float, delta: float) -> int:
    """About how many pairs certify an arm: the mixture must earn 1/delta at the growth of its best bet.

    drop   E Z of the arm, a fraction below `max_em_drop`
    flips  P(Z = -1): how often the arm alone is right; between two full runs, with two answers each as often right,
           half of `Repeats.flip_rate`

    Raises ValueError where no number would be enough, and for rates that cannot be.
    """
    lost = drop + flips
    if flips < 0 or lost < 0 or lost + flips > 1 or not 0 < delta < 1:
        raise ValueError(f"need flips >= 0, drop + flips >= 0, both together at most 1; got {drop=} {flips=} {delta=}")
    rates = (np.array([flips]), np.array([1 - flips - lost]), np.array([lost]))
    growth = float(log_bets(*rates, max_em_drop, bets=BETS).max())
    if growth <= 0:
        raise ValueError(f"no number of pairs certifies a drop of {drop:g} at {flips:g} flips within {max_em_drop:g}")
    return ceil((log(1 / delta) + log(len(BETS))) / growth)


@dataclass(frozen=True, slots=True, kw_only=True)
class Repeats:
    """Pairs of two full runs of the same question: how much of any difference is no difference between arms."""

    n: int  # pairs
    n_disagree: int  # with different answers
    n_flips: int = 0  # with labels: one right and one wrong; 0 where there are none

    @property
    def disagreement(self) -> float:
        """Rate of different answers; not a number without pairs."""
        return self.n_disagree / self.n if self.n else float("nan")

    @property
    def flip_rate(self) -> float:
        """Rate at which one of the two is right and the other wrong; not a number without pairs."""
        return self.n_flips / self.n if self.n else float("nan")

    def interval(self, confidence: float) -> Interval:
        """Of the rate of different answers; for one look."""
        return exact_binomial(self.n_disagree, self.n, confidence) if self.n else Interval(0.0, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedView:
    """What double calls say of one arm, with the noise beside it: for people, at one look."""

    n: int  # pairs
    drop: float  # mean of Z; not a number without pairs
    drop_high: float  # smallest drop that is refuted at the confidence, at every look
    disagreement: float  # rate of other answers than the full run's; an upper bound of the drop
    repeats: Repeats  # the same between two full runs
    saved_share: float | None  # 1 - tokens of the arm / tokens of the full runs; None: not counted
    n_disagree: int = 0  # pairs with different answers
    n_gained: int = 0  # pairs in which the arm alone was right
    n_lost: int = 0  # pairs in which it lost the right answer, or is held to have lost it

    def sentence(self, arm: str) -> str:
        """One sentence that does not let noise pass for loss, nor loss for noise."""
        own = f"{self.repeats.disagreement:.1%}" if self.repeats.n else "unknown"
        return (
            f"{arm}: EM lower by {100 * self.drop:.2f} points on {self.n} pairs, less than {100 * self.drop_high:.2f}"
            f" proved; {self.disagreement:.1%} of answers differ from the full run's, and {own} between two full runs"
        )


def _one(counts: Counts, arm: int) -> Counts:
    return Counts(counts.gained[arm : arm + 1], counts.same[arm : arm + 1], counts.lost[arm : arm + 1])

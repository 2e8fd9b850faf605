"""The guard rails of tuning: which arms of a class clients may get, and how far one proposal may go.

    audits of a class ──▶ prove ──▶ Proof ──▶ in_play ──▶ within_a_step ──▶ best_arm

Nothing here weighs what an arm is worth; it says what is allowed whatever it is worth. An arm that keeps next to
nothing ("stop everything") is in no list at all, however well its audits look: it never leaves the shadow.
Knows numbers of one class; refuses to know time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log

import numpy as np
from numpy.typing import NDArray

from suffice.assurance.certify import Counts
from suffice.assurance.paired import paired_log_wealth
from suffice.learn.tuning import TuningBounds

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Proof:
    """What the audits of one class prove, by arm."""

    counts: Counts
    log_e: Floats  # (K,): against "this arm loses the budget or more"
    n_waiting: Sequence[int]  # audits of each arm that do not count yet

    def passes(self, delta: float) -> Bools:
        """Which arms are proved at `delta`, shape (K,)."""
        return np.asarray(self.log_e >= log(1 / delta))


def prove(counts: Counts, n_waiting: Sequence[int], tuning: TuningBounds) -> Proof:
    """The e-process of each arm of a class, by its own audits alone."""
    log_e = paired_log_wealth(counts, max_em_drop=tuning.max_em_drop)
    return Proof(counts=counts, log_e=log_e, n_waiting=n_waiting)


def shadow_only(shares: Floats, tuning: TuningBounds) -> Bools:
    """Arms that keep too little of the tokens ever to be shown, shape (K,).

    shares  tokens of each arm over those of a mean full run
    """
    return np.asarray(shares < tuning.least_kept * shares[0])


def in_play(proof: Proof, shares: Floats, before: Sequence[int], tuning: TuningBounds) -> tuple[int, ...]:
    """Arms that clients may get, the full run always among them.

    An arm enters when it is proved at its part of delta, and stays while its latest audits prove it at all of delta:
    with one threshold it would enter and leave at the edge.

    before  arms in play until now
    """
    stays = np.isin(np.arange(len(shares)), before)
    proved = proof.passes(tuning.cell_delta) | (stays & proof.passes(1 - tuning.confidence))
    proved &= (proof.counts.n >= tuning.least_audits) & ~shadow_only(shares, tuning)
    proved[0] = True
    return tuple(np.flatnonzero(proved).tolist())


def within_a_step(shares: Floats, in_force: int, tuning: TuningBounds) -> Bools:
    """Arms that one proposal may put in force, shape (K,): none that takes too much away at once."""
    near = shares[in_force] - shares <= tuning.largest_step * shares[0]
    return np.asarray(near & ~shadow_only(shares, tuning))


def best_arm(
    proof: Proof, values: Floats, shares: Floats, allowed: Sequence[int], in_force: int, tuning: TuningBounds
) -> int:
    """The most valuable arm that may be proposed; the one in force where none is worth the change.

    An arm that saves more than the one in force must be proved now at its own part of delta; a safer one need not.

    values   EM value less prices
    allowed  arms in play
    """
    may = within_a_step(shares, in_force, tuning) & np.isin(np.arange(len(shares)), allowed)
    may &= proof.passes(tuning.cell_delta) | (np.arange(len(shares)) <= in_force)
    may[in_force] = True
    best = int(np.argmax(np.where(may, values, -np.inf)))
    return best if values[best] > values[in_force] + tuning.least_gain else in_force

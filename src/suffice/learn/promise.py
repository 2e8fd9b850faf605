"""Which arm an audit should ask next, and whether asking pays at all: what evidence costs against what it may save.

An arm that saves much and looks harmless deserves audits; one that has lost too often already cannot be certified any
more and gets the floor, in case the world has changed. On a route with little traffic no arm is worth its evidence, and
then the tuner is off: it asks for nothing. Knows numbers of one class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log, sqrt
from typing import Final

import numpy as np
from numpy.typing import NDArray

from suffice.assurance.certify import Counts
from suffice.assurance.paired import pairs_to_certify
from suffice.learn.explore import proportional

Floats = NDArray[np.float64]

PAYBACK: Final = 3.0  # the hopes are optimistic, and not every arm that is tried is certified
NEVER: Final = 1e6  # pairs, for an arm that could not be certified if it went on as it is expected to
FEWEST: Final = 20.0  # still needed, for an arm that is almost there
WATCHED: Final = 0.3  # of a class's audits ask its arm in force while others promise something
WATCHED_ALONE: Final = 0.8  # … and while none does
SHADOW_FLOOR: Final = 0.03  # least share of the other audits that each other arm gets
LEAST_PROMISE: Final = 1e-12  # of an arm that promises nothing: it keeps the floor, in case the world changes
FLIPS_PRIOR: Final = 10.0  # audits without a gain that stand before the first


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ArmPotential:
    """What each arm of a class may bring, shape (K,) each; 0 gain: nothing to hope for."""

    gain: Floats  # EM value a request over the arm in force, if the arm is as good as it may still be
    needed: Floats  # audits still to be made for its certificate

    @property
    def wanted(self) -> Floats:
        """EM value that each arm would add to those whose audits have all been made; 0 for these, shape (K,)."""
        underway = self.needed == 0
        hoped = float(self.gain[underway].max(initial=0.0))
        return np.where(underway, 0.0, np.maximum(0.0, self.gain - hoped))

    @property
    def lots(self) -> Floats:
        """Weights of the audits' lottery: value over audits, squared."""
        return np.asarray((self.wanted / (FEWEST + self.needed)) ** 2)

    def pays(self, *, n_requests: float, audit_cost: Floats) -> bool:
        """Would the evidence for some arm come back PAYBACK times over the class's requests to come?

        n_requests  of the class over which a change is expected to last; those that the evidence takes gain nothing
        audit_cost  EM value that one audit of each arm costs beside what the request would have cost
        """
        left = np.maximum(0.0, n_requests - self.needed)
        return bool((self.wanted * left > PAYBACK * self.needed * audit_cost).any())


def promise(
    counts: Counts,
    expected_loss: Floats,
    log_e: Floats,
    saved: Floats,
    n_waiting: Sequence[int],
    *,
    price: float,
    max_em_drop: float,
    delta: float,
) -> ArmPotential:
    """What may be hoped of each arm of a class.

    counts         of the class, of each arm
    expected_loss  EM drop of each arm; lowered by one standard error, the benefit of the doubt
    log_e          evidence so far
    saved          share of a full run's tokens that each arm saves over the arm in force; 0 or less promises nothing
    n_waiting      audits that were made and do not count yet, because their labels are not due
    price          EM that the tokens of a full run are worth
    delta          of one certificate
    """
    n, gains, needed = counts.n, np.zeros(len(log_e)), np.full(len(log_e), NEVER)
    for arm in np.flatnonzero(saved > 0):
        loss = expected_loss[arm] - sqrt(max(expected_loss[arm], 0.5 * max_em_drop) / (n[arm] + 5))
        flips = float(counts.gained[arm] / (n[arm] + FLIPS_PRIOR))
        gains[arm] = max(0.0, price * saved[arm] - max(0.0, loss))
        try:
            whole = float(pairs_to_certify(max(0.0, float(loss)), flips, max_em_drop=max_em_drop, delta=delta))
        except ValueError:
            continue
        needed[arm] = max(0.0, whole * (1 + log_e[arm] / log(delta)) - n_waiting[int(arm)])
    return ArmPotential(gain=gains, needed=needed)


def audit_odds(hopes: ArmPotential, in_force: int, *, pays: bool) -> tuple[float, ...]:
    """Which arm an audit asks, shape (K,): a fixed part for the arm in force, the rest by promise, a little for each.

    The full run is never asked beside itself: it would say nothing of any arm.

    pays  does some arm promise enough for audits to be made on its behalf?
    """
    lots = np.maximum(hopes.lots, LEAST_PROMISE)
    lots[0] = 0.0
    odds = np.array(proportional(lots.tolist(), floor=SHADOW_FLOOR))
    if in_force:
        watched = WATCHED if pays else WATCHED_ALONE
        odds *= 1 - watched
        odds[in_force] += watched
    return tuple((odds / odds.sum()).tolist())

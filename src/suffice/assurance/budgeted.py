"""The budgeted mode: a level that moves with the audits, so that the *average* drop keeps to the budget.

    audit ──▶ audited ──▶ theta moves at once by what disagreement costs on average
    label ──▶ labelled ──▶ the difference to what it really cost
    look ──▶ kept_between ──▶ theta stays between the certified level and the last that looks affordable

What it promises (guarantee B of ASSURANCE.md §3.6, deterministic, for any sequence of questions, also an adversary's):
after N audits whose labels have landed

    mean(Z) - eps = (theta_1 - theta_{N+1} + clipped) / (eta N)

with Z at the level that was deployed at each audit. While nothing was clipped theta has stayed within M levels and a
step, so the mean over all audits since the start is within (M + eta)/(eta N) of eps. `identity_gap` checks it.

What it does not promise. There is no delta: nothing is said about the level deployed now, nor about any shorter stretch
of time. After a drift that no signal shows the mean over a phase was above eps in 16 to 46 % of the seeds of
ASSURANCE.md §3.6. It does not go below the certified level, whatever the average says; `clipped` then grows, and with
it the mean may. At the upper end clipping only makes the mean smaller. Labels that never come count as losses.

It is the integrator of adaptive conformal inference (Gibbs and Candes 2021, arXiv:2106.00170) with feedback that comes
in two parts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import floor

import numpy as np

from suffice.assurance.certify import Counts


@dataclass(frozen=True, slots=True, kw_only=True)
class IntegratorState:
    theta: float  # level, a real number; `level` is deployed
    started: float  # theta before the first audit
    n_audits: int = 0
    n_waiting: int = 0  # disagreements whose label has not landed
    lost: float = 0.0  # sum of Z, with what was guessed for those that wait
    clipped: float = 0.0  # sum of all moves that the bounds made, levels

    @property
    def level(self) -> int:
        """The level to deploy: theta, rounded to the safe side."""
        return floor(self.theta)


@dataclass(frozen=True, slots=True, kw_only=True)
class Integrator:
    max_em_drop: float  # eps, a fraction in (0, 1)
    eta: float = 4.0  # levels that a whole lost answer costs, above 0
    drop_per_disagreement: float = 0.45  # guess of Z where answers differ, until the label is there, [0, 1]

    def __post_init__(self) -> None:
        if not 0 < self.max_em_drop < 1 or self.eta <= 0 or not 0 <= self.drop_per_disagreement <= 1:
            raise ValueError(f"need 0 < max_em_drop < 1, eta > 0, 0 <= drop_per_disagreement <= 1; got {self}")

    def audited(self, state: IntegratorState, *, disagrees: bool) -> IntegratorState:
        """An audit came in: at the level deployed for it the stop would have answered the same, or not.

        theta + eta (eps - D g), at once. A disagreement now waits for `labelled`.
        """
        guess = self.drop_per_disagreement if disagrees else 0.0
        return replace(
            state,
            theta=state.theta + self.eta * (self.max_em_drop - guess),
            n_audits=state.n_audits + 1,
            n_waiting=state.n_waiting + disagrees,
            lost=state.lost + guess,
        )

    def labelled(self, state: IntegratorState, *, z: int) -> IntegratorState:
        """The label of a disagreement landed, or its time-out passed and it counts as lost (z = 1).

        theta - eta (Z - g). Agreement needs no label and gets none here.

        z  EM drop at the level that was deployed for that audit, -1, 0 or +1
        Raises ValueError where no disagreement waits.
        """
        if state.n_waiting < 1:
            raise ValueError("labelled: no disagreement waits for a label")
        surprise = z - self.drop_per_disagreement
        return replace(
            state, theta=state.theta - self.eta * surprise, n_waiting=state.n_waiting - 1, lost=state.lost + surprise
        )

    def identity_gap(self, state: IntegratorState) -> float:
        """How far the identity of guarantee B is from holding: rounding, and nothing else. A fraction of EM."""
        if state.n_audits == 0:
            return 0.0
        moved = state.started - state.theta + state.clipped
        return state.lost / state.n_audits - self.max_em_drop - moved / (self.eta * state.n_audits)


def start_budget(level: int) -> IntegratorState:
    """Begin at a level: the certified one."""
    return IntegratorState(theta=float(level), started=float(level))


def kept_between(state: IntegratorState, *, certified: int, affordable: int) -> IntegratorState:
    """Move theta back between the two levels, and write down how far; do it after every look.

    affordable  see `affordable_level`; where it is below `certified`, which counts of one window never show, the
                certified level holds
    """
    theta = max(min(state.theta, float(affordable)), float(certified))
    return replace(state, theta=theta, clipped=state.clipped + theta - state.theta)


def affordable_level(counts: Counts, *, max_em_drop: float) -> int:
    """The last level of the unbroken run from the safe end whose mean drop in the window is within the budget.

    No bound is put on the mean, so it is no promise; it keeps theta from wandering where the window already shows harm.
    Unbroken, because on its way up theta deploys every level in between. Without audits it is 0.
    """
    within = counts.drop[1:] <= max_em_drop  # not a number, without audits, is not within
    beyond = np.flatnonzero(~within)
    return int(beyond[0]) if len(beyond) else max(0, len(counts.same) - 1)

"""The budgeted mode: a level that moves with the audits, so that the *average* drop keeps to the budget.

The guarantee is deterministic, for any sequence of questions, also an adversary's: after N audits with
all labels, with Z at the level that was deployed at each,

    mean(Z) - eps = (theta_1 - theta_{N+1} + clipped) / (eta N)

There is no delta: it guarantees nothing about the level that is deployed now, nor about any shorter period (after a
drift that no signal shows, the mean over a phase was above eps in 16 to 46 % of the seeds). Missing labels count as
losses. It is the integrator of adaptive conformal inference (Gibbs and Candes 2021, arXiv:2106.00170) with feedback in
two parts: an audit moves theta by the expected loss of a disagreement, its label by the rest.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import floor
from typing import Final

import numpy as np

from suffice.assurance.certify import Counts
from suffice.learn.audits import AuditRuns, Ints
from suffice.types import BudgetAccount


@dataclass(frozen=True, slots=True, kw_only=True)
class IntegratorState:
    theta: float  # a real-valued level; `level` is deployed
    started: float  # theta before the first audit
    n_audits: int = 0
    n_waiting: int = 0  # disagreements without a label yet
    lost: float = 0.0  # sum of Z, with guesses for the waiting ones
    clipped: float = 0.0  # sum of all moves by clipping, in levels

    @property
    def level(self) -> int:
        return floor(self.theta)


@dataclass(frozen=True, slots=True, kw_only=True)
class Integrator:
    max_em_drop: float  # eps, a fraction in (0, 1)
    eta: float = 4.0  # levels that a lost answer costs, above 0
    drop_per_disagreement: float = 0.45  # expected Z of a disagreement, until its label comes, [0, 1]

    def __post_init__(self) -> None:
        if not 0 < self.max_em_drop < 1 or self.eta <= 0 or not 0 <= self.drop_per_disagreement <= 1:
            raise ValueError(f"need 0 < max_em_drop < 1, eta > 0, 0 <= drop_per_disagreement <= 1; got {self}")

    def add_audit(self, state: IntegratorState, *, disagrees: bool) -> IntegratorState:
        """Add an audit whose stop's answer differs (D = 1) or not: theta + eta (eps - D g)."""
        guess = self.drop_per_disagreement if disagrees else 0.0
        return replace(
            state,
            theta=state.theta + self.eta * (self.max_em_drop - guess),
            n_audits=state.n_audits + 1,
            n_waiting=state.n_waiting + disagrees,
            lost=state.lost + guess,
        )

    def add_label(self, state: IntegratorState, *, z: int) -> IntegratorState:
        """Add the label of a disagreement at its level, or z = 1 after its time-out: theta - eta (Z - g)."""
        if state.n_waiting < 1:
            raise ValueError("add_label: no disagreement waits for a label")
        surprise = z - self.drop_per_disagreement
        return replace(
            state, theta=state.theta - self.eta * surprise, n_waiting=state.n_waiting - 1, lost=state.lost + surprise
        )


_RULE: Final = Integrator(max_em_drop=0.5)  # a label moves theta by the same amount under every budget


def start_budget(level: int) -> IntegratorState:
    return IntegratorState(theta=float(level), started=float(level))


def clip_theta(state: IntegratorState, *, certified: int, affordable: int) -> IntegratorState:
    """Clip theta to the two levels (the certified one where they cross), and record the move."""
    theta = max(min(state.theta, float(affordable)), float(certified))
    return replace(state, theta=theta, clipped=state.clipped + theta - state.theta)


def affordable_level(counts: Counts, *, max_em_drop: float) -> int:
    """The last of the unbroken run of levels with a mean drop within the budget: a point estimate that bounds theta."""
    within = counts.drop[1:] <= max_em_drop  # nan, without audits, is False
    beyond = np.flatnonzero(~within)
    return int(beyond[0]) if len(beyond) else max(0, len(counts.same) - 1)


@dataclass(slots=True)
class Spender:
    state: IntegratorState | None = None  # None: nothing certified yet
    allowed: float = 0.0  # sum of the budgets under which audits were booked
    floor: int = 0  # certified level at the last call
    affordable: int = 0  # at the last call
    _n_booked: int = 0  # audits of the certifier that are booked
    _waiting: dict[int, int] = field(default_factory=dict)  # by audit: checkpoint, from 0, of its level's stop

    def book(
        self,
        runs: AuditRuns,
        rows: Ints,
        *,
        level: int,
        max_em_drop: float,
        now: float,
        timeout: float,
        label_free: bool,
    ) -> None:
        """Add the audits since the last call, and labels that have come since or are later than `timeout`.

        rows   where each level of the version that was active since the last call ends the runs, shape (N, M)
        level  that was active; 0: none
        """
        new = np.arange(self._n_booked, len(runs))
        self._n_booked = len(runs)
        if self.state is not None and level and len(new):
            self._add_audits(Integrator(max_em_drop=max_em_drop), runs, new, rows[new, level])
        for audit, row in list(self._waiting.items()):
            labelled = runs.label_at[audit] <= now and not label_free
            if labelled or label_free or runs.at[audit] <= now - timeout:
                self._add_label(int(runs.z[runs.starts[audit] + row]) if labelled else 1)
                del self._waiting[audit]

    def _add_audits(self, rule: Integrator, runs: AuditRuns, new: Ints, stops: Ints) -> None:
        assert self.state is not None
        differs, lost = runs.d[stops], runs.abandoned[new]
        for disagrees in (differs | lost).tolist():
            self.state = rule.add_audit(self.state, disagrees=disagrees)
        self.allowed += rule.max_em_drop * len(new)
        for _ in range(int(lost.sum())):  # abandoned audits get no label
            self._add_label(1)
        waits = differs & ~lost
        steps = stops[waits] - runs.starts[new[waits]]
        self._waiting.update(zip(new[waits].tolist(), steps.tolist(), strict=True))

    def _add_label(self, z: int) -> None:
        assert self.state is not None
        self.state = _RULE.add_label(self.state, z=z)

    def place(self, counts: Counts, *, certified: int, max_em_drop: float) -> int:
        """The level until the next call; 0: nothing is certified."""
        self.floor = certified
        self.affordable = affordable_level(counts, max_em_drop=max_em_drop) if certified else 0
        if self.state is None:
            if not certified:
                return 0
            self.state = start_budget(certified)
        self.state = clip_theta(self.state, certified=certified, affordable=self.affordable)
        return self.state.level

    def drop_oldest(self, n: int) -> None:
        """Follow the certifier in dropping its `n` oldest audits; those without a label count as lost."""
        self._n_booked = max(0, self._n_booked - n)
        n_dropped = sum(audit < n for audit in self._waiting)
        self._waiting = {audit - n: row for audit, row in self._waiting.items() if audit >= n}
        for _ in range(n_dropped):
            self._add_label(1)

    @property
    def account(self) -> BudgetAccount:
        state = self.state or start_budget(0)
        n = state.n_audits
        return BudgetAccount(
            floor=self.floor,
            affordable=max(self.floor, self.affordable),
            n_audits=n,
            n_waiting=state.n_waiting,
            em_drop=state.lost / n if n else None,
            max_em_drop=self.allowed / n if n else None,
            clipped=state.clipped,
        )

"""The certificate of one look, and how the level follows it: held, moderated, or steered by an average."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from math import floor, inf
from typing import Final

import numpy as np

from suffice.arrays import Bools, Floats, Ints, Small
from suffice.assurance.certify import Counts, Window
from suffice.assurance.exposure import Exposure
from suffice.learn.audits import AuditRuns
from suffice.types import BudgetAccount

SWING: Final = 5  # levels; a larger change is a swing, and …
CALM: Final = 5_000  # requests after one, a rise has at most SWING levels at a look


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PendingAudits:
    at: Floats  # (K,): start, in the unit of `AuditRuns.at`
    share: Floats  # (K,): P(audit) at the draw

    def lost(self, n_levels: int) -> Small:
        """Z, shape (K, M): lost at every level but 0."""
        z = np.ones((len(self.at), n_levels), dtype=np.int8)
        z[:, :1] = 0
        return z


def pending_audits(began: Iterable[tuple[int, float]]) -> PendingAudits:
    """Build from (number of the request, share at its draw) pairs."""
    at, share = np.array(list(began), dtype=np.float64).reshape(-1, 2).T
    return PendingAudits(at=at, share=share)


NO_PENDING: Final = pending_audits(())


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Certificate:
    level: int  # last of the unbroken run of levels that pass
    log_e: Floats  # (M,): log wealth of each level
    z: Small  # (n, M): of each audit, including pending ones
    counted: Floats  # (n, M): what the wealth counts: `z`, or its mean over the orders of a vote's samples
    in_all_orders: bool  # it is that mean
    weight: Floats  # (n,): c/rho
    clusters: Ints  # (n, units), see `AuditRuns`; each pending one is a cluster of its own
    inside: Bools  # (N,): which audits of the epoch these are; pending ones follow them in `z`
    window: Window | None  # None: no audit yet
    until: float  # the claim covers requests of the window that began before
    exposure: Exposure  # of the requests on which the level may act
    budget: Floats  # the drop that is refuted, net of charges, of all levels or shape (M,)
    delta: float  # of the claim
    held: int | None = None  # level that stays active on an earlier claim; None: the claim is the latest

    @property
    def allowed(self) -> int:
        return self.level if self.held is None else self.held

    @property
    def n_pending(self) -> int:
        return len(self.z) - int(self.inside.sum())


@dataclass(slots=True)
class Swings:
    """Moderates rises of the level, whatever a forecast caps it to. A fall is never delayed."""

    last_at: float = -inf  # request of the latest change of more than SWING levels
    level: int = 0  # the last moderated one

    def moderate(self, certified: int, now: float) -> int:
        """The level to activate: soon after a swing it rises by SWING at most."""
        if certified > self.level + SWING and now < self.last_at + CALM:
            certified = self.level + SWING
        elif abs(certified - self.level) > SWING:
            self.last_at = now
        self.level = certified
        return certified

    def delays(self, other: int, now: float) -> bool:
        """Whether a refit would lower the level by a swing too soon after another one."""
        return other < self.level - SWING and now < self.last_at + CALM


# --------------------------------------------------------------------------- the budgeted mode
#
# A level that moves with the audits, so that the *average* drop keeps to the budget. The guarantee is deterministic,
# for any sequence of questions, also an adversary's: after N audits with all labels, with Z at the level that was
# deployed at each,
#
#     mean(Z) - eps = (theta_1 - theta_{N+1} + clipped) / (eta N)
#
# There is no delta: it guarantees nothing about the level that is deployed now, nor about any shorter period (after a
# drift that no signal shows, the mean over a phase was above eps in 16 to 46 % of the seeds). Missing labels count as
# losses. It is the integrator of adaptive conformal inference (Gibbs and Candes 2021, arXiv:2106.00170) with feedback
# in two parts: an audit moves theta by the expected loss of a disagreement, its label by the rest.

ETA: Final = 4.0  # levels that a lost answer costs
DROP_PER_DISAGREEMENT: Final = 0.45  # expected Z of a disagreement, until its label comes


@dataclass(slots=True)
class Integrator:
    """Theta, a real-valued level, and what moved it; `level` is deployed."""

    started: float  # theta before the first audit
    theta: float = field(init=False)
    n_audits: int = field(init=False, default=0)
    n_waiting: int = field(init=False, default=0)  # disagreements without a label yet
    lost: float = field(init=False, default=0.0)  # sum of Z, with guesses for the waiting ones
    clipped: float = field(init=False, default=0.0)  # sum of all moves by clipping, in levels

    def __post_init__(self) -> None:
        self.theta = self.started

    @property
    def level(self) -> int:
        return floor(self.theta)

    def add_audit(self, *, disagrees: bool, max_em_drop: float) -> None:
        """Add an audit whose stop's answer differs (D = 1) or not: theta + eta (eps - D g)."""
        guess = DROP_PER_DISAGREEMENT if disagrees else 0.0
        self.theta += ETA * (max_em_drop - guess)
        self.lost += guess
        self.n_audits += 1
        self.n_waiting += disagrees

    def add_label(self, *, z: int) -> None:
        """Add the label of a disagreement at its level, or z = 1 after its time-out: theta - eta (Z - g)."""
        if self.n_waiting < 1:
            raise ValueError("add_label: no disagreement waits for a label")
        surprise = z - DROP_PER_DISAGREEMENT
        self.theta -= ETA * surprise
        self.lost += surprise
        self.n_waiting -= 1

    def clip(self, *, certified: int, affordable: int) -> None:
        """Clip theta to the two levels (the certified one where they cross), and record the move."""
        theta = max(min(self.theta, float(affordable)), float(certified))
        self.clipped, self.theta = self.clipped + theta - self.theta, theta


def affordable_level(counts: Counts, *, max_em_drop: float) -> int:
    """The last of the unbroken run of levels with a mean drop within the budget: a point estimate that bounds theta."""
    within = counts.drop[1:] <= max_em_drop  # nan, without audits, is False
    beyond = np.flatnonzero(~within)
    return int(beyond[0]) if len(beyond) else max(0, len(counts.same) - 1)


@dataclass(slots=True)
class Spender:
    integrator: Integrator | None = None  # None: nothing certified yet
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
        if self.integrator is None:
            return
        if level and len(new):
            self._add_audits(self.integrator, runs, new, rows[new, level], max_em_drop)
        for audit, row in list(self._waiting.items()):
            labelled = runs.label_at[audit] <= now and not label_free
            if labelled or label_free or runs.at[audit] <= now - timeout:
                self.integrator.add_label(z=int(runs.z[runs.starts[audit] + row]) if labelled else 1)
                del self._waiting[audit]

    def _add_audits(self, integrator: Integrator, runs: AuditRuns, new: Ints, stops: Ints, max_em_drop: float) -> None:
        differs, lost = runs.d[stops], runs.abandoned[new]
        for disagrees in (differs | lost).tolist():
            integrator.add_audit(disagrees=disagrees, max_em_drop=max_em_drop)
        self.allowed += max_em_drop * len(new)
        for _ in range(int(lost.sum())):  # abandoned audits get no label
            integrator.add_label(z=1)
        waits = differs & ~lost
        steps = stops[waits] - runs.starts[new[waits]]
        self._waiting.update(zip(new[waits].tolist(), steps.tolist(), strict=True))

    def place(self, counts: Counts, *, certified: int, max_em_drop: float) -> int:
        """The level until the next call; 0: nothing is certified."""
        self.floor = certified
        self.affordable = affordable_level(counts, max_em_drop=max_em_drop) if certified else 0
        if self.integrator is None:
            if not certified:
                return 0
            self.integrator = Integrator(float(certified))
        self.integrator.clip(certified=certified, affordable=self.affordable)
        return self.integrator.level

    def drop_oldest(self, n: int) -> None:
        """Follow the certifier in dropping its `n` oldest audits; those without a label count as lost."""
        self._n_booked = max(0, self._n_booked - n)
        n_waiting = len(self._waiting)
        self._waiting = {audit - n: row for audit, row in self._waiting.items() if audit >= n}
        if self.integrator is not None:
            for _ in range(n_waiting - len(self._waiting)):
                self.integrator.add_label(z=1)

    @property
    def account(self) -> BudgetAccount:
        spent = self.integrator or Integrator(0.0)
        n = spent.n_audits
        return BudgetAccount(
            floor=self.floor,
            affordable=max(self.floor, self.affordable),
            n_audits=n,
            n_waiting=spent.n_waiting,
            em_drop=spent.lost / n if n else None,
            max_em_drop=self.allowed / n if n else None,
            clipped=spent.clipped,
        )

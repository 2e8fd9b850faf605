"""Where a certifier operates in budgeted mode: each audit is booked at the level that it met, its label when it lands.

    audits since the last look, level in force then ──▶ Spender.book ──▶ Spender.place ──▶ level from here on

`assurance.budgeted` has the mathematics and states what is promised. An account lives as long as an epoch: it begins
with the first certified level; until then everything runs in full and nothing is booked.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np

from suffice.assurance.budgeted import Integrator, IntegratorState, affordable_level, kept_between, start_budget
from suffice.assurance.certify import Counts
from suffice.learn.audits import AuditRuns, Bools, Ints
from suffice.types import BudgetAccount

if TYPE_CHECKING:
    from suffice.learn.served import FoldedModels

_RULE: Final = Integrator(max_em_drop=0.5)  # a label that lands moves theta alike under every budget


@dataclass(slots=True)
class Spender:
    state: IntegratorState | None = None  # None: nothing has been certified yet
    allowed: float = 0.0  # sum of the budgets under which audits were booked
    floor: int = 0  # certified at the last look
    affordable: int = 0  # at the last look
    _n_seen: int = 0  # audits that were looked at, of those the keeper has
    _waiting: dict[int, int] = field(default_factory=dict)  # by audit: checkpoint, from 0, where its level ends it

    def book(
        self,
        runs: AuditRuns,
        d: Bools | None,
        served: FoldedModels | None,
        *,
        level: int,
        max_em_drop: float,
        now: float,
        timeout: float,
        label_free: bool,
    ) -> None:
        """Take in the audits since the last look, and labels that have landed since, or never will.

        runs     all that the keeper has, oldest first
        d        does the stop of each level answer otherwise? As `served` has it, shape (N, M)
        served   the version that was in force since the last look; None: there was none, and d neither
        level    that was in force since then
        timeout  age at which an audit that disagrees counts as lost, in the unit of `runs.at`
        """
        rule = Integrator(max_em_drop=max_em_drop)
        new = np.arange(self._n_seen, len(runs))
        self._n_seen = len(runs)
        if self.state is not None and level and len(new) and d is not None and served is not None:
            self._audited(rule, runs, new, d[new, level], served, level)
        self._landed(rule, runs, now=now, timeout=timeout, label_free=label_free)

    def _audited(
        self, rule: Integrator, runs: AuditRuns, new: Ints, differs: Bools, served: FoldedModels, level: int
    ) -> None:
        assert self.state is not None
        lost = runs.abandoned[new]
        for disagrees in (differs | lost).tolist():
            self.state = rule.audited(self.state, disagrees=disagrees)
        self.allowed += rule.max_em_drop * len(new)
        for _ in range(int(lost.sum())):  # nobody will ever say what they would have answered
            self.state = rule.labelled(self.state, z=1)
        waiting = new[differs & ~lost]
        if len(waiting):
            part = runs.take(waiting)
            rows = served.rows_at(part, level) - part.starts[:-1]
            self._waiting.update(zip(waiting.tolist(), rows.tolist(), strict=True))

    def _landed(self, rule: Integrator, runs: AuditRuns, *, now: float, timeout: float, label_free: bool) -> None:
        for audit, row in list(self._waiting.items()):
            labelled = runs.label_at[audit] <= now and not label_free
            if not labelled and not label_free and runs.at[audit] > now - timeout:
                continue
            assert self.state is not None
            z = int(runs.z[runs.starts[audit] + row]) if labelled else 1
            self.state = rule.labelled(self.state, z=z)
            del self._waiting[audit]

    def place(self, counts: Counts, *, certified: int, max_em_drop: float) -> int:
        """The level to deploy until the next look; 0 while nothing is certified.

        counts     of the window that certifies
        certified  the level that passes on it
        """
        self.floor = certified
        self.affordable = affordable_level(counts, max_em_drop=max_em_drop) if certified else 0
        if self.state is None:
            if not certified:
                return 0
            self.state = start_budget(certified)
        self.state = kept_between(self.state, certified=certified, affordable=self.affordable)
        return self.state.level

    def let_go(self, n: int) -> None:
        """The keeper has forgotten its `n` oldest audits; what still waits among them counts as lost."""
        self._n_seen = max(0, self._n_seen - n)
        n_gone = sum(audit < n for audit in self._waiting)
        self._waiting = {audit - n: row for audit, row in self._waiting.items() if audit >= n}
        for _ in range(n_gone):
            assert self.state is not None
            self.state = _RULE.labelled(self.state, z=1)

    @property
    def account(self) -> BudgetAccount:
        state = self.state
        n = 0 if state is None else state.n_audits
        return BudgetAccount(
            floor=self.floor,
            affordable=max(self.floor, self.affordable),
            n_audits=n,
            n_waiting=0 if state is None else state.n_waiting,
            em_drop=None if state is None or not n else state.lost / n,
            max_em_drop=self.allowed / n if n else None,
            clipped=0.0 if state is None else state.clipped,
        )

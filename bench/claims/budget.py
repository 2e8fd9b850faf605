"""The budgeted mode beside the keeper: the integrator moves the level between the certified and the affordable one.

`assurance.budgeted` says what it promises, an average and no delta. The keeper inside fits, certifies, watches and
calls for bursts as always.
"""

from __future__ import annotations

import heapq

from bench.claims.around import Around
from bench.claims.score import Logistic
from bench.claims.window import Window

from suffice.assurance.budgeted import Integrated, Integrator, affordable_level, kept_between, start
from suffice.assurance.certify import count
from suffice.learn.audits import AuditRuns, Floats
from suffice.learn.keeper import Change, Keeper, Plan


class Budgeted(Around):
    """A keeper whose level keeps the budget on average."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(Keeper(plan, Logistic()))
        self._integrator = Integrator(max_em_drop=plan.max_em_drop)
        self._begin()

    def _begin(self) -> None:
        self._epoch, self._window = self.keeper.n_epochs, Window(self.keeper.plan)
        self._state: Integrated | None = None
        self._waiting: list[tuple[float, int]] = []  # (when its label lands or is given up, Z then)
        self._level = 0

    @property
    def level(self) -> int:
        return self._level

    def take(self, runs: AuditRuns) -> None:
        super().take(runs)
        if not len(runs):
            return
        self._window.add(runs)
        if self._state is None or self.served is None:
            return
        rows = self.served.rows_at(runs, self.level)
        given_up = runs.at + self.keeper.plan.label_timeout
        for row, at, label_at in zip(rows.tolist(), given_up.tolist(), runs.label_at.tolist(), strict=True):
            disagrees = bool(runs.d[row])
            self._state = self._integrator.audited(self._state, disagrees=disagrees)
            if disagrees:
                heapq.heappush(self._waiting, (min(at, label_at), int(runs.z[row]) if label_at <= at else 1))

    def notice(self, signals: Floats) -> tuple[Change, ...]:
        return self._after(super().notice(signals))

    def tick(self, now: float) -> tuple[Change, ...]:
        changes = self._after(super().tick(now))
        self._window.judge(self.served)
        z = self._window.outcomes(now)
        if self.in_burst or z is None:
            return changes
        state = start(self.keeper.level) if self._state is None else self._state
        while self._waiting and self._waiting[0][0] <= now:
            state = self._integrator.labelled(state, z=heapq.heappop(self._waiting)[1])
        affordable = affordable_level(count(z), max_em_drop=self.keeper.plan.max_em_drop)
        self._state = kept_between(state, certified=self.keeper.level, affordable=affordable)
        self._level = self._state.level
        return changes

    def _after(self, changes: tuple[Change, ...]) -> tuple[Change, ...]:
        """A new epoch begins at the certified level, with nothing remembered."""
        if self.keeper.n_epochs != self._epoch:
            self._begin()
        return changes

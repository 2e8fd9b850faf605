"""Audits without a proof: the level is the last whose mean drop over the window is within the budget.

Everything else is as in the keeper: warm-up, lots, refits, maturity of labels. It has a keeper's face, so the same loop
serves it. With `labelled_only` it leaves out the audits whose label never came, as a plain average would.
"""

from __future__ import annotations

import numpy as np
from bench.claims.score import Logistic

from suffice.learn.audits import AuditRuns, Bools, Floats, Small, join
from suffice.learn.keeper import Change, Plan, effective
from suffice.learn.served import Served, fit_served


class Empirical:
    """A keeper that believes averages."""

    def __init__(self, plan: Plan, *, labelled_only: bool = False) -> None:
        self._plan, self._labelled_only, self._learner = plan, labelled_only, Logistic()
        self._runs: AuditRuns | None = None
        self._refit_at = plan.warm_up
        self._z: Small | None = None
        self._d: Bools | None = None
        self.served: Served | None = None
        self.level, self.now = 0, 0.0

    @property
    def share(self) -> float:
        return 1.0 if self.now < self._plan.warm_up else self._plan.share

    def take(self, runs: AuditRuns) -> None:
        if not len(runs):
            return
        self._runs = runs if self._runs is None else join([self._runs, runs])
        if self.served is not None:
            self._judge()

    def notice(self, signals: Floats) -> tuple[Change, ...]:  # noqa: ARG002 - a keeper's face
        return ()

    def tick(self, now: float) -> tuple[Change, ...]:
        self.now = now
        if now < self._plan.warm_up or self._runs is None:
            return ()
        if now >= self._refit_at:
            self._refit_at = now + self._plan.refit_every
            self.served = fit_served(self._runs, self._learner, now=now) or self.served
            self._judge()
        if self._z is not None and self._d is not None:
            self.level = self._empirical(self._z, self._d)
        return ()

    def _judge(self) -> None:
        assert self.served is not None
        assert self._runs is not None
        rows = self.served.rows(self._runs)
        self._z, self._d = self._runs.z[rows], self._runs.d[rows]

    def _empirical(self, z: Small, d: Bools) -> int:
        runs = self._runs
        assert runs is not None
        effects, inside = effective(z, d, runs, self.now, self._plan)
        if self._labelled_only:
            effects, inside = z, runs.label_at <= self.now
        if self._plan.window is not None:
            inside &= np.cumsum(inside[::-1])[::-1] <= self._plan.window
        if not inside.any():
            return 0
        failed = np.flatnonzero(effects[inside].mean(axis=0)[1:] > self._plan.max_em_drop)
        return int(failed[0]) if len(failed) else z.shape[1] - 1

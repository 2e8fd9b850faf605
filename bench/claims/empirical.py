"""A design without a proof: its level is the last whose mean drop over the window is within the budget.

Everything else is as in the certifier, whose interface it has. With `labelled_only` it ignores audits without a label.
"""

from __future__ import annotations

from bench.claims.score import Logistic
from bench.claims.window import Window

from suffice.assurance.certify import count_outcomes
from suffice.certification.certificate import affordable_level
from suffice.certification.evidence import CertifierDecision, Evidence
from suffice.certification.plan import Plan
from suffice.learn.audits import AuditRuns
from suffice.learn.version import FoldedModels, fit_served


class Empirical:
    """A keeper that believes averages."""

    def __init__(self, plan: Plan, *, labelled_only: bool = False) -> None:
        self._plan, self._labelled_only, self._learner = plan, labelled_only, Logistic()
        self._window, self._refit_at = Window(plan), plan.warm_up
        self.served: FoldedModels | None = None
        self.level, self.now = 0, 0.0

    @property
    def in_burst(self) -> bool:
        return self.now < self._plan.warm_up

    @property
    def share(self) -> float:
        return 1.0 if self.in_burst else self._plan.share

    def add_audits(self, runs: AuditRuns) -> None:
        if len(runs):
            self._window.add(runs)

    def look(self, evidence: Evidence) -> CertifierDecision:
        self.now = evidence.at
        self._weigh(self.now)
        return CertifierDecision(self.level)

    def _weigh(self, now: float) -> None:
        if now < self._plan.warm_up or not len(self._window.runs):
            return
        if now >= self._refit_at:
            self._refit_at = now + self._plan.refit_every
            self.served = fit_served(self._window.runs, self._learner, now=now) or self.served
            self._window.judge(self.served)
        z = self._window.outcomes(now, labelled_only=self._labelled_only)
        if z is not None:
            self.level = affordable_level(count_outcomes(z), max_em_drop=self._plan.max_em_drop)

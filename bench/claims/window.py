"""The audits of an epoch, evaluated under the active version, for the designs to compare with the certifier."""

from __future__ import annotations

import numpy as np

from suffice.arrays import Small
from suffice.certification.plan import Plan
from suffice.learn.audits import NO_AUDITS, AuditRuns, concatenate_audits
from suffice.learn.version import FoldedModels


class Window:
    """Audits since the last reset, judged anew whenever another version serves."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._served: FoldedModels | None = None
        self.runs = NO_AUDITS

    def add(self, runs: AuditRuns) -> None:
        """Take new audits in."""
        self.runs = concatenate_audits([self.runs, runs])

    def judge(self, served: FoldedModels | None) -> None:
        """See them at another version's levels."""
        self._served = served or self._served

    def outcomes(self, now: float, *, labelled_only: bool = False) -> Small | None:
        """EM drop of the audits that count now, shape (n, M); None: there is no version yet.

        labelled_only  those whose label has come, and no others, as a plain average would have it
        """
        if self._served is None:
            return None
        runs, plan = self.runs, self._plan
        mature = (now - runs.at >= plan.label_timeout) | plan.label_free
        inside = runs.label_at <= now if labelled_only else mature
        counted = runs.take(np.flatnonzero(inside)[-plan.window :])
        rows = self._served.rows(counted)
        return counted.z[rows] if labelled_only else counted.losses(rows, now=now, label_free=plan.label_free)

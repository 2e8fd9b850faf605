"""The audits of an epoch, evaluated under the active version, for the designs to compare with the certifier."""

from __future__ import annotations

import numpy as np

from suffice.learn.audits import AuditRuns, Bools, Small, concatenate_audits
from suffice.learn.certifier import Plan, matured
from suffice.learn.version import FoldedModels


class Window:
    """Audits since the last reset, judged anew whenever another version serves."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._served: FoldedModels | None = None
        self._z: Small | None = None
        self._d: Bools | None = None
        self.runs: AuditRuns | None = None

    def add(self, runs: AuditRuns) -> None:
        """Take new audits in."""
        self.runs = runs if self.runs is None else concatenate_audits([self.runs, runs])
        if self._served is not None and self._z is not None and self._d is not None:
            rows = self._served.rows(runs)
            self._z, self._d = np.concatenate([self._z, runs.z[rows]]), np.concatenate([self._d, runs.d[rows]])

    def judge(self, served: FoldedModels | None) -> None:
        """See them at another version's levels."""
        if served is self._served or served is None or self.runs is None:
            return
        rows = served.rows(self.runs)
        self._served, self._z, self._d = served, self.runs.z[rows], self.runs.d[rows]

    def outcomes(self, now: float, *, labelled_only: bool = False) -> Small | None:
        """EM drop of the audits that count now, shape (n, M); None: there is no version yet.

        labelled_only  those whose label has come, and no others, as a plain average would have it
        """
        if self._z is None or self._d is None or self.runs is None:
            return None
        counted = matured(self._z, self._d, self.runs, now, self._plan)
        z, inside = counted.z, counted.enters
        if labelled_only:
            z, inside = self._z, self.runs.label_at <= now
        return z[np.flatnonzero(inside)[-self._plan.window :]]

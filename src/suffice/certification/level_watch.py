"""The watch over the active level: whether audits lose more than those that certified it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from suffice.arrays import Bools, Ints
from suffice.assurance.drift import AuditWatch, Reference
from suffice.assurance.exposure import ON_ALL, Exposure
from suffice.certification.evidence import Evidence
from suffice.certification.plan import Plan
from suffice.learn.audits import AuditRuns
from suffice.learn.version import FoldedModels


def mature_audits(runs: AuditRuns, evidence: Evidence, plan: Plan) -> Bools:
    """Which audits count: by age alone, never by outcome, see `assurance.labels`; none that died."""
    is_old = np.asarray((evidence.at - runs.at >= plan.label_age(evidence.run_timeout)) | plan.label_free)
    return is_old & ~np.isin(runs.at, list(evidence.died))


@dataclass(slots=True, eq=False)
class LevelWatch:
    """Watches audits that began after a level was first certified, at the level that is active now.

    The certifying audits are no new evidence, and the audits in flight would be a sample of slow ones.
    """

    certifying: AuditRuns  # the frozen reference
    since: float  # the detectors get only audits that began later
    n_seen: int  # audits of the epoch that the detectors have processed
    _unsettled: list[int] = field(default_factory=list)  # of these, those whose outcome is not in the detectors yet
    _detectors: AuditWatch | None = None  # None: before the first reference
    _reference: tuple[FoldedModels | None, int, Exposure] = (None, 0, ON_ALL)  # its version, level and share

    @property
    def in_doubt(self) -> bool:
        return self._detectors is not None and self._detectors.in_doubt

    def renew_features(self, runs: AuditRuns) -> None:
        which = np.flatnonzero(np.isin(runs.at, self.certifying.at))
        self.certifying = runs.without_orders().take(which)

    def rebase(self, served: FoldedModels, level: int, exposure: Exposure, evidence: Evidence, plan: Plan) -> None:
        """Compare with the certifying audits at this level of this version, on this share, from now on."""
        if not level or (served, level, exposure) == self._reference:
            return
        self._reference = served, level, exposure
        runs, rows = self.certifying, served.rows(self.certifying)
        z = runs.losses(rows, now=evidence.at, label_free=plan.label_free)[:, level]
        reference = Reference(n_disagreeing=int(runs.d[rows[:, level]].sum()), n_lost=int((z == 1).sum()), n=len(runs))
        budget = float(exposure.budget(plan.max_em_drop, 0.0))
        if self._detectors is None:
            self._detectors = AuditWatch(max_em_drop=budget, reference=reference)
        else:
            self._detectors.rebase(reference, max_em_drop=budget)

    def find_alarm(self, runs: AuditRuns, rows: Ints, level: int, evidence: Evidence, plan: Plan) -> str | None:
        """Pass new audits to the detectors, and old ones whose outcome counts now; `rows` is where levels end them."""
        if self._detectors is None or not plan.watches_outcomes or not level:
            return None
        counts = (runs.at > self.since) & ~np.isin(runs.at, list(evidence.died | evidence.singled))
        new = (self.n_seen + np.flatnonzero(counts[self.n_seen :])).tolist()
        for place in new:
            if alarm := self._detectors.add(None, bool(runs.d[rows[place, level]])):
                return alarm
        self._unsettled += new
        self.n_seen = len(runs)
        # An unlabelled disagreement is a loss only after its time-out; otherwise late labels would raise an alarm by
        # disagreement alone, which has its own detector.
        z = runs.losses(rows[:, [0, level]], now=evidence.at, label_free=plan.label_free)[:, 1]
        mature = mature_audits(runs, evidence, plan)
        for place in [place for place in self._unsettled if mature[place]]:
            if alarm := self._detectors.add(int(z[place]), None):
                return alarm
        self._unsettled = [place for place in self._unsettled if not mature[place]]
        return None

    def drop_oldest(self, n: int) -> None:
        self.n_seen = max(0, self.n_seen - n)
        self._unsettled = [place - n for place in self._unsettled if place >= n]

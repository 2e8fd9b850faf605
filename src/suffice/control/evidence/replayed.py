"""Audits as the level that is deployed now would have ended them, each judged once.

    audits, version@level ──▶ ReplayedAudits.of ──▶ near levels that disagree, and Z

An audit is judged when it comes, again when what counts as said of it changes, and all are judged anew when another
level or version is deployed. Without a version, what the policy itself asked for in the audit is taken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from suffice.assurance.forecast import DROP_PER_NEAR, near_levels, near_share
from suffice.assurance.runs import Match, RunNumbers
from suffice.control.evidence.audits import Audit, Verdicts, audits_to_rows, verdicts
from suffice.control.evidence.fitting import ServedVersion
from suffice.learn.audits import AuditRuns
from suffice.learn.features import FeatureSelection


@dataclass(frozen=True, slots=True)
class AuditAtLevel:
    """One audit at the level deployed now."""

    near: float  # part of the neighbouring levels at which a stop would have answered otherwise
    z: int  # -1, 0 or +1; without a label a disagreement counts as lost
    expected: float | None = None  # what the stop model expects it to lose there; None: there is no model


@dataclass(slots=True, kw_only=True)
class ReplayedAudits:
    """What is known of the audits of one route, at one level.

    wave  samples that are launched together
    """

    match: Match
    wave: int
    served: ServedVersion | None = None
    level: int = 0
    _seen: dict[str, AuditAtLevel] = field(default_factory=dict)
    _near: range | None = None  # levels that count as neighbours; chosen when the level is deployed
    _counts: Verdicts = field(default_factory=dict)

    def deploy(self, served: ServedVersion | None, level: int) -> None:
        """Another level is in force: nothing that was judged at the old one counts."""
        before = None if self.served is None else self.served.version.address
        after = None if served is None else served.version.address
        if (before, self.level) != (after, level):
            self.served, self.level, self._near = served, level, None
            self._seen.clear()

    def of(self, audits: Sequence[Audit]) -> Mapping[str, AuditAtLevel]:
        """How each audit, by its id, ends at the deployed level; with a version only."""
        if self.served is None or not audits:
            return {}
        before, (self._counts, _) = self._counts, verdicts([one for one in audits if one.labels], self.match)
        again = {name for name in {*before, *self._counts} if before.get(name) != self._counts.get(name)}
        new = [one for one in audits if one.id not in self._seen or one.id in again]
        runs = self._rows(new)
        if runs is not None:
            self._judge(new, runs)
        kept = {one.id for one in audits}
        self._seen = {name: one for name, one in self._seen.items() if name in kept}
        return self._seen

    def _rows(self, audits: Sequence[Audit]) -> AuditRuns | None:
        assert self.served is not None
        chosen = FeatureSelection(tuple(self.served.version.models[0].features), ())
        return (
            audits_to_rows(audits, chosen=chosen, match=self.match, wave=self.wave, counts=self._counts)
            if audits
            else None
        )

    def _judge(self, audits: Sequence[Audit], runs: AuditRuns) -> None:
        assert self.served is not None
        rows = self.served.rows(runs)
        disagrees = runs.d[rows] | runs.abandoned[:, None]
        disagrees[:, 0] = False
        if self._near is None:
            self._near = near_levels(disagrees, self.level)
        labelled = np.isfinite(runs.label_at)
        z = np.where(labelled & ~runs.abandoned, runs.z[rows[:, self.level]], disagrees[:, self.level])
        expected = self.served.expected(runs, rows[:, self.level]).tolist()
        shares = near_share(disagrees, self._near).tolist()
        for audit, near, lost, feared in zip(audits, shares, z.tolist(), expected, strict=True):
            self._seen[audit.id] = AuditAtLevel(near, int(lost), feared)


def by_itself(run: RunNumbers) -> AuditAtLevel | None:
    """The same of a run whose policy its owner wrote down; None: it says nothing about a stop.

    There are no neighbouring levels to borrow from, so what the forecast follows is the drop itself.
    """
    if run.disagrees is None:
        return None
    z = run.drop if run.drop is not None else int(run.disagrees)
    return AuditAtLevel(z / DROP_PER_NEAR, z)

"""The certifier of a live route, whose labels may come late, and the guard-rails of its query classes.

An audit is judged when it comes and judged again when its label does; the certificate is a function of counts, so it
ends as if the label had been there from the start. A class that loses too much gets a lower level.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import exp, floor
from typing import Final

import numpy as np

from suffice.assurance.labels import AHEAD, MatureAudits
from suffice.assurance.strata import FACTOR, MAX_CLASS_DROP, ClassGuards
from suffice.assurance.windows import Windows
from suffice.control.evidence.audits import Audit
from suffice.learn.audits import AuditRuns, Bools, Ints, Small
from suffice.learn.certifier import Certifier, CertifierDecision, matured, missing_audits
from suffice.learn.served import FoldedModels
from suffice.types import BudgetAccount, EvidenceSummary, Publication

_MOST_LOG: Final = 700.0  # whose exponential is still a number


@dataclass(slots=True, eq=False)
class LiveCertifier(Certifier):
    """`Certifier`, fed from a log. If it `rests`, it fits nothing: a rollout runs, or put its version in force."""

    rests: bool = False

    def begin(self, at: float, windows: Windows) -> None:
        """Begin an epoch at this request; without known windows the first one begins here."""
        self.now = at
        if not windows.known:
            windows.note(at + 1, self.share)
        self._epoch.windows = windows

    def adopt(self, served: FoldedModels, runs: AuditRuns | None) -> None:
        """Serve and certify another version; `runs` are the audits of this epoch as that version reads them."""
        epoch = self._epoch
        epoch.served, epoch.runs, epoch.judged = served, None, None
        self.version += 1
        if runs is not None:
            self.take(runs)

    def _refit(self) -> list[CertifierDecision]:
        if not self.rests:
            return Certifier._refit(self)  # noqa: SLF001 - its own, of the class above
        self._forget_old()  # the version of a rollout may serve for months
        return []

    def amend(self, which: Ints, runs: AuditRuns) -> None:
        """See audits again with a label that has come since: their numbers in this epoch, and what is known now."""
        epoch = self._epoch
        if epoch.runs is None or not len(which):
            return
        for number, at in enumerate(which.tolist()):
            old = slice(int(epoch.runs.starts[at]), int(epoch.runs.starts[at + 1]))
            new = slice(int(runs.starts[number]), int(runs.starts[number + 1]))
            epoch.runs.z[old], epoch.runs.label_at[at] = runs.z[new], runs.label_at[number]
        if epoch.served is not None and epoch.judged is not None:
            epoch.judged.z[which] = runs.z[epoch.served.rows(runs)]

    # ---- what the loop reads -----------------------------------------------------------------------

    @property
    def n_levels(self) -> int:
        """Levels of the version that is judged, level 0 included; of the plan before there is one."""
        return self.plan.n_levels if self.served is None else self.served.n_levels

    def ends(self, number: int, served: FoldedModels | None) -> Ints | None:
        """The checkpoint, from 0, at which each level of a version ends an audit, shape (M,); None: it is not here."""
        runs = self._epoch.runs
        if runs is None or served is None or number >= len(runs):
            return None
        return np.asarray(served.rows(runs.take(np.array([number])))[0])

    def first_disagreements(self) -> Ints:
        """The safest eligible level at which each audit disagrees, shape (N,); 0: none. Only labels of these matter."""
        judged = self._epoch.judged
        if judged is None:
            return np.zeros(self.n_audits, dtype=np.int64)
        eligible = judged.d[:, 1 : self.level + AHEAD + 1]
        return np.where(eligible.any(axis=1), eligible.argmax(axis=1) + 1, 0)

    def counted_audits(self) -> tuple[AuditRuns, Bools] | None:
        """The n returned audits of the last certificate, and where each disagrees, (n, M); None: there are none."""
        certificate, judged, runs = self.certificate, self._epoch.judged, self._epoch.runs
        if certificate is None or judged is None or runs is None:
            return None
        return runs.take(np.flatnonzero(certificate.inside)), judged.d[certificate.inside]

    def outcomes(self) -> MatureAudits | None:
        """Which audits of this epoch are old enough to be news, by age alone, and what each counts as at each level."""
        judged, runs = self._epoch.judged, self._epoch.runs
        if judged is None or runs is None:
            return None
        return matured(judged.z, judged.d, runs, self.now, self.plan, run_timeout=self.run_timeout)

    def budget_at(self, level: int) -> float:
        """What a level is tested against: the budget, less what is charged."""
        charge = np.broadcast_to(np.asarray(self.charge), (self.n_levels,))
        return float(self.plan.max_em_drop - charge[level])

    @property
    def floor(self) -> int:
        """The highest level that is certified; in certified mode it is the one that passes."""
        return self.level if self.plan.promise == "certified" else self._epoch.spender.floor

    @property
    def spending(self) -> BudgetAccount | None:
        """The account of the budgeted mode."""
        return None if self.plan.promise == "certified" else self._epoch.spender.account

    def evidence(self, *, most: int | None = None) -> EvidenceSummary:
        """The evidence for the level that passes, or for `most` where no higher one may be used."""
        plan, judged, runs, certificate = self.plan, self._epoch.judged, self._epoch.runs, self.certificate
        if judged is None or runs is None or certificate is None:
            return EvidenceSummary(n_audits=self.n_audits, max_em_drop=plan.max_em_drop, confidence=plan.confidence)
        level = self.level if most is None else min(self.level, most)
        at, window = certificate.z[:, level], certificate.window
        full = float(runs.full[certificate.inside].sum())
        n_missing = None
        if level == self.level and level + 1 < certificate.z.shape[1]:
            budget = self.budget_at(level + 1)
            n_missing = missing_audits(certificate.z, level + 1, max_em_drop=budget, delta=plan.delta)
        return EvidenceSummary(
            n_audits=len(at),
            n_gained=int((at < 0).sum()),
            n_lost=int((at > 0).sum()),
            n_pending=certificate.n_pending,
            n_disagreeing=int(judged.d[certificate.inside, level].sum()),
            e_value=exp(min(_MOST_LOG, float(self.log_e[level]))) if level else None,
            share=float(judged.saved[certificate.inside, level].sum()) / full if full else None,
            n_missing=n_missing,
            max_em_drop=self.budget_at(max(1, level)),
            confidence=plan.confidence,
            window_start=None if window is None else window.start,
            window_end=None if window is None else float(min(window.end, floor(certificate.until) + 1)),
            window_share=None if window is None else window.share,
        )

    def reason(
        self,
        changes: Sequence[CertifierDecision],
        before: Publication | None,
        *,
        level: int,
        most: int | None,
        fit: str,
    ) -> str:
        """Why a level is published, in a sentence.

        most  the highest level that ratings allow; None: they take nothing off
        fit   address of the version that is judged; "": there is none
        """
        reasons = [change.reason for change in changes]
        if most is not None and most < self.level:
            reasons.append(f"ratings allow level {most} at most")
        if not reasons and before is not None and before.level == level:
            more = self.share > before.share
            reasons.append(
                "audits look worse than before: more are drawn" if more else "audits look as they did before"
            )
        if reasons:
            return "; ".join(reasons)
        if level:
            return f"level {level} passes on {self.n_audits} audits"
        return (
            f"no level passes on {self.n_audits} audits" if fit else f"{self.n_audits} audits are too few to learn from"
        )


@dataclass(slots=True, kw_only=True)
class LiveGuards:
    """The guard-rails per class of one epoch.

    `assurance.strata` is asked in the order of the log, at looks alone, so a replay comes to the same. Another version
    has other levels: what was seen of a held class since its last move is then judged anew by that version.

    max_em_drop  the route's budget, a fraction; from 0.45 on twice of it is no bound, and nothing is guarded
    delta        of the proof that lets a class back, in (0, 1)
    """

    max_em_drop: float
    delta: float
    _guards: ClassGuards | None = None
    _served: FoldedModels | None = None
    _n_seen: int = 0  # audits that the guards have had, of those the certifier has
    _moved: dict[str, int] = field(default_factory=dict)  # place in the log of the audit behind which a class moved

    def look(self, certifier: LiveCertifier, audits: Sequence[Audit], *, pooled: int) -> list[str]:
        """Show the guards what is new of the certifier's audits, drawn at level `pooled`; a sentence for each move."""
        outcomes = certifier.outcomes()
        if outcomes is None or not FACTOR * self.max_em_drop < MAX_CLASS_DROP:
            return []
        if self._guards is None:
            self._guards = ClassGuards(outcomes.z.shape[1], self.max_em_drop, delta=self.delta)
        if self._served is not certifier.served:
            self._judge_anew(self._guards, outcomes.z, audits)
            self._served = certifier.served
        sentences = []
        for place in (np.flatnonzero(outcomes.enters[self._n_seen :]) + self._n_seen).tolist():
            sentences += self._add(self._guards, audits[place], outcomes.z[place], pooled)
            self._n_seen = place + 1
        return sentences

    def held(self, level: int) -> tuple[tuple[str, int], ...]:
        """Classes that run below `level`, and theirs; sorted."""
        guards = self._guards
        if guards is None:
            return ()
        return tuple(sorted((name, own) for name in self._moved if (own := guards.level(name, level)) < level))

    def let_go(self, n: int) -> None:
        """The certifier has forgotten its `n` oldest audits."""
        self._n_seen = max(0, self._n_seen - n)

    def _add(self, guards: ClassGuards, audit: Audit, z: Small, pooled: int) -> list[str]:
        name = audit.query_class
        before = guards.steps_down(name)
        alarm, after = guards.add(name, z, pooled), guards.steps_down(name)
        if after == before and not alarm:
            return []
        self._moved[name] = audit.seq
        if not after:
            del self._moved[name]
        if alarm:
            return [f"class {name or 'none'} loses more than {100 * FACTOR * self.max_em_drop:g} points: it is held"]
        return [f"class {name or 'none'} is let back"]

    def _judge_anew(self, guards: ClassGuards, z: Small, audits: Sequence[Audit]) -> None:
        for name, moved in self._moved.items():
            seen = enumerate(audits[: self._n_seen])
            guards.judge_anew(name, z[[at for at, audit in seen if audit.seq > moved and audit.query_class == name]])

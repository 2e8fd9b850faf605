"""The certifier of a live route, its query-class guardrails, and the charges to its EM budget.

The certificate is a function of counts, so it does not depend on when labels arrive. The budget is charged for answers
that finishing a stop changes, and for a judge model's errors. A stopped run counts at the level at which it was served;
an audit's finish at the highest level that would have stopped that run there or later, once there is a version.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from math import floor
from typing import Final

import numpy as np

from suffice.assurance.certify import e_value_of
from suffice.assurance.fidelity import VERBATIM, Fidelity, FinishFidelity, bound_fidelity
from suffice.assurance.labels import AHEAD, CHARGE_CONFIDENCE, JUDGE, TRUSTED, MatureAudits, rank_of
from suffice.assurance.runs import Match
from suffice.assurance.strata import FACTOR, MAX_CLASS_DROP, ClassGuards
from suffice.assurance.windows import Windows
from suffice.control.evidence.audits import Audit
from suffice.control.evidence.judging import graded, human_label, pair_grades, parse_grade
from suffice.learn.audits import AuditRuns, Bools, Floats, Ints, Small
from suffice.learn.certifier import Certifier, CertifierDecision, matured, missing_audits
from suffice.learn.version import FoldedModels
from suffice.types import BudgetAccount, EvidenceSummary, Feedback, Outcome, Publication, Request


@dataclass(slots=True, eq=False)
class LiveCertifier(Certifier):
    """A `Certifier` fed from a log. With `rests` it fits nothing: a rollout is running or has activated its version."""

    rests: bool = False

    def begin(self, at: float, windows: Windows) -> None:
        """Begin an epoch at this request; without known windows the first one begins here."""
        self.now = at
        if not windows.known:
            windows.note(at + 1, self.share)
        self._epoch.windows = windows

    def adopt(self, served: FoldedModels, runs: AuditRuns | None) -> None:
        """Serve and certify another version; `runs` are the audits of this epoch with its features."""
        epoch = self._epoch
        epoch.served, epoch.runs, epoch.judged = served, None, None
        self.version += 1
        if runs is not None:
            self.add_audits(runs)

    def _refit(self) -> list[CertifierDecision]:
        if not self.rests:
            return Certifier._refit(self)  # noqa: SLF001 - of its own base class
        self._drop_old_audits()  # a rollout's version may serve for months
        return []

    def amend(self, which: Ints, runs: AuditRuns) -> None:
        """Judge audits again with later labels; `which` are their numbers in this epoch, `runs` their new rows."""
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
        """Levels of the version, level 0 included; of the plan while there is no version."""
        return self.plan.n_levels if self.served is None else self.served.n_levels

    def ends(self, number: int, served: FoldedModels | None) -> Ints | None:
        """The checkpoint, from 0, at which each level ends an audit, shape (M,); None: the audit is gone."""
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
        """The n returned audits of the last certificate, and where each disagrees, (n, M); None: there is none."""
        certificate, judged, runs = self.certificate, self._epoch.judged, self._epoch.runs
        if certificate is None or judged is None or runs is None:
            return None
        return runs.take(np.flatnonzero(certificate.inside)), judged.d[certificate.inside]

    def outcomes(self) -> MatureAudits | None:
        """The audits of this epoch that are old enough to count, by age alone, with their loss at each level."""
        judged, runs = self._epoch.judged, self._epoch.runs
        if judged is None or runs is None:
            return None
        return matured(judged.z, judged.d, runs, self.now, self.plan, run_timeout=self.run_timeout)

    def budget_at(self, level: int) -> float:
        """The budget that a level is tested against, net of charges."""
        charge = np.broadcast_to(np.asarray(self.charge), (self.n_levels,))
        return float(self.plan.max_em_drop - charge[level])

    @property
    def floor(self) -> int:
        """The highest certified level; in certified mode it is the one that passes."""
        return self.level if self.plan.promise == "certified" else self._epoch.spender.floor

    @property
    def spending(self) -> BudgetAccount | None:
        return None if self.plan.promise == "certified" else self._epoch.spender.account

    def evidence(self, *, most: int | None = None) -> EvidenceSummary:
        """The evidence for the level that passes, or for `most` where no higher one is allowed."""
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
            e_value=e_value_of(float(self.log_e[level])) if level else None,
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
        """Explain why a level is published; `most` is the highest level that ratings allow, None: no limit."""
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
    """The query-class guardrails of one epoch.

    The guards read audits in the order of the log, and only at looks, so a replay reproduces their decisions. Another
    version judges again the audits of a restricted class since the class last moved.

    max_em_drop  the route's budget, a fraction; from 0.45 on, twice the budget bounds nothing, and no class is guarded
    delta        of the proof that lifts a restriction, in (0, 1)
    """

    max_em_drop: float
    delta: float
    _guards: ClassGuards | None = None
    _served: FoldedModels | None = None
    _n_seen: int = 0  # of the certifier's audits, how many the guards have read
    _moved: dict[str, int] = field(default_factory=dict)  # position of the audit after which a class moved

    def look(self, certifier: LiveCertifier, audits: Sequence[Audit], *, pooled: int) -> list[str]:
        """Pass new audits, drawn at level `pooled`, to the guards; return a sentence for each move."""
        outcomes = certifier.outcomes()
        if outcomes is None or not FACTOR * self.max_em_drop < MAX_CLASS_DROP:
            return []
        if self._guards is None:
            self._guards = ClassGuards(outcomes.z.shape[1], self.max_em_drop, delta=self.delta)
        if self._served is not certifier.served:
            self._rejudge(self._guards, outcomes.z, audits)
            self._served = certifier.served
        sentences = []
        for place in (np.flatnonzero(outcomes.enters[self._n_seen :]) + self._n_seen).tolist():
            sentences += self._add(self._guards, audits[place], outcomes.z[place], pooled)
            self._n_seen = place + 1
        return sentences

    def held(self, level: int) -> tuple[tuple[str, int], ...]:
        """Classes restricted below `level`, with their levels; sorted."""
        guards = self._guards
        if guards is None:
            return ()
        return tuple(sorted((name, own) for name in self._moved if (own := guards.level(name, level)) < level))

    def forget(self, n: int) -> None:
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
            return [f"class {name or 'none'} loses more than {100 * FACTOR * self.max_em_drop:g} points: now held back"]
        return [f"class {name or 'none'} may stop again"]

    def _rejudge(self, guards: ClassGuards, z: Small, audits: Sequence[Audit]) -> None:
        for name, moved in self._moved.items():
            seen = enumerate(audits[: self._n_seen])
            guards.judge_anew(name, z[[at for at, audit in seen if audit.seq > moved and audit.query_class == name]])


# --------------------------------------------------------------------------- charges to the budget

MOST_WAITING: Final = 5_000  # finishes of audits whose level is not known yet
MOST_SHARE: Final = 0.5  # of the budget that a judge may cost
_NEVER_FINISHED: Final = 2.0  # charge where nothing was compared: above any budget


@dataclass(slots=True)
class FinishLog:
    """Comparisons of finished answers with recorded ones; `is_needed` where a stop generates an answer."""

    is_needed: bool
    fidelity: FinishFidelity = field(default_factory=lambda: FinishFidelity(2))
    _waiting: deque[tuple[str, int, bool]] = field(default_factory=lambda: deque(maxlen=MOST_WAITING))
    alarm: str | None = None

    def note(self, request: Request, outcome: Outcome) -> None:
        if not self.is_needed:
            return
        if outcome.stopped and outcome.stop_step is not None and outcome.end_reason in ("stopped", "done"):
            self._compare(served_level(request), outcome.answer != outcome.would_answer)
        trial = next((step for step in outcome.steps if step.index == outcome.finish_step), None)
        if trial is not None:
            self._waiting.append((outcome.episode_id, trial.index, outcome.finish_answer != trial.answer))

    def look(self, n_levels: int, ends: Callable[[str], Ints | None]) -> None:
        """Assign levels to the finishes of audits; for `ends` see `LiveCertifier`."""
        if n_levels != self.fidelity.n_levels:
            self.fidelity = FinishFidelity(n_levels)
        while self._waiting:
            name, step, differs = self._waiting.popleft()
            rows = ends(name)
            if rows is not None:
                later = np.flatnonzero(rows[1:] >= step - 1)
                self._compare(int(later[-1]) + 1 if len(later) else 1, differs)

    def charges(self) -> Floats:
        """Charge for the finish at each level, a fraction of EM, shape (M,); above 1 where nothing was compared."""
        if not self.is_needed:
            return np.zeros(self.fidelity.n_levels)
        charges = [0.0]
        for top in self.fidelity.tops:  # the levels of a band have one charge
            bound = self.fidelity.charge(top)
            charges += [_NEVER_FINISHED if bound is None else bound.upper] * (top + 1 - len(charges))
        return np.array(charges)

    def at(self, level: int) -> Fidelity | None:
        """The bound behind a level's charge; None: nothing was compared."""
        return self.fidelity.charge(min(level, self.fidelity.n_levels - 1)) if self.is_needed else VERBATIM

    def _compare(self, level: int, differs: bool) -> None:
        if self.fidelity.note(min(max(1, level), self.fidelity.n_levels - 1), differs):
            self.alarm = self.fidelity.alarm


def served_level(request: Request) -> int:
    """The level at which a request was served, from its policy version; 1 for a fixed policy."""
    level = request.policy_version.rpartition("@")[2]
    return int(level) if "@" in request.policy_version and level.isdecimal() else 1


@dataclass(slots=True, kw_only=True)
class JudgeCharge:
    """The charge for errors of a route's judge model, measured on the route's own audits at every look.

    The error rate is measured on audits that have a grade and a trusted person's label, the judge's share on audits
    with a label of the judge alone. Both rates are bounded at every look simultaneously
    (`assurance.fidelity.bound_fidelity`), and 2 x one x other is taken off the budget before any test
    (`assurance.labels`). The labels of a judge that was not measured, or that would take more than half of the budget,
    do not count: a difference is then a loss until a person labels it.
    """

    model: str | None
    match: Match
    charge: float = 0.0  # fraction of EM; 0 where the judge's labels do not count
    is_accepted: bool = False
    counts: tuple[int, int, int, int] = (0, 0, 0, 0)  # at the last look: graded, wrong, on the judge alone, audits
    _compared: dict[str, tuple[int, list[bool]]] = field(default_factory=dict)  # by audit: labels, wrong grades

    def look(self, audits: Sequence[Audit], max_em_drop: float, callers: Collection[str]) -> None:
        if self.model is None:
            return
        here = {audit.id for audit in audits}
        self._compared = {name: compared for name, compared in self._compared.items() if name in here}
        mistakes = [
            self._mistakes(audit, self.model, callers)
            for audit in audits
            if any(label.feedback.source == JUDGE for label in audit.labels)
        ]
        wrong = [grade for grades in mistakes for grade in grades]
        counts = len(wrong), sum(wrong), sum(not grades for grades in mistakes), len(audits)
        if counts != self.counts:  # the bounds depend on these alone
            self.counts = counts
            error = bound_fidelity(counts[1], counts[0], confidence=CHARGE_CONFIDENCE)
            share = bound_fidelity(counts[2], counts[3], confidence=CHARGE_CONFIDENCE)
            charge = 1.0 if error is None or share is None else min(1.0, 2 * error.upper * share.upper)
            self.is_accepted = bool(wrong) and charge <= MOST_SHARE * max_em_drop
            self.charge = charge if self.is_accepted else 0.0

    def accepts(self, given: Feedback) -> bool:
        return self.is_accepted and self.model is not None and parse_grade(given, self.model) is not None

    def _mistakes(self, audit: Audit, model: str, callers: Collection[str]) -> list[bool]:
        known = self._compared.get(audit.id)
        if known is not None and known[0] == len(audit.labels):
            return known[1]
        trusted = [label for label in audit.labels if rank_of(label.feedback, callers) >= TRUSTED]
        pairs = pair_grades(audit.outcome, human_label(trusted), graded(audit.labels, model), self.match)
        mistakes = [(grade > 0) != right for grade, right in pairs]
        self._compared[audit.id] = len(audit.labels), mistakes
        return mistakes

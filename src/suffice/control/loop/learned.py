"""Learned levels, and a policy that its owner wrote, as sources of evidence: audits replayed at every level.

    audits, labels ──▶ rows of evidence ──▶ LiveCertifier: fit, certify, watch ──▶ Draft, or EpochEnd

A fixed policy is one level that is known before the audits come: all of them certify it, and none teaches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from suffice.assurance.certify import spent_delta
from suffice.assurance.fidelity import budget_left
from suffice.assurance.satisfaction import next_safer
from suffice.control.evidence.audits import Audit, Verdicts, audits_to_rows, is_evidence, verdicts
from suffice.control.evidence.drift_features import DriftFeatures
from suffice.control.evidence.feedback import Ratings
from suffice.control.evidence.fixed_policy import FIXED, fixed_policy_rows
from suffice.control.evidence.versions import LiveLearner, ServedVersion, fit_audited_version, written
from suffice.control.loop.charges import FinishLog, JudgeCharge
from suffice.control.loop.class_guards import LiveGuards
from suffice.control.loop.epoch import Draft, EpochEnd, EpochState, EvidenceSource, ReplayMismatch
from suffice.episode import vote
from suffice.learn.audits import AuditRuns, Ints
from suffice.learn.certifier import KEPT_BEFORE, CertifierDecision
from suffice.learn.features import FeatureSelection, choose_features
from suffice.learn.served import FoldedModels
from suffice.learn.version import FoldedVersion, as_served
from suffice.policy.base import build_policy
from suffice.store.routes.in_force import InForce
from suffice.store.routes.rollouts import own_version
from suffice.store.rows.records import RolloutMove, RolloutStart, RolloutUndo
from suffice.types import Episode, Feedback, LabelRequest, Outcome, Request


@dataclass(slots=True, kw_only=True)
class RolloutTransition:
    """The rollouts of one route in one epoch: which version serves, the loop's own or one that a rollout put in force.

    While a version is tried, the one that it is compared with must not change, so the loop fits none of its own. What a
    rollout has put in force stays until another one, a person or a new epoch takes it away. A rollout that began before
    the epoch puts nothing in force.
    """

    why: str = ""  # a version was taken over since somebody last asked; "": none was
    _running: str = ""  # the rollout that runs; "": none does
    _serving: str = ""  # the one whose version serves; "": the loop's own does
    _fits: dict[str, tuple[str, str]] = field(default_factory=dict)  # by rollout: its candidate's, and the one before
    _before: dict[str, str] = field(default_factory=dict)  # by rollout: whose version served before it

    @property
    def rests(self) -> bool:
        """Must the loop fit nothing of its own?"""
        return bool(self._running or self._serving)

    def loops_share(self, delta: float) -> float:
        """Of delta, what the version in force is certified with: the rest is a candidate's while one is tried."""
        return spent_delta(delta, 1) if self._running else delta

    def after(self, event: RolloutStart | RolloutMove | RolloutUndo) -> str | None:
        """Address of the version that is to be taken over now; None: what is in force stays."""
        if isinstance(event, RolloutStart):
            state = event.state
            if state.fit:
                self._running = state.rollout
                self._fits[state.rollout] = state.fit, state.in_force
            return None
        if isinstance(event, RolloutUndo):
            return self._undone(event.rollout, event.author)
        move = event.transition
        if move.rollout != self._running or move.stage not in ("full", "rolled_back"):
            return None
        self._running = ""
        if move.stage == "rolled_back":
            return None
        self._before[move.rollout], self._serving = self._serving, move.rollout
        self.why = f"rollout {move.rollout} brought {self._fits[move.rollout][0]}"
        return self._fits[move.rollout][0]

    def _undone(self, rollout: str, author: str) -> str | None:
        if rollout != self._serving:
            return None
        self._serving = self._before.get(rollout, "")
        self.why = f"{author} took back what rollout {rollout} had brought"
        return self._fits[rollout][1]

    def take_reason(self) -> str:
        """Why a version was taken over, once."""
        why, self.why = self.why, ""
        return why


class LearnedEvidence(EvidenceSource):
    """Levels of stop models that are fitted on the audits of the epoch.

    level    in force
    ceiling  the highest level that ratings allow in this epoch; None: they take nothing off
    chosen   features; None: not before the burst is over, when the epoch's queries are known
    counts   the labels that count, by audit, as the certifier knows them
    """

    def __init__(self, state: EpochState) -> None:
        super().__init__(state)
        route, epoch = state.context.route, state.epoch
        self.certifier = state.certifier
        self.certifier.fit = self._fit
        state.starts.keeps_ended = True
        self.ceiling: int | None = None
        self.chosen: FeatureSelection | None = None
        self.counts: Verdicts = {}
        self.finish = FinishLog(is_needed=route.kind == "reasoning")
        self.judge = JudgeCharge.of(route, state.context.match)
        self.ratings = Ratings.of(route)
        self._drift = DriftFeatures()
        self._guards = LiveGuards(max_em_drop=epoch.max_em_drop, delta=1 - epoch.confidence)
        self._rollouts = RolloutTransition()
        self._taken_over: FoldedVersion | None = None  # the version of a rollout that serves; None: the loop's own does
        self._n_taken = 0  # audits that the certifier has

    def is_evidence(self, request: Request, outcome: Outcome) -> bool:
        return is_evidence(request, outcome, probes=self.state.context.route.probe is not None)

    def note_end(self, episode: Episode) -> None:
        self.finish.note(episode.request, episode.outcome)
        self.ratings.ended(episode)

    def note_label(self, episode_id: str, given: Feedback) -> None:
        self.ratings.note_label(episode_id, given)

    def note_rollout(self, event: RolloutStart | RolloutMove | RolloutUndo) -> None:
        """Serve and certify what a rollout has put in force, or the version before it again."""
        address = self._rollouts.after(event)
        self.certifier.rests = self._rollouts.rests
        if address is None or self.chosen is None:
            return
        version = self.state.context.load(address)
        names = version.version.models[0].features
        self._taken_over = version.version
        self.chosen = self.chosen if self.chosen.names == names else FeatureSelection(names, ())
        self.certifier.learner = LiveLearner(self.chosen, self.certifier.plan.cost_exponent)
        self.certifier.adopt(version, self._rows(self.state.audits[: self._n_taken]))

    # ---- a look ----------------------------------------------------------------------------------

    def look(self, held: InForce) -> EpochEnd | Draft | None:
        state, certifier = self.state, self.certifier
        certifier.now = float(state.n)
        if any(certifier.notice(batch) for batch in self._drift.batches(state.starts.take_ended(state.n))):
            return EpochEnd("signals", "signals of all traffic drifted", keep=KEPT_BEFORE)
        if certifier.in_burst:
            return None
        self.judge.look(state.audits, state.epoch.max_em_drop, state.traffic.callers)
        certifier.plan = replace(
            certifier.plan,
            confidence=1 - self._rollouts.loops_share(state.delta),
            label_timeout=state.delay.timeout_requests(since=state.epoch.at),
        )
        certifier.pending = state.unreturned.with_earlier(state.epoch.pending)
        self._take_audits()
        self._charge_finish(certifier.served)
        if self.finish.alarm is not None:
            return EpochEnd("finish", self.finish.alarm)
        changes = certifier.tick(float(state.n))
        if not state.unreturned.observes:
            certifier.windows.lower(state.n + 1.0, certifier.share)  # of requests without rows, too
        self._forget_audits()
        end = self._alarm(changes)
        return end if end is not None else self._draft(held, changes, self._move_level())

    def _alarm(self, changes: Sequence[CertifierDecision]) -> EpochEnd | None:
        alarm = next((change.reason for change in changes if change.kind == "alarm"), None)
        if alarm is None and self.certifier.certificate is not None:
            alarm = self.state.traffic.mix.alarm(
                self.certifier.certificate, self.certifier.level, self.state.audits, self.state.epoch.max_em_drop
            )
        if alarm is None:
            return None
        return EpochEnd("disagreement" if "disagree" in alarm else "outcomes", alarm)

    def _move_level(self) -> str:
        """Put the certified level in force, as far as ratings and the classes of questions allow; returns why."""
        drawn_at = self.level or self.certifier.level
        rated = self._lower_ceiling()
        self.level = self.certifier.level
        if self.ceiling is not None:
            self.level = min(self.level, self.ceiling)
        moved = self._guards.look(self.certifier, self.state.audits, pooled=drawn_at)
        reason = "; ".join(part for part in (self._rollouts.take_reason(), rated, *moved) if part)
        finish = self.finish.at(max(1, self.level))
        budget = budget_left(self.state.epoch.max_em_drop, finish, other_charges=self.judge.charge)
        return reason if budget.max_em_drop else budget.reason

    def _lower_ceiling(self) -> str:
        """Take one level off where people's ratings ask for it; why, or "" where nothing changes.

        Levels that the log has decided already are taken from it: a floor that the owner moves speaks of what follows.
        """
        expected = self.state.expected
        if expected:
            in_log = expected[0]
            if in_log.at == self.state.n and in_log.ceiling != self.ceiling:
                self.ceiling = in_log.ceiling
                self.ratings.begin_anew()
            return ""
        if self.state.context.route.min_satisfaction is None and self.ceiling is not None:
            self.ceiling = None
            return "ratings take nothing off any more"
        why = self.ratings.asks
        if why is None or not self.level:
            return ""
        self.ceiling = next_safer(self.level)
        self.ratings.begin_anew()
        return f"{why}: level {self.ceiling} at most"

    # ---- audits ----------------------------------------------------------------------------------

    def _take_audits(self) -> None:
        """Give the certifier what is new: labels of audits that it has, and audits that it has not."""
        audits, certifier = self.state.audits, self.certifier
        if self.chosen is None:
            self.chosen = choose_features(self.state.context.route.kind, [audit.query for audit in audits])
            certifier.learner = LiveLearner(self.chosen, certifier.plan.cost_exponent)
        if any(audit.labels for audit in audits):
            self._judge_labels()
        runs = self._rows(audits[self._n_taken :])
        if runs is not None:
            certifier.take(runs)
        self._n_taken = len(audits)

    def _judge_labels(self) -> None:
        """Find out which labels count; the certifier sees the audits again for which that has changed."""
        state, certifier = self.state, self.certifier
        apart = certifier.disagreeing()
        differing = [
            audit
            for place, audit in enumerate(state.audits)
            if (apart[place] if place < len(apart) and certifier.served is not None else audit.differs)
        ]
        before = self.counts
        self.counts, _ = verdicts(differing, state.context.match, callers=state.traffic.callers, hears=self.judge.hears)
        changed = {name for name in {*before, *self.counts} if before.get(name) != self.counts.get(name)}
        places = sorted(state.places[name] for name in changed if state.places.get(name, self._n_taken) < self._n_taken)
        again = self._rows([state.audits[place] for place in places])
        if again is not None:
            certifier.amend(np.array(places), again)

    def _rows(self, audits: Sequence[Audit]) -> AuditRuns | None:
        assert self.chosen is not None
        context = self.state.context
        runs = audits_to_rows(
            audits, chosen=self.chosen, match=context.match, wave=context.route.wave, counts=self.counts
        )
        return runs if runs is None or self._taken_over is None else as_served(runs, self._taken_over)

    def _forget_audits(self) -> None:
        """Forget what the certifier has forgotten."""
        n_gone = len(self.state.audits) - self.certifier.n_audits
        if n_gone > 0:
            self.state.audits = self.state.audits[n_gone:]
            self._n_taken = len(self.state.audits)
            self._guards.let_go(n_gone)
            self.state.index_audits()

    def _charge_finish(self, served: FoldedModels | None) -> None:
        """Charge each level of the version that is judged with what its finish may change."""
        if served is None:
            return

        def ends(name: str) -> Ints | None:
            place = self.state.places.get(name)
            return None if place is None else self.certifier.ends(place, served)

        self.finish.look(served.n_levels, ends)
        self.certifier.charge = self.finish.charges() + self.judge.charge

    # ---- decisions -------------------------------------------------------------------------------

    def _fit(self, *arguments: Any, **options: Any) -> ServedVersion | None:  # as the certifier calls `fit_served`
        """Fit anew; at a place of the log that has been decided, take what was fitted there."""
        version: ServedVersion | None
        expected = self.state.expected
        if not expected:
            version = fit_audited_version(*arguments, **options)
        elif expected[0].at != self.state.n or expected[0].fit == self._address():
            return None  # a fit was made here and not taken up
        else:
            version = self.state.context.load(expected[0].fit)
        if version is not None and self.certifier.served is None:  # the first: only now have finishes a level
            self._charge_finish(version)
        return version

    def _address(self) -> str:
        served = self.certifier.served
        return served.version.address if isinstance(served, ServedVersion) else ""

    def _draft(self, held: InForce, changes: Sequence[CertifierDecision], reason: str) -> Draft | None:
        """What is in force, if that is something else than was published before."""
        certifier, before, address = self.certifier, held.publication, self._address()
        served, level = certifier.served, self.level
        share, classes = certifier.share, self._guards.held(level)
        if before is not None and (before.fit, before.level, before.share, before.classes) == (
            address,
            level,
            share,
            classes,
        ):
            return None
        made = self.state.publication(
            held,
            version=f"{address}@{level}" if address else "",
            fit=address,
            level=level,
            n_levels=certifier.n_levels,
            certified=0 < level <= certifier.floor,
            spending=certifier.spending if level else None,
            share=share,
            reason=reason or certifier.reason(changes, before, level=level, most=self.ceiling, fit=address),
            evidence=replace(certifier.evidence(most=self.ceiling), judge_charge=self.judge.charge),
            ceiling=self.ceiling,
            classes=classes,
        )
        return Draft(made, {address: written(served.version)} if isinstance(served, ServedVersion) else {})

    def label_requests(self, asked: set[str]) -> list[LabelRequest]:
        """Of audits that disagree at a level that may act next, and of no others."""
        requests = list[LabelRequest]()
        for place in np.flatnonzero(self.certifier.disagreeing()).tolist():
            audit = self.state.audits[place]
            if audit.labels or audit.id in asked or audit.fate != "full":
                continue
            asked.add(audit.id)
            level = self.certifier.first_disagreement(place)
            requests.append(
                LabelRequest(
                    episode_id=audit.id,
                    route=self.state.context.name,
                    level=level,
                    would_answer=_answer_at(audit, self.certifier.row_at(place, level)),
                    answer=audit.episode.outcome.answer,
                    why=f"a stop at level {level} would have answered otherwise",
                    deadline_s=self.label_deadline_s(audit),
                )
            )
        return requests


def _answer_at(audit: Audit, row: int) -> str | None:
    """The answer that a stop after a checkpoint, from 0, would have delivered."""
    answers = [step.answer for step in audit.episode.outcome.steps[: row + 1]]
    if audit.episode.request.kind == "samples":
        return vote.count_votes(answers).answer
    return answers[-1] if answers else None


class FixedPolicyEvidence(LearnedEvidence):
    """A policy that the route's owner wrote: level 1 once it is proved, else level 0. Another policy is proved anew.

    No certificate vouches for what a rollout puts in its place, and the gateway lets that stop nothing.
    """

    def __init__(self, state: EpochState) -> None:
        super().__init__(state)
        route = state.context.route
        self.policy, self.address = build_policy(route.policy), own_version(route).address
        self.certifier.plan = replace(self.certifier.plan, n_levels=FIXED.n_levels)
        self.certifier.rests = True
        self.certifier.adopt(FIXED, None)

    def note_rollout(self, event: RolloutStart | RolloutMove | RolloutUndo) -> None:
        self._rollouts.after(event)

    def look(self, held: InForce) -> EpochEnd | Draft | None:
        decision, expected = super().look(held), self.state.expected
        if not isinstance(decision, Draft):
            return decision
        if expected and expected[0].version != self.address:
            raise ReplayMismatch(f"route {self.state.context.name}: its owner has written another policy down")
        return Draft(replace(decision.publication, version=self.address), decision.artefacts)

    def _rows(self, audits: Sequence[Audit]) -> AuditRuns | None:
        context = self.state.context
        return fixed_policy_rows(
            audits,
            policy=self.policy,
            kind=context.route.kind,
            match=context.match,
            wave=context.route.wave,
            counts=self.counts,
        )

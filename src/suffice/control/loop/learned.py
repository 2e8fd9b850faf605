"""Learned levels and fixed policies as sources of evidence: audits are replayed at every level.

A fixed policy is one level that is known before the audits arrive, so all of them certify it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from math import inf
from typing import Any, Final

import numpy as np

from suffice.agent.mixture import mixture_of
from suffice.arrays import Floats
from suffice.assurance.certify import WarmStart
from suffice.assurance.fidelity import budget_left
from suffice.assurance.forecast import ForecastAction
from suffice.certification.certificate import SWING, Certificate
from suffice.certification.certifier import KEPT_BEFORE, SIGNALS_DRIFTED
from suffice.certification.evidence import Change, Evidence
from suffice.certification.level_report import expected_saving, explain_level, summarize_evidence
from suffice.certification.mixtures import MixtureTest
from suffice.control.evidence.audits import (
    Audit,
    Verdicts,
    audits_to_rows,
    changed_verdicts,
    is_evidence,
    rows_in_all_orders,
    verdicts,
)
from suffice.control.evidence.drift_features import DriftFeatures
from suffice.control.evidence.feedback import Ratings
from suffice.control.evidence.versions import FIXED, LiveLearner, fit_audited_version, fixed_policy_rows, written
from suffice.control.loop.class_levels import ClassLevels
from suffice.control.loop.epoch import Draft, EpochEnd, EpochState, EvidenceSource, ReplayMismatch, cause_of
from suffice.control.loop.live_agent import LiveAgent
from suffice.control.loop.live_costs import LiveCosts
from suffice.control.loop.rollout_transition import RolloutTransition
from suffice.control.loop.safety_checks import FinishLog, JudgeCharge, LiveGuards, SatisfactionFloor, served_level
from suffice.episode import vote
from suffice.learn.audits import NO_AUDITS, AuditRuns
from suffice.learn.costs import LiveCost, remaining_ratio
from suffice.learn.features import FeatureSelection, choose_features
from suffice.learn.version import FoldedModels, Learner, ServedVersion, as_served, fold_version
from suffice.policy.base import build_policy
from suffice.policy.folded_version import FoldedVersion
from suffice.policy.starting_version import starting_version
from suffice.store.routes.deployments import RouteDeployment
from suffice.store.routes.rollouts import own_version
from suffice.store.rows.events import RolloutMove, RolloutStart, RolloutUndo
from suffice.types import Episode, Feedback, Kind, LabelRequest, Outcome, Request

PATIENCE_S: Final = 7 * 86_400.0  # after that, a warm start makes do with fewer full runs than a cold one
MOVED: Final = "it saves another share than announced"
MOST_OFF: Final = 0.02  # of the announced saving from what the evidence says, before it is announced again
_OF_ANSWERS: Final = frozenset({"votes", "vote-trend", "stability"})  # signals that another order of samples changes as
# it changes the answers; those of texts are recorded for the order in which the samples came


class LearnedEvidence(EvidenceSource):
    """Levels of stop models that are fitted on the audits of the epoch.

    chosen   features; None: before the burst is over, until when the epoch's queries are unknown. A start by share has
             those of any query until the first fit
    """

    def __init__(self, state: EpochState, **planned: Any) -> None:
        route, epoch = state.context.route, state.epoch
        self.chosen: FeatureSelection | None = choose_features(route.kind, ()) if epoch.ramps else None
        starting = None if self.chosen is None else _starting_version(route.kind, self.chosen)
        super().__init__(state, starting=starting, **planned)
        state.starts.keeps_ended = True
        self.counts: Verdicts = {}
        self.finish = FinishLog(is_needed=route.kind == "reasoning")
        self.judge = JudgeCharge(model=None if route.judge is None else route.judge.model, match=state.context.match)
        self.floor = SatisfactionFloor(Ratings(floor=route.min_satisfaction, delta=1 - route.confidence))
        self._drift = DriftFeatures()
        self._guards = LiveGuards(max_em_drop=epoch.max_em_drop, delta=1 - epoch.confidence)
        self._class_levels = ClassLevels(guards=self._guards, floor=self.floor, state=state)
        self._rollouts = RolloutTransition()
        self._costs = LiveCosts()
        if route.agent == "auto":
            self.agent = LiveAgent(route, max_em_drop=epoch.max_em_drop, n_levels=self.certifier.n_levels)
        self._taken_over: FoldedVersion | None = None  # a rollout's version that serves; None: the loop's own does
        self._warm: WarmStart | None = None  # how the epoch began; None: without a version
        self._n_taken = 0  # audits that the certifier has
        self._knows_queries = not epoch.ramps  # features are chosen for the route's own queries
        self._forecast: ForecastAction | None = None  # the latest of the epoch
        self._forecast_reason = ""  # why a forecast acted since the last look; "": it did not

    @property
    def in_doubt(self) -> bool:
        return self.certifier.doubts(forecast=self._forecast is not None and self._forecast.in_doubt)

    @property
    def log_wealth(self) -> float:
        log_e = self.certifier.epoch.log_e
        return float(log_e[1]) if len(log_e) > 1 else -inf

    @property
    def delta_part(self) -> float:
        certificate = self.certifier.epoch.certificate
        part = 1.0 if certificate is None else certificate.exposure.delta_part
        return self._rollouts.loops_share(super().delta_part) * part

    def is_evidence(self, request: Request, outcome: Outcome) -> bool:
        return is_evidence(request, outcome, probes=self.state.context.route.probe is not None)

    def note_end(self, episode: Episode, at: int) -> None:
        request = episode.request
        self.finish.note(request, episode.outcome)
        self.floor.ratings.ended(episode)
        self._note_costs(episode, at)
        if self._serves(request):
            self.ask_agent(lambda agent: agent.add_run(request, episode.outcome, served_level(request), at=at))

    def _note_costs(self, episode: Episode, at: int) -> None:
        request, outcome = episode.request, episode.outcome
        if request.kind != "reasoning" or request.delivery > 1:
            return
        if self.is_evidence(request, outcome):
            self._costs.add_audit(outcome)
        elif request.mode == "enforce" and served_level(request) and self._serves(request):
            self._costs.add_live(request, outcome, at=at)

    def note_label(self, episode_id: str, given: Feedback) -> None:
        self.floor.ratings.note_label(episode_id, given)

    def note_forecast(self, action: ForecastAction) -> None:
        self._forecast, self._forecast_reason = action, action.reason

    @property
    def may_start_warm(self) -> bool:
        """Whether a similar route's version may be tested: no audit of this route can have shaped it."""
        unfitted = self.chosen is None if self._knows_queries else self._warm is None
        return unfitted and not self.state.epoch.kept and not self.certifier.version

    def note_warm_start(self, start: WarmStart) -> None:
        if not self.may_start_warm:
            return
        served = self.state.context.load(start.fit)
        self.chosen = served.features
        self.certifier.adopt(served, self._rows(self.state.audits[: self._n_taken]))
        self._warm = start

    def note_rollout(self, event: RolloutStart | RolloutMove | RolloutUndo) -> None:
        """Serve and certify the version that a rollout activated, or the earlier one after an undo."""
        address = self._rollouts.after(event)
        if address is None or self.chosen is None:
            return
        served = self.state.context.load(address)
        self._taken_over = served.version
        self.chosen = self.chosen if self.chosen.names == served.features.names else served.features
        self.certifier.adopt(served, self._rows(self.state.audits[: self._n_taken]))

    # ---- a look ----------------------------------------------------------------------------------

    def look(self, held: RouteDeployment) -> EpochEnd | Draft | None:
        state, certifier = self.state, self.certifier
        live_cost = self._costs.at(float(state.n))
        ends_burst = state.n < certifier.epoch.burst_until and self._ends_burst(live_cost)
        is_watched = ends_burst or state.n >= certifier.epoch.burst_until
        if is_watched:
            self.judge.look(state.audits, state.epoch.max_em_drop, state.traffic.callers)
            self._take_audits()
            self._assign_finishes(certifier.served)
        finish_alarm = self.finish.alarm
        decision = certifier.look(self._evidence(live_cost, ends_burst=ends_burst))
        if decision.alarm == SIGNALS_DRIFTED:
            return EpochEnd("signals", decision.alarm, keep=KEPT_BEFORE)
        if not is_watched:
            return None
        if finish_alarm is not None:
            return EpochEnd("finish", finish_alarm)
        if not state.unreturned.observes:
            certifier.epoch.windows.lower(state.n + 1.0, certifier.window_share)  # of requests without rows, too
        self._forget_audits()
        alarm = decision.alarm
        if alarm is None and certifier.epoch.certificate is not None:
            mix = state.traffic.mix
            budget = state.epoch.max_em_drop / certifier.exposure.share
            alarm = mix.alarm(certifier.epoch.certificate, certifier.level, state.audits, budget)
        if alarm is not None:
            return EpochEnd(cause_of(alarm), alarm)
        draft = self._draft(held, decision.changes, self._move_level())
        self.ask_agent(self._feed_agent)
        return draft

    def _evidence(self, live_cost: LiveCost, *, ends_burst: bool) -> Evidence:
        state, forecast = self.state, self._forecast
        ended = (run for run in state.starts.take_ended(state.n) if state.traffic.upstreams.covers(run.request))
        return Evidence(
            at=float(state.n),
            signals=list(self._drift.batches(ended)),
            pending=state.unreturned.with_earlier(state.epoch.pending),
            run_timeout=state.durations.timeout,
            ends_burst=ends_burst,
            charge=self._charge,
            cap=None if forecast is None else forecast.cap,
            in_doubt=forecast is not None and forecast.in_doubt,
            died=frozenset(state.died),
            singled=frozenset(state.singled),
            live_cost=live_cost,
            confidence=1 - self._rollouts.loops_share(state.delta),
            label_timeout=state.delay.timeout_requests(since=state.epoch.at),
        )

    def _feed_agent(self, agent: LiveAgent) -> None:
        agent.read(self.certifier, self.state.audits)
        held_back = dict(self._class_levels.below(self.level))
        agent.look(self.state.n, lambda name: held_back.get(name, self.level))

    def _ends_burst(self, live_cost: LiveCost) -> bool:
        """Whether a route that began with a version, and has few requests, makes do with the full runs so far."""
        state, looked_s = self.state, self.state.looked_s
        if live_cost.objection:
            return True
        if self._warm is None or looked_s is None or state.n < state.epoch.at + self._warm.burst:
            return False
        return looked_s[1] - looked_s[0] >= PATIENCE_S

    def _serves(self, request: Request) -> bool:
        """Whether the version in use served this request."""
        address = self._address()
        return request.policy_version.rpartition("@")[0] == address if address else request.certified

    def _move_level(self) -> str:
        drawn_at = self.level or self.certifier.level
        rated, ceiling = self._heed_ratings(), self.floor.ceiling
        self.level = self.certifier.level if ceiling is None else min(self.certifier.level, ceiling)
        moved = self._guards.look(self.certifier, self.state.audits, pooled=drawn_at)
        moved += self._doubt_callers()
        forecast, self._forecast_reason = self._forecast_reason, ""
        mixed = self._prove_mixtures()
        objection = self.certifier.latest.live_cost.objection
        reasons = self._rollouts.take_reason(), forecast, objection, rated, *moved, mixed
        reason = "; ".join(part for part in reasons if part)
        finish = self.finish.at(max(1, self.level))
        budget = budget_left(self.state.epoch.max_em_drop, finish, other_charges=self.judge.charge)
        return reason if budget.max_em_drop else budget.reason

    def _doubt_callers(self) -> list[str]:
        """Note the callers whose latest audits lose; return the sentence of a change."""
        before, self.callers = self.callers, self._guards.callers.n_full if self.level else ()
        if self.callers == before:
            return []
        names = ", ".join(name for name, _ in self.callers)
        return [
            f"audits of {names} lose: the next requests run in full" if names else "callers in doubt may stop again"
        ]

    def _heed_ratings(self) -> str:
        """Move ceilings as ratings require, or as the log has decided; return the reason, or ""."""
        expected = self.state.expected
        if expected:
            if expected[0].at == self.state.n:
                self.floor.follow(expected[0])
            return ""
        if self.state.context.route.min_satisfaction is None:
            return self.floor.lift()
        return self.floor.look(
            self.level, dict(self._class_levels.below(self.level)), self.certifier, self.state.audits
        )

    def _prove_mixtures(self) -> str:
        """Lower the level to where the mixture that is served passes, too; return the reason, or "".

        In budgeted mode, too: its account is of one level for all classes, and says nothing about a mixture.
        """
        certifier = self.certifier
        state = self.state
        certified = self.level
        certificate, upstreams = certifier.epoch.certificate, state.traffic.upstreams
        self.mixture, self.any_level = (), 0
        if certificate is None or not certified:
            return ""
        test = MixtureTest(certificate=certificate, classes=self._classes_inside(certificate))
        if self._class_levels.below(self.level) or upstreams.moved or self.callers:
            held = cache(lambda level: dict(self._class_levels.below(level)))
            self.level = min(self.level, test.level(lambda name, level: (held(level).get(name, level),)))
        if mixture_of(state.ceilings, state.plan, level=self.level):
            self.level = min(self.level, test.level(self._class_levels.possible))
        self.mixture = mixture_of(state.ceilings, state.plan, level=self.level)
        self.any_level = _rounded(test.any_level(), most=self.level)
        return (
            f"only level {self.level} is proved with classes at levels of their own" if self.level < certified else ""
        )

    def _classes_inside(self, certificate: Certificate) -> list[str | None]:
        """The class by which requests like each of its audits are served; None: they run in full."""
        state, doubted = self.state, {name for name, _ in self.callers}

        def class_of(audit: Audit) -> str | None:
            request = audit.episode.request
            in_full = request.sender in doubted or not state.traffic.upstreams.covers(request)
            return None if in_full else audit.query_class

        return [class_of(state.audits[place]) for place in np.flatnonzero(certificate.inside).tolist()]

    def _saving(self) -> float | None:
        """What is expected to be saved of all requests by the levels that are served, the agent's draws among them."""
        certifier = self.certifier
        if certifier.epoch.certificate is None:
            return None
        shares = cache(lambda name: self._class_levels.shares(name, self.level, n_levels=certifier.n_levels))
        classes = self._classes_inside(certifier.epoch.certificate)
        return expected_saving(certifier, np.array([shares(name) for name in classes]).reshape(-1, certifier.n_levels))

    # ---- audits ----------------------------------------------------------------------------------

    def _take_audits(self) -> None:
        audits, certifier = self.state.audits, self.certifier
        if self.chosen is None:
            self.chosen = choose_features(self.state.context.route.kind, [audit.query for audit in audits])
        if any(audit.labels for audit in audits):
            self._judge_labels()
        certifier.add_audits(self._rows(audits[self._n_taken :]))
        self._n_taken = len(audits)

    def _judge_labels(self) -> None:
        state, certifier = self.state, self.certifier
        judged = certifier.epoch.disagreeing() if certifier.served is not None else ()
        differing = [
            audit
            for place, audit in enumerate(state.audits)
            if (judged[place] if place < len(judged) else audit.differs)
        ]
        before = self.counts
        self.counts = verdicts(
            differing, state.context.match, callers=state.traffic.callers, accepts=self.judge.accepts
        )
        changed = (state.places.get(name, self._n_taken) for name in changed_verdicts(before, self.counts))
        places = sorted(place for place in changed if place < self._n_taken)
        if places:
            certifier.epoch.amend(np.array(places), self._rows([state.audits[place] for place in places]))

    def _rows(self, audits: Sequence[Audit]) -> AuditRuns:
        return rows_in_all_orders(audits, self.counts, self._rows_in_order)

    def _rows_in_order(self, audits: Sequence[Audit], counts: Verdicts) -> AuditRuns:
        assert self.chosen is not None
        context = self.state.context
        runs = audits_to_rows(audits, chosen=self.chosen, match=context.match, wave=context.route.wave, counts=counts)
        return runs if self._taken_over is None else as_served(runs, self._taken_over)

    def _forget_audits(self) -> None:
        n_gone = len(self.state.audits) - self.certifier.epoch.n_audits
        if n_gone > 0:
            self.state.audits = self.state.audits[n_gone:]
            self._n_taken = len(self.state.audits)
            self._guards.forget(n_gone)
            oldest = min((audit.at for audit in self.state.audits), default=0)
            self.state.singled = {at for at in self.state.singled if at >= oldest}
            self.ask_agent(lambda agent: agent.forget(n_gone))
            self.state.index_audits()

    def _assign_finishes(self, served: FoldedModels | None) -> None:
        if served is not None:
            places, ends = self.state.places, self.certifier.epoch.ends_of
            self.finish.look(served.n_levels, lambda name: ends(places[name], served) if name in places else None)

    def _charge(self, served: FoldedModels) -> Floats:
        if self.certifier.served is None:  # the first version: finishes have levels from now on
            self._assign_finishes(served)
        return self.finish.charges() + self.judge.charge

    # ---- decisions -------------------------------------------------------------------------------

    def fit(self, runs: AuditRuns, learner: Learner, **options: Any) -> ServedVersion | None:  # noqa: ARG002
        """Fit a version; at a position that the log has decided, load the version fitted there."""
        expected = self.state.expected
        if self._rollouts.rests:
            return None
        if not self._knows_queries:
            runs = self._choose_features(runs)
        if not expected and self._leaves_refits_to_rollouts:
            return None
        if not expected:
            assert self.chosen is not None
            return fit_audited_version(runs, LiveLearner(self.chosen), **options)
        if expected[0].at != self.state.n or expected[0].fit == self._address():
            return None  # the fit made here was not adopted
        return self.state.context.load(expected[0].fit)

    def _choose_features(self, runs: AuditRuns) -> AuditRuns:
        """Choose features for the queries of the audits so far; return their rows."""
        self._knows_queries, epoch = True, self.certifier.epoch
        chosen = choose_features(self.state.context.route.kind, [audit.query for audit in self.state.audits])
        served = epoch.served
        assert self.chosen is not None
        assert isinstance(served, ServedVersion)
        of_version = [name for name in served.version.models[0].features if name not in chosen.names]
        chosen = replace(chosen, marks=(*chosen.marks, *of_version))
        if chosen.names == self.chosen.names:
            return runs
        self.chosen = chosen
        runs = self._rows(self.state.audits[: self._n_taken])
        epoch.renew_features(runs, fold_version(served.version, among=chosen.names))
        return runs

    @property
    def _leaves_refits_to_rollouts(self) -> bool:
        """Whether another version than the one that acts comes by a rollout, which the job `retrain` begins.

        At a start by share those of fewer audits than a burst has come without one.
        """
        route, certifier = self.state.context.route, self.certifier
        served, plan = certifier.served, certifier.plan
        if plan.ramps and isinstance(served, ServedVersion):
            trained = served.version.models[0].trained
            if trained.n_episodes < plan.burst:
                return False
        return route.rollout.automatic and plan.promise == "certified" and certifier.level > 0

    def _address(self) -> str:
        served = self.certifier.served
        return served.version.address if isinstance(served, ServedVersion) else ""

    def _draft(self, held: RouteDeployment, changes: Sequence[Change], reason: str) -> Draft | None:
        certifier = self.certifier
        before = held.publication
        address = self._address()
        served, level = certifier.served, self.level
        share = certifier.share
        classes = self._class_levels.below(self.level)
        floor = self.floor
        exposure = certifier.exposure.share
        decided = address, level, share, classes, floor.ceiling, floor.published, certifier.latest.cap, exposure
        is_known = before is not None and decided == (
            *(before.fit, before.level, before.share, before.classes, before.ceiling, before.class_ceilings),
            *(before.cap, before.exposure),
        )
        saving = self._saving()
        spender = certifier.epoch.spender if certifier.plan.promise == "budgeted" else None
        is_off = before is not None and level > 0 and _differs(saving, before.evidence.share)
        if is_known and not self.covers_others(before) and not (is_off and self.may_repeat):
            return None
        made = self.state.publication(
            held,
            version=f"{address}@{level}" if address else "",
            fit=address,
            level=level,
            n_levels=certifier.n_levels,
            certified=0 < level <= (certifier.level if spender is None else spender.floor),
            spending=None if spender is None or not level else spender.account,
            share=share,
            reason=reason
            or (MOVED if is_known and is_off else "")
            or explain_level(certifier, changes, before, level=level, most=floor.ceiling, fit=address),
            evidence=replace(
                summarize_evidence(certifier, most=floor.ceiling),
                share=saving,
                remaining_ratio=self._remaining_ratio(level),
                judge_charge=self.judge.charge,
            ),
            ceiling=floor.ceiling,
            class_ceilings=floor.published,
            classes=classes,
            cap=certifier.latest.cap,
            mixture=self.mixture,
            any_level=self.any_level,
            callers=self.callers,
            exposure=exposure,
        )
        return Draft(made, {address: written(served.version)} if isinstance(served, ServedVersion) else {})

    def _remaining_ratio(self, level: int) -> float | None:
        if not level or self.state.context.route.kind != "reasoning":
            return None
        inside, stops = self.certifier.epoch.stops(level)
        runs = [self.state.audits[place].outcome for place in inside.tolist()]
        known = np.array([run.usage is not None and run.is_finished for run in runs], dtype=bool)
        return remaining_ratio([run for run, is_known in zip(runs, known, strict=True) if is_known], stops[known])

    def label_requests(self, requested: set[str]) -> list[LabelRequest]:
        """Request labels only for audits that disagree at a level that may act next."""
        requests, first = list[LabelRequest](), self.certifier.epoch.first_disagreements()
        for place in np.flatnonzero(first).tolist():
            audit, level = self.state.audits[place], int(first[place])
            if audit.labels or audit.id in requested or audit.fate != "full":
                continue
            requested.add(audit.id)
            ends = self.certifier.epoch.ends_of(place, self.certifier.served)
            answer = _answer_at(audit, 0 if ends is None else int(ends[level]))
            why = f"a stop at level {level} would have given a different answer"
            requests.append(self.state.label_request(audit, level=level, would_answer=answer, why=why))
        return requests


def _starting_version(kind: Kind, chosen: FeatureSelection) -> ServedVersion:
    return fold_version(starting_version(kind), among=chosen.names)


def _rounded(any_level: int, *, most: int) -> int:
    """The level on a coarse grid below it, lest each look publishes another one."""
    return most if any_level >= most else any_level - any_level % SWING


def _differs(saving: float | None, announced: float | None) -> bool:
    return saving is not None and (announced is None or abs(saving - announced) > MOST_OFF)


def _answer_at(audit: Audit, row: int) -> str | None:
    answers = [step.answer for step in audit.outcome.steps[: row + 1]]
    if audit.episode.request.kind == "samples":
        return vote.count_votes(answers).answer
    return answers[-1] if answers else None


class FixedPolicyEvidence(LearnedEvidence):
    """A fixed policy: level 1 once certified, else 0. A rollout's version has no certificate and stops nothing."""

    def __init__(self, state: EpochState) -> None:
        super().__init__(state, n_levels=FIXED.n_levels)
        route = state.context.route
        self.policy, self.address = build_policy(route.policy), own_version(route).address
        self.certifier.adopt(FIXED, NO_AUDITS)

    def fit(self, runs: AuditRuns, learner: Learner, **options: Any) -> None:
        """A fixed policy stays."""

    def note_rollout(self, event: RolloutStart | RolloutMove | RolloutUndo) -> None:
        self._rollouts.after(event)

    def look(self, held: RouteDeployment) -> EpochEnd | Draft | None:
        decision, expected = super().look(held), self.state.expected
        if not isinstance(decision, Draft):
            return decision
        if expected and expected[0].version != self.address:
            raise ReplayMismatch(f"route {self.state.context.name}: its owner has configured another policy")
        return Draft(replace(decision.publication, version=self.address), decision.artefacts)

    def _rows(self, audits: Sequence[Audit]) -> AuditRuns:
        of_answers = all(need.partition("(")[0] in _OF_ANSWERS for need in self.policy.needs)
        return super()._rows(audits) if of_answers else self._rows_in_order(audits, self.counts)

    def _rows_in_order(self, audits: Sequence[Audit], counts: Verdicts) -> AuditRuns:
        context, kind = self.state.context, self.state.context.route.kind
        match, wave = context.match, context.route.wave
        return fixed_policy_rows(audits, policy=self.policy, kind=kind, match=match, wave=wave, counts=counts)

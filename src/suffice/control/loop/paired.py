"""Pairs of calls as evidence for a route whose upstream cannot be cut: its efforts or its token budget.

For what a pair proves, see `assurance.paired`. An audit that its client left and a failed second call count against the
arm. There is no burst, because a pair costs a second call. Signals of all traffic are not checked for drift, because
the arm itself changes them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Final, TypeAlias

import numpy as np

from suffice.agent.mixture import mixture_of
from suffice.assurance.certify import Window, e_value_of
from suffice.assurance.drift import AuditWatch, Reference
from suffice.assurance.labels import JUDGE, resolve_labels
from suffice.assurance.paired import WINDOW, PairedAudit, PairedCertificate, certify_arm, pairs_of
from suffice.assurance.runs import DEATH_ENDS, Match, is_abandoned
from suffice.certification.certificate import NO_PENDING
from suffice.control.evidence.audits import Audit, trusted_label
from suffice.control.loop.epoch import Draft, EpochEnd, EpochState, EvidenceSource, cause_of
from suffice.control.loop.live_agent import AuditCosts, LiveAgent
from suffice.rollout.assign import audit_share
from suffice.signals.query import class_of
from suffice.store.routes.deployments import RouteDeployment
from suffice.types import (
    Alarm,
    Episode,
    EvidenceSummary,
    Feedback,
    LabelRequest,
    Outcome,
    PairSummary,
    Request,
)

Windowed: TypeAlias = list[tuple[float, PairedAudit]]  # with the request of each
FULL: Final = "full"  # how outcomes name a second full run
MOST_KEPT: Final = WINDOW + WINDOW // 4  # audits: those of the window, second full runs, and some that are pending
RETURN_DIVISOR: Final = 10.0  # divides delta for an arm that lost its certificate
LEAST_REFUTED: Final = 50  # pairs that lose more than the budget, after which a lost arm's evidence begins anew
MIXED_PART: Final = 0.2  # of delta, for the assignments of several arms to query classes


def is_pair(request: Request, outcome: Outcome, arms: Sequence[str]) -> bool:
    """Whether this audit had a second call with one of these arms or in full, or was left or died before that."""
    if request.ungoverned is not None or not request.audit or request.delivery > 1:
        return False
    return outcome.pair_arm in (FULL, *arms) or is_abandoned(outcome) or outcome.end_reason in DEATH_ENDS


def pair_audits(
    audits: Sequence[Audit],
    match: Match,
    *,
    timeout: float,
    callers: Collection[str] = (),
    window: Window | None = None,
) -> list[PairedAudit]:
    """Return the audits as pairs, weighted by `window`; a label is late after `timeout` requests of the route."""
    differing = {audit.id: audit for audit in audits if _differs(audit.outcome)}
    labels = [
        trusted_label(name, label, z, callers)
        for name, audit in differing.items()
        for label in audit.labels
        if (z := pair_loss(audit.outcome, label.feedback, match)) is not None
    ]
    losses = {name: z for name, z in resolve_labels(labels, differing=differing).items() if isinstance(z, int)}
    weights = np.ones(len(audits)) if window is None else window.weights(np.array([one.share for one in audits]))
    return [
        _pair(audit, losses.get(audit.id), due=audit.at + timeout, weight=weight)
        for audit, weight in zip(audits, weights.tolist(), strict=True)
    ]


def pair_loss(outcome: Outcome, given: Feedback, match: Match) -> int | None:
    """The arm's loss by a label; None: unknown. A judge's label does not count, because no pair measures the judge."""
    if given.source == JUDGE:
        return None
    if given.gold is not None:
        answers = outcome.answer, outcome.pair_answer
        full_right, arm_right = (answer is not None and match(answer, given.gold) for answer in answers)
        return int(full_right) - int(arm_right)
    # A label of the full run alone: if it is right, the other answer is wrong; otherwise that may be wrong as well.
    return None if given.correct is None else int(given.correct)


def _differs(outcome: Outcome) -> bool:
    return outcome.pair_arm is not None and outcome.answer != outcome.pair_answer


def _pair(audit: Audit, z: int | None, *, due: float, weight: float) -> PairedAudit:
    outcome = audit.outcome
    if outcome.pair_arm is None:  # the client left before the second call, which counts as lost for the arm
        query_class = class_of(audit.episode.request.query)
        return PairedAudit(query_class=query_class, disagrees=True, z=1, due=due, weight=weight)
    disagrees = _differs(outcome)
    return PairedAudit(
        arm=outcome.pair_arm,
        query_class=class_of(audit.episode.request.query),
        disagrees=disagrees,
        z=z if disagrees else 0,
        due=due,
        is_repeat=outcome.pair_arm == FULL,
        weight=weight,
        full_tokens=outcome.usage.completion_tokens if outcome.usage is not None else 0,
        arm_tokens=outcome.pair_tokens or 0,
    )


def _without_gain(pair: PairedAudit) -> PairedAudit:
    return replace(pair, z=pair.z and max(0, pair.z))


def arm_part(n_arms: int) -> float:
    """The part of delta for each arm of a route."""
    return 1.0 if n_arms == 1 else (1 - MIXED_PART) / n_arms


@dataclass(slots=True)
class PairedArm:
    """An effort or a budget with what the loop knows of it."""

    name: str
    watch: AuditWatch | None = None  # of the first arm ends the epoch, of another takes it away; None: was not active
    watched_to: int = 0  # position of the last pair in the watch
    has_fallen: bool = False  # it has lost its certificate since its evidence began
    since: int = 0  # the request after which its evidence began anew; 0: with the epoch
    delta_share: float = 1.0  # of its part of delta, see `assurance.certify.restart_share`


class PairedEvidence(EvidenceSource):
    """Level k is the k-th arm, in the order of the settings: from the most expensive to the cheapest.

    Arms are accepted in this order until one fails, each with its own part of delta: a handful of arms can afford it,
    and the claims about all of them then hold together, whatever drifts. So an alarm about one takes that one away and
    those after it; its evidence begins anew, as in an epoch of its own. An alarm about the first leaves none.
    """

    def __init__(self, state: EpochState) -> None:
        route = state.context.route
        self._window = WINDOW * len(route.arms)  # audits; by it a later epoch earns its delta
        super().__init__(state, window=self._window)
        self._arms = [PairedArm(name) for name in route.arms]
        self._log_e = -inf  # of the first arm, at the last look
        self.pending = NO_PENDING  # at the last look
        if route.agent == "auto":
            self.agent = LiveAgent(route, max_em_drop=state.epoch.max_em_drop, n_levels=len(self._arms) + 1)
        self._lost = ""  # why an arm was taken away at this look …
        self._alarmed: Alarm | None = None  # … by an alarm
        self._read_to = self._judged_to = 0  # positions of the last pair and outcome that the agent has

    @property
    def log_wealth(self) -> float:
        return self._log_e

    @property
    def delta_part(self) -> float:
        return super().delta_part * self._part(0)

    def is_evidence(self, request: Request, outcome: Outcome) -> bool:
        return is_pair(request, outcome, self.state.context.route.arms)

    def note_end(self, episode: Episode, at: int) -> None:
        request = episode.request
        level = self._level_of(request.policy_version) * request.certified
        self.ask_agent(lambda agent: agent.add_run(request, episode.outcome, level, at=at))

    def _level_of(self, arm: str) -> int:
        """The level of an arm, from 1; 0: it is none of the route's."""
        return next((level for level, one in enumerate(self._arms, 1) if one.name == arm), 0)

    # ---- a look ----------------------------------------------------------------------------------

    def look(self, held: RouteDeployment) -> EpochEnd | Draft | None:
        state, most = self.state, MOST_KEPT * len(self._arms)
        if len(state.audits) > most:
            state.audits = state.audits[-most:]
            state.index_audits()
        pairs, now = self.pairs(state.audits), float(state.n)
        self.pending = state.unreturned.with_earlier(state.epoch.pending)
        alarm = self._alarm(pairs, now)
        if alarm is not None:
            return EpochEnd(cause_of(alarm), alarm)
        windowed = self._windowed()
        certificates = [
            self._certificate(windowed, lambda _, name=arm.name: name, delta=self.delta_of(place), since=arm.since)  # type: ignore[misc]
            for place, arm in enumerate(self._arms)
        ]
        self._log_e = certificates[0].log_e
        self._accept(certificates)
        self._retry(certificates)
        self._prove_mixtures(windowed)
        draft = self._draft(held, certificates)
        self.ask_agent(lambda agent: self._feed_agent(agent, pairs, now))
        level = self.level
        self.ask_agent(lambda agent: agent.look(state.n, lambda _: level, lambda most: self._admits(most, windowed)))
        return draft

    def _certificate(
        self, windowed: Windowed, arm_of: Callable[[str], str], *, delta: float, since: int
    ) -> PairedCertificate:
        """The certificate of the arms that query classes get, by the pairs of requests after `since`."""
        pairs, budget = (pair for at, pair in windowed if at > since), self.state.epoch.max_em_drop
        mine = pairs_of(pairs, arm_of, len(self._arms))
        return certify_arm(mine, max_em_drop=budget, delta=delta, now=float(self.state.n))

    def _part(self, place: int) -> float:
        """The part of delta for an arm: one that lost its certificate needs a stronger proof, lest it alternates."""
        arm = self._arms[place]
        part = arm_part(len(self._arms)) * arm.delta_share
        return part / RETURN_DIVISOR if arm.has_fallen and place >= self.level else part

    def delta_of(self, place: int) -> float:
        return self.state.delta * self._part(place)

    def _accept(self, certificates: Sequence[PairedCertificate]) -> None:
        before, self.level = self.level, 0
        for arm, certificate in zip(self._arms, certificates, strict=True):
            if not certificate.is_certified:
                break
            self.level += 1
            if arm.watch is None:  # the audits that certified the arm are no news about it
                reference = Reference(n_disagreeing=certificate.n_disagree, n_lost=certificate.n_lost, n=certificate.n)
                arm.watch = AuditWatch(max_em_drop=self.state.epoch.max_em_drop, reference=reference)
                arm.watched_to = self.state.audits[-1].seq
        for arm in self._arms[self.level : before]:
            arm.has_fallen = True

    def _prove_mixtures(self, windowed: Windowed) -> None:
        """Lower the level to where it passes with the classes that people hold back, too."""
        ceilings, proved = self.state.ceilings, self.level
        if ceilings:
            self.level = self._passing(windowed, lambda name, level: min(level, ceilings.get(name, level)))
        if self.level < proved:
            self._lost = self._lost or f"only level {self.level} is proved with classes at levels of their own"
        self.mixture = mixture_of(ceilings, None, level=self.level)
        gainless = [(at, _without_gain(pair)) for at, pair in windowed]
        self.any_level = self._passing(gainless, lambda _, level: level)

    def _passing(self, windowed: Windowed, level_of: Callable[[str, int], int]) -> int:
        """The highest level up to which all pass where classes get levels as `level_of` says; 0 loses nothing."""
        names = "", *(arm.name for arm in self._arms)
        for level in range(1, self.level + 1):
            arm_of = lambda name, level=level: names[level_of(name, level) or level]
            pairs = [
                (at, pair if level_of(pair.query_class, level) else replace(pair, z=0, disagrees=False))
                for at, pair in windowed
            ]
            since = max(arm.since for arm in self._arms[:level])
            if not self._certificate(pairs, arm_of, delta=self.delta_of(level - 1), since=since).is_certified:
                return level - 1
        return self.level

    def _retry(self, certificates: Sequence[PairedCertificate]) -> None:
        """Begin the evidence of lost arms anew that their pairs refute, lest these delay a return by a whole window."""
        for place in range(self.level, len(self._arms)):
            arm, one = self._arms[place], certificates[place]
            if (arm.has_fallen or arm.since) and one.n >= LEAST_REFUTED and one.drop > self.state.epoch.max_em_drop:
                self._begin_anew(place)

    def _begin_anew(self, place: int) -> None:
        """As an alarm's epoch does, with the same part of delta: it may depend on what the audits drawn so far show."""
        arm, state = self._arms[place], self.state
        began = max(arm.since, state.epoch.at)
        arm.delta_share = self.certifier.plan.restart_share(state.n - began)
        arm.since = state.n
        arm.has_fallen = False
        arm.watch = None
        if self.agent is not None:
            self.agent.forget_losses(place + 1)

    def _admits(self, levels: Mapping[str, int], windowed: Windowed) -> bool:
        """Whether query classes may get these levels. Different arms are certified together, like one more arm.

        Each of the arms loses less than the budget over all classes, which bounds no mixture: each may lose what it
        loses in the class that gets it. One part of delta is divided among all assignments of arms to these classes.
        """
        mixed = {level for level in levels.values() if level}
        if len(mixed) < 2:
            return True
        names = "", *(arm.name for arm in self._arms)
        served = {name: names[level] for name, level in levels.items()}
        arms = [self._arms[level - 1] for level in sorted({*mixed, self.level})]
        delta = self.state.delta * min(arm.delta_share for arm in arms) * MIXED_PART / len(self._arms) ** len(levels)
        arm_of, since = lambda name: served.get(name, names[self.level]), max(arm.since for arm in arms)
        return self._certificate(windowed, arm_of, delta=delta, since=since).is_certified

    def _feed_agent(self, agent: LiveAgent, pairs: Sequence[PairedAudit], now: float) -> None:
        waits = False
        for audit, pair in zip(self.state.audits, pairs, strict=True):
            if pair.is_repeat or not pair.full_tokens or not pair.arm_tokens:
                continue
            known = np.arange(len(self._arms) + 1) == self._level_of(pair.arm)  # of other arms it shows nothing
            tokens = np.where(known, float(pair.arm_tokens), np.nan)
            tokens[0] = pair.full_tokens
            costs = AuditCosts(audit=audit, full_tokens=float(pair.full_tokens), tokens=tokens, stops=known)
            if audit.seq > self._read_to:
                self._read_to = audit.seq
                agent.add_audit(costs)
            waits |= pair.z is None and pair.due > now
            if audit.seq > self._judged_to and not waits:
                self._judged_to = audit.seq
                z = np.where(known, 1.0 if pair.z is None else pair.z, np.nan)
                z[0] = 0.0
                agent.add_losses(costs, z)

    def _alarm(self, pairs: Sequence[PairedAudit], now: float) -> str | None:
        """Return an alarm about the first arm; one about another takes that one away."""
        self._lost, self._alarmed = "", None
        for place, arm in enumerate(self._arms):
            alarm = self._alarm_of(arm, place, pairs, now) if arm.watch else None
            if alarm is not None and not place:
                return alarm
            if alarm is not None:
                self._begin_anew(place)
                if not self._lost:
                    self._lost = f"{arm.name}: {alarm}"
                    self._alarmed = self.state.alarm(cause_of(alarm), self._lost, level=place + 1)
        return None

    def _alarm_of(self, arm: PairedArm, place: int, pairs: Sequence[PairedAudit], now: float) -> str | None:
        assert arm.watch is not None
        for audit, pair in zip(self.state.audits, pairs, strict=True):
            # An audit that ended before its second call goes to each arm in turn.
            is_mine = pair.arm == arm.name or (not pair.arm and audit.seq % len(self._arms) == place)
            died = audit.at in self.state.died
            if audit.seq <= arm.watched_to or pair.is_repeat or died or not is_mine:
                continue
            if pair.due > now:
                return None  # later ones are not due, either
            arm.watched_to = audit.seq
            alarm = arm.watch.add(1 if pair.z is None else pair.z, pair.disagrees)
            if alarm is not None:
                return alarm
        return None

    def pairs(self, audits: Sequence[Audit], window: Window | None = None) -> list[PairedAudit]:
        match, callers = self.state.context.cached_match, self.state.traffic.callers
        return pair_audits(audits, match, timeout=self._timeout, callers=callers, window=window)

    def _windowed(self) -> Windowed:
        """The pairs of the certificate's window by request; audits that should have returned by now count as lost."""
        state = self.state
        pending = self.pending
        timeout = self._timeout
        at = np.array([audit.at for audit in state.audits], dtype=np.float64)
        share = np.array([audit.share for audit in state.audits])
        window = self.certifier.epoch.windows.chosen(
            np.concatenate([at, pending.at]), np.concatenate([share, pending.share]), wanted=self._window
        )
        if window is None:
            return []
        inside = [audit for audit, here in zip(state.audits, window.holds(at), strict=True) if here]
        late = window.holds(pending.at)
        weights = (window.weights(pending.share[late]) * len(self._arms)).tolist()  # whole, whichever arm was called
        lost = [
            (began, PairedAudit(disagrees=True, z=1, due=began + timeout, weight=weight))
            for began, weight in zip(pending.at[late].tolist(), weights, strict=True)
        ]
        covers = state.traffic.upstreams.covers  # requests for an alias that has moved run in full
        returned = (
            (audit.at, pair if covers(audit.episode.request) else _without_gain(pair))
            for audit, pair in zip(inside, self.pairs(inside, window), strict=True)
        )
        return [*returned, *lost]

    @property
    def _timeout(self) -> float:
        state = self.state
        return max(state.delay.timeout_requests(since=state.epoch.at), state.durations.timeout)

    def _draft(self, held: RouteDeployment, certificates: Sequence[PairedCertificate]) -> Draft | None:
        state = self.state
        before = held.publication
        level = self.level
        held_level = before.level if before is not None else 0
        if held_level == level and not self.covers_others(before):
            return None
        place, budget = max(0, level - 1), state.epoch.max_em_drop
        arm, certificate = self._arms[place].name, certificates[place]
        evidence = EvidenceSummary(
            n_audits=certificate.n,
            n_gained=certificate.n_gained,
            n_lost=certificate.n_lost,
            e_value=e_value_of(certificate.log_e),
            share=certificate.saved_share,
            n_missing=certificate.n_missing(max_em_drop=budget, delta=self.delta_of(place)),
            max_em_drop=budget,
            confidence=state.epoch.confidence,
        )
        pairs = PairSummary(
            n=certificate.n,
            n_disagree=certificate.n_disagree,
            n_repeats=certificate.n_repeats,
            n_repeats_disagree=certificate.n_repeats_disagree,
        )
        reason = certificate.sentence(arm)
        if level < held_level:
            lost = self._arms[level].name
            reason = self._lost or f"{lost} is no longer proved: {certificates[level].sentence(lost)}"
        made = state.publication(
            held,
            version=arm if level else "",
            fit="",
            level=level,
            n_levels=len(self._arms) + 1,
            certified=level > 0,
            share=audit_share(state.n, state.context.route.audit_share),
            reason=reason,
            evidence=evidence,
            arm=arm,
            pairs=pairs,
            mixture=self.mixture,
            any_level=self.any_level,
        )
        return Draft(made, alarm=self._alarmed if level < held_level else None)

    def label_requests(self, requested: set[str]) -> list[LabelRequest]:
        """Request labels only where the two answers differ."""
        requests = list[LabelRequest]()
        for audit in self.state.audits:
            outcome = audit.outcome
            if audit.labels or audit.id in requested or outcome.pair_arm == FULL or not _differs(outcome):
                continue
            requested.add(audit.id)
            arm = outcome.pair_arm or ""
            request = self.state.label_request(
                audit,
                level=self._level_of(arm),
                would_answer=outcome.pair_answer,
                why=f"with {arm} the answer was different",
            )
            requests.append(request)
        return requests

"""The certification loop of one route: rows of the log in, decisions out.

The loop is a pure fold over the log. Time is the number of the route's requests, so a second worker and a replay a year
later come to the same decisions, to the last bit. If replaying the log does not reproduce a published decision, a new
epoch begins: losing evidence is safer than contradicting it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from suffice.agent.plan import AgentPlan
from suffice.assurance.certify import FleetRequirement, WarmStart
from suffice.assurance.exposure import LOOK_PERIOD
from suffice.assurance.forecast import ForecastAction
from suffice.assurance.sampling import weight_of
from suffice.certification.certifier import Certifier
from suffice.control.evidence.audits import Audit
from suffice.control.evidence.cold_start import burst_requests, epoch_start
from suffice.control.loop.epoch import (
    Draft,
    EpochEnd,
    EpochState,
    EvidenceSource,
    ReplayMismatch,
    Resolution,
    RouteContext,
)
from suffice.control.loop.learned import FixedPolicyEvidence, LearnedEvidence
from suffice.control.loop.live_agent import LiveAgent
from suffice.control.loop.paired import PairedEvidence
from suffice.control.loop.safety_checks import CriticalEM, Traffic
from suffice.review.holds import NO_HOLDS, Override, OverrideEnd, RouteHolds, incident_of_pause
from suffice.store.database.log import StoredEvent
from suffice.store.database.views import StoredLabel
from suffice.store.routes.deployments import RouteDeployment
from suffice.store.rows.events import (
    Event,
    FeedbackEvent,
    RequestCount,
    RolloutMove,
    RolloutStart,
    RolloutUndo,
    route_of,
    to_row,
)
from suffice.types import Alarm, Epoch, Feedback, LabelRequest, Outcome, Pause, Publication, Request, Resumption

W = TypeVar("W", bound=Event)


def source_of(state: EpochState) -> EvidenceSource:
    route = state.context.route
    if route.is_learned:
        return LearnedEvidence(state)
    return FixedPolicyEvidence(state) if route.is_owned else PairedEvidence(state)


def writable(event: W) -> W:
    """Return an event whose row can be written. Raises ValueError for any other."""
    to_row(event)
    return event


def essence(made: Publication) -> tuple[object, ...]:
    """The level and version that a publication activates, and where: a replay of the log must reproduce them."""
    return made.at, made.fit, made.level, made.share, made.classes


class RouteLoop:
    """One route, from the beginning of an epoch on.

    expected  publications of the epoch that the log holds, oldest first
    kept      audits from before the epoch that count in it
    holds     overrides and incidents of the route; set before `settle`, as is `at_s`
    at_s      Unix time of the log's last row
    """

    def __init__(
        self,
        context: RouteContext,
        held: RouteDeployment,
        *,
        expected: Iterable[Publication] = (),
        kept: Sequence[Audit] = (),
        requested: Iterable[str] = (),
        overrides: RouteHolds = NO_HOLDS,
    ) -> None:
        epoch = held.epoch
        assert epoch is not None
        # Published decisions are in `expected`: they become active when the fold reaches them.
        self.held = replace(held, publication=None)
        self.requested = set(requested)
        self.holds: RouteHolds = NO_HOLDS
        self._overrides = overrides
        self.at_s = 0.0
        self.seq = epoch.since_seq
        self.critical_em = CriticalEM(context.route.critical_em, delta=1 - context.route.confidence)
        self.state = EpochState(context, epoch, Traffic(), kept=kept, expected=expected)
        self.source = source_of(self.state)

    def resume(self, held: RouteDeployment, *, expected: Iterable[Publication], requested: Iterable[str]) -> None:
        """Go on from a state of the same epoch; `expected` as above, where those that this loop made are left out."""
        later = [made for made in expected if made.number > self.held.n_publications]
        self.state.expected = deque(later)
        self.held = replace(held, publication=self.held.publication, last=self.held.last)
        self.requested = set(requested)

    @property
    def context(self) -> RouteContext:
        return self.state.context

    @property
    def n(self) -> int:
        return self.state.n

    @property
    def level(self) -> int:
        return self.source.level

    @property
    def certifier(self) -> Certifier:
        return self.source.certifier

    # ---- the fold --------------------------------------------------------------------------------

    def feed(self, stored: StoredEvent) -> Resolution | None:
        """Read the next row of the log; a row that was read before changes nothing. Raises ReplayMismatch."""
        if stored.seq <= self.seq:
            return None
        self.seq, event = stored.seq, stored.event
        name = self.context.name
        if isinstance(event, Request):
            if event.sender:
                self.state.traffic.callers.add(event.sender)
            return self._begin_run(event, stored) if event.route == name and event.ungoverned is None else None
        if isinstance(event, Outcome):
            return self._end_run(event, stored)
        if isinstance(event, RequestCount):
            self.state.traffic.callers.update(event.senders)
            return self._count_requests(event, stored) if event.route == name else None
        if isinstance(event, FleetRequirement):
            self.state.required_wealth = event.wealth
            # Routes that reach a new requirement are certified together, so that as many are as it counts on.
            return None if self.held.in_burst else self._look(stored)
        if isinstance(event, FeedbackEvent):
            self._note_label(StoredLabel(stored.seq, event.feedback, stored.at_s))
        elif route_of(event) == name:
            self._note(stored)
        return None

    def _note(self, stored: StoredEvent) -> None:
        """Note what others decided about the route."""
        event = stored.event
        if isinstance(event, RolloutStart | RolloutMove | RolloutUndo):
            self.source.note_rollout(event)
        elif isinstance(event, ForecastAction) and event.epoch == self.state.epoch.number:
            self.source.note_forecast(event)
        elif isinstance(event, WarmStart) and event.epoch == self.state.epoch.number:
            self.source.note_warm_start(event)
        elif isinstance(event, AgentPlan) and event.epoch == self.state.epoch.number:
            self.state.plan = event
        elif isinstance(event, Override | OverrideEnd):
            self._overrides = self._overrides.after(event, stored.at_s)
        elif isinstance(event, Pause | Resumption):
            # A person's: the loop notes its own decisions when it makes them.
            self.held = self.held.after(event)
            if isinstance(event, Resumption):
                self.critical_em.verdicts.clear()

    def _begin_run(self, request: Request, stored: StoredEvent) -> Resolution | None:
        state, number = self.state, self.n + 1
        request = state.deliveries.numbered(request)
        if state.traffic.upstreams.covers(request):
            state.traffic.mix.note(request)
        state.traffic.sample_ratio.note(request)
        state.starts.began(request, number)
        certifier = self.certifier
        is_sure = request.audit and request.propensity == 1 > certifier.window_share
        is_singled = certifier.level > 0 and is_sure and request.sender != ""
        if is_singled:
            state.singled.add(float(number))
        most = certifier.window_share if self.source.in_doubt or is_singled else 1.0
        probes = self.context.route.probe is not None
        state.unreturned.began(request, number, probes=probes, windows=certifier.epoch.windows, most=most)
        return self._pass_requests(1, stored)

    def _count_requests(self, counted: RequestCount, stored: StoredEvent) -> Resolution | None:
        """Requests without rows are no audits, and come with the lowest audit share among them."""
        if counted.audit_share is not None:
            self.certifier.epoch.windows.lower(self.n + 1.0, counted.audit_share)
        self.state.traffic.mix.count(counted.cells)
        return self._pass_requests(counted.n_governed, stored)

    def _pass_requests(self, n_requests: int, stored: StoredEvent) -> Resolution | None:
        before, self.state.n = self.n, self.n + n_requests
        certifier, tick = self.certifier, self.context.control.tick_requests
        if certifier.plan.is_learning(certifier.epoch.n_audits) and certifier.window_share > certifier.plan.share:
            tick = min(tick, LOOK_PERIOD)
        return None if self.n // tick == before // tick else self._look(stored)

    def _look(self, stored: StoredEvent) -> Resolution | None:
        looked_s = self.state.looked_s or (stored.at_s, stored.at_s)
        self.state.looked_s = looked_s[0], stored.at_s
        self.state.delay.note_look(stored.at_s, self.n)
        self.state.ceilings = self._overrides.in_effect(stored.at_s).classes
        decision = self.source.look(self.held)
        if isinstance(decision, EpochEnd):
            return self._end_epoch(decision, stored)
        return None if decision is None else self._publish(decision)

    def _end_run(self, outcome: Outcome, stored: StoredEvent) -> Resolution | None:
        state = self.state
        state.unreturned.ended(outcome.episode_id)
        run = state.starts.ended(outcome)
        if run is None or run.episode is None:
            return None
        request, episode = run.request, run.episode
        state.traffic.setup = request.setup or state.traffic.setup
        change = state.traffic.upstreams.note(request, outcome, gathers=self._gathers)
        if change is not None:
            return self._end_epoch(EpochEnd("change", change), stored)
        self.source.note_end(episode, run.number)
        waiting = state.labels.ended(outcome, weight_of(request, outcome))
        for label in waiting:
            self._hear(outcome.episode_id, label.feedback)
        if state.traffic.upstreams.covers(request) and self.source.is_evidence(request, outcome):
            state.note_end(outcome, run.number, self.certifier.plan, self.certifier.epoch.windows)
            audit = Audit(
                seq=stored.seq,
                at=run.number,
                ended_at_s=stored.at_s,
                episode=episode,
                only_drawn=self.context.route.sees_only_drawn,
            )
            state.places[audit.id] = len(state.audits)
            state.audits.append(audit.with_labels(waiting, self.n))
        return None

    @property
    def _gathers(self) -> bool:
        """Whether the epoch still gathers the upstream identities that its evidence covers."""
        epoch, context = self.state.epoch, self.context
        if context.route.is_learned:
            certifier = self.certifier
            starts = certifier.plan.is_learning(certifier.epoch.n_audits) and not certifier.epoch.has_certified
            return self.held.in_burst or starts
        # There is no burst where nothing is learned, and a publication may come early: a burst's length is used.
        return self.n < epoch.at + burst_requests(context.control, epoch.max_em_drop)

    def _note_label(self, label: StoredLabel) -> None:
        state = self.state
        name = state.labels.find_episode(label)
        if name is None:
            return
        self._hear(name, label.feedback)
        place = state.places.get(name)
        if place is not None:
            audit = state.audits[place]
            state.audits[place] = audit.with_labels([label], self.n)
            state.delay.note_label(label.at_s - audit.ended_at_s)

    def _hear(self, name: str, given: Feedback) -> None:
        self.source.note_label(name, given)
        self.critical_em.note_label(name, given, self.state.labels, self.context.match)

    # ---- decisions -------------------------------------------------------------------------------

    def _publish(self, draft: Draft) -> Resolution | None:
        made, expected = draft.publication, self.state.expected
        if not expected:
            events = (made,) if draft.alarm is None else (draft.alarm, made)
            for event in events:
                self.held = self.held.after(event)
            return Resolution(events, draft.artefacts)
        in_log = expected.popleft()
        if essence(in_log) != essence(made):
            raise ReplayMismatch(f"route {self.context.name}: publication {in_log.number} does not follow from the log")
        self.held = replace(self.held, publication=in_log, last=in_log)
        return None

    def _end_epoch(self, end: EpochEnd, stored: StoredEvent) -> Resolution:
        state, context = self.state, self.context
        if state.expected:
            raise ReplayMismatch(f"route {context.name}: an alarm follows from the log but is not in it: {end.reason}")
        alarm = state.alarm(end.cause, end.reason)
        kept = [audit for audit in state.audits if audit.at > self.n - end.keep]  # requests are numbered from 1
        by_audits = end.cause in ("outcomes", "disagreement", "finish")  # others do not depend on the draw
        part = self.certifier.plan.restart_share(self.n - state.epoch.at) if by_audits else 1.0
        begins = epoch_start(context.route, context.control)
        return self._start_epoch(end.reason, stored.seq, kept, alarm, delta_share=part, **begins)

    def _start_epoch(self, reason: str, seq: int, kept: Sequence[Audit], *before: Alarm, **fields: Any) -> Resolution:
        state, route = self.state, self.context.route
        epoch = Epoch(
            route=self.context.name,
            number=self.held.n_epochs + 1,
            at=self.n,
            since_seq=seq,
            reason=reason,
            author=self.context.author,
            kept=tuple(audit.id for audit in kept),
            kept_at=tuple(audit.at for audit in kept),
            max_em_drop=self._max_em_drop,
            confidence=route.confidence,
            promise=route.promise,
            required_wealth=state.required_wealth,
            **fields,
        )
        events: tuple[Event, ...] = (*before, epoch)
        for event in events:
            self.held = self.held.after(event)
        self.state = EpochState(self.context, epoch, state.traffic, kept=kept)
        self.source = source_of(self.state)
        return Resolution(events)

    def settle(self) -> Resolution | None:
        """Decide a changed guarantee, a pause and label requests at the end of the log. Raises ReplayMismatch."""
        state, route = self.state, self.context.route
        if state.expected:
            number = state.expected[0].number
            raise ReplayMismatch(f"route {self.context.name}: publication {number} does not follow from the log")
        epoch = state.epoch
        promise = self._max_em_drop, route.confidence, route.promise
        if promise != (epoch.max_em_drop, epoch.confidence, epoch.promise):
            how = f"at {route.confidence:g}" if route.promise == "certified" else "on average"
            return self._start_epoch(
                f"the promise is {promise[0]:g} {how} now",
                self.seq,
                state.audits,
                burst=0,
                ramps=epoch_start(route, self.context.control)["ramps"],
                delta_share=epoch.delta_share,
                windows=self.certifier.epoch.windows.plain(),  # they continue, and so do pending audits
                pending=state.unreturned.pairs(epoch.pending),
            )
        wanted = state.attempt("label requests", self._label_requests)
        events = (*(wanted or ()), *self._plan(), *self._pause())
        return Resolution(events) if events else None

    def _label_requests(self) -> list[LabelRequest]:
        return [writable(one) for one in self.source.label_requests(self.requested)]

    def _plan(self) -> tuple[Event, ...]:
        held, author = self.held, self.context.author

        def plan(agent: LiveAgent) -> AgentPlan | None:
            made = agent.plan(held, at=self.n, author=author)
            return None if made is None else writable(made)

        made = self.source.ask_agent(plan)
        if made is None:
            return ()
        self.held = self.held.after(made)
        return (made,)

    @property
    def _max_em_drop(self) -> float:
        """The EM budget: the owner's, or a person's smaller temporary one."""
        return self.holds.in_effect(self.at_s).budget(self.context.route.max_em_drop)

    def _pause(self) -> tuple[Event, ...]:
        if self.held.pause is not None:
            return ()
        broken, made = self.state.traffic.sample_ratio.broken(), self.held.publication
        reason = broken or (None if self.holds.accepted(self.at_s) else self.critical_em.below())
        if reason is None:
            return ()
        pause = Pause(
            route=self.context.name,
            number=self.held.n_pauses + 1,
            cause="critical_em" if broken is None else "sample_ratio",
            reason=reason,
            author=self.context.author,
        )
        acts = (
            f"level {made.level} of publication {made.number} acted" if made is not None and made.level else "no stop"
        )
        evidence = (
            f"{acts}, in epoch {self.state.epoch.number} at request {self.n:,}",
            self.critical_em.evidence,
            f"{self.certifier.epoch.n_audits:,} audits are in the window",
        )
        self.held = self.held.after(pause)
        return pause, incident_of_pause(pause, opened_at_s=self.at_s, evidence=evidence)

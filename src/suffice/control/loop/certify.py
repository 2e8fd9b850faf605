"""The certify loop of one route: rows of the log in, decisions out.

    requests, outcomes, labels ──▶ RouteLoop.feed ──▶ Resolution: what to write, all of it or nothing

A pure fold over the log: time is the number of the route's requests, looks fall on every hundredth of them, whatever
the hour and however often somebody asks. So a worker that was killed, a second one, and a person who replays the log
a year later come to the same decisions, to the last bit; what stands in the log already is checked and not written
again, and fits that stand there are read, not repeated. What cannot be reproduced begins a new epoch: the loop would
rather know nothing than something else than it said.

Knows records of the log and the keeper; refuses to know databases, clocks and who asks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any

import numpy as np

from suffice.assurance.fidelity import budget_left
from suffice.assurance.runs import Match
from suffice.assurance.sampling import weight_of
from suffice.assurance.satisfaction import next_safer
from suffice.assurance.windows import Windows, read_windows
from suffice.control.evidence.audits import (
    Audit,
    GivenLabel,
    Verdicts,
    audits_to_rows,
    is_evidence,
    sees_only_drawn,
    verdicts,
)
from suffice.control.evidence.drift_features import Early
from suffice.control.evidence.fitting import LiveLearner, ServedVersion, fit_audited_version, written
from suffice.control.evidence.label_delay import Lateness
from suffice.control.evidence.label_join import LabelJoin
from suffice.control.evidence.ratings import Ratings
from suffice.control.evidence.resolution import ReplayMismatch, Resolution, essence
from suffice.control.evidence.start_order import StartOrder
from suffice.control.evidence.window_size import burst_requests
from suffice.control.loop.brake import ClassMix, Floor, Lottery, Upstreams, incident_evidence, pause_cause, upstream_of
from suffice.control.loop.finish import FinishLog
from suffice.control.loop.guarding import LiveGuards
from suffice.control.loop.judge_error import JudgeCharge
from suffice.control.loop.label_requests import wanted
from suffice.control.loop.live_certifier import LiveKeeper
from suffice.control.loop.rollout_transition import RolloutTransition
from suffice.control.loop.starting import burst_of, live_plan
from suffice.learn.audits import AuditRuns, Ints
from suffice.learn.certifier import KEPT_BEFORE, KeeperDecision
from suffice.learn.features import FeatureSelection, choose_features
from suffice.learn.served import FoldedModels
from suffice.learn.version import FoldedVersion, as_served
from suffice.review.holds import NO_HOLDS, RouteHolds
from suffice.review.incident import of_pause
from suffice.settings import Control, Route
from suffice.store.database.log import StoredEvent
from suffice.store.routes.in_force import InForce
from suffice.store.rows.events import Event, route_of
from suffice.store.rows.records import FeedbackEvent, RequestCount, RolloutMove, RolloutStart, RolloutUndo
from suffice.types import Alarm, AlarmCause, Episode, Epoch, Feedback, Outcome, Pause, Publication, Request, Resumption


@dataclass(slots=True, kw_only=True, eq=False)
class RouteLoop:
    """One route, from the beginning of its epoch on.

    held      what is in force, as the log says; its epoch is the one that is folded
    match     does an answer equal a reference?
    load      the version under an address
    author    who decides
    expected  publications of that epoch that stand in the log, oldest first
    kept      audits from before that count in it
    asked     episodes whose label was asked for
    holds     what people hold on the route, as it is settled
    at_s      Unix time of the log's last row, as it is settled
    seq       place of the last row that was read
    n         requests of the route so far
    level     in force
    ceiling   the highest level that ratings allow in this epoch; None: they take nothing off
    """

    name: str
    route: Route
    control: Control
    held: InForce
    match: Match
    load: Callable[[str], ServedVersion]
    author: str
    expected: deque[Publication] = field(default_factory=deque)
    kept: Sequence[Audit] = ()
    asked: set[str] = field(default_factory=set)
    holds: RouteHolds = NO_HOLDS
    at_s: float = 0.0
    seq: int = field(init=False)
    n: int = field(init=False)
    level: int = field(init=False)
    ceiling: int | None = field(init=False)
    epoch: Epoch = field(init=False)
    keeper: LiveKeeper = field(init=False)
    audits: list[Audit] = field(init=False)  # as the keeper has them, then those that it has not seen yet
    chosen: FeatureSelection | None = field(init=False)  # features; None: not before the burst is over
    lottery: Lottery = field(init=False)
    floor: Floor = field(init=False)
    _setup: str = ""
    _n_taken: int = field(init=False)  # audits that the keeper has
    _counts: Verdicts = field(init=False)  # what counts as said, as the keeper knows it
    _places: dict[str, int] = field(init=False)  # of audits, by episode
    _upstreams: Upstreams = field(init=False)
    _early: Early = field(init=False)
    _finish: FinishLog = field(init=False)
    _mix: ClassMix = field(default_factory=ClassMix)
    _started: StartOrder = field(init=False)
    _joining: LabelJoin = field(init=False)
    _lateness: Lateness = field(init=False)
    _ratings: Ratings = field(init=False)
    _guards: LiveGuards = field(init=False)
    _judge: JudgeCharge = field(init=False)
    _brought: RolloutTransition = field(init=False)  # by rollouts
    _serves: FoldedVersion | None = field(init=False)  # the version that one has brought; None: the loop's own serves
    _callers: set[str] = field(init=False)  # senders that asked the model, on whatever route

    def __post_init__(self) -> None:
        """Begin where the epoch began."""
        epoch = self.held.epoch
        assert epoch is not None
        self.n, self.seq = epoch.at, epoch.since_seq
        self.floor = Floor(self.route.critical_em, delta=1 - self.route.confidence)
        # What was published stands in `expected`: it holds again once the fold has come to it.
        self.held = replace(self.held, publication=None)
        self._begin(epoch, self.kept)

    def _begin(self, epoch: Epoch, kept: Sequence[Audit]) -> None:
        """Start counting: of what came before only `kept` counts, as if it had come just now."""
        plan = live_plan(self.route, self.control, epoch)
        self.epoch, self.level, self.chosen = epoch, 0, None
        learner = LiveLearner(FeatureSelection((), ()), plan.cost_exponent)
        self.keeper = LiveKeeper(plan, learner, fit=self._fit, first=1.0, is_told=True)
        self.keeper.begin(float(epoch.at), read_windows(epoch.windows))
        self.audits = [audit.kept(at, epoch.at) for audit, at in zip(kept, epoch.kept_at, strict=True)]
        self._n_taken, self._counts = 0, {}
        self._index()
        self._upstreams, self.lottery, self._early = Upstreams(), Lottery(), Early()
        self._finish = FinishLog(is_needed=self.route.kind == "reasoning")
        self._joining, self._lateness = LabelJoin(), Lateness(self.route.label_timeout_s)
        self.ceiling, self._ratings = None, Ratings.of(self.route)
        self._guards = LiveGuards(max_em_drop=epoch.max_em_drop, delta=1 - epoch.confidence)
        self._judge = JudgeCharge.of(self.route, self.match)
        self._callers = set()
        self._brought, self._serves = RolloutTransition(), None
        for audit in self.audits:
            self._upstreams.note(upstream_of(audit.episode.request, audit.episode.outcome), gathers=True)
            self._joining.ended(audit.episode.outcome)
        self._started = StartOrder()  # whoever was asked in another world answers for that one

    # ---- the fold --------------------------------------------------------------------------------

    def feed(self, stored: StoredEvent) -> Resolution | None:
        """Take the next row of the log in; one that was read before changes nothing. Raises ReplayMismatch."""
        if stored.seq <= self.seq:
            return None
        self.seq, event = stored.seq, stored.event
        if isinstance(event, Request):
            if event.sender:
                self._callers.add(event.sender)
            return self._asked_for(event, stored) if event.route == self.name else None
        if isinstance(event, Outcome):
            return self._ended(event, stored)
        if isinstance(event, RequestCount):
            self._callers.update(event.senders)
            return self._counted(event, stored) if event.route == self.name else None
        if isinstance(event, FeedbackEvent):
            self._said(event.feedback, stored)
        elif isinstance(event, RolloutStart | RolloutMove | RolloutUndo) and route_of(event) == self.name:
            self._take_over(self._brought.after(event))
        elif isinstance(event, Pause | Resumption) and event.route == self.name:
            # A person's; our own decisions are known since they were made.
            self.held = self.held.after(event)
            if isinstance(event, Resumption):
                self.floor.forget()
        return None

    def _asked_for(self, request: Request, stored: StoredEvent) -> Resolution | None:
        if request.ungoverned is not None:
            return None
        self._mix.note(request)
        self.lottery.note(request)
        self._early.began(request.episode_id, self.n + 1)
        self._started.began(request, self.n + 1, probes=self.route.probe is not None, windows=self.keeper.windows)
        return self._passed(1, stored)

    def _counted(self, event: RequestCount, stored: StoredEvent) -> Resolution | None:
        """Requests without rows: none is an audit, and the lowest share that one was drawn at is known."""
        counted = event
        if counted.audit_share is not None:
            self.keeper.windows.lower(self.n + 1.0, counted.audit_share)
        self._mix.count(counted.cells)
        return self._passed(counted.n_governed, stored)

    def _passed(self, n_requests: int, stored: StoredEvent) -> Resolution | None:
        """So many requests of the route more; those that have no rows come many at once, and are looked at once."""
        before, self.n = self.n, self.n + n_requests
        tick = self.control.tick_requests
        return self._look(stored) if self.n // tick > before // tick else None

    def _ended(self, outcome: Outcome, stored: StoredEvent) -> Resolution | None:
        began = self._started.ended(outcome.episode_id)
        if began is None:
            return None
        request, number = began
        self._setup = request.setup or self._setup
        world = self._upstreams.note(upstream_of(request, outcome), gathers=self._gathers)
        if world is not None:
            return self._new_epoch("change", world, stored)
        episode = Episode(request=request, outcome=outcome)
        self._early.ended(episode)
        self._finish.note(request, outcome)
        self._ratings.ended(episode)
        waiting = self._joining.ended(outcome, weight_of(request, outcome))
        for said in waiting:
            self._heard(outcome.episode_id, said.feedback)
        if self._is_evidence(request, outcome):
            self.keeper.returned([self.n + 1.0 - number])
            audit = Audit(
                seq=stored.seq,
                at=number,
                ended_at_s=stored.at_s,
                episode=episode,
                only_drawn=sees_only_drawn(self.route),
            )
            self._keep(reduce(lambda known, said: known.with_label(said, self.n), waiting, audit))
        return None

    @property
    def _gathers(self) -> bool:
        """Does whoever answers now belong to the evidence?"""
        # Where nothing is learned, something is published before as many requests have come as a burst would have.
        usual = burst_requests(self.control, self.epoch.max_em_drop)
        return self.held.in_burst if self.route.is_learned else self.n < self.epoch.at + usual

    def _is_evidence(self, request: Request, outcome: Outcome) -> bool:
        return is_evidence(request, outcome, probes=self.route.probe is not None)

    def _keep(self, audit: Audit) -> None:
        """Take an audit in that has returned."""
        self._places[audit.id] = len(self.audits)
        self.audits.append(audit)

    def _said(self, given: Feedback, stored: StoredEvent) -> None:
        said = GivenLabel(stored.seq, given, stored.at_s)
        name = self._joining.said(said)
        if name is None:
            return
        self._heard(name, given)
        place = self._places.get(name)
        if place is not None:
            audit = self.audits[place]
            self.audits[place] = audit.with_label(said, self.n)
            self._lateness.note_label(stored.at_s - audit.ended_at_s)

    def _heard(self, name: str, given: Feedback) -> None:
        self._ratings.said(name, given)
        self.floor.hear(name, given, self._joining, self.match)

    # ---- a look ----------------------------------------------------------------------------------

    def _look(self, stored: StoredEvent) -> Resolution | None:
        """Every so many requests: count what is new, watch, refit, certify."""
        keeper = self.keeper
        keeper.now = float(self.n)
        self._lateness.note_look(stored.at_s, self.n)
        if any(keeper.notice(batch) for batch in self._early.batches(self.n)):
            return self._new_epoch("signals", "signals of all traffic drifted", stored, keep=KEPT_BEFORE)
        if keeper.in_burst:
            return None
        self._judge.look(self.audits, self.epoch.max_em_drop, self._callers)
        keeper.plan = replace(
            keeper.plan,
            confidence=1 - self._brought.loops_share(self._delta),
            label_timeout=self._lateness.timeout_requests(since=self.epoch.at),
        )
        keeper.pending = self._started.pending_with(self.epoch.pending)
        self._take()
        self._look_at_finish(keeper.served)
        if self._finish.alarm is not None:
            return self._new_epoch("finish", self._finish.alarm, stored)
        changes = keeper.tick(float(self.n))
        if not self._started.observes:
            keeper.windows.lower(self.n + 1.0, keeper.share)  # of requests without rows, too
        alarm = next((change.reason for change in changes if change.kind == "alarm"), None)
        self._let_go()
        if alarm is None and keeper.certificate is not None:
            alarm = self._mix.alarm(keeper.certificate, keeper.level, self.audits, self.epoch.max_em_drop)
        if alarm is not None:
            cause: AlarmCause = "disagreement" if "disagree" in alarm else "outcomes"
            return self._new_epoch(cause, alarm, stored)
        drawn_at = self.level or keeper.level
        rated = self._lower_ceiling()
        self.level = keeper.level
        if self.ceiling is not None:
            self.level = min(self.level, self.ceiling)
        moved = self._guards.look(keeper, self.audits, pooled=drawn_at)
        reason = "; ".join(said for said in (self._brought.said(), rated, *moved) if said)
        finish = self._finish.at(max(1, self.level))
        budget = budget_left(self.epoch.max_em_drop, finish, other_charges=self._judge.charge)
        return self._publish(changes, reason=reason if budget.max_em_drop else budget.reason)

    @property
    def _delta(self) -> float:
        """What this epoch's certificates may risk, see `assurance.windows.restart_share`."""
        return (1 - self.epoch.confidence) * self.epoch.delta_share

    def _look_at_finish(self, served: FoldedModels | None) -> None:
        """Charge each level of the version that is judged with what its finish may change."""
        if served is None:
            return

        def ends(name: str) -> Ints | None:
            place = self._places.get(name)
            return None if place is None else self.keeper.ends(place, served)

        self._finish.look(served.n_levels, ends)
        self.keeper.charge = self._finish.charges() + self._judge.charge

    def _lower_ceiling(self) -> str:
        """Take one level off where people's ratings ask for it; why, or "" where nothing changes.

        Levels that the log has decided already are taken from it: a floor that the owner moves speaks of what follows.
        """
        if self.expected:
            told = self.expected[0]
            if told.at == self.n and told.ceiling != self.ceiling:
                self.ceiling = told.ceiling
                self._ratings.begin_anew()
            return ""
        if self.route.min_satisfaction is None and self.ceiling is not None:
            self.ceiling = None
            return "ratings take nothing off any more"
        why = self._ratings.asks
        if why is None or not self.level:
            return ""
        self.ceiling = next_safer(self.level)
        self._ratings.begin_anew()
        return f"{why}: level {self.ceiling} at most"

    def _take(self) -> None:
        """Give the keeper what is new: labels of audits that it has, and audits that it has not."""
        keeper = self.keeper
        if self.chosen is None:  # not before the burst is over, when the epoch's queries are known
            self.chosen = choose_features(self.route.kind, [audit.query for audit in self.audits])
            keeper.learner = LiveLearner(self.chosen, keeper.plan.cost_exponent)
        if any(audit.labels for audit in self.audits):
            self._judge_labels()
        runs = self._rows(self.audits[self._n_taken :])
        if runs is not None:
            keeper.take(runs)
        self._n_taken = len(self.audits)

    def _take_over(self, address: str | None) -> None:
        """Serve and certify what a rollout has brought, or the version before it again. Raises ReplayMismatch."""
        self.keeper.rests = self._brought.rests
        if address is None or self.chosen is None:
            return
        version = self.load(address)
        names = version.version.models[0].features
        self._serves = version.version
        self.chosen = self.chosen if self.chosen.names == names else FeatureSelection(names, ())
        self.keeper.learner = LiveLearner(self.chosen, self.keeper.plan.cost_exponent)
        self.keeper.adopt(version, self._rows(self.audits[: self._n_taken]))

    def _judge_labels(self) -> None:
        """Find out what counts as said; the keeper sees again what that changes."""
        apart = self.keeper.disagreeing()
        differing = [
            audit
            for place, audit in enumerate(self.audits)
            if (apart[place] if place < len(apart) and self.keeper.served is not None else audit.differs)
        ]
        before = self._counts
        self._counts, _ = verdicts(differing, self.match, callers=self._callers, hears=self._judge.hears)
        changed = {name for name in {*before, *self._counts} if before.get(name) != self._counts.get(name)}
        places = sorted(self._places[name] for name in changed if self._places.get(name, self._n_taken) < self._n_taken)
        again = self._rows([self.audits[place] for place in places])
        if again is not None:
            self.keeper.amend(np.array(places), again)

    def _rows(self, audits: Sequence[Audit]) -> AuditRuns | None:
        assert self.chosen is not None
        runs = audits_to_rows(audits, chosen=self.chosen, match=self.match, wave=self.route.wave, counts=self._counts)
        return runs if runs is None or self._serves is None else as_served(runs, self._serves)

    def _let_go(self) -> None:
        """Forget what the keeper has forgotten."""
        n_gone = len(self.audits) - self.keeper.n_audits
        if n_gone > 0:
            self.audits = self.audits[n_gone:]
            self._n_taken = len(self.audits)
            self._guards.let_go(n_gone)
            self._index()

    def _index(self) -> None:
        self._places = {audit.id: place for place, audit in enumerate(self.audits)}

    # ---- decisions -------------------------------------------------------------------------------

    def _fit(self, *arguments: Any, **options: Any) -> ServedVersion | None:  # as the keeper calls `fit_served`
        """Fit anew; at a place of the log that has been decided, take what was fitted there."""
        version: ServedVersion | None
        if not self.expected:
            version = fit_audited_version(*arguments, **options)
        else:
            told = self.expected[0]
            if told.at != self.n or told.fit == self._address():
                return None  # a fit was made here and not taken up
            version = self.load(told.fit)
        if version is not None and self.keeper.served is None:  # the first: only now have finishes a level
            self._look_at_finish(version)
        return version

    def _address(self) -> str:
        served = self.keeper.served
        return served.version.address if isinstance(served, ServedVersion) else ""

    def _publish(self, changes: Sequence[KeeperDecision], reason: str) -> Resolution | None:
        """Say what is in force, if that is something else than was said before."""
        served, said, address = self.keeper.served, self.held.publication, self._address()
        share, held = self.keeper.share, self._guards.held(self.level)
        if said is not None and (said.fit, said.level, said.share, said.classes) == (address, self.level, share, held):
            return None
        made = Publication(
            route=self.name,
            number=self.held.n_publications + 1,
            epoch=self.epoch.number,
            at=self.n,
            version=f"{address}@{self.level}" if address else "",
            fit=address,
            level=self.level,
            n_levels=served.n_levels if served is not None else self.keeper.plan.n_levels,
            certified=0 < self.level <= self.keeper.floor,
            spending=self.keeper.spending if self.level else None,
            share=share,
            reason=reason or self.keeper.reason(changes, said, level=self.level, most=self.ceiling, fit=address),
            author=self.author,
            evidence=replace(self.keeper.evidence(most=self.ceiling), judge_charge=self._judge.charge),
            setup=self._setup,
            upstream=self._upstreams.plain(),
            ceiling=self.ceiling,
            classes=held,
        )
        return self._say(made, {address: written(served.version)} if isinstance(served, ServedVersion) else {})

    def _say(self, made: Publication, artefacts: Mapping[str, str]) -> Resolution | None:
        """Write a publication down, or find it in the log."""
        if self.expected:
            told = self.expected.popleft()
            if essence(told) != essence(made):
                raise ReplayMismatch(f"route {self.name}: publication {told.number} does not follow from the log")
            self.held = replace(self.held, publication=told, last=told)
            return None
        event = made
        self.held = self.held.after(event)
        return Resolution((event,), artefacts)

    def _new_epoch(self, cause: AlarmCause, reason: str, stored: StoredEvent, *, keep: int = 0) -> Resolution:
        """Forget what no longer holds: level 0, full runs, and of the audits those of the last `keep` requests."""
        if self.expected:
            raise ReplayMismatch(f"route {self.name}: an alarm follows from the log and does not stand in it: {reason}")
        alarm = Alarm(
            route=self.name, epoch=self.epoch.number, at=self.n, cause=cause, reason=reason, author=self.author
        )
        kept = [audit for audit in self.audits if audit.at > self.n - keep]  # requests are numbered from 1
        by_audits = cause in ("outcomes", "disagreement", "finish")  # other causes come whatever was drawn
        part = self.keeper.plan.restart_share(self.n - self.epoch.at) if by_audits else 1.0
        return self._start(
            reason, stored.seq, kept, burst=burst_of(self.route, self.control), alarm=alarm, delta_share=part
        )

    def _start(
        self,
        reason: str,
        seq: int,
        kept: Sequence[Audit],
        *,
        burst: int,
        alarm: Alarm | None = None,
        delta_share: float = 1.0,
        windows: Windows | None = None,
    ) -> Resolution:
        epoch = Epoch(
            route=self.name,
            number=self.held.n_epochs + 1,
            at=self.n,
            since_seq=seq,
            reason=reason,
            author=self.author,
            kept=tuple(audit.id for audit in kept),
            kept_at=tuple(audit.at for audit in kept),
            burst=burst,
            max_em_drop=self._max_em_drop,
            confidence=self.route.confidence,
            promise=self.route.promise,
            delta_share=delta_share,
            windows=() if windows is None else windows.plain(),
            pending=() if windows is None else self._started.pending_with(self.epoch.pending).plain(),
        )
        events: tuple[Event, ...] = (epoch,) if alarm is None else (alarm, epoch)
        for event in events:
            self.held = self.held.after(event)
        self._begin(epoch, kept)
        return Resolution(events)

    def settle(self) -> Resolution | None:
        """Everything that is there has been read: decide what does not depend on the place in the log.

        A promise that the owner changed, a pause that is due, labels that are worth asking for. Raises ReplayMismatch.
        """
        if self.expected:
            raise ReplayMismatch(
                f"route {self.name}: publication {self.expected[0].number} does not follow from the log"
            )
        promise = self._max_em_drop, self.route.confidence, self.route.promise
        if promise != (self.epoch.max_em_drop, self.epoch.confidence, self.epoch.promise):
            how = f"at {promise[1]:g}" if promise[2] == "certified" else "on average"
            return self._start(
                f"the promise is {promise[0]:g} {how} now",
                self.seq,
                self.audits,
                burst=0,
                delta_share=self.epoch.delta_share,
                windows=self.keeper.windows,
            )
        events = self._wanted()
        pause = self._pause()
        if pause is not None:
            stands_on = incident_evidence(
                self.held.publication, self.floor, epoch=self.epoch.number, at=self.n, n_audits=self.keeper.n_audits
            )
            incident = of_pause(pause, opened_at_s=self.at_s, evidence=stands_on)
            events += (pause, incident)
            self.held = self.held.after(events[-2])
        return Resolution(tuple(events)) if events else None

    @property
    def _max_em_drop(self) -> float:
        """The EM budget to be kept: the owner's, or the smaller one that a person holds the route to for a while."""
        return self.holds.in_effect(self.at_s).budget(self.route.max_em_drop)

    def _wanted(self) -> list[Event]:
        return list(wanted(self.name, self.keeper, self.audits, self.asked, self._lateness.timeout_s))

    def _pause(self) -> Pause | None:
        """Why a person has to decide, if nobody has to already."""
        if self.held.pause is not None:
            return None
        found = pause_cause(self.lottery, None if self.holds.accepted(self.at_s) else self.floor)
        if found is None:
            return None
        number = self.held.n_pauses + 1
        return Pause(route=self.name, number=number, cause=found[0], reason=found[1], author=self.author)

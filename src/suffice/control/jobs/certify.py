"""The jobs `certify`, which decides what may act on each route, and `critical`, which pauses routes with critical EM.

If a route's loop fails, its certificate acts until its lease ends (gateway/lease.py), nothing new is certified, and a
later round rebuilds the loop from the log. If replay does not reproduce the log's decisions, the route starts a new
epoch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, get_args

from suffice.assurance.certify import (
    NO_REQUIREMENT,
    FleetRequirement,
    RouteWealth,
    WarmStart,
    e_value_of,
    require_wealth,
)
from suffice.assurance.runs import Match
from suffice.assurance.sampling import weight_of
from suffice.control.evidence.audits import Audit
from suffice.control.evidence.cold_start import epoch_start, warm_burst
from suffice.control.evidence.run_join import LabelJoin, remember
from suffice.control.evidence.versions import loader, read_back
from suffice.control.jobs.base import FIRST_REST_S, LOOK_BACK, JobPass, JobReport, JobWriter, T
from suffice.control.jobs.folds import FoldJob
from suffice.control.loop.epoch import LookPart, ReplayMismatch, Resolution, RouteContext
from suffice.control.loop.learned import LearnedEvidence
from suffice.control.loop.route_loop import RouteLoop
from suffice.control.loop.safety_checks import CriticalEM
from suffice.errors import ConfigError, StoreError
from suffice.learn.version import ServedVersion
from suffice.policy.starting_version import starting_version
from suffice.review.holds import incident_of_pause
from suffice.settings import Route, Settings
from suffice.store.database import views
from suffice.store.database.decisions import LeaseLost, read_artefact
from suffice.store.database.log import StoredEvent
from suffice.store.database.views import LogReader
from suffice.store.routes.deployments import (
    NOTHING_HELD,
    DeploymentState,
    Holds,
    RouteDeployment,
    last_at_s,
    read_decided,
    read_holds,
    read_holds_until,
)
from suffice.store.rows.events import FeedbackEvent
from suffice.types import Epoch, Outcome, Pause, Request, Resumption


@dataclass(kw_only=True)
class Certify(FoldJob[RouteLoop]):
    name = "certify"
    failing = "left as it is"
    first_rest_s = FIRST_REST_S
    raises = (LeaseLost, StoreError, ReplayMismatch)
    reads_senders = True
    is_watcher = True
    look_parts = get_args(LookPart)
    _holds: Holds = field(init=False, default=NOTHING_HELD)
    _at_s: float = field(init=False, default=0.0)  # Unix time of the log's last row
    _required: FleetRequirement | None = field(init=False, default=None)  # the latest; None: there was none

    def concerns(self, route: Route) -> bool:
        return route.certifies_itself

    def parts(self, names: Sequence[str]) -> Mapping[str, str]:
        """As they are; a promise of all routes together needs all of their loops in one place."""
        alone = self.settings.assurance.fleet_confidence is not None
        return {FLEET: FLEET if alone else names[0], **{name: FLEET if alone else name for name in names}}

    def begin(self, log: views.LogReader) -> None:
        self._holds, self._at_s = read_holds(log, self._holds), last_at_s(log)
        if self._required is None:
            self._required = views.newest_event(log, FleetRequirement)

    def forget(self) -> None:
        super().forget()
        self._required = None

    def work(self, names: Sequence[str], here: JobPass) -> Sequence[JobReport]:
        if here.writer.is_shared:  # another worker may have changed it
            self._required = views.newest_event(here.log, FleetRequirement)
        reports = super().work(names, here)
        if FLEET in self._tokens:
            with here.writer.working_on(FLEET):
                self._decide_fleet(here)
        return reports

    def _decide_fleet(self, here: JobPass) -> None:
        routes = {name: route for name, route in self.settings.routes.items() if self.concerns(route)}
        made = change_requirement(self._memory, self.settings, routes, before=self._required, author=self.author)
        if made is not None:
            here.writer.write([made])
            self._required = made
        if self.settings.assurance.fleet_confidence is not None:
            decided = read_decided(here.log, self._decided)
            starts = warm_starts(self._memory, decided, self.settings, here.log, author=self.author)
            if starts:
                here.writer.write(starts)

    def attempt(self, name: str, here: JobPass, work: Callable[..., T], *arguments: object) -> T | None:
        try:
            return super().attempt(name, here, work, *arguments)
        except ReplayMismatch as error:  # the next round rebuilds the loop
            super().attempt(name, here, self._give_up, name, str(error), here)
            return None

    def _give_up(self, name: str, reason: str, here: JobPass) -> None:
        loop, held = self._memory.pop(name, None), read_decided(here.log, self._decided).of(name)
        at = loop.n if loop is not None else held.epoch.at if held.epoch is not None else 0
        self._begin_epoch(name, held, here.writer, views.last_place(here.log), reason, at=at)

    def build(self, name: str, here: JobPass) -> RouteLoop:
        held = self._decided.of(name)
        if held.epoch is None:
            since = views.place_before(here.log, name, LOOK_BACK)
            held = self._begin_epoch(name, held, here.writer, since, "cold start", at=0)
        return loop_of(self._context(name), held, here.log)

    def _context(self, name: str) -> RouteContext:
        return RouteContext(
            name=name,
            route=self.settings.routes[name],
            control=self.settings.control,
            match=self.match(name),
            load=self._load,
            author=self.author,
        )

    def given(self, name: str, fold: RouteLoop | None) -> Mapping[str, object]:
        context = self._context(name) if fold is None else fold.context
        parts = "route", "control", "match", "load"
        return {"context": context, **{part: getattr(context, part) for part in parts}}

    def resume(self, name: str, fold: RouteLoop, here: JobPass) -> bool:
        held = self._decided.of(name)
        if held.epoch != fold.state.epoch:
            return False
        made = (one for _, one in views.read_publications(here.log, name, epoch=fold.state.epoch.number))
        fold.resume(held, expected=made, requested=views.label_requests(here.log, name))
        return True

    def feed(self, fold: RouteLoop, stored: StoredEvent, here: JobPass) -> None:
        self._write(fold.context.name, fold.feed(stored), here.writer)

    def conclude(self, name: str, fold: RouteLoop, here: JobPass) -> None:
        fold.holds, fold.at_s = self._holds.of(name), self._at_s
        self._write(name, fold.settle(), here.writer)
        for part, problem in fold.state.failing.items():
            self.note_part(name, part, problem)

    def _write(self, name: str, resolution: Resolution | None, writer: JobWriter) -> None:
        if resolution is not None:
            writer.write(resolution.events, resolution.artefacts)
            self.add_sentence(name, resolution.summary)

    def _begin_epoch(
        self, name: str, held: RouteDeployment, writer: JobWriter, since_seq: int, reason: str, *, at: int
    ) -> RouteDeployment:
        route = self.settings.routes[name]
        began = Epoch(
            route=name,
            number=held.n_epochs + 1,
            at=at,
            since_seq=since_seq,
            reason=reason,
            author=self.author,
            **epoch_start(route, self.settings.control),
            max_em_drop=self._holds.of(name).in_effect(self._at_s).budget(route.max_em_drop),
            confidence=route.confidence,
            promise=route.promise,
            required_wealth=NO_REQUIREMENT if self._required is None else self._required.wealth,
        )
        self._write(name, Resolution((began,)), writer)
        return held.after(began)

    def _load(self, address: str) -> ServedVersion:
        with views.open_reader(self.path) as log:
            body = read_artefact(log, address)
        try:
            return read_back(address, body)
        except ConfigError as error:
            raise ReplayMismatch(str(error)) from None


def loop_of(context: RouteContext, held: RouteDeployment, log: views.LogReader) -> RouteLoop:
    """Build a route's loop at the beginning of the epoch in `held`. Raises StoreError and ReplayMismatch."""
    epoch = held.epoch
    assert epoch is not None
    return RouteLoop(
        context,
        held,
        expected=[made for _, made in views.read_publications(log, context.name, epoch=epoch.number)],
        kept=_kept(log, epoch, context.route),
        requested=set(views.label_requests(log, context.name)),
        overrides=read_holds_until(log, context.name, epoch.since_seq),
    )


def _kept(log: views.LogReader, epoch: Epoch, route: Route) -> list[Audit]:
    if len(epoch.kept) != len(epoch.kept_at):
        raise ReplayMismatch(f"route {epoch.route}: the audits that epoch {epoch.number} keeps have no numbers")
    kept = list[Audit]()
    for name, at in zip(epoch.kept, epoch.kept_at, strict=True):
        run = views.find_run(log, name, until_seq=epoch.since_seq, shared=True)
        if run is None:
            continue
        ended_at_s, item = run
        audit = Audit(
            seq=item.seq, at=at, ended_at_s=ended_at_s, episode=item.episode, only_drawn=route.sees_only_drawn
        )
        kept.append(audit.with_labels(item.labels, epoch.at))
    return kept


# --------------------------------------------------------------------------- routes that no loop certifies


@dataclass(slots=True, kw_only=True)
class DeliveredAnswers:
    name: str
    critical_em: CriticalEM
    match: Match
    seq: int  # position of the last row read
    n: int = 0  # requests are not counted here
    _labels: LabelJoin = field(default_factory=LabelJoin)
    _open: dict[str, Request] = field(default_factory=dict)

    def feed(self, stored: StoredEvent) -> None:
        if stored.seq <= self.seq:
            return
        self.seq, event = stored.seq, stored.event
        if isinstance(event, Request):
            if event.route == self.name and event.ungoverned is None:
                remember(self._open, event.episode_id, event)
        elif isinstance(event, Outcome) and event.episode_id in self._open:
            request = self._open.pop(event.episode_id)
            for label in self._labels.ended(event, weight_of(request, event)):
                self.critical_em.note_label(event.episode_id, label.feedback, self._labels, self.match)
        elif isinstance(event, FeedbackEvent):
            name = self._labels.find_episode(views.StoredLabel(stored.seq, event.feedback, stored.at_s))
            if name is not None:
                self.critical_em.note_label(name, event.feedback, self._labels, self.match)
        elif isinstance(event, Resumption) and event.route == self.name:
            self.critical_em.verdicts.clear()


@dataclass(kw_only=True)
class Critical(FoldJob[DeliveredAnswers]):
    """Pauses routes without a loop of their own whose EM is significantly below the owner's `critical_em`."""

    name = "critical"
    failing = "not monitored"
    is_watcher = True
    _holds: Holds = field(init=False, default=NOTHING_HELD)

    def concerns(self, route: Route) -> bool:
        return route.mode == "enforce" and not route.certifies_itself and route.critical_em is not None

    def build(self, name: str, here: JobPass) -> DeliveredAnswers:
        route, since = self.settings.routes[name], views.place_before(here.log, name, LOOK_BACK)
        critical_em = CriticalEM(route.critical_em, delta=1 - route.confidence)
        return DeliveredAnswers(name=name, critical_em=critical_em, match=self.match(name), seq=since)

    def given(self, name: str, fold: DeliveredAnswers | None) -> Mapping[str, object]:
        return {"match": self.match(name) if fold is None else fold.match}

    def conclude(self, name: str, fold: DeliveredAnswers, here: JobPass) -> None:
        self._holds, at_s = read_holds(here.log, self._holds), last_at_s(here.log)
        held, why = self._holds.of(name), fold.critical_em.below()
        if why is None or held.pause is not None or held.accepted(at_s) is not None:
            return
        number = self._decided.of(name).n_pauses + 1
        pause = Pause(route=name, number=number, cause="critical_em", reason=why, author=self.author)
        evidence = (fold.critical_em.evidence,)
        here.writer.write([pause, incident_of_pause(pause, opened_at_s=at_s, evidence=evidence)])
        self.add_sentence(name, f"enforcement paused ({why})")


# ---- what is decided for all routes together: the wealth that each certificate needs, and warm starts
#
# Both are rows of the log that the loop of each route folds, so that a replay comes to the same certificates.

FLEET: Final = "*"  # the part of the job with these decisions, where workers share the job
LEAST_DELTA: Final = 1e-12  # of a route with a confidence of 1, which is never certified


def change_requirement(
    loops: Mapping[str, RouteLoop],
    settings: Settings,
    routes: Mapping[str, Route],
    *,
    before: FleetRequirement | None,
    author: str,
) -> FleetRequirement | None:
    """Return the requirement of these routes by what their loops have read; None: it stays as it is.

    A route whose loop has failed counts as one without evidence.
    """
    confidence, wealth = settings.assurance.fleet_confidence, NO_REQUIREMENT
    evidence: tuple[RouteWealth, ...] = ()
    number, held = (1, NO_REQUIREMENT) if before is None else (before.number + 1, before.wealth)
    if confidence is None:
        if before is None or before.confidence is None:
            return None
        n_certified, reason = 0, "assurance.fleet_confidence is not set any more"
    else:
        evidence = tuple(_wealth_of(name, route, loops.get(name)) for name, route in sorted(routes.items()))
        wealth, n_certified = require_wealth(evidence, confidence=confidence, before=held)
        if before is not None and (before.confidence, before.wealth) == (confidence, wealth):
            return None
        reason = f"{n_certified:,} of {len(evidence):,} routes have a wealth of at least {wealth:,.1f}"
    return FleetRequirement(
        number=number,
        wealth=wealth,
        confidence=confidence,
        n_routes=len(evidence),
        n_certified=n_certified,
        evidence=evidence,
        reason=reason,
        author=author,
    )


def _wealth_of(name: str, route: Route, loop: RouteLoop | None) -> RouteWealth:
    own = 1 / max(LEAST_DELTA, 1 - route.confidence)
    if loop is None:
        return RouteWealth(route=name, epoch=0, wealth=0.0, own=own)
    wealth = e_value_of(loop.source.log_wealth) * loop.source.delta_part
    return RouteWealth(route=name, epoch=loop.state.epoch.number, wealth=wealth, own=own)


def warm_starts(
    loops: Mapping[str, RouteLoop], decided: DeploymentState, settings: Settings, log: LogReader, *, author: str
) -> list[WarmStart]:
    """For each new route, the version with the most audits that a similar route serves with a certificate."""
    new = {
        name: loop
        for name, loop in loops.items()
        if isinstance(loop.source, LearnedEvidence) and loop.source.may_start_warm
    }
    if not new:
        return []
    published = [held.publication for held in decided.routes.values()]
    certified = [made for made in published if made is not None and made.certified and made.fit]
    common = {starting_version(route.kind).address for route in settings.routes.values()}
    certified = [made for made in certified if made.fit not in common]  # which each route has anyway
    load, starts = loader(log), list[WarmStart]()
    for name, loop in new.items():
        route, epoch = settings.routes[name], loop.state.epoch
        similar = [made for made in certified if _is_similar(route, settings.routes.get(made.route))]
        best = max(similar, key=lambda made: (made.evidence.n_audits, made.route), default=None)
        served = None if best is None else load(best.fit)
        if best is None or served is None or any(model.hopeless is not None for model in served.version.models):
            continue
        start = WarmStart(
            route=name,
            epoch=epoch.number,
            fit=best.fit,
            source=best.route,
            burst=warm_burst(route, settings.control, delta=loop.state.delta),
            reason=f"route {best.route} is similar, and level {best.level} of its version is certified there",
            author=author,
        )
        starts.append(start)
    return starts


def _is_similar(route: Route, other: Route | None) -> bool:
    return other is not None and _traits(route) == _traits(other)


def _traits(route: Route) -> tuple[Any, ...]:
    """What routes must have in common for one stop model; budgets and modes may differ."""
    return (
        *(route.kind, route.upstream, route.model, route.scorer, route.samples, route.wave),
        *(route.probe, route.steps, route.is_learned),
    )

"""The page of one route: frontier, active level, thresholds, classes, versions and decisions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final, Literal

import msgspec

from suffice.agent.plan import AgentPlan, describe_class_plan, describe_plan
from suffice.assurance.estimate import leavers_of
from suffice.assurance.forecast import Alert, Forecast, RouteForecast
from suffice.assurance.forecast_grades import describe_records
from suffice.assurance.runs import CallerAudits
from suffice.assurance.satisfaction import SATISFACTION, SatisfactionEffect
from suffice.assurance.spending import SpendForecast, describe_spending
from suffice.console.context import UnknownNameError, ViewContext, ViewRecord
from suffice.console.scope import TimeRange
from suffice.console.views.answers import Answers, answer_questions
from suffice.console.views.history import History, read_history
from suffice.console.views.overview import OverviewNotice, notices
from suffice.console.views.policies import RoutePolicy, policy_of
from suffice.console.views.precision import says_nothing
from suffice.console.views.route_state import RouteState, forecasts_of, route_states, snapshots_of, states_of
from suffice.console.views.settings import SettingRow, sections
from suffice.console.views.version_names import name_publication, name_version
from suffice.errors import BadRequest
from suffice.report.snapshot import RouteSnapshot
from suffice.review.holds import Override, lowest
from suffice.store.database.decisions import read_artefact
from suffice.store.database.log import StoredEvent
from suffice.store.database.views import LogReader, newest_event, newest_events
from suffice.store.people.audit_view import describe_level
from suffice.store.people.deciding import fitting, read_snapshot
from suffice.store.routes import rollups
from suffice.store.routes.deployments import RouteDeployment, decisions_of
from suffice.store.routes.period import PeriodFigures, period_figures
from suffice.store.routes.rollouts import read_rollouts
from suffice.store.rows.events import Event, ProposedVersion, kind_of
from suffice.types import Alarm, Epoch, Pause, Publication, Resumption

MOST_DECISIONS: Final = 200
MOST_LOOKS: Final = 120  # of `monitor`, for the chart of the EM drop over time
MOST_PUBLISHED: Final = 40
MOST_GROUPS: Final = 60  # classes, and versions, listed


class Routes(ViewRecord, frozen=True):
    window: TimeRange
    routes: tuple[RouteState, ...]


class LevelRow(ViewRecord, frozen=True):
    level: int
    saving: float  # fraction of tokens, on prompts that its models were not fitted on; no interval
    drop: float  # EM(full) - EM(stopped), a fraction


class OperatingLevel(ViewRecord, frozen=True):
    level: int
    saving: float  # fraction of tokens that these audits would have saved at publication
    drop: float  # losses less gains, a fraction; an unlabelled audit that differs counts as lost
    n_audits: int


class RouteBreakdown(ViewRecord, frozen=True):
    """A class or a version, over the scope."""

    name: str
    title: str  # of a version; of a class: its name
    figures: PeriodFigures
    lost: float | None  # requests whose answer stopping is estimated to have cost; None: not measured
    level: int | None  # restricted to this level by a guardrail or an override; None: not restricted
    satisfaction: SatisfactionEffect | None  # since monitoring began; None: no ratings


class PublishedPolicy(ViewRecord, frozen=True):
    at_s: float
    name: str  # of its version, without its level; "": nothing was learned
    publication: Publication
    is_active: bool
    why_not: str  # why the route cannot go back to it; "": it can
    is_repeat: bool  # the same policy as a later publication, or as what serves now
    figures: PeriodFigures | None  # of requests that it served in the scope; None: it served none


class MonitorState(ViewRecord, frozen=True):
    at: int  # requests of the route
    epoch: int
    drop: float | None
    drop_low: float | None
    drop_high: float | None
    forecast: float | None  # EM drop 3,000 requests ahead


class RouteDecision(ViewRecord, frozen=True):
    seq: int
    at_s: float
    kind: str
    what: str  # in a few words
    reason: str
    author: str
    epoch: int


class RoutePage(ViewRecord, frozen=True):
    window: TimeRange
    answers: Answers
    notices: tuple[OverviewNotice, ...]  # that concern this route
    history: History
    route: RouteState
    frontier: tuple[LevelRow, ...]  # of the newest proposal; (): no refit has measured one
    frontier_of: str  # address of its version
    operating: OperatingLevel | None  # None: no level is active
    thresholds: tuple[float, ...]  # risks at which levels 1, 2 … stop, for one prompt fold; (): nothing is learned
    target: str  # of the score that is compared with them: "as-good", "value"; "": nothing is learned
    classes: tuple[RouteBreakdown, ...]  # the one that lost most first
    versions: tuple[RouteBreakdown, ...]
    leavers: tuple[CallerAudits, ...]  # since the log began: callers that left audits, the most first
    looks: tuple[MonitorState, ...]  # oldest first
    agent: tuple[tuple[str, str], ...]  # its plan in words, as names and values; (): it has none
    agent_reason: str
    decided: tuple[RouteDecision, ...]  # newest first
    forecasts: tuple[Forecast, ...]
    alerts: tuple[str, ...]  # that were raised, newest first
    expected: tuple[tuple[str, str], ...]  # grades of the forecasts, and what is spent: names and sentences
    likings: tuple[SatisfactionEffect, ...]  # of the whole route, by measure; (): no ratings
    policy: RoutePolicy
    published: tuple[PublishedPolicy, ...]  # latest first
    compared: tuple[PublishedPolicy, ...]  # two that were chosen, or none
    overrides: tuple[Override, ...]  # active
    settings: tuple[SettingRow, ...]  # of the route, as they apply now
    price: str  # of EM in satisfaction, as a sentence; "": not measured
    confidence: float  # of each single interval of the looks


def routes(view: ViewContext) -> Routes:
    history, each = read_history(view, view.scope.route)
    return Routes(window=view.window, routes=route_states(view, each, history, only=view.scope.route))


def route(view: ViewContext) -> RoutePage:
    """Raises UnknownNameError, and BadRequest for publications that cannot be compared."""
    window, name, log = view.window, view.scope.route or view.query.get("name", ""), view.connection
    history, each = read_history(view, name)
    if name not in view.settings.routes and name not in each:
        raise UnknownNameError(f"route: unknown route {name[:80]!r}")
    (known,) = snapshots_of(view, (name,))
    (state,) = states_of(view, (known,), each, window)
    report, proposal = known.forecast, newest_event(log, ProposedVersion, route=name)
    decisions, spending = decisions_of(log, name, MOST_DECISIONS), newest_event(log, SpendForecast, route=name)
    plan, versions = known.phase.plan, _breakdown(view, known, "version")
    urgent = notices((state,), rollups.read_to(log), view, ())
    published = _published(view, known, decisions, versions)
    return RoutePage(
        window=window,
        answers=answer_questions(history, window, (state,), len(urgent)),
        notices=urgent,
        history=history,
        route=state,
        frontier=_curve(proposal),
        frontier_of=proposal.address if proposal is not None else "",
        operating=_operating(known.deployment),
        **_learned(log, decisions),
        classes=tuple(sorted(_breakdown(view, known, "query_class"), key=lambda one: -(one.lost or 0.0))),
        versions=versions,
        leavers=leavers_of(known.tally),
        looks=tuple(_monitored(one) for one in newest_events(log, RouteForecast, MOST_LOOKS, route=name)[::-1]),
        agent=tuple(describe_plan(plan)) if plan is not None else (),
        agent_reason=plan.reason if plan is not None else "",
        decided=tuple(_decision(stored) for stored in decisions),
        forecasts=forecasts_of(report),
        alerts=tuple(one.reason for one in newest_events(log, Alert, 20, route=name)),
        expected=(
            *(describe_records(report.records) if report is not None else ()),
            *(describe_spending(spending) if spending is not None else ()),
        ),
        likings=report.whole_effects if report is not None else (),
        policy=policy_of(view, known, read_rollouts(log)),
        published=published,
        compared=_compared(view, published),
        overrides=tuple(one for one in known.holds.overrides if view.now_s < one.expires_at_s),
        settings=next((one.settings for one in sections(view.settings) if one.name == f"routes.{name}"), ()),
        price="" if report is None or report.price is None else report.price.sentence,
        confidence=report.confidence if report is not None else state.confidence,
    )


def _published(
    view: ViewContext,
    known: RouteSnapshot,
    decisions: Sequence[StoredEvent],
    versions: Sequence[RouteBreakdown],
) -> tuple[PublishedPolicy, ...]:
    by_version, made_now = {one.name: one.figures for one in versions}, known.deployment.publication
    refusals = dict[int, str]()
    if known.settings is not None:
        setup = view.services.setup_of(known.name)
        now = read_snapshot(view.connection, known.name, known.settings, setup=setup)
        refusals = {made.number: why or "" for made, why in fitting(view.connection, now, now_s=view.now_s)}
    active = made_now.number if made_now is not None else 0
    equals = {} if made_now is None else {_served_by(made_now): "serves now"}
    rows = list[PublishedPolicy]()
    for stored in decisions:
        if not isinstance(made := stored.event, Publication):
            continue
        why_not = refusals.get(made.number, "of an earlier epoch: what it proved no longer counts")
        same = "" if made.number == active else equals.setdefault(_served_by(made), f"No. {made.number}")
        is_repeat = same not in ("", f"No. {made.number}")
        if is_repeat and not why_not:  # one way back to each other policy is enough
            why_not = f"the same as {same}"
        rows.append(
            PublishedPolicy(
                at_s=stored.at_s,
                name=name_publication(view.connection, made),
                publication=made,
                is_active=made.number == active,
                why_not=why_not,
                is_repeat=is_repeat,
                figures=by_version.get(made.version),
            )
        )
    return tuple(rows[:MOST_PUBLISHED])


def _served_by(made: Publication) -> tuple[str, str, int]:
    return made.version, made.arm, made.level


def _compared(view: ViewContext, published: Sequence[PublishedPolicy]) -> tuple[PublishedPolicy, ...]:
    numbers = [view.query.get(name, "") for name in ("first", "second")]
    if not all(numbers):
        return ()
    known = {str(one.publication.number): one for one in published}
    if unknown := [one for one in numbers if one not in known]:
        raise BadRequest(f"first, second: no publication {unknown[0][:20]!r} of this route", param="first")
    return tuple(known[one] for one in numbers)


def _curve(proposal: ProposedVersion | None) -> tuple[LevelRow, ...]:
    curve = (proposal.card or {}).get("curve") if proposal is not None else None
    try:
        points = msgspec.convert(curve or [], list[tuple[float, float]])
    except msgspec.ValidationError:
        return ()  # a card of another version of Suffice
    return tuple(LevelRow(level=level, saving=saving, drop=drop) for level, (saving, drop) in enumerate(points))


def _operating(held: RouteDeployment) -> OperatingLevel | None:
    made = held.publication
    if made is None or not held.level or not made.evidence.n_audits or made.evidence.share is None:
        return None
    evidence = made.evidence
    drop = (evidence.n_lost - evidence.n_gained) / evidence.n_audits
    return OperatingLevel(level=made.level, saving=made.evidence.share, drop=drop, n_audits=evidence.n_audits)


def _learned(log: LogReader, decisions: Sequence[StoredEvent]) -> dict[str, Any]:
    made = next((one.event for one in decisions if isinstance(one.event, Publication)), None)
    body = read_artefact(log, made.fit) if made is not None and made.fit else None
    try:
        version = json.loads(body or "{}")
        thresholds = tuple(float(one) for one in version["levels"][0])
        return {"thresholds": thresholds, "target": str(version["models"][0]["trained"]["target"])}
    except (ValueError, TypeError, AttributeError, IndexError, KeyError):
        return {"thresholds": (), "target": ""}


def _breakdown(
    view: ViewContext, known: RouteSnapshot, by: Literal["query_class", "version"]
) -> tuple[RouteBreakdown, ...]:
    window, scope, report = view.window, view.scope, known.forecast
    rows = rollups.read_rollups(
        view.connection,
        (by,),
        route=known.name,
        query_class=scope.query_class,
        version=scope.version,
        since_hour=window.since_hour,
        until_hour=window.until_hour,
    )
    sums = {str(key[0]): one for key, one in rows.items() if one.n_requests}
    guarded, overridden = dict(known.phase.classes), known.holds.in_effect(view.now_s).classes
    likings = [one for one in report.likings if one.measure == SATISFACTION] if report is not None else []
    liked = {name: one for one in likings if (name := getattr(one, by)) is not None}
    whole = next((one for one in likings if one.query_class is None and one.version is None), None)
    groups = list[RouteBreakdown]()
    for name, one in sums.items():
        figures = period_figures(one, window.since_hour, window.until_hour)
        drop = figures.em_drop
        # With a single group, the effect of the whole route is the group's.
        satisfaction = liked.get(name) or (whole if not liked and len(sums) == 1 else liked.get(""))
        groups.append(
            RouteBreakdown(
                name=name,
                title=name_version(view.connection, name) if by == "version" else name,
                figures=figures,
                lost=None if drop is None or says_nothing(drop) else drop.value * one.n_requests,
                level=lowest(guarded.get(name), overridden.get(name)) if by == "query_class" else None,
                satisfaction=satisfaction,
            )
        )
    return tuple(sorted(groups, key=lambda one: (-one.figures.sums.n_requests, one.name))[:MOST_GROUPS])


def _monitored(one: RouteForecast) -> MonitorState:
    drop = one.whole.em_drop if one.whole is not None else None
    return MonitorState(
        at=one.at,
        epoch=one.epoch,
        drop=drop.value if drop is not None else None,
        drop_low=drop.low if drop is not None else None,
        drop_high=drop.high if drop is not None else None,
        forecast=one.drop.ahead if one.drop is not None else None,
    )


def _decision(stored: StoredEvent) -> RouteDecision:
    event = stored.event
    return RouteDecision(
        seq=stored.seq,
        at_s=stored.at_s,
        kind=kind_of(event).name,
        what=_describe(event),
        reason=getattr(event, "reason", ""),
        author="control loop" if isinstance(event, Alarm) else getattr(event, "author", ""),
        epoch=event.number if isinstance(event, Epoch) else getattr(event, "epoch", 0),
    )


def _describe(event: Event) -> str:
    if isinstance(event, Publication):
        certified = "certified" if event.certified else "not certified"
        return f"{describe_level(event)}, {certified}"
    if isinstance(event, AgentPlan):
        return f"agent: {'; '.join(describe_class_plan(one) for one in event.classes)}"
    if isinstance(event, Epoch):
        return f"epoch {event.number} begins"
    if isinstance(event, Alarm):
        return f"alarm: {event.cause.replace('_', ' ')}"
    return {Pause: "paused", Resumption: "resumed"}.get(type(event)) or kind_of(event).name.replace("_", " ")

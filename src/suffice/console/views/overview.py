"""The first page, and what it and the route page ask somebody to do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Literal
from urllib.parse import urlencode

from suffice.console.context import LogView, ViewContext, ViewRecord
from suffice.console.scope import TimeRange
from suffice.console.views.alerts import AlertLine, latest_alerts
from suffice.console.views.answers import Answers, answer_questions
from suffice.console.views.history import History, read_history
from suffice.console.views.route_state import RouteState, route_states
from suffice.sanitize import plural
from suffice.store.database.views import has_requests
from suffice.store.routes import rollups
from suffice.store.routes.deployments import read_fleet
from suffice.store.routes.rollups import ReadTo

LATE_S: Final = 60.0  # after an alert: a sink that has not accepted it by then is considered broken
STARTS_S: Final = 30.0  # a worker that starts with the gateway takes some seconds to lease its jobs


class OverviewNotice(ViewRecord, frozen=True, kw_only=False):
    level: Literal["alarm", "warn", "info"]
    text: str
    href: str
    action: str  # text of the link


class Overview(ViewRecord, frozen=True):
    window: TimeRange
    answers: Answers
    history: History
    read_to: ReadTo
    n_certified: int
    n_learned: int  # routes that a control loop may certify
    fleet: str  # what is promised of the certified ones together, as a sentence; "": nothing
    worst: RouteState | None  # the route nearest to its EM budget; None: none is measured
    routes: tuple[RouteState, ...]
    notices: tuple[OverviewNotice, ...]
    alerts: tuple[AlertLine, ...]  # open ones and those of the last 24 hours, as on their page; a few at most
    is_empty: bool  # whether there has never been a request
    liked: RouteState | None  # the route with the lowest effect of stopping on satisfaction; None: not measured


def overview(view: ViewContext) -> Overview:
    scope, log, alerts = view.scope, view.connection, latest_alerts(view)
    history, each = read_history(view, scope.route)
    states, read_to = route_states(view, each, history, only=scope.route), rollups.read_to(log)
    measured = [one for one in states if one.budget_used is not None]
    measured = [one for one in measured if one.phase.level] or measured  # routes that stop runs take precedence
    liked = [(one.satisfaction_effect.value, one) for one in states if one.satisfaction_effect is not None]
    urgent = notices(states, read_to, view, alerts)
    n_needs = len(urgent) + sum(one.over is None for one in alerts)
    return Overview(
        window=scope.range,
        answers=answer_questions(history, scope.range, states, n_needs),
        history=history,
        read_to=read_to,
        n_certified=sum(one.is_certified for one in states),
        n_learned=sum(
            route.certifies_itself for name, route in view.settings.routes.items() if scope.route in (None, name)
        ),
        fleet=read_fleet(log),
        worst=max(measured, key=lambda one: one.budget_used or 0.0, default=None),
        routes=states,
        notices=urgent,
        alerts=alerts,
        is_empty=history.is_empty and not has_requests(log),
        liked=min(liked, key=lambda pair: pair[0])[1] if liked else None,
    )


def notices(
    states: tuple[RouteState, ...], read_to: ReadTo, view: LogView, alerts: tuple[AlertLine, ...]
) -> tuple[OverviewNotice, ...]:
    late = [name for one in alerts if view.now_s - one.at_s > LATE_S for name in one.waits_for]
    result = [
        OverviewNotice(
            "alarm",
            f"The sink {name} has not taken {plural(late.count(name), 'alert')} yet",
            "/console/alerts",
            "See alerts",
        )
        for name in dict.fromkeys(late)
    ]
    for one in states:
        result += _notices_of(one, view)
    failing = dict.fromkeys(sentence for one in states for sentence in one.phase.failing)
    result += [OverviewNotice("alarm", sentence, "/console/settings", "See jobs") for sentence in failing]
    if read_to.lag:
        text = f"{read_to.lag[:1].upper()}{read_to.lag[1:]}"
        result.append(OverviewNotice("warn", text, "/console/settings", "See jobs"))
    order = {"alarm": 0, "warn": 1, "info": 2}
    return tuple(sorted(result, key=lambda notice: order[notice.level]))


def _notices_of(one: RouteState, view: LogView) -> Iterator[OverviewNotice]:
    place = f"/console/route?{urlencode({'route': one.name})}"  # in the query, because a name may contain a slash
    route = view.settings.routes.get(one.name)
    if one.phase.phase == "paused":
        yield OverviewNotice("alarm", f"{one.name} is paused: {one.phase.reason}", place, "Decide")
    for alert in one.alerts:
        yield OverviewNotice("warn", f"{one.name}: {alert}", place, "See the forecast")
    if one.promise_state == "unwatched":
        yield OverviewNotice("alarm", f"{one.name}: nobody watches it, and it runs in full", place, "See why")
    alone = route is not None and route.certifies_itself and not one.phase.attended and one.sums.n_requests
    if alone and view.now_s - view.begun_s > STARTS_S:
        yield OverviewNotice("warn", f"{one.name}: no control loop looks after it now", place, "See why")
    if one.phase.n_labels_wanted:
        waiting = plural(one.phase.n_labels_wanted, "answer", "answers")
        yield OverviewNotice("info", f"{one.name}: {waiting} to review", "/console/review", "Review")

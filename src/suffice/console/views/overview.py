"""The first page, and the state of each route for it and for the route page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final, Literal
from urllib.parse import urlencode

from suffice.assurance.bounds import wilson
from suffice.assurance.estimate import IntervalEstimate, saving_of
from suffice.assurance.forecast import Forecast, RouteForecast
from suffice.assurance.runs import Tally
from suffice.console.context import DAY_S, LogView, ViewContext, ViewRecord
from suffice.console.scope import TimeRange
from suffice.console.views.alerts import AlertLine, latest_alerts
from suffice.console.views.answers import Answers, answer_questions
from suffice.console.views.history import History, read_history
from suffice.console.views.route_state import RouteState, ramp_of
from suffice.report.snapshot import read_guarantee
from suffice.review.holds import lowest
from suffice.review.route_guarantee import RouteGuarantee
from suffice.sanitize import plural
from suffice.scoring.base import scorer_label
from suffice.settings import Route
from suffice.store.database.decisions import is_attended
from suffice.store.database.views import has_requests, newest_event, newest_request
from suffice.store.people.promises import Promises, read_promises
from suffice.store.routes import rollups
from suffice.store.routes.deployments import NOTHING, Phase, phase_of, read_fleet, read_phases
from suffice.store.routes.period import Period, period_figures
from suffice.store.routes.rollups import DAY_HOURS, ReadTo
from suffice.store.rows.sums import NO_SUMS, RollupSums

RATE_DAYS: Final = 7  # over which the rate of audits is averaged


def route_states(view: LogView, each: Mapping[str, Period], window: TimeRange) -> tuple[RouteState, ...]:
    log = view.connection
    since_hour = DAY_HOURS * (int(view.now_s // DAY_S) - RATE_DAYS + 1)
    recent = {str(name): one for (name,), one in rollups.read_rollups(log, ("route",), since_hour=since_hour).items()}
    promises = read_promises(log, now_s=view.now_s, killed=view.killed)
    attended, tallies = is_attended(log, view.path), rollups.read_tallies(log)
    phases = read_phases(log, promises.decided, attended=attended)
    nothing = Period(total=period_figures(NO_SUMS, window.since_hour, window.until_hour), buckets=())
    return tuple(
        _route_state(
            view,
            name,
            phases.get(name) or phase_of(NOTHING, attended=attended),
            promises,
            tallies.get(name),
            each.get(name, nothing),
            recent.get(name, NO_SUMS),
        )
        for name in dict.fromkeys([*view.settings.routes, *sorted(each)])
    )


def _route_state(
    view: LogView, name: str, phase: Phase, promises: Promises, tally: Tally | None, period: Period, recent: RollupSums
) -> RouteState:
    sums = period.total.sums
    route, report = view.settings.routes.get(name), newest_event(view.connection, RouteForecast, route=name)
    per_day = recent.n_audits / RATE_DAYS if recent.n_audits else None
    whole = report.whole if report is not None else None
    confidence = route.confidence if route is not None else 0.95
    promise = RouteGuarantee(state="off")  # only in the log
    if route is not None:
        promise, _ = read_guarantee(
            view.connection,
            name,
            route,
            promises,
            tally=tally,
            forecast=report,
            newest=newest_request(view.connection, name),
        )
    return RouteState(
        name=name,
        mode=route.mode if route is not None else "not configured",
        kind=route.kind if route is not None else "",
        scorer=scorer_label(route.scorer) if route is not None else "",
        upstream=route.upstream if route is not None else "",
        max_em_drop=route.max_em_drop if route is not None else 0.0,
        confidence=confidence,
        phase=phase,
        owned="" if route is None or route.certifies_itself else str(route.policy.get("policy", "")),
        promise=promise.sentence,
        promise_state=promise.state,
        beside=promise.beside if promise.state not in ("off", "observe", "killed") else (),
        capped=lowest(phase.cap, promises.holds.of(name).in_effect(view.now_s).ceiling),
        ramp=ramp_of(phase, route, acts=promise.stops),
        figures=period.total,
        sparks=period.buckets,
        em_full=estimate_rate(sums.n_full_right, sums.n_full_marked),
        em_stopped=estimate_rate(*sums.stopped_marks),
        em_drop=whole.em_drop if whole is not None else None,
        saving=saving_of(tally, confidence) if tally is not None else None,
        satisfaction=report.satisfaction if report is not None else None,
        seen_at=report.at if report is not None else None,
        alerts=tuple(f"{one.reason}{_capped(phase, one)}" for one in forecasts_of(report) if one.alert),
        audits_a_day=per_day,
        missing=describe_missing(phase, route, per_day),
    )


def _capped(phase: Phase, forecast: Forecast) -> str:
    return f"; level {phase.cap} at most meanwhile" if phase.cap is not None and forecast.of == "em_drop" else ""


def forecasts_of(report: RouteForecast | None) -> tuple[Forecast, ...]:
    return () if report is None else tuple(one for one in (report.drop, report.em) if one is not None)


def estimate_rate(k: int, n: int) -> IntervalEstimate | None:
    if not n:
        return None
    between = wilson(k, n, 0.95)
    return IntervalEstimate(value=k / n, low=between.low, high=between.high, n=n, method="Wilson, for one look")


def describe_missing(phase: Phase, route: Route | None, audits_a_day: float | None) -> str:
    if route is None:
        return "This route is in the log and not in the settings: nothing is asked of it any more."
    if route.mode == "off":
        return 'Its mode is off: requests pass through, and nothing is measured. Set mode = "observe" to begin.'
    if not route.certifies_itself:
        return (
            "Its owner wrote the policy down, and nobody certifies it while it observes or acts uncertified. Set mode ="
            ' "enforce" without uncertified to have it proved, or remove policy to let one learn.'
        )
    if not phase.attended:
        return "No control loop looks after this route now. suffice serve starts one; it needs the extra train."
    if phase.phase == "paused":
        return "Paused: every request runs in full until somebody resumes it."
    if route.is_owned:
        return _describe_fixed_policy(phase, audits_a_day)
    if route.is_paired or phase.spending is not None:
        return _describe_no_next_level(phase, route)
    if phase.phase in ("unattended", "cold start", "burst"):
        left = max(0, phase.n_burst - phase.n_requests)
        return f"{left:,} more full runs{_in_days(left, audits_a_day)} before a first level can be proved."
    return _describe_next_level(phase, audits_a_day)


def _describe_fixed_policy(phase: Phase, audits_a_day: float | None) -> str:
    if phase.level:
        return "Nothing: its owner's policy is proved."
    if phase.n_missing is None:
        return "Its owner's policy is not proved, and no number of audits like those so far would do it."
    days = _in_days(phase.n_missing, audits_a_day)
    return f"About {phase.n_missing:,} more audits{days} until its owner's policy is proved."


def _describe_next_level(phase: Phase, audits_a_day: float | None) -> str:
    if phase.level and phase.level == phase.n_levels:
        return "Nothing: the last level is certified."
    if phase.ceiling is not None and phase.level == phase.ceiling:
        return "People's ratings allow no higher level yet."
    if phase.cap is not None and phase.level == phase.cap:
        return "A forecast allows no higher level until it is well inside the budget."
    if phase.n_missing is None:
        return "No number of audits like those so far would certify the next level."
    return f"About {phase.n_missing:,} more audits{_in_days(phase.n_missing, audits_a_day)} to the next level."


def _describe_no_next_level(phase: Phase, route: Route) -> str:
    if phase.spending is not None:
        return f"Certified is level {phase.spending.floor}; above it the drop is kept on average, with no confidence."
    unproved = route.arms[phase.level :]
    if phase.level and not unproved:
        return f"Nothing: {phase.arm} is proved."
    return f"{' or '.join(unproved)} is not proved: suffice status counts its pairs."


def _in_days(n: int, a_day: float | None) -> str:
    if not n or not a_day:
        return ""
    days = n / a_day
    return f" ({days:,.0f} days at the present rate)" if days >= 2 else f" ({24 * days:,.0f} hours at the present rate)"


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
    states, read_to = states_of(view, history, each), rollups.read_to(log)
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


def states_of(view: ViewContext, history: History, each: Mapping[str, Period]) -> tuple[RouteState, ...]:
    """The states of the scope's routes."""
    wanted, window = view.scope.route, view.scope.range
    bounds = TimeRange(name=window.name, since_hour=history.since_hour, until_hour=history.until_hour)
    return tuple(one for one in route_states(view, each, bounds) if wanted in (None, one.name))


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

"""The pages of alerts (open and resolved, with their delivery to sinks), incidents and overrides."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from suffice.console.action_form import describe_figures
from suffice.console.context import DAY_S, ViewContext, ViewRecord
from suffice.review.decide import describe_state
from suffice.review.holds import DECISIONS, Case, Override
from suffice.settings import Alerts
from suffice.store.database.views import job_history, latest_of
from suffice.store.people.alerts import AlertEnd, AlertLog, OpenAlert, SinkReceipt, read_alert_log
from suffice.store.people.audit_view import describe_event
from suffice.store.people.deciding import fitting, read_snapshot
from suffice.store.people.preferences import MEASURES, active_mutes, latest_rules, open_rule_alerts
from suffice.store.routes.deployments import decisions_of, read_holds
from suffice.store.routes.period import read_total
from suffice.store.routes.rollups import DAY_HOURS, HOUR_S
from suffice.store.rows.events import kind_of, route_of
from suffice.store.rows.preferences import AlertMute, AlertRule
from suffice.types import Alarm, Pause, Publication, Resumption

MOST_LISTED: Final = 100
MOST_RECENT: Final = 5  # on the overview page
MOST_SUSPECTS: Final = 30
SUSPECT_KINDS: Final = ("config_changed", "rollout_begun", "rollout_moved", "override_set", "override_ended")
MOST_RUNS: Final = 200  # job runs searched for a sink's last report


class SinkLine(ViewRecord, frozen=True):
    sink: str  # log, webhook or email
    configured: bool  # whether the settings name it now
    since_s: float | None  # Unix time at which it started; None: never, or before what was read
    n_taken: int  # accepted, of the alerts on this page
    n_waiting: int  # not accepted yet
    latest_s: float | None  # when it accepted the latest; None: it accepted none
    problem: str  # why it failed to accept the latest; "": it did not fail


class AlertLine(ViewRecord, frozen=True):
    seq: int  # position in the log of the alert's row
    at_s: float  # Unix time
    kind: str
    route: str  # "": all routes
    sentence: str
    href: str  # of the page about it
    taken: tuple[SinkReceipt, ...]  # by sink, with its time
    waits_for: tuple[str, ...]  # sinks that have not accepted it yet
    wanted: bool  # whether the settings include this kind
    n_again: int  # repeats within the time in which they are not sent
    latest_at_s: float  # of the last repeat
    over: AlertEnd | None  # when it was resolved, and why; None: it is open


class RuleRow(ViewRecord, frozen=True):
    rule: AlertRule
    measure: str  # in words
    broken: tuple[str, ...]  # what it says of the routes on which it is broken


class AlertsPage(ViewRecord, frozen=True):
    sinks: tuple[SinkLine, ...]  # (): none is configured
    lines: tuple[AlertLine, ...]  # open ones first, each group the latest first
    repeat_s: float  # after which the same alert is sent again
    unwanted: tuple[str, ...]  # kinds that the settings exclude
    rules: tuple[RuleRow, ...]
    mutes: tuple[AlertMute, ...]  # that have not ended

    @property
    def active(self) -> tuple[AlertLine, ...]:
        return tuple(one for one in self.lines if one.over is None)

    @property
    def resolved(self) -> tuple[AlertLine, ...]:
        return tuple(one for one in self.lines if one.over is not None)


def alerts(view: ViewContext) -> AlertsPage:
    log, settings = read_alerts(view), view.settings.alerts
    lines = [_line(one, log, view) for one in _open_first(log.raised, view.now_s)[:MOST_LISTED]]
    problems = dict[str, str]()
    for run in job_history(view.path, n=MOST_RUNS) if settings.has_sink else ():
        sink, _, sentence = run.summary.partition(": ")
        if run.job == "notify" and not run.ok:
            problems[sink] = sentence
    names = dict.fromkeys([*configured(settings), *log.sinks])
    return AlertsPage(
        sinks=tuple(_sink(name, log, settings, lines, problems.get(name, "")) for name in names),
        lines=tuple(lines),
        repeat_s=settings.repeat_s,
        unwanted=tuple(one for one in Alerts().kinds if one not in settings.kinds),
        rules=tuple(_rules(view)),
        mutes=active_mutes(view.connection, view.now_s),
    )


def _rules(view: ViewContext) -> Iterator[RuleRow]:
    checks = open_rule_alerts(view.connection)
    for rule in latest_rules(view.connection):
        broken = [one for (name, _), one in checks.items() if name == rule.rule and one.broken]
        sentences = tuple(f"{one.route}: {one.sentence}" for one in broken)
        yield RuleRow(rule=rule, measure=MEASURES[rule.measure], broken=sentences)


def latest_alerts(view: ViewContext) -> tuple[AlertLine, ...]:
    """Open alerts and those of the last 24 hours, as on their page, a few at most."""
    log, now_s = read_alerts(view), view.now_s
    recent = [one for one in log.raised if one.over(now_s) is None or now_s - one.latest_at_s < DAY_S]
    return tuple(_line(one, log, view) for one in _open_first(recent, now_s)[:MOST_RECENT])


def read_alerts(view: ViewContext) -> AlertLog:
    known = view.visit.context.cache.alerts or AlertLog(repeat_s=view.settings.alerts.repeat_s)
    view.visit.context.cache.alerts = log = read_alert_log(view.connection, known)
    return log


def configured(alerts: Alerts) -> tuple[str, ...]:
    named = [("webhook", alerts.webhook_url_env), ("email", alerts.email_to)]
    sinks = [name for name, value in named if value]
    return ("log", *sinks) if sinks else ()


def _open_first(raised: Sequence[OpenAlert], now_s: float) -> list[OpenAlert]:
    return sorted(raised, key=lambda one: (one.over(now_s) is not None, -one.seq))


def _line(one: OpenAlert, log: AlertLog, view: ViewContext) -> AlertLine:
    notice, alerts = one.notice, view.settings.alerts
    wanted, taken = notice.kind in alerts.kinds, {each.sink for each in one.taken}
    sinks = {name: log.sinks.get(name) for name in configured(alerts) if wanted and name not in taken}
    waits = [name for name, sink in sinks.items() if sink and max(sink.since_seq, sink.read_to_seq) < one.seq]
    return AlertLine(
        seq=one.seq,
        at_s=one.at_s,
        kind=notice.kind,
        route=notice.route,
        sentence=notice.sentence,
        href=f"/console{notice.path}",
        taken=one.taken,
        waits_for=tuple(waits),
        wanted=wanted,
        n_again=one.n_again,
        latest_at_s=one.latest_at_s,
        over=one.over(view.now_s),
    )


def _sink(name: str, log: AlertLog, alerts: Alerts, lines: list[AlertLine], problem: str) -> SinkLine:
    known = log.sinks.get(name)
    taken_s = [each.at_s for one in log.raised for each in one.taken if each.sink == name]
    n_waiting = sum(name in one.waits_for for one in lines)
    return SinkLine(
        sink=name,
        configured=name in configured(alerts),
        since_s=known.since_s if known is not None and known.since_seq else None,
        n_taken=len(taken_s),
        n_waiting=n_waiting,
        latest_s=max(taken_s, default=None),
        problem=problem if n_waiting else "",
    )


class Back(ViewRecord, frozen=True):
    publication: Publication
    why_not: str  # "": it can be made


class SuspectChange(ViewRecord, frozen=True):
    """The last change that could be behind an incident: of thresholds, settings or what is served."""

    at_s: float
    kind: str
    author: str
    sentence: str
    before_s: float  # by which it came before the incident


class OpenCase(ViewRecord, frozen=True):
    case: Case
    now: str  # the route's state, in words
    damage: tuple[tuple[str, str], ...]  # of the day up to it and the day before: heading, and its figures in words
    suspect: SuspectChange | None  # None: none is near it in the log
    back: tuple[Back, ...]
    can: tuple[str, ...]  # possible decisions


class Incidents(ViewRecord, frozen=True):
    open: tuple[OpenCase, ...]
    closed: tuple[Case, ...]  # the latest first
    overrides: tuple[Override, ...]  # active
    routes: tuple[str, ...]  # on which an incident can be opened


def incidents(view: ViewContext) -> Incidents:
    holds, routes = read_holds(view.connection).routes.values(), view.settings.routes
    cases = sorted((case for one in holds for case in one.cases), key=lambda case: case.incident.opened_at_s)
    overrides = [override for one in holds for override in one.overrides if view.now_s < override.expires_at_s]
    closed = sorted((case for case in cases if not case.is_open), key=lambda case: -case.incident.opened_at_s)
    return Incidents(
        open=tuple(_open(view, case) for case in cases if case.is_open and case.incident.route in routes),
        closed=tuple(closed[:50]),
        overrides=tuple(sorted(overrides, key=lambda one: one.expires_at_s)),
        routes=tuple(name for name, route in routes.items() if route.mode != "off"),
    )


def _open(view: ViewContext, case: Case) -> OpenCase:
    name = case.incident.route
    now = read_snapshot(view.connection, name, view.settings.routes[name], setup=view.services.setup_of(name))
    publications = fitting(view.connection, now, now_s=view.now_s)[:20]
    back = tuple(Back(publication=made, why_not=why or "") for made, why in publications)
    can = tuple(one for one in DECISIONS if one != "roll_back" or any(not each.why_not for each in back))
    opened_s = case.incident.opened_at_s
    return OpenCase(
        case=case,
        now=describe_state(now, now_s=view.now_s),
        damage=tuple(_damage(view, name, opened_s)),
        suspect=_suspect(view, name, opened_s),
        back=back,
        can=can,
    )


def _damage(view: ViewContext, route: str, opened_s: float) -> Iterator[tuple[str, str]]:
    hour = int(opened_s // HOUR_S) + 1
    since = {"day up to it": hour - DAY_HOURS, "day before that": hour - 2 * DAY_HOURS}
    if view.now_s - opened_s > HOUR_S:
        since = {"since it opened": hour} | since
    for heading, first in since.items():
        until = int(view.now_s // HOUR_S) + 1 if first == hour else first + DAY_HOURS
        figures = read_total(view.connection, route, since_hour=first, until_hour=until)
        if figures.sums.n_requests:
            yield heading, describe_figures(figures)


def _suspect(view: ViewContext, route: str, opened_s: float) -> SuspectChange | None:
    log = view.connection
    near = [*decisions_of(log, route, MOST_SUSPECTS), *latest_of(log, SUSPECT_KINDS, MOST_SUSPECTS)]
    fits = [
        one
        for one in near
        if one.at_s <= opened_s
        and not isinstance(one.event, Pause | Resumption | Alarm)
        and route_of(one.event) in (None, route)
    ]
    if not fits:
        return None
    last = max(fits, key=lambda one: one.seq)
    _, after = describe_event(log, last.event)
    return SuspectChange(
        at_s=last.at_s,
        kind=kind_of(last.event).name,
        author=getattr(last.event, "author", ""),
        sentence=after,
        before_s=opened_s - last.at_s,
    )

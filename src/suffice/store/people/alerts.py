"""Alerts, their resolutions and the sinks that received each, folded from the log.

An alert is resolved when its cause is: a route that runs in full since an alarm does so until it may stop early again.
No row says that a gateway can load a version again: that alert stays open until another version is active. Only the
latest alerts are kept, and a first reading begins near the end of the log. Route names and reasons are untrusted text:
a notice holds them as one line of plain text.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Literal, TypeAlias, get_args
from urllib.parse import quote

from suffice.agent.plan import AgentPlan
from suffice.assurance.forecast import Alert, RouteForecast
from suffice.assurance.forecast_grades import Of
from suffice.review.holds import Incident, IncidentDecision
from suffice.rollout.stages import EVIDENCE
from suffice.sanitize import printable
from suffice.settings import AlertKind
from suffice.store.database import views
from suffice.store.database.location import LogLocation
from suffice.store.database.log import StoredEvent
from suffice.store.routes.rollups import HOUR_S
from suffice.store.rows import events
from suffice.store.rows.events import Event, key_of
from suffice.store.rows.preferences import RuleAlert
from suffice.store.rows.watching import WatchLapse
from suffice.types import Alarm, Epoch, Pause, Publication, Resumption

NEARLY: Final = 0.8  # fraction of the budget from which it counts as nearly spent
MOST_TEXT: Final = 600  # characters of a sentence
MOST_NAME: Final = 120  # … of a route's name
READS: Final = (
    *("route_monitored", "alert_raised", "alarm_raised", "enforcement_paused", "incident_opened", "kill_switched"),
    *("rollout_moved", "rollout_undone", "fail_open_high", "version_refused", "log_missed", "arm_worse"),
    *("agent_planned", "rule_checked", "watch_changed"),
)
# Kinds that only resolve alerts; some kinds that raise alerts also resolve others.
ENDS: Final = ("enforcement_resumed", "incident_decided", "policy_published", "epoch_began", "experiment_stopped")

CauseKind: TypeAlias = Literal[
    "forecast",
    "budget",
    "certificate",
    "effort",
    "pause",
    "incident",
    "kill_switch",
    "lot",
    "version",
    "fail_open",
    "experiment",
    "cost",
    "watch",
    "rule",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    kind: AlertKind | Literal["test"]  # a test is sent by hand only
    route: str  # "": all routes
    sentence: str  # one line of plain text
    same: str  # equal for repetitions of one alert
    path: str  # of the console's page
    over: bool = False  # the notice reports that such an alert is resolved


@dataclass(frozen=True, slots=True)
class AlertCause:
    of: CauseKind
    route: str = ""  # "": all routes
    name: str = ""  # which one, where there may be several
    number: int = 0  # of the epoch that it ended, or of the effort's level
    until_s: float | None = None  # Unix time at which it ends by itself; None: a row must end it


@dataclass(frozen=True, slots=True)
class AlertResolution:
    of: CauseKind
    route: str
    because: str  # one line of plain text
    name: str | None = None  # of the resolved alert; None: all of them
    before: int | None = None  # resolves alerts of smaller numbers; None: all of them
    replaced: bool = False  # superseded by something with a notice of its own

    def ends(self, cause: AlertCause) -> bool:
        return (
            (self.of, self.route) == (cause.of, cause.route)
            and self.name in (None, cause.name)
            and (self.before is None or cause.number < self.before)
        )


RaisedAlert: TypeAlias = tuple[Notice, AlertCause | None]  # None: resolved when raised


def alerts_of(event: Event) -> Notice | None:
    raised = alert_of(event)
    return None if raised is None else raised[0]


def alert_of(event: Event) -> RaisedAlert | None:
    """Return the notice of an event and the cause that keeps the alert open; None: no alert."""
    match event:
        case Alert(route=route, of=of):
            return _notice("breach_forecast", route, event.reason, of), AlertCause("forecast", route, of)
        case Alarm():
            return _alert_of_alarm(event)
        case Pause(route=route, number=number):
            text = f"enforcement is paused: {event.reason}"
            notice = _notice("incident", route, text, f"{route}:p{number}", "/incidents")
            return notice, AlertCause("pause", route, str(number))
        case Incident(route=route, incident=name):
            return _notice("incident", route, event.summary, name, "/incidents"), AlertCause("incident", route, name)
        case events.KillSwitchState(on=on):
            where = f" at {event.gateway}" if event.gateway else ""
            text = f"the kill switch is {'pulled' if on else 'released'}{where}: {event.reason}"
            cause = AlertCause("kill_switch") if on else None
            return _notice("kill_switch", "", text, f"{on}:{event.stamp}", ""), cause
        case RouteForecast() | events.FailOpenCount() | events.VersionRefusal() | events.LogOutage():
            return _alert_of_serving(event)
        case AgentPlan(route=route, alert=text) if text:
            return _notice("stops_cost_more", route, text), AlertCause("cost", route)
        case events.RolloutMove() | events.RolloutUndo():
            return _alert_of_rollout(event)
        case events.WorseArm(experiment=name, run=run, arm=arm):
            text = f"experiment {name}: {event.summary[0]}"
            notice = _notice("worse_arm", "", text, f"{name}:{run}:{arm}:{event.verdict}", "/experiments")
            return notice, AlertCause("experiment", name=f"{name}:{run}")
        case _:
            return _alert_of_check(event) if isinstance(event, RuleAlert | WatchLapse) else None


def _alert_of_alarm(alarm: Alarm) -> RaisedAlert:
    route = alarm.route
    why = alarm.cause
    level = alarm.level
    if level:
        text = f"{alarm.reason}; it is not asked for any more, nor is any after it"
        return _notice("drift", route, text, f"{why}:{level}"), AlertCause("effort", route, number=level)
    text = f"{alarm.reason}; its certificate has ended and it runs in full"
    notice = _notice("sample_ratio" if why == "sample_ratio" else "drift", route, text, why)
    return notice, AlertCause("certificate", route, number=alarm.epoch)


def _alert_of_check(check: RuleAlert | WatchLapse) -> RaisedAlert | None:
    if isinstance(check, WatchLapse):
        text = f"{check.reason}; it runs in full until it is looked at again"
        return (_notice("unwatched", check.route, text), AlertCause("watch", check.route)) if check.lapsed else None
    if not check.broken:
        return None
    rule, route = check.rule, check.route
    notice = _notice("rule", route, f"rule {rule}: {check.sentence}", f"{rule}:{check.number}", "/alerts")
    return notice, AlertCause("rule", route, rule)


def _alert_of_serving(
    event: RouteForecast | events.FailOpenCount | events.VersionRefusal | events.LogOutage,
) -> RaisedAlert | None:
    match event:
        case RouteForecast(route=route, served=served) if served is not None and served.is_over:
            return _notice("budget_nearly_spent", route, served.sentence), AlertCause("budget", route)
        case RouteForecast(route=route, drop=drop):
            # A forecast breach was reported already, by its own row.
            if drop is None or drop.limit <= 0 or drop.now < NEARLY * drop.limit or "em_drop" in event.alerts:
                return None
            part = f"{drop.now / drop.limit:.0%} of it"
            text = f"the EM drop is about {drop.now:.2%}, and the budget {drop.limit:.2%}: {part}"
            return _notice("budget_nearly_spent", route, text), AlertCause("budget", route)
        case events.FailOpenCount(route=route, n_runs=n, n_degraded=n_degraded):
            text = f"failed open in {n_degraded:,} of {n:,} runs within an hour ({n_degraded / n:.1%})"
            until_s = float((event.hour + 1) * HOUR_S)
            return _notice("fail_open", route, text), AlertCause("fail_open", route, until_s=until_s)
        case events.VersionRefusal(route=route, number=number, fit=fit):
            what = f"publication {number}" if number else f"version {fit}"
            text = f"{what} cannot be served: {event.reason}; {event.serves}"
            return _notice("version_refused", route, text, str(number or fit)), AlertCause("version", route)
        case events.LogOutage():
            text = (
                f"a gateway was without its log for {event.until_s - event.since_s:,.0f} s and served {event.after}:"
                f" {event.reason}; {event.n_dropped:,} rows are lost"
            )
            return _notice("log_missed", "", text, key_of(event), ""), None


def _alert_of_rollout(event: events.RolloutMove | events.RolloutUndo) -> RaisedAlert | None:
    route = event.route
    if isinstance(event, events.RolloutUndo):
        text = f"the version of rollout {event.rollout} was taken back by {event.author}: {event.reason}"
        return _notice("rollback", route, text, event.rollout, "/policies"), None
    move = event.transition
    if move.move == "roll_back":
        text = f"rollout {move.rollout} was rolled back by {move.by}: {move.reason}"
        return _notice("rollback", route, text, move.rollout, "/policies"), None
    if move.move == "pause" and move.by == EVIDENCE:
        text = f"the arms of rollout {move.rollout} cannot be compared: {move.reason}"
        return _notice("sample_ratio", route, text, move.rollout, "/policies"), AlertCause("lot", route, move.rollout)
    return None


def _notice(kind: AlertKind, route: str, text: str, of: str = "", path: str | None = None) -> Notice:
    if path is None:
        path = f"/route?route={quote(route.encode('utf-8', 'backslashreplace'), safe='')}"
    sentence = plain(text, MOST_TEXT)
    return Notice(kind=kind, route=plain(route, MOST_NAME), sentence=sentence, same=f"{kind}:{route}:{of}", path=path)


def plain(text: str, most: int) -> str:
    line = printable(text[: most + 1])
    return line if len(line) <= most else f"{line[: most - 1]}…"


def resolutions_of(event: Event) -> tuple[AlertResolution, ...]:
    match event:
        case RouteForecast():
            return _after_look(event)
        case Alarm(route=route, epoch=epoch) if not event.level:
            return (AlertResolution("certificate", route, "a later event says more", before=epoch, replaced=True),)
        case Epoch(route=route, number=number):
            # An alarm ends one epoch and begins the next; any other later epoch was begun by a person.
            return (
                _over("version", route, f"epoch {number} began: the version is no longer active"),
                _over("certificate", route, f"epoch {number}: {event.reason}", before=number - 1),
                _over("effort", route, f"epoch {number}: {event.reason}"),
            )
        case Publication(route=route, number=number):
            version = _over("version", route, f"publication {number} replaced it")
            again = _over("certificate", route, f"publication {number} lets it stop early again", before=event.epoch)
            effort = _over("effort", route, f"publication {number} asks for it again", before=event.level + 1)
            return (version, again, effort) if event.may_act and event.level else (version,)
        case AgentPlan(route=route, alert=""):
            return (_over("cost", route, f"plan {event.number} of its agent: {event.reason}"),)
        case Resumption():
            return (_over("pause", event.route, f"{event.author} resumed it: {event.reason}", name=str(event.number)),)
        case IncidentDecision():
            text = f"{event.author} decided to {event.decision.replace('_', ' ')}: {event.reason}"
            return (_over("incident", event.route, text, name=event.incident),)
        case events.KillSwitchState(on=False):
            return (_over("kill_switch", "", f"released: {event.reason}"),)
        case events.RolloutUndo() | events.RolloutMove() | events.ExperimentEnd():
            return _after_comparison(event)
        case _:
            return _after_check(event) if isinstance(event, RuleAlert | WatchLapse) else ()


def _after_check(check: RuleAlert | WatchLapse) -> tuple[AlertResolution, ...]:
    if isinstance(check, WatchLapse):
        return () if check.lapsed else (_over("watch", check.route, check.reason),)
    return () if check.broken else (_over("rule", check.route, check.sentence, name=check.rule),)


def _after_look(forecast: RouteForecast) -> tuple[AlertResolution, ...]:
    route = forecast.route
    drop = forecast.drop
    breach_is_forecast = "em_drop" in forecast.alerts
    endings = [
        _over("forecast", route, "the forecast no longer crosses the limit", name=of)
        for of in get_args(Of)
        if of not in forecast.alerts
    ]
    if alert_of(forecast) is None:
        if drop is None:
            text = "too little is known of its EM drop since then"
        elif breach_is_forecast:
            text = "since then a breach is forecast"
        else:
            text = f"since then the EM drop is about {drop.now:.2%}, of {drop.limit:.2%}"
        endings.append(replace(_over("budget", route, text), replaced=breach_is_forecast))
    return tuple(endings)


def _after_comparison(
    event: events.RolloutMove | events.RolloutUndo | events.ExperimentEnd,
) -> tuple[AlertResolution, ...]:
    if isinstance(event, events.ExperimentEnd):
        name = f"{event.experiment}:{event.run}"
        return (_over("experiment", "", f"{event.author} ended it: {event.reason}", name=name),)
    if isinstance(event, events.RolloutUndo):
        return (_over("version", event.route, f"{event.author} took the version back"),)
    route, move = event.route, event.transition
    did = {"resume": "went on", "promote": "moved to its next step", "roll_back": "was rolled back"}.get(move.move)
    if did is None:
        return ()
    split = _over("lot", route, f"the rollout {did}: {move.reason}", name=move.rollout)
    if move.stage != "full":
        return (split,)
    return split, _over("version", route, f"rollout {move.rollout} has activated another version")


def _over(
    of: CauseKind, route: str, because: str, *, name: str | None = None, before: int | None = None
) -> AlertResolution:
    return AlertResolution(of, route, plain(because, MOST_TEXT), name, before)


MOST: Final = 200  # alerts kept
FIRST_ROWS: Final = 1_000  # where a first reading begins: rows of the kinds that always raise an alert …
FIRST_LOOKS: Final = 300  # … and looks, few of which do
ALL_ROWS: Final = 2**31  # PostgreSQL has no negative limits
SETTLED_S: Final = 300.0  # an alert must be resolved for this long before anybody is notified of that …
STALE_S: Final = 86_400.0  # … and nobody is notified of resolutions older than this


@dataclass(frozen=True, slots=True, kw_only=True)
class SinkReceipt:
    sink: str
    at_s: float  # Unix time


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertEnd:
    at_s: float  # Unix time
    because: str  # one line of plain text; "": resolved when raised
    replaced: bool = False  # superseded by something with a notice of its own


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenAlert:
    seq: int  # place in the log of its event
    at_s: float  # Unix time at which the log accepted the event
    notice: Notice
    n_again: int = 0  # repetitions within the time in which it is not sent again
    latest_at_s: float  # of the last repetition
    taken: tuple[SinkReceipt, ...] = ()  # sinks that received it, in order
    resolution_sinks: tuple[str, ...] = ()  # sinks notified since that it is resolved
    cause: AlertCause | None = None  # what keeps it open; None: resolved when raised
    ended: AlertEnd | None = None  # by a row; None: by none

    def over(self, now_s: float) -> AlertEnd | None:
        if self.ended is not None:
            return self.ended
        if self.cause is None:
            return AlertEnd(at_s=self.latest_at_s, because="")
        until_s = self.cause.until_s
        if until_s is None or now_s < until_s:
            return None
        # A row written after the time it is about arrived late, and is resolved then.
        return AlertEnd(at_s=max(until_s, self.latest_at_s), because="it did not recur")

    def due_resolution(self, sink: str, now_s: float) -> AlertEnd | None:
        """Return the resolution of which a sink must now be notified; None: nothing is due."""
        over = self.over(now_s)
        if over is None or not over.because or over.replaced or not SETTLED_S <= now_s - over.at_s <= STALE_S:
            return None
        by_itself = self.cause is not None and self.cause.of == "kill_switch"
        knows = any(one.sink == sink for one in self.taken) and sink not in self.resolution_sinks
        return over if knows and not by_itself else None


@dataclass(frozen=True, slots=True, kw_only=True)
class SinkState:
    since_seq: int  # place in the log at which it was enabled: earlier rows were never sent
    since_s: float  # Unix time
    read_to_seq: int  # the last row sent to it; equal to `since_seq`: none
    n_taken: int  # notices received, as far as this reading goes back


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertLog:
    repeat_s: float
    seq: int = 0
    raised: tuple[OpenAlert, ...] = ()  # oldest first
    sinks: Mapping[str, SinkState] = field(default_factory=dict)
    of: Mapping[int, int] = field(default_factory=dict)  # place of a row → place of the alert that it belongs to


def due_resolution(log: AlertLog, sink: str, now_s: float) -> tuple[OpenAlert, AlertEnd] | None:
    """Return the oldest alert whose resolution is due at a sink; of repeated ones the latest. None: nothing is due."""
    latest = {one.notice.same: one for one in log.raised}
    ends = ((one, one.due_resolution(sink, now_s)) for one in latest.values())
    return next(((one, over) for one, over in ends if over is not None), None)


def read_alert_log(connection: views.LogReader, known: AlertLog) -> AlertLog:
    last = views.last_place(connection)  # rows written meanwhile are read the next time
    if last <= known.seq:
        return known
    rows = list[StoredEvent]()
    for kind in (*READS, *ENDS, "alert_sent"):
        most = ALL_ROWS if known.seq else FIRST_LOOKS if kind == "route_monitored" else FIRST_ROWS
        rows += views.query_events(connection, "newest_of_rare_kind", (kind, known.seq, last, most))
    return replace(after(known, sorted((one.seq, one.at_s, one.event) for one in rows)), seq=last)


def after(known: AlertLog, rows: Iterable[tuple[int, float, Event]]) -> AlertLog:
    raised = {one.seq: one for one in known.raised}
    newest = {one.notice.same: one.seq for one in known.raised}
    sinks = dict(known.sinks)
    of = dict(known.of)
    last = known.seq
    for seq, at_s, event in rows:
        last = seq
        if isinstance(event, events.AlertDelivery):
            _take(event, at_s, raised, sinks, of)
            continue
        _end(event, at_s, raised)
        alert = alert_of(event)
        if alert is None:
            continue
        notice, cause = alert
        before = raised.get(newest.get(notice.same, 0))
        # A sink notified of the resolution is notified at once that the alert is back.
        if before is not None and not before.resolution_sinks and at_s - before.at_s < known.repeat_s:
            again = before.n_again + 1
            raised[before.seq] = replace(before, n_again=again, latest_at_s=at_s, cause=cause, ended=None)
            of[seq] = before.seq
        else:
            raised[seq] = OpenAlert(seq=seq, at_s=at_s, notice=notice, latest_at_s=at_s, cause=cause)
            newest[notice.same] = of[seq] = seq
    kept = _kept(raised)
    names = {one.seq for one in kept}
    of = {seq: place for seq, place in of.items() if place in names}
    return replace(known, seq=last, raised=kept, sinks=sinks, of=of)


def _kept(raised: Mapping[int, OpenAlert]) -> tuple[OpenAlert, ...]:
    alerts = tuple(raised.values())
    if len(alerts) <= MOST:
        return alerts
    first_gone = sorted(alerts, key=lambda one: one.ended is None and one.cause is not None)
    gone = {one.seq for one in first_gone[: len(alerts) - MOST]}
    return tuple(one for one in alerts if one.seq not in gone)


def _end(event: Event, at_s: float, raised: dict[int, OpenAlert]) -> None:
    for end in resolutions_of(event):
        for one in tuple(raised.values()):
            if one.ended is None and one.cause is not None and end.ends(one.cause):
                raised[one.seq] = replace(one, ended=AlertEnd(at_s=at_s, because=end.because, replaced=end.replaced))


def _take(
    event: events.AlertDelivery,
    at_s: float,
    raised: dict[int, OpenAlert],
    sinks: dict[str, SinkState],
    of: Mapping[int, int],
) -> None:
    now = sinks.get(event.sink)
    if now is None:
        # A reading that begins in the middle misses the beginning: it came before the sink's first notice.
        since = event.read_to_seq if not event.of else 0
        now = SinkState(since_seq=since, since_s=at_s, read_to_seq=event.read_to_seq, n_taken=0)
    taken = int(bool(event.of))
    sinks[event.sink] = replace(now, read_to_seq=event.read_to_seq, n_taken=now.n_taken + taken)
    about = raised.get(event.over or of.get(event.read_to_seq, 0))
    if not taken or about is None:
        return
    if event.over:
        raised[about.seq] = replace(about, resolution_sinks=(*about.resolution_sinks, event.sink))
        return
    raised[about.seq] = replace(
        about,
        taken=(*about.taken, SinkReceipt(sink=event.sink, at_s=at_s)),
        resolution_sinks=tuple(one for one in about.resolution_sinks if one != event.sink),
    )


def read_alert_rows(connection: views.LogReader, since_seq: int, n: int) -> list[StoredEvent]:
    return views.query_events(connection, "alert_rows", (since_seq, n))


def deliveries_to(connection: views.LogReader, sink: str, n: int) -> list[events.AlertDelivery]:
    return views.newest_events(connection, events.AlertDelivery, n, prefix=sink)


@dataclass(frozen=True, slots=True, kw_only=True)
class SentNotice:
    at_s: float  # Unix time at which it was sent
    about_s: float  # … at which the log accepted the event
    sink: str
    notice: Notice


def sent_notices(path: LogLocation, n: int) -> list[SentNotice]:
    notices = list[SentNotice]()
    with views.open_reader(path) as connection:
        for stored in views.read_events_where(connection, "kind = 'alert_sent' ORDER BY seq DESC LIMIT ?", (n,)):
            delivery = stored.event
            assert isinstance(delivery, events.AlertDelivery)
            about = (
                views.read_events_where(connection, "seq = ?", (delivery.over or delivery.read_to_seq,))
                if delivery.of
                else ()
            )
            for notice in filter(None, (alerts_of(one.event) for one in about)):
                about_notice = replace(notice, over=bool(delivery.over))
                notices.append(
                    SentNotice(at_s=stored.at_s, about_s=delivery.about_s, sink=delivery.sink, notice=about_notice)
                )
    return notices[::-1]

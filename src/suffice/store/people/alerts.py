"""Alerts: which rows of the log are worth waking somebody for, who was told of each, and which are over.

    rows worth telling ──▶ alerts_of ──▶ OpenAlert, or once more the same ──┐
    rows that end something ──▶ endings_of ──▶ over, and why ───────────────┼──▶ AlertLog
    `alert_sent` rows ──▶ which sink took it, and when ─────────────────────┘

An alert is over when what it told of is: a route that runs in full since an alarm does so until something may stop
early on it again. A version that a gateway can load again is in no row: its alert stands until another is in force.
Only the latest alerts are kept: a log of a year begins near its end, and a forecast that was over before the looks that
are read there is said to be over at the first of them. Names of routes and reasons are what strangers wrote: a notice
holds them as one line of plain text.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Literal, TypeAlias, get_args
from urllib.parse import quote

from suffice.assurance.forecast import Alert, Of, Outlook
from suffice.review.holds import Incident, IncidentDecision
from suffice.rollout.stages import EVIDENCE
from suffice.sanitize import printable
from suffice.settings import AlertKind
from suffice.store.database.log import StoredEvent
from suffice.store.database.views import LogReader, decoded, open_reader, stored_events
from suffice.store.routes.rollups import HOUR_S
from suffice.store.routes.windows import last_place
from suffice.store.rows.events import EVENTS, Event, key_of
from suffice.store.rows.records import (
    AlertDelivery,
    FailOpenCount,
    KillSwitchState,
    LogOutage,
    RolloutMove,
    RolloutUndo,
    VersionRefusal,
)
from suffice.types import Alarm, Epoch, Pause, Publication, Resumption

NEARLY: Final = 0.8  # of the budget: from there on it is nearly spent
MOST_TEXT: Final = 600  # characters of a sentence
MOST_NAME: Final = 120  # … of a route's name
READS: Final = (
    "route_monitored",
    "alert_raised",
    "alarm_raised",
    "enforcement_paused",
    "incident_opened",
    "kill_switched",
    "rollout_moved",
    "rollout_undone",
    "fail_open_high",
    "version_refused",
    "log_missed",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    kind: AlertKind | Literal["test"]  # a test is told by hand only
    route: str  # "": about all of them
    sentence: str  # one line of plain text
    same: str  # two notices with the same one are the same alert again
    path: str  # of the console's page about it
    over: bool = False  # it says that such an alert is over, and why


def alerts_of(event: Event) -> Notice | None:
    """What an event tells; None: nothing that anybody should be woken for."""
    match event:
        case Alert() as alert:
            return _notice("breach_forecast", alert.route, alert.reason, alert.of, _page(alert.route))
        case Alarm() as alarm:
            kind: AlertKind = "sample_ratio" if alarm.cause == "sample_ratio" else "drift"
            said = f"{alarm.reason}; its certificate has ended and it runs in full"
            return _notice(kind, alarm.route, said, alarm.cause, _page(alarm.route))
        case Pause() as pause:
            name = f"{pause.route}:p{pause.number}"
            return _notice("incident", pause.route, f"enforcement is paused: {pause.reason}", name, "/incidents")
        case Incident() as incident:
            return _notice("incident", incident.route, incident.summary, incident.incident, "/incidents")
        case KillSwitchState() as switching:
            said = f"the kill switch is {'pulled' if switching.on else 'released'}: {switching.reason}"
            return _notice("kill_switch", "", said, f"{switching.on}:{switching.stamp}", "")
        case FailOpenCount() as failed:
            share = failed.n_degraded / failed.n_runs
            said = f"failed open in {failed.n_degraded:,} of {failed.n_runs:,} runs within an hour ({share:.1%})"
            return _notice("fail_open", failed.route, said, "", _page(failed.route))
        case VersionRefusal() | LogOutage():
            return _of_serving(event)
        case Outlook() | RolloutMove() | RolloutUndo():
            return _of_budget(event) if isinstance(event, Outlook) else _of_rollout(event)
        case _:
            return None


def _of_serving(event: VersionRefusal | LogOutage) -> Notice:
    if isinstance(event, VersionRefusal):
        what = f"publication {event.number}" if event.number else f"version {event.fit}"
        said = f"{what} cannot be served: {event.reason}; {event.serves}"
        return _notice("version_refused", event.route, said, str(event.number or event.fit), _page(event.route))
    said = (
        f"a gateway was without its log for {event.until_s - event.since_s:,.0f} s and served {event.after}:"
        f" {event.reason}; {event.n_dropped:,} rows are lost"
    )
    return _notice("log_missed", "", said, key_of(event), "")


def _of_budget(event: Outlook) -> Notice | None:
    drop = event.drop
    # A breach that is forecast has been told already, by its own row.
    if drop is None or drop.limit <= 0 or drop.now < NEARLY * drop.limit or "em_drop" in event.alerts:
        return None
    said = f"the EM drop is about {drop.now:.2%}, and the budget {drop.limit:.2%}: {drop.now / drop.limit:.0%} of it"
    return _notice("budget_nearly_spent", event.route, said, "", _page(event.route))


def _of_rollout(event: RolloutMove | RolloutUndo) -> Notice | None:
    if isinstance(event, RolloutUndo):
        said = f"the version of rollout {event.rollout} was taken back by {event.author}: {event.reason}"
        return _notice("rollback", event.route, said, event.rollout, "/policies")
    route, move = event.route, event.transition
    if move.move == "roll_back":
        said = f"rollout {move.rollout} was rolled back by {move.by}: {move.reason}"
        return _notice("rollback", route, said, move.rollout, "/policies")
    if move.move == "pause" and move.by == EVIDENCE:
        said = f"the arms of rollout {move.rollout} cannot be compared: {move.reason}"
        return _notice("sample_ratio", route, said, move.rollout, "/policies")
    return None


def _notice(kind: AlertKind, route: str, said: str, of: str, path: str) -> Notice:
    sentence = plain(said, MOST_TEXT)
    return Notice(kind=kind, route=plain(route, MOST_NAME), sentence=sentence, same=f"{kind}:{route}:{of}", path=path)


def _page(route: str) -> str:
    return f"/route?name={quote(route.encode('utf-8', 'backslashreplace'), safe='')}"


def plain(text: str, most: int) -> str:
    """One line as it may be shown, cut where it is too long."""
    line = printable(text[: most + 1])
    return line if len(line) <= most else f"{line[: most - 1]}…"


What: TypeAlias = Literal[
    "forecast", "budget", "certificate", "pause", "incident", "kill_switch", "lot", "version", "fail_open"
]
# Kinds that end something and tell nothing; some of those that tell something end something, too.
ENDS: Final = ("enforcement_resumed", "incident_decided", "policy_published", "epoch_began")


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    of: What
    route: str = ""  # "": of all of them
    name: str = ""  # of the one, where several of them may stand
    number: int = 0  # of the epoch that it ended
    until_s: float | None = None  # Unix time at which it is over by itself; None: a row has to say so


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertResolution:
    of: What
    route: str
    because: str  # one line of plain text
    name: str | None = None  # of the one that is over; None: all of them
    before: int | None = None  # those of a smaller number; None: all of them
    replaced: bool = False  # something else stands in its place, which is told by itself

    def ends(self, trouble: Trouble) -> bool:
        return (
            (self.of, self.route) == (trouble.of, trouble.route)
            and self.name in (None, trouble.name)
            and (self.before is None or trouble.number < self.before)
        )


def trouble_of(event: Event) -> Trouble | None:
    """What stands from an event on that is told; None: nothing does, it is over as it is told."""
    match event:
        case Alert() as alert:
            return Trouble(of="forecast", route=alert.route, name=alert.of)
        case Outlook() as outlook:
            return Trouble(of="budget", route=outlook.route)
        case Alarm() as alarm:
            return Trouble(of="certificate", route=alarm.route, number=alarm.epoch)
        case Pause() as pause:
            return Trouble(of="pause", route=pause.route, name=str(pause.number))
        case Incident() as incident:
            return Trouble(of="incident", route=incident.route, name=incident.incident)
        case KillSwitchState() as switching if switching.on:
            return Trouble(of="kill_switch")
        case RolloutMove() as moved if moved.transition.move == "pause" and moved.transition.by == EVIDENCE:
            return Trouble(of="lot", route=moved.route, name=moved.transition.rollout)
        case FailOpenCount() as failed:
            return Trouble(of="fail_open", route=failed.route, until_s=float((failed.hour + 1) * HOUR_S))
        case VersionRefusal() as told:
            return Trouble(of="version", route=told.route)
        case _:
            return None


def endings_of(event: Event) -> tuple[AlertResolution, ...]:
    """What is over with an event, of all that was told before it."""
    match event:
        case Outlook() as outlook:
            return _after_look(outlook)
        case Alarm() | Epoch() | Publication():
            return _of_certificate(event)
        case Resumption() as end:
            return (_over("pause", end.route, f"{end.author} resumed it: {end.reason}", name=str(end.number)),)
        case IncidentDecision() as decided:
            said = f"{decided.author} decided to {decided.decision.replace('_', ' ')}: {decided.reason}"
            return (_over("incident", decided.route, said, name=decided.incident),)
        case KillSwitchState() as switching if not switching.on:
            return (_over("kill_switch", "", f"released: {switching.reason}"),)
        case RolloutUndo() as undone:
            return (_over("version", undone.route, f"{undone.author} took the version back"),)
        case RolloutMove():
            return _after_move(event)
        case _:
            return ()


def _of_certificate(event: Alarm | Epoch | Publication) -> tuple[AlertResolution, ...]:
    if isinstance(event, Alarm):
        later = _over("certificate", event.route, "a later event says more", before=event.epoch)
        return (replace(later, replaced=True),)
    if isinstance(event, Epoch):
        version = _over("version", event.route, f"epoch {event.number} began: the version is in force no more")
        # An alarm ends one event and begins the next; what began another one behind that was a person's word.
        again = _over("certificate", event.route, f"epoch {event.number}: {event.reason}", before=event.number - 1)
        return version, again
    made = event
    version = _over("version", made.route, f"publication {made.number} took its place")
    if not (made.may_act and made.level):
        return (version,)
    said = f"publication {made.number} lets it stop early again"
    return version, _over("certificate", made.route, said, before=made.epoch)


def _after_look(outlook: Outlook) -> tuple[AlertResolution, ...]:
    """A look that forecasts a breach no more, or that does not find the budget nearly spent."""
    endings = [
        _over("forecast", outlook.route, "the forecast crosses the limit no more", name=of)
        for of in get_args(Of)
        if of not in outlook.alerts
    ]
    if alerts_of(outlook) is None:
        drop = outlook.drop
        if drop is None:
            said = "too little is known of its EM drop since then"
        elif "em_drop" in outlook.alerts:
            said = "since then a breach is forecast"
        else:
            said = f"since then the EM drop is about {drop.now:.2%}, of {drop.limit:.2%}"
        endings.append(replace(_over("budget", outlook.route, said), replaced="em_drop" in outlook.alerts))
    return tuple(endings)


def _after_move(event: RolloutMove) -> tuple[AlertResolution, ...]:
    """A rollout whose lot was broken is looked at anew; one that has reached everybody serves another version."""
    route, move = event.route, event.transition
    did = {"resume": "went on", "promote": "took its next step", "roll_back": "was rolled back"}.get(move.move)
    if did is None:
        return ()
    lot = _over("lot", route, f"the rollout {did}: {move.reason}", name=move.rollout)
    if move.stage != "full":
        return (lot,)
    return lot, _over("version", route, f"rollout {move.rollout} has brought another version")


def _over(of: What, route: str, because: str, *, name: str | None = None, before: int | None = None) -> AlertResolution:
    return AlertResolution(of=of, route=route, because=plain(because, MOST_TEXT), name=name, before=before)


MOST: Final = 200  # alerts that are remembered
FIRST_ROWS: Final = 1_000  # of the kinds that tell something each time …
FIRST_LOOKS: Final = 300  # … and of looks, of which few do: where a first reading begins
SETTLED_S: Final = 300.0  # so long must an alert be over before anybody is told so …
STALE_S: Final = 86_400.0  # … and what has been over for longer than this is told to nobody any more

# The index of kinds: their rows are few, and what stands between them is not looked at.
_SEQS: Final = """
    SELECT seq FROM events INDEXED BY events_once WHERE kind = ? AND seq > ? AND seq <= ? ORDER BY seq DESC LIMIT ?"""
_ROW: Final = "SELECT seq, at_s, kind, body FROM events WHERE seq = ?"
_WORTH_TELLING: Final = f"""
    SELECT seq, at_s, kind, body FROM events INDEXED BY events_once
    WHERE kind IN ({", ".join("?" * len(READS))}) AND seq > ? ORDER BY seq LIMIT ?"""  # noqa: S608 - marks
_OF_SINK: Final = """
    SELECT seq, body FROM events WHERE kind = 'alert_sent' AND key >= ? AND key < ? ORDER BY key DESC LIMIT ?"""
_SENT: Final = "SELECT at_s, seq, body FROM events WHERE kind = 'alert_sent' ORDER BY seq DESC LIMIT ?"


@dataclass(frozen=True, slots=True, kw_only=True)
class SinkReceipt:
    sink: str
    at_s: float  # Unix time


@dataclass(frozen=True, slots=True, kw_only=True)
class Over:
    at_s: float  # Unix time
    because: str  # one line of plain text; "": it was over as it was told
    replaced: bool = False  # something else stands in its place, which is told by itself


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenAlert:
    """One alert, and how often the same one came again while it was not told anew."""

    seq: int  # place in the log of what it is about
    at_s: float  # Unix time at which the log took that
    notice: Notice
    n_again: int = 0  # as often the same came within the time in which nobody is told it again
    latest_at_s: float  # of the last of them
    taken: tuple[SinkReceipt, ...] = ()  # in the order in which they took it
    told_over: tuple[str, ...] = ()  # sinks that were told since that it is over
    trouble: Trouble | None = None  # what stands from it on; None: nothing did
    ended: Over | None = None  # as rows say; None: none does

    def over(self, now_s: float) -> Over | None:
        """How it ended, by a row or by itself; None: it stands."""
        if self.ended is not None:
            return self.ended
        if self.trouble is None:
            return Over(at_s=self.latest_at_s, because="")
        until_s = self.trouble.until_s
        if until_s is None or now_s < until_s:
            return None
        # What is written behind the time that it is about has been told late, and is over then.
        return Over(at_s=max(until_s, self.latest_at_s), because="it did not come again")

    def owed(self, sink: str, now_s: float) -> Over | None:
        """How it ended, where a sink was told of it and is now to be told of its end; None: it is owed nothing now.

        Whoever pulls a kill switch is heard by a notice of its own when it is released.
        """
        over = self.over(now_s)
        if over is None or not over.because or over.replaced or not SETTLED_S <= now_s - over.at_s <= STALE_S:
            return None
        by_itself = self.trouble is not None and self.trouble.of == "kill_switch"
        knows = any(one.sink == sink for one in self.taken) and sink not in self.told_over
        return over if knows and not by_itself else None


@dataclass(frozen=True, slots=True, kw_only=True)
class SinkState:
    since_seq: int  # place in the log at which it began: what stands before was never told
    since_s: float  # Unix time
    read_to_seq: int  # it was told of that row last; equal to `since_seq`: of none
    n_taken: int  # notices that it took, as far as this reading goes back


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertLog:
    """The latest alerts, as far as the log has been read. `repeat_s` is the one of the settings."""

    repeat_s: float
    seq: int = 0
    raised: tuple[OpenAlert, ...] = ()  # oldest first
    sinks: Mapping[str, SinkState] = field(default_factory=dict)
    of: Mapping[int, int] = field(default_factory=dict)  # place of a row → that of the alert that it belongs to


def owed(told: AlertLog, sink: str, now_s: float) -> tuple[OpenAlert, Over] | None:
    """The oldest alert of whose end a sink is to be told now; of one that was told again, the latest. None: none."""
    latest = {one.notice.same: one for one in told.raised}
    ends = ((one, one.owed(sink, now_s)) for one in latest.values())
    return next(((one, over) for one, over in ends if over is not None), None)


def read_told(connection: LogReader, known: AlertLog) -> AlertLog:
    """The alerts now, given what was known before. Raises StoreError."""
    last = last_place(connection)  # what is written meanwhile is for the next time
    if last <= known.seq:
        return known
    rows = [connection.execute(_ROW, (seq,)).fetchone() for seq in _new(connection, known.seq, last)]
    found = after(known, ((seq, at_s, decoded(seq, EVENTS[kind], body)) for seq, at_s, kind, body in rows))
    return replace(found, seq=last)


def _new(connection: LogReader, since_seq: int, last: int) -> list[int]:
    places = list[int]()
    for kind in (*READS, *ENDS, "alert_sent"):
        most = -1 if since_seq else FIRST_LOOKS if kind == "route_monitored" else FIRST_ROWS
        places += [seq for (seq,) in connection.execute(_SEQS, (kind, since_seq, last, most))]
    return sorted(places)


def after(known: AlertLog, rows: Iterable[tuple[int, float, Event]]) -> AlertLog:
    """What is known after more rows: place, Unix time and event of each, in the log's order."""
    raised = {one.seq: one for one in known.raised}
    newest = {one.notice.same: one.seq for one in known.raised}
    sinks, of, last = dict(known.sinks), dict(known.of), known.seq
    for seq, at_s, event in rows:
        last = seq
        if isinstance(event, AlertDelivery):
            _take(event, at_s, raised, sinks, of)
            continue
        _end(event, at_s, raised)
        notice = alerts_of(event)
        if notice is None:
            continue
        before = raised.get(newest.get(notice.same, 0))
        # Whoever has been told that it is over hears at once that it is back.
        if before is not None and not before.told_over and at_s - before.at_s < known.repeat_s:
            raised[before.seq] = replace(
                before, n_again=before.n_again + 1, latest_at_s=at_s, trouble=trouble_of(event), ended=None
            )
            of[seq] = before.seq
        else:
            raised[seq] = OpenAlert(seq=seq, at_s=at_s, notice=notice, latest_at_s=at_s, trouble=trouble_of(event))
            newest[notice.same] = of[seq] = seq
    kept = _kept(raised)
    names = {one.seq for one in kept}
    return AlertLog(
        repeat_s=known.repeat_s,
        seq=last,
        raised=kept,
        sinks=sinks,
        of={seq: place for seq, place in of.items() if place in names},
    )


def _kept(raised: Mapping[int, OpenAlert]) -> tuple[OpenAlert, ...]:
    """Those that are remembered, oldest first: what is over is forgotten before what stands."""
    told = tuple(raised.values())
    if len(told) <= MOST:
        return told
    first_gone = sorted(told, key=lambda one: one.ended is None and one.trouble is not None)
    gone = {one.seq for one in first_gone[: len(told) - MOST]}
    return tuple(one for one in told if one.seq not in gone)


def _end(event: Event, at_s: float, raised: dict[int, OpenAlert]) -> None:
    endings = endings_of(event)
    for one in [each for each in raised.values() if endings and each.ended is None and each.trouble is not None]:
        said = next((ending for ending in endings if one.trouble is not None and ending.ends(one.trouble)), None)
        if said is not None:
            raised[one.seq] = replace(one, ended=Over(at_s=at_s, because=said.because, replaced=said.replaced))


def _take(
    event: AlertDelivery, at_s: float, raised: dict[int, OpenAlert], sinks: dict[str, SinkState], of: Mapping[int, int]
) -> None:
    now = sinks.get(event.sink)
    if now is None:
        # A reading that begins in the middle does not see the beginning: it was before what the sink was told first.
        since = event.read_to_seq if not event.of else 0
        now = SinkState(since_seq=since, since_s=at_s, read_to_seq=event.read_to_seq, n_taken=0)
    taken = int(bool(event.of))
    sinks[event.sink] = replace(now, read_to_seq=event.read_to_seq, n_taken=now.n_taken + taken)
    about = raised.get(event.over or of.get(event.read_to_seq, 0))
    if not taken or about is None:
        return
    if event.over:
        raised[about.seq] = replace(about, told_over=(*about.told_over, event.sink))
        return
    raised[about.seq] = replace(
        about,
        taken=(*about.taken, SinkReceipt(sink=event.sink, at_s=at_s)),
        told_over=tuple(one for one in about.told_over if one != event.sink),
    )


def rows_worth_telling(connection: LogReader, since_seq: int, n: int) -> list[StoredEvent]:
    """The next rows behind a place that may tell something, at most `n`. Raises StoreError."""
    return stored_events(connection.execute(_WORTH_TELLING, (*READS, since_seq, n)).fetchall())


def deliveries_to(connection: LogReader, sink: str, n: int) -> list[AlertDelivery]:
    """What a sink took, the latest first. Raises StoreError."""
    rows = connection.execute(_OF_SINK, (f"{sink}:", f"{sink};", n)).fetchall()
    return [decoded(seq, AlertDelivery, body) for seq, body in rows]


@dataclass(frozen=True, slots=True, kw_only=True)
class SentNotice:
    at_s: float  # Unix time at which it was told
    about_s: float  # … at which the log took the event
    sink: str
    notice: Notice


def sent_notices(path: Path, n: int) -> list[SentNotice]:
    """The latest notices that were told, oldest first. Raises StoreError."""
    notices = list[SentNotice]()
    with open_reader(path) as connection:
        for at_s, seq, body in connection.execute(_SENT, (n,)).fetchall():
            delivery = decoded(seq, AlertDelivery, body)
            place = delivery.over or delivery.read_to_seq
            row = connection.execute(_ROW, (place,)).fetchone() if delivery.of else None
            notice = None if row is None else alerts_of(stored_events([row])[0].event)
            if notice is not None:
                notice = replace(notice, over=bool(delivery.over))
                notices.append(SentNotice(at_s=at_s, about_s=delivery.about_s, sink=delivery.sink, notice=notice))
    return notices[::-1]

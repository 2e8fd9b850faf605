"""Which alerts there were, who was told of each and which are over: a fold that says what the job `notify` says.

    rows worth telling ──▶ alerts_of ──▶ OpenAlert, or once more the same ──┐
    rows that end something ──▶ endings_of ──▶ over, and why ───────────────┼──▶ AlertLog
    rows of tellings ──▶ which sink took it, and when ──────────────────────┘

The latest ones only: a log of a year begins near its end, and a forecast that was over before the looks that are read
there is said to be over at the first of them. Refuses to know who should be told now: settings say that.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from suffice.store.database.views import decoded
from suffice.store.people.alert_resolution import ENDS, Trouble, endings_of, trouble_of
from suffice.store.people.notices import READS, Notice, alerts_of
from suffice.store.routes.windows import last_place
from suffice.store.rows.events import EVENTS, Event
from suffice.store.rows.records import AlertDelivery

MOST: Final = 200  # alerts that are remembered
FIRST_ROWS: Final = 1_000  # of the kinds that tell something each time …
FIRST_LOOKS: Final = 300  # … and of looks, of which few do: where a first reading begins
SETTLED_S: Final = 300.0  # so long must an alert be over before anybody is told so …
STALE_S: Final = 86_400.0  # … and what has been over for longer than this is told to nobody any more

# The index of kinds: their rows are few, and what stands between them is not looked at.
_SEQS: Final = """
    SELECT seq FROM events INDEXED BY events_once WHERE kind = ? AND seq > ? AND seq <= ? ORDER BY seq DESC LIMIT ?"""
_ROW: Final = "SELECT seq, at_s, kind, body FROM events WHERE seq = ?"


@dataclass(frozen=True, slots=True, kw_only=True)
class SinkReceipt:
    """A sink took a notice."""

    sink: str
    at_s: float  # Unix time


@dataclass(frozen=True, slots=True, kw_only=True)
class Over:
    """What an alert told of is over."""

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
    """What the log says of one sink."""

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


def read_told(connection: sqlite3.Connection, known: AlertLog) -> AlertLog:
    """The alerts now, given what was known before. Raises StoreError."""
    last = last_place(connection)  # what is written meanwhile is for the next time
    if last <= known.seq:
        return known
    rows = [connection.execute(_ROW, (seq,)).fetchone() for seq in _new(connection, known.seq, last)]
    found = after(known, ((seq, at_s, decoded(seq, EVENTS[kind], body)) for seq, at_s, kind, body in rows))
    return replace(found, seq=last)


def _new(connection: sqlite3.Connection, since_seq: int, last: int) -> list[int]:
    """Places of the rows that tell something, in the log's order."""
    found = list[int]()
    for kind in (*READS, *ENDS, "alert_sent"):
        most = -1 if since_seq else FIRST_LOOKS if kind == "route_monitored" else FIRST_ROWS
        found += [seq for (seq,) in connection.execute(_SEQS, (kind, since_seq, last, most))]
    return sorted(found)


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
    """What stood, and is over with this event."""
    endings = endings_of(event)
    for one in [each for each in raised.values() if endings and each.ended is None and each.trouble is not None]:
        said = next((ending for ending in endings if one.trouble is not None and ending.ends(one.trouble)), None)
        if said is not None:
            raised[one.seq] = replace(one, ended=Over(at_s=at_s, because=said.because, replaced=said.replaced))


def _take(
    event: AlertDelivery, at_s: float, raised: dict[int, OpenAlert], sinks: dict[str, SinkState], of: Mapping[int, int]
) -> None:
    """A sink was told of a row, or began to listen."""
    telling = event
    now = sinks.get(telling.sink)
    if now is None:
        # A reading that begins in the middle does not see the beginning: it was before what the sink was told first.
        since = telling.read_to_seq if not telling.of else 0
        now = SinkState(since_seq=since, since_s=at_s, read_to_seq=telling.read_to_seq, n_taken=0)
    taken = int(bool(telling.of))
    sinks[telling.sink] = replace(now, read_to_seq=telling.read_to_seq, n_taken=now.n_taken + taken)
    about = raised.get(telling.over or of.get(telling.read_to_seq, 0))
    if not taken or about is None:
        return
    if telling.over:
        raised[about.seq] = replace(about, told_over=(*about.told_over, telling.sink))
        return
    raised[about.seq] = replace(
        about,
        taken=(*about.taken, SinkReceipt(sink=telling.sink, at_s=at_s)),
        told_over=tuple(one for one in about.told_over if one != telling.sink),
    )

"""The audit log as people read it: who did what when, the state before and after, and why.

Where a record has no field for the state before, the previous row of its kind on that route supplies it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from suffice.agent.plan import AgentPlan, describe_class_plan
from suffice.formatting import format_time
from suffice.review.holds import Incident
from suffice.store.audit.chain import require_chain
from suffice.store.database.views import LogReader, LogSource, decoded, find_event, open_reader, read_pages
from suffice.store.rows import events
from suffice.store.rows.events import EVENTS, Event, kind_of
from suffice.store.rows.preferences import AlertMute, AlertRule, RuleAlert
from suffice.store.rows.watching import WatchLapse
from suffice.types import Epoch, Pause, Publication, Resumption

_WHO: Final = ("author", "reviewer", "source", "sender", "user")
_WHY: Final = ("reason", "why", "because", "summary", "comment")
_NAMED: Final = frozenset({*_WHO, *_WHY, "before", "after", "route"})
_MOST_TEXT: Final = 300  # characters of a state in words


@dataclass(frozen=True, slots=True)
class AuditEntry:
    place: int  # in the chain
    seq: int  # in the log
    at_s: float  # Unix time
    kind: str
    route: str | None
    episode_id: str | None
    who: str  # "": nobody is named
    before: str  # "": there was none, or no row has it
    after: str
    why: str
    link: str  # hexadecimal
    body: str  # the whole event as JSON, with its evidence


def read_latest_rows(
    source: LogSource, n: int, *, route: str | None = None, kind: str | None = None
) -> list[AuditEntry]:
    with open_reader(source) as connection:
        require_chain(connection)
        row = connection.execute("place_of_latest_entry", {"route": route, "kind": kind, "n": n}).fetchone()
        return list(entries(connection, after=0 if row is None else int(row[0]), route=route, kind=kind))


def entries(
    source: LogSource,
    *,
    after: int = 0,
    since_s: float | None = None,
    route: str | None = None,
    kind: str | None = None,
) -> Iterator[AuditEntry]:
    """Yield the chained rows after a place in the chain, in order. Raise StoreError."""
    with open_reader(source) as connection:
        require_chain(connection)
        for row in read_pages(
            connection, "audit_entries", {"route": route, "kind": kind, "since": since_s}, after=after
        ):
            yield entry_of(connection, row)


def rows_before(
    connection: LogReader, before: int, n: int, *, kinds: Collection[str], chained: bool
) -> list[tuple[Any, ...]]:
    """Return rows of some kinds for `entry_of` before a place in the log, latest first.

    chained  only those of the chain; False: the log has none, and the place in it is null
    """
    query = "entries_before" if {"request", "outcome", "feedback"} & {*kinds} else "rare_entries_before"
    rows = connection.execute(query, (before, n, chained), kinds=", ".join(map(repr, sorted(kinds))))
    return list(rows.fetchall())


def entry_of(connection: LogReader, row: tuple[Any, ...]) -> AuditEntry:
    """Turn a row (place, link, seq, at_s, kind, key, episode_id, route, body) into an entry. Raise StoreError."""
    place, link, seq, at_s, kind, _, episode_id, route, body = row
    who = before = why = ""
    after = "written by a later version"
    if kind in EVENTS:
        event = decoded(seq, EVENTS[kind], body)
        record = event.feedback if isinstance(event, events.FeedbackEvent) else event
        who, why = _first(record, _WHO), _first(record, _WHY)
        if isinstance(event, events.KillSwitchState) and event.ordered and why.endswith(")"):  # "reason (author)"
            why, _, who = why[:-1].rpartition(" (")
        before, after = describe_event(connection, event)
    return AuditEntry(
        place, seq, at_s, kind, route, episode_id, who, before, after, why, bytes(link or b"").hex(), body
    )


def describe_event(connection: LogReader, event: Event) -> tuple[str, str]:
    """Say the state before and after an event, in words."""
    record: Any = event.feedback if isinstance(event, events.FeedbackEvent) else event
    if isinstance(event, Publication):
        earlier = find_event(connection, Publication, f"{event.route}:{event.number - 1}")
        return "" if earlier is None else _published(earlier), _published(event)
    if isinstance(event, events.ConfigChange):
        return _changed(event)
    before, after = (
        "" if one is None else _words(one) for one in (getattr(record, "before", None), getattr(record, "after", None))
    )
    return (
        (before, after)
        if after
        else _decided(event) or _of_experiment(event) or _of_alerts(event) or (before, _list_fields(event, record))
    )


def _first(record: Any, names: tuple[str, ...]) -> str:
    return next((value for name in names if isinstance(value := getattr(record, name, None), str) and value), "")


def _decided(event: Event) -> tuple[str, str] | None:
    match event:
        case AgentPlan():
            return "", "; ".join(describe_class_plan(one) for one in event.classes)
        case Epoch(number=number):
            before = f"epoch {number - 1}" if number > 1 else ""
            return before, f"epoch {number}, {event.burst:,} requests run in full"
        case Pause():
            return "acting", f"paused: {event.cause}"
        case Resumption():
            return f"pause {event.number}", "acting"
        case events.Erasure():
            return event.what, f"{', '.join(event.parts)} erased in {event.n_rows:,} rows"
        case events.Export():
            return "", f"{event.what}: {event.n_rows:,} rows to {event.where}"
        case events.AccessGrant():
            return "", f"{event.name}: {event.what}" + (f" as {event.role}" if event.role else "")
        case Incident():
            return "", f"{event.incident}: {event.summary}"
        case events.KillSwitchState():
            states = ("released", "pulled: nothing is stopped on any route")
            return states if event.on else (states[1], states[0])
    return None


def _of_alerts(event: Event) -> tuple[str, str] | None:
    match event:
        case AlertRule():
            state = "" if event.enabled else ", switched off"
            where = f"on {event.route}" if event.route else "on each route"
            limit = f"{event.measure} {event.side} {event.limit:g} over {event.window_hours} h"
            return "", f"rule {event.rule}: {limit} {where}{state}"
        case RuleAlert():
            return "", f"rule {event.rule} {'is broken' if event.broken else 'is kept again'}: {event.sentence}"
        case WatchLapse(lapsed=lapsed):
            acts = "runs in full" if lapsed else "acts again"
            return "", f"what is certified {acts} at a gateway: {event.reason}"
        case AlertMute():
            return "", f"alerts of {event.kind or 'every kind'} muted until {format_time(event.until_s)}"
    return None


def _of_experiment(event: Event) -> tuple[str, str] | None:
    match event:
        case events.ProposedVersion():
            return event.parent or "", f"{event.address}: {event.verdict}, {event.why}; not active anywhere by itself"
        case events.RolloutStart(state=state):
            tried = f"{state.candidate} ({state.fit})" if state.fit else state.candidate
            return f"{state.active} serves", f"rollout {state.rollout}: {tried} is tried, in shadow"
        case events.RolloutMove(transition=move):
            return "", f"rollout {move.rollout}: {move.sentence}"
        case events.RolloutUndo():
            return "", f"rollout {event.rollout}: its version was taken back"
        case events.ExperimentStart(experiment=one):
            arms = ", ".join(f"{arm} {odds:.0%}" for arm, odds in one.odds().items())
            where = f"on {', '.join(one.routes)}, {one.share:.0%} of layer {one.layer}"
            return "", _cut(f"{one.name}, run {one.run}: {arms} {where}; {one.primary} decides")
        case events.WorseArm():
            return "", _cut(f"{event.experiment}, run {event.run}: {' '.join(event.summary)}")
        case events.ExperimentEnd():
            return f"{event.experiment}, run {event.run}, ran", _cut(" ".join(("ended.", *event.summary)))
    return None


def describe_level(made: Publication) -> str:
    return made.arm or f"level {made.level} of {max(0, made.n_levels - 1)}"


def _published(publication: Publication) -> str:
    vouched, version = "certified" if publication.certified else "not certified", publication.version or "none"
    return f"{describe_level(publication)}, {vouched}, version {version}"


def _changed(event: events.ConfigChange) -> tuple[str, str]:
    changes = event.changes
    if not changes:
        return "", f"{len(event.settings):,} settings recorded"
    sides = [(one.path, one.before) for one in changes], [(one.path, one.after) for one in changes]
    before, after = (
        _cut("; ".join(f"{path} = {'not set' if value is None else value}" for path, value in side)) for side in sides
    )
    return before, after


def _list_fields(event: Event, record: Any) -> str:
    plain = msgspec.to_builtins(record)
    fields = {key: value for key, value in plain.items() if key not in _NAMED and (value or value is False)}
    episode = kind_of(event).episode(event)
    return _cut(", ".join(f"{key} {_words(value)}" for key, value in fields.items() if value != episode))


def _words(value: Any) -> str:
    return _cut(value if isinstance(value, str) else msgspec.json.encode(value).decode())


def _cut(text: str) -> str:
    return text if len(text) <= _MOST_TEXT else f"{text[: _MOST_TEXT - 1]}…"

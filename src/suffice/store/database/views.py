"""Readers of the log: single events, events by kind, episodes with their labels.

A reader opens its own read-only connection or borrows one, and fetches in pages, so it never holds up the writer.
Labels come in the order in which the log received them; the last one is current. `assurance` interprets them.

Every reader here raises StoreError when the log is missing, is not ours, or holds a row that cannot be read.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Any, Final, NamedTuple, TypeAlias

import msgspec

from suffice.assurance.sampling import UnloggedRequests
from suffice.errors import StoreError
from suffice.store.database import schema
from suffice.store.database.location import LogLocation, database_at
from suffice.store.database.log import StoredEvent
from suffice.store.rows.events import (
    EVENTS,
    E,
    FeedbackEvent,
    KeyUsage,
    RequestCount,
    decode_as,
    indexed_id,
    kind_named,
)
from suffice.store.sql import LogReader as LogReader  # noqa: PLC0414 - its home for other packages
from suffice.store.sql import Values, in_snapshot, stream_rows
from suffice.types import (
    Episode,
    Feedback,
    Findings,
    JobRun,
    LabelRequest,
    Outcome,
    Publication,
    RecalledRun,
    Request,
    RouteFindings,
)

LogSource: TypeAlias = LogLocation | str | LogReader
LOOKED = 20  # rows scanned per row wanted: enough where a twentieth of the requests are audits, as usual
COUNTS = 1_000  # of requests without rows, summed where only their order of magnitude matters
LAST_SEQ: Final = 2**63 - 1  # no row has a later place
_PAGE_ROWS = 500

_COLUMNS = "seq, at_s, kind, body"
# Keys that begin with a name and sort by the rest: the unique index finds the newest at once. ";" follows ":".
_BY_PREFIX = """
    kind = :kind AND key > :prefix || ':' AND key < :prefix || ';' AND (CAST(:route AS TEXT) IS NULL OR route = :route)
    ORDER BY key DESC LIMIT :n"""

_EPISODES = """
    SELECT o.seq, r.seq, o.body, r.body, o.key, o.response_id
    FROM events o JOIN events r ON r.kind = 'request' AND r.key = o.key
    WHERE o.kind = 'outcome' AND o.seq > :after AND (o.seq > :since OR r.seq > :since)
        AND (CAST(:route AS TEXT) IS NULL OR r.route = :route)
    ORDER BY o.seq LIMIT :limit"""

# From the end of the table: through the index of kinds, SQLite would first sort all outcomes.
_RECENT = """
    SELECT o.seq, r.seq, o.body, r.body FROM (
        SELECT seq, key, body FROM events NOT INDEXED
        WHERE kind = 'outcome' AND seq > (SELECT max(seq) FROM events) - :looked ORDER BY seq DESC LIMIT :n
    ) o CROSS JOIN events r ON r.kind = 'request' AND r.key = o.key ORDER BY o.seq"""

# The same rule as the view `feedback`, inverted so that the indexes find a few labels at once.
_LABELS = """
    SELECT seq, at_s, body FROM events WHERE kind = 'feedback' AND episode_id = :episode AND seq <= :until
    UNION ALL
    SELECT seq, at_s, body FROM events
    WHERE kind = 'feedback' AND episode_id IS NULL AND seq <= :until
        AND response_id = :response
        AND (:shared OR (SELECT count(*) FROM events o WHERE o.kind = 'outcome' AND o.response_id = :response) = 1)
    ORDER BY seq"""

# The same for many runs at once, without response ids that two answers have.
_OF_EPISODES: Final = """
    SELECT episode_id, seq, at_s, body FROM events INDEXED BY feedback_by_episode
    WHERE kind = 'feedback' AND episode_id IN (SELECT value FROM json_each(:names, '$.of')) AND seq <= :until"""
_OF_RESPONSES: Final = """
    SELECT response_id, seq, at_s, body FROM events
    WHERE kind = 'feedback' AND episode_id IS NULL AND seq <= :until
        AND response_id IN (SELECT value FROM json_each(:names, '$.of'))"""
_ANSWERED: Final = """
    SELECT named.value,
        (SELECT key FROM events WHERE kind = 'outcome' AND response_id = named.value LIMIT 1) AS first_key,
        (SELECT key FROM events WHERE kind = 'outcome' AND response_id = named.value LIMIT 1 OFFSET 1) AS second_key
    FROM json_each(:names, '$.of') named"""
_BY_KEYS: Final = """
    SELECT key, seq, at_s, body FROM events
    WHERE kind = :kind AND key IN (SELECT value FROM json_each(:names, '$.of'))"""

# Bounded, so that start-up does not slow down as the log grows.
_AT_LEAST = """
    SELECT count(*) FROM (
        SELECT 1 FROM events INDEXED BY requests_by_route WHERE kind = 'request' AND route = ? LIMIT ?) latest"""
_AT_LEAST_UNKEPT = """
    SELECT coalesce(sum(n), 0) FROM (
        SELECT CAST(json_extract(body, '$.counted.n_requests') AS BIGINT) AS n FROM events INDEXED BY counted
        WHERE kind = 'requests_counted' AND route = ? ORDER BY seq DESC LIMIT ?) latest"""

# Runs that a policy merely did not stop are the hard ones: count only those that it could not stop.
_EXTRACTED = """
    SELECT json_extract(o.body, '$.outcome.answer') IS NOT NULL
    FROM events r INDEXED BY requests_by_route CROSS JOIN events o ON o.kind = 'outcome' AND o.key = r.key
    WHERE r.kind = 'request' AND r.route = :route AND o.seq > :since AND r.seq > coalesce((
            SELECT seq FROM events INDEXED BY requests_by_route WHERE kind = 'request' AND route = :route
            ORDER BY seq DESC LIMIT 1 OFFSET :looked
        ), 0)
        AND json_extract(r.body, '$.request.ungoverned') IS NULL
        AND (json_extract(r.body, '$.request.mode') <> 'enforce'
            OR CAST(json_extract(r.body, '$.request.audit') AS BOOLEAN))
        AND NOT CAST(json_extract(o.body, '$.outcome.stopped') AS BOOLEAN)
        AND json_extract(o.body, '$.outcome.end_reason') IN ('done', 'truncated')
    ORDER BY r.seq DESC LIMIT :limit"""

# A cross join reads the new rows and then their requests; SQLite would begin with all requests of the route.
_DRAWN: Final = """
    SELECT o.seq, r.seq, o.body, r.body, o.key, o.response_id
    FROM events o CROSS JOIN events r ON r.kind = 'request' AND r.key = o.key
    WHERE +o.kind = 'outcome' AND o.seq > ? AND o.seq <= ? AND r.route = ?
        AND json_extract(r.body, '$.request.kept_by') = 'lot' ORDER BY o.seq"""
_COUNTED: Final = """
    SELECT sum(CAST(json_extract(body, '$.counted.n_governed') AS BIGINT)) FROM events
    WHERE kind = 'requests_counted' AND route = ? AND seq > ?"""
_GOVERNED: Final = """
    SELECT count(*), count(*) FILTER (WHERE
        CAST(json_extract(body, '$.request.audit') AS BOOLEAN) OR json_extract(body, '$.request.mode') = 'observe'
    ) FROM events INDEXED BY requests_by_route WHERE kind = 'request' AND seq > ? AND route = ?
        AND json_extract(body, '$.request.ungoverned') IS NULL"""
_OPEN: Final = """
    route = :route
        AND (SELECT 1 FROM events f WHERE f.kind = 'feedback' AND f.episode_id = events.key LIMIT 1) IS NULL
        AND (SELECT 1 FROM events a WHERE a.kind = 'review_asked' AND a.key = events.key LIMIT 1) IS NULL
    ORDER BY seq DESC LIMIT :most"""
# With statistics of a log of few routes, SQLite would rather go through all of it.
_NEWEST: Final = """
    SELECT seq, body FROM events INDEXED BY requests_by_route WHERE kind = 'request' AND route = ?
    ORDER BY seq DESC LIMIT 1"""
_NTH_LATEST: Final = """
    SELECT seq FROM events INDEXED BY requests_by_route WHERE kind = 'request' AND route = ?
    ORDER BY seq DESC LIMIT 1 OFFSET ?"""
_FIRST: Final = """
    SELECT min(seq) - 1 FROM events INDEXED BY requests_by_route WHERE kind = 'request' AND route = ?"""


@dataclass(frozen=True, slots=True)
class StoredLabel:
    seq: int  # a later one replaces an earlier one
    feedback: Feedback
    at_s: float = 0.0  # Unix time at which the log received it; informative, and for delays
    about: RecalledRun | None = None  # its run, if it was sampled out of the log and its gateway still remembered it


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeWithLabels:
    seq: int  # of the later of its two rows; continue after the largest seen
    episode: Episode
    labels: tuple[StoredLabel, ...]  # oldest first; () without labels


# ---- queries -------------------------------------------------------------------------------------


def query_rows(source: LogSource, query: str, values: Values = ()) -> list[Any]:
    with open_reader(source) as reader:
        return reader.execute(query, values).fetchall()


def query_number(source: LogSource, query: str, values: Values = ()) -> int:
    return int(query_rows(source, query, values)[0][0] or 0)


def read_events_where(source: LogSource, condition: str, values: Values = (), *, index: str = "") -> list[StoredEvent]:
    """Return the events that match a condition, in its order; `index` replaces SQLite's own choice."""
    by = f" INDEXED BY {index}" if index else ""
    query = f"SELECT {_COLUMNS} FROM events{by} WHERE {condition}"  # noqa: S608 - constants of this package
    return [
        StoredEvent(seq=seq, at_s=at_s, event=decoded(seq, EVENTS[kind], body))
        for seq, at_s, kind, body in query_rows(source, query, values)
    ]


def select(source: LogSource, payload: type[E], condition: str, values: Values = (), *, index: str = "") -> list[E]:
    return [event for _, event in select_placed(source, payload, condition, values, index=index)]


def select_placed(
    source: LogSource, payload: type[E], condition: str, values: Values = (), *, index: str = ""
) -> list[tuple[int, E]]:
    # The kind is a literal as in the partial indexes, which SQLite ignores for a parameter.
    kind, by, within = kind_named(payload), "", ""
    if index:
        by, within = f"INDEXED BY {index}", f"{schema.kinds_in(schema.INDEXED_KINDS[index])} AND"
    query = f"SELECT seq, body FROM events {by} WHERE {within} kind = '{kind}' AND {condition}"  # noqa: S608 - constants
    return [(seq, decoded(seq, payload, body)) for seq, body in query_rows(source, query, values)]


def usage_of_others(source: LogSource, since_seq: int, *, owner: int) -> tuple[list[KeyUsage], int]:
    """Return what keys have spent at other processes since a place in the log, and the place up to which that is."""
    last = last_place(source)
    condition = "seq > ? AND seq <= ? AND owner <> ? ORDER BY seq"
    return select(source, KeyUsage, condition, (since_seq, last, owner)), last


def read_kinds(source: LogSource, *kinds: str) -> list[StoredEvent]:
    return read_events_where(source, f"{schema.kinds_in(kinds)} ORDER BY seq")


def read_newer(source: LogSource, index: str, since_seq: int) -> list[StoredEvent]:
    condition = f"seq > ? AND {schema.kinds_in(schema.INDEXED_KINDS[index])} ORDER BY seq"
    return read_events_where(source, condition, (since_seq,), index=index)


def newest_events(
    source: LogSource, payload: type[E], n: int = 1, *, prefix: str | None = None, route: str | None = None
) -> list[E]:
    """Return the latest events of a kind, newest first, of one route if given.

    prefix  only keys that begin with it and a colon, the last key first
    """
    prefix, kind = route if prefix is None else prefix, kind_named(payload)
    condition = "kind = :kind ORDER BY seq DESC LIMIT :n" if prefix is None else _BY_PREFIX
    query = f"SELECT seq, body FROM events WHERE {condition}"  # noqa: S608 - constants
    limit = LAST_SEQ if n < 0 else n  # PostgreSQL has no negative limit
    rows = query_rows(source, query, {"kind": kind, "prefix": prefix, "route": route, "n": limit})
    return [decoded(seq, payload, body) for seq, body in rows]


def newest_event(source: LogSource, payload: type[E], *, route: str | None = None) -> E | None:
    return next(iter(newest_events(source, payload, route=route)), None)


def latest_of(source: LogSource, kinds: Collection[str], n: int) -> list[StoredEvent]:
    """Return the latest `n` events of each kind, found by the index of kinds: for kinds with few rows."""
    events = [read_events_where(source, f"kind = '{kind}' ORDER BY seq DESC LIMIT ?", (n,)) for kind in kinds]
    return [one for rows in events for one in rows]


def newest_of(source: LogSource, kinds: Collection[str]) -> int:
    return query_number(source, f"SELECT max(seq) FROM events WHERE {schema.kinds_in(kinds)}")  # noqa: S608 - names of kinds


def last_place(source: LogSource) -> int:
    return query_number(source, "SELECT max(seq) FROM events")


class _Draw(msgspec.Struct):
    mode: str
    audit: bool
    propensity: float
    unit: str = ""
    delivery: int = 1


class _DrawnRequest(msgspec.Struct):
    request: _Draw


_NEWS: Final = """
    SELECT kind, route, CASE WHEN kind = 'request' THEN body END FROM events
    WHERE seq > ? AND kind NOT IN ('outcome', 'feedback') AND NOT (kind = 'request' AND owner = ?)"""
_DRAWS: Final = msgspec.json.Decoder(_DrawnRequest)


@dataclass(frozen=True, slots=True)
class NewRows:
    last: int  # place of the log's last row
    kinds: frozenset[tuple[str, str | None]]  # of the rows that say more than that a run began or ended, and routes
    deliveries: list[tuple[str, bool, float]]  # unit, audit and propensity of first ones on enforced routes


def read_news(reader: LogReader, since_seq: int, *, most: int, owner: int) -> NewRows:
    """Read what came after a place, the last `most` rows if that is 0, without the requests that `owner` wrote."""
    last = last_place(reader)
    read = query_rows if since_seq else stream_rows  # a poll finds few rows, and should cost one round trip
    kinds, first = set[tuple[str, str | None]](), list[tuple[str, bool, float]]()
    for kind, route, body in read(reader, _NEWS, (since_seq or last - most, owner)):
        if body is None:
            kinds.add((kind, route))
            continue
        one = _DRAWS.decode(body).request
        if one.mode == "enforce" and one.delivery == 1:
            first.append((one.unit, one.audit, one.propensity))
    return NewRows(last, frozenset(kinds), first)


def find_event(source: LogSource, payload: type[E], key: str) -> E | None:
    row = locate_event(source, payload, key)
    return None if row is None else row[2]


def locate_event(source: LogSource, payload: type[E], key: str) -> tuple[int, float, E] | None:
    query = "SELECT seq, at_s, body FROM events WHERE kind = ? AND key = ?"
    for seq, at_s, body in query_rows(source, query, (kind_named(payload), key)):
        return seq, at_s, decoded(seq, payload, body)
    return None


def find_keys(reader: LogReader, payload: type[E], prefix: str, most: int) -> list[str]:
    """Return the keys of events of one type that begin with a text, in order."""
    query = "SELECT key FROM events WHERE kind = ? AND key >= ? AND key < ? ORDER BY key LIMIT ?"
    end = prefix[:-1] + chr(ord(prefix[-1]) + 1)
    return [key for (key,) in query_rows(reader, query, (kind_named(payload), prefix, end, most))]


def episodes_of_response(reader: LogReader, response_id: str | None, *, most: int) -> list[str]:
    """Return the episodes with this response id, at most `most`; more than one makes the id ambiguous."""
    query = "SELECT key FROM events WHERE kind = 'outcome' AND response_id = ? LIMIT ?"
    return [key for (key,) in query_rows(reader, query, (indexed_id(response_id), most))]


class LogRow(NamedTuple):
    """A row as it is stored, for readers that need few of the bodies."""

    seq: int
    at_s: float
    kind: str
    key: str
    episode_id: str | None  # that it names
    route: str | None  # None: known only through the episode, or it concerns all
    body: str

    def stored(self) -> StoredEvent:
        """Decode the row. Raise StoreError."""
        return StoredEvent(seq=self.seq, at_s=self.at_s, event=decoded(self.seq, EVENTS[self.kind], self.body))


def read_log_rows(source: LogSource, *, since_seq: int = 0) -> Iterator[LogRow]:
    """Yield the rows after a place whose kinds this version knows."""
    columns = ", ".join(LogRow._fields)
    query = f"SELECT {columns} FROM events WHERE seq > :after ORDER BY seq LIMIT :limit"  # noqa: S608 - constants
    with open_reader(source) as connection:
        for row in read_pages(connection, query, {}, after=since_seq):
            if row[2] in EVENTS:
                yield LogRow(*row)


def read_events(source: LogSource, *, since_seq: int = 0) -> Iterator[StoredEvent]:
    return (row.stored() for row in read_log_rows(source, since_seq=since_seq))


def read_pages(reader: LogReader, query: str, values: Mapping[str, object], *, after: int) -> Iterator[Any]:
    """Yield the rows of a query from `:after` on, which their first column tells, `:limit` at a time."""
    while True:
        page = query_rows(reader, query, {**values, "after": after, "limit": _PAGE_ROWS})
        yield from page
        if len(page) < _PAGE_ROWS:
            return
        after = page[-1][0]


# ---- episodes and labels -------------------------------------------------------------------------


def read_episodes(
    source: LogSource, route: str | None = None, since_seq: int = 0, *, ended_after: int = 0
) -> Iterator[EpisodeWithLabels]:
    """Yield every run with both its rows, in the order in which the runs ended.

    route        only this route; "" for requests that matched none; None for all
    since_seq    only runs with a row after this place; a later label to an older run does not bring that run back
    ended_after  only runs whose outcome comes after this place; earlier rows are not scanned
    """
    with open_reader(source) as connection:
        for row in read_pages(connection, _EPISODES, {"since": since_seq, "route": route}, after=ended_after):
            yield _labelled(row[:4], read_labels(connection, *row[4:]))


def read_recent(source: LogSource, n: int) -> Iterator[Episode]:
    """Yield the `n` runs that ended last, oldest first and without labels; scans at most `LOOKED` rows per run."""
    with open_reader(source) as connection:
        for row in stream_rows(connection, _RECENT, {"n": n, "looked": LOOKED * n}):
            yield _labelled(row, ()).episode


def _labelled(row: tuple[int, int, str, str], labels: tuple[StoredLabel, ...]) -> EpisodeWithLabels:
    outcome_seq, request_seq, outcome, request = row
    episode = Episode(request=decoded(request_seq, Request, request), outcome=decoded(outcome_seq, Outcome, outcome))
    return EpisodeWithLabels(seq=max(outcome_seq, request_seq), episode=episode, labels=labels)


def read_labels(
    reader: LogReader,
    episode_id: str | None,
    response_id: str | None,
    *,
    until_seq: int = LAST_SEQ,
    shared: bool = False,
) -> tuple[StoredLabel, ...]:
    """Return a run's labels, oldest first.

    shared  include labels by a response id that no answer has, or more than one
    """
    wanted = {"episode": episode_id, "response": indexed_id(response_id), "until": until_seq, "shared": shared}
    rows = ((seq, at_s, decoded(seq, FeedbackEvent, body)) for seq, at_s, body in query_rows(reader, _LABELS, wanted))
    return tuple(StoredLabel(seq, given.feedback, at_s, given.about) for seq, at_s, given in rows)


def find_run(
    reader: LogReader, episode_id: str, *, until_seq: int = LAST_SEQ, shared: bool = False
) -> tuple[float, EpisodeWithLabels] | None:
    """Return when a run ended, as Unix time, and the run with its labels up to a place; `shared` as in `read_labels`.

    None: the log lacks one of its two rows.
    """
    request, ended = find_event(reader, Request, episode_id), locate_event(reader, Outcome, episode_id)
    if request is None or ended is None:
        return None
    seq, at_s, outcome = ended
    labels = read_labels(reader, episode_id, outcome.response_id, until_seq=until_seq, shared=shared)
    return at_s, EpisodeWithLabels(seq=seq, episode=Episode(request=request, outcome=outcome), labels=labels)


def find_runs(reader: LogReader, names: Iterable[str], *, until_seq: int) -> dict[str, tuple[float, EpisodeWithLabels]]:
    """Find many runs with a few queries; otherwise as `find_run`. Runs that lack a row are left out."""
    of = _named(names)
    requests, ended = (
        {key: (seq, at_s, body) for key, seq, at_s, body in query_rows(reader, _BY_KEYS, {"kind": kind, "names": of})}
        for kind in ("request", "outcome")
    )
    runs = dict[str, tuple[float, EpisodeWithLabels]]()
    for name in requests.keys() & ended.keys():
        (request_seq, _, request), (outcome_seq, at_s, outcome) = requests[name], ended[name]
        runs[name] = at_s, _labelled((outcome_seq, request_seq, outcome, request), ())
    responses = {name: run.episode.outcome.response_id for name, (_, run) in runs.items()}
    labels = _labels_of_many(reader, responses, until_seq)
    return runs | {name: (runs[name][0], replace(runs[name][1], labels=tuple(of))) for name, of in labels.items()}


def _labels_of_many(
    reader: LogReader, responses: Mapping[str, str | None], until_seq: int
) -> dict[str, list[StoredLabel]]:
    """Return the labels of runs, given as episode and response id, oldest first."""
    wanted = {"names": _named(responses), "until": until_seq}
    rows = query_rows(reader, _OF_EPISODES, wanted)
    by_response = query_rows(reader, _OF_RESPONSES, {**wanted, "names": _named(filter(None, responses.values()))})
    named = find_answers(reader, {response for response, *_ in by_response})
    rows += [(named[response], *row) for response, *row in by_response if named.get(response) in responses]
    labels = dict[str, list[StoredLabel]]()
    for name, seq, at_s, body in sorted(rows, key=itemgetter(1)):
        given = decoded(seq, FeedbackEvent, body)
        labels.setdefault(name, []).append(StoredLabel(seq, given.feedback, at_s, given.about))
    return labels


def find_answers(reader: LogReader, responses: Collection[str]) -> dict[str, str]:
    """Return the episode of each response id that exactly one answer has."""
    rows = query_rows(reader, _ANSWERED, {"names": _named(responses)}) if responses else ()
    return {response: first for response, first, second in rows if first is not None and second is None}


def _named(names: Iterable[str]) -> str:
    return msgspec.json.encode({"of": [*map(indexed_id, names)]}).decode()


def newest_request(source: LogSource, route: str) -> Request | None:
    return next((decoded(seq, Request, body) for seq, body in query_rows(source, _NEWEST, (route,))), None)


def has_requests(reader: LogReader) -> bool:
    query = "SELECT 1 FROM events INDEXED BY events_once WHERE kind IN ('request', 'requests_counted') LIMIT 1"
    return bool(query_rows(reader, query))


def n_requests_of(source: LogSource, routes: Collection[str], *, most: int) -> dict[str, int]:
    """Count the requests of each route, up to `most`; unlogged ones only in the latest `COUNTS` counts."""
    by_route = dict[str, int]()
    with open_reader(source) as connection:
        for route in routes:
            n = query_number(connection, _AT_LEAST, (route, most))
            if n < most:
                n += query_number(connection, _AT_LEAST_UNKEPT, (route, COUNTS))
            by_route[route] = min(most, n)
    return by_route


# ---- answers that could be extracted ----------------------------------------------------------------


def upstream_findings(source: LogSource) -> dict[str, Findings]:
    return {event.upstream: event for event in select(source, Findings, "TRUE ORDER BY seq")}


def route_findings(source: LogSource) -> dict[str, tuple[int, RouteFindings]]:
    return {event.route: (seq, event) for seq, event in select_placed(source, RouteFindings, "TRUE ORDER BY seq")}


def extracted_answers(source: LogSource, route: str, *, since_seq: int = 0, limit: int) -> list[bool]:
    """Return for each of the route's latest full runs, oldest first, whether it had an answer."""
    wanted = {"route": route, "since": since_seq, "limit": limit, "looked": LOOKED * limit}
    return [bool(one) for (one,) in reversed(query_rows(source, _EXTRACTED, wanted))]


# ---- one route within a range of the log ---------------------------------------------------------


def counted_cells(
    source: LogSource, route: str, *, since_seq: int = 0, until_seq: int | None = None
) -> Iterator[UnloggedRequests]:
    condition = "route = :route AND seq > :since AND (CAST(:until AS BIGINT) IS NULL OR seq <= :until) ORDER BY seq"
    for count in select(source, RequestCount, condition, {"route": route, "since": since_seq, "until": until_seq}):
        yield from count.cells


def drawn_runs(connection: LogReader, route: str, since_seq: int, until_seq: int) -> Iterator[EpisodeWithLabels]:
    for row in query_rows(connection, _DRAWN, (since_seq, until_seq, route)):
        yield _labelled(row[:4], read_labels(connection, *row[4:]))


# ---- requests, counted ---------------------------------------------------------------------------


def n_counted(connection: LogReader, route: str, seq: int) -> int:
    return query_number(connection, _COUNTED, (route, seq))


def counts_since(connection: LogReader, route: str, seq: int) -> tuple[int, int]:
    """Count a route's governed requests after a place, unlogged ones included, and those that nothing could stop."""
    n, n_full = query_rows(connection, _GOVERNED, (seq, route))[0]
    return n + n_counted(connection, route, seq), n_full


def requests_since(connection: LogReader, route: str, seq: int) -> int:
    return counts_since(connection, route, seq)[0]


def place_before(connection: LogReader, route: str, n_requests: int) -> int:
    """Return the place after which the latest `n_requests` requests of a route come, or fewer if there are fewer."""
    rows = query_rows(connection, _NTH_LATEST, (route, n_requests)) or query_rows(connection, _FIRST, (route,))
    return last_place(connection) if rows[0][0] is None else int(rows[0][0])


# ---- reports of jobs -----------------------------------------------------------------------------


def job_history(source: LogSource, *, n: int = 50) -> list[JobRun]:
    return newest_events(source, JobRun, n)[::-1]


def read_publications(connection: LogReader, route: str, *, epoch: int | None = None) -> list[tuple[int, Publication]]:
    made = select_placed(connection, Publication, "route = ? ORDER BY seq", (route,), index="decisions")
    return [one for one in made if epoch is None or one[1].epoch == epoch]


# ---- requested labels ----------------------------------------------------------------------------


def read_open_label_requests(connection: LogReader, route: str, *, most: int) -> list[LabelRequest]:
    return select(connection, LabelRequest, _OPEN, {"route": route, "most": most}, index="jobs")


def label_requests(connection: LogReader, route: str) -> dict[str, LabelRequest]:
    return {one.episode_id: one for one in select(connection, LabelRequest, "route = ?", (route,))}


# ---- connections ---------------------------------------------------------------------------------


@contextlib.contextmanager
def open_reader(source: LogSource, *, is_over: Callable[[], bool] | None = None) -> Iterator[LogReader]:
    """Yield the caller's own connection, or a read-only one; a query is interrupted when `is_over` returns True."""
    if isinstance(source, LogReader):
        yield source
        return
    with database_at(source).reader(is_over) as connection:
        yield connection


@contextlib.contextmanager
def snapshot(source: LogSource) -> Iterator[LogReader]:
    """Yield a reader of one state of the log, whatever other processes write."""
    with open_reader(source) as connection, in_snapshot(connection):
        yield connection


def decoded(seq: int, record: type[E], body: str) -> E:
    """Decode a stored body. Raise StoreError that names the row."""
    try:
        return decode_as(record, body)
    except ValueError as error:
        raise StoreError(f"store: row {seq} ({kind_named(record)}) cannot be read: {error}") from None

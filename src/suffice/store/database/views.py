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
from typing import Any, Final, Literal, NamedTuple, TypeAlias, cast

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
from suffice.store.sql import Values, in_snapshot
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
        return list(reader.execute(query, values))


def query_number(source: LogSource, query: str, values: Values = ()) -> int:
    return int(query_rows(source, query, values)[0][0] or 0)


def query_events(source: LogSource, query: str, values: Values = ()) -> list[StoredEvent]:
    """Return the events of a query for seq, at_s, kind and body, in its order."""
    return [
        StoredEvent(seq=seq, at_s=at_s, event=decoded(seq, EVENTS[kind], body))
        for seq, at_s, kind, body in query_rows(source, query, values)
    ]


def read_events_where(source: LogSource, condition: str, values: Values = ()) -> list[StoredEvent]:
    """Return the events that match a condition, in its order."""
    return query_events(source, f"SELECT {_COLUMNS} FROM events WHERE {condition}", values)  # noqa: S608 - constants


def select(source: LogSource, payload: type[E], condition: str, values: Values = ()) -> list[E]:
    return [event for _, event in select_placed(source, payload, condition, values)]


def select_placed(source: LogSource, payload: type[E], condition: str, values: Values = ()) -> list[tuple[int, E]]:
    # The kind is a literal as in the partial indexes, which SQLite ignores for a parameter.
    query = f"SELECT seq, body FROM events WHERE kind = '{kind_named(payload)}' AND {condition}"  # noqa: S608 - constants
    return [(seq, decoded(seq, payload, body)) for seq, body in query_rows(source, query, values)]


def usage_of_others(source: LogSource, since_seq: int, *, owner: int) -> tuple[list[KeyUsage], int]:
    """Return what keys have spent at other processes since a place in the log, and the place up to which that is."""
    last = last_place(source)
    condition = "seq > ? AND seq <= ? AND owner <> ? ORDER BY seq"
    return select(source, KeyUsage, condition, (since_seq, last, owner)), last


def read_kinds(source: LogSource, *kinds: str) -> list[StoredEvent]:
    return read_events_where(source, f"{schema.kinds_in(kinds)} ORDER BY seq")


def read_newer(source: LogSource, index: Literal["decisions", "holds", "reviews"], since_seq: int) -> list[StoredEvent]:
    return query_events(source, f"{index}_since", (since_seq,))


def newest_events(
    source: LogSource, payload: type[E], n: int = 1, *, prefix: str | None = None, route: str | None = None
) -> list[E]:
    """Return the latest events of a kind, newest first, of one route if given.

    prefix  only keys that begin with it and a colon, the last key first
    """
    prefix, kind = route if prefix is None else prefix, kind_named(payload)
    limit = LAST_SEQ if n < 0 else n  # PostgreSQL has no negative limit
    if prefix is None:
        rows = query_rows(source, "newest_of_kind", (kind, limit))
    else:
        rows = query_rows(source, "newest_by_prefix", (kind, prefix, route, limit))
    return [decoded(seq, payload, body) for seq, _, _, body in rows]


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


_DRAWS: Final = msgspec.json.Decoder(_DrawnRequest)


@dataclass(frozen=True, slots=True)
class NewRows:
    last: int  # place of the log's last row
    kinds: frozenset[tuple[str, str | None]]  # of the rows that say more than that a run began or ended, and routes
    deliveries: list[tuple[str, bool, float]]  # unit, audit and propensity of first ones on enforced routes


def read_news(reader: LogReader, since_seq: int, *, most: int, owner: int) -> NewRows:
    """Read what came after a place, the last `most` rows if that is 0, without the requests that `owner` wrote."""
    last = last_place(reader)
    read = reader.execute if since_seq else reader.stream  # a poll finds few rows, and should cost one round trip
    kinds, first = set[tuple[str, str | None]](), list[tuple[str, bool, float]]()
    for kind, route, body in read("news", (since_seq or last - most, owner)):
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
    with open_reader(source) as connection:
        for row in read_pages(connection, "log_rows", {}, after=since_seq):
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
        for row in read_pages(connection, "episodes", {"since": since_seq, "route": route}, after=ended_after):
            yield _labelled(row[:4], read_labels(connection, *row[4:]))


def read_recent(source: LogSource, n: int) -> Iterator[Episode]:
    """Yield the `n` runs that ended last, oldest first and without labels; scans at most `LOOKED` rows per run."""
    with open_reader(source) as connection:
        for row in connection.stream("recent_episodes", {"n": n, "looked": LOOKED * n}):
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
    rows = (
        (seq, at_s, decoded(seq, FeedbackEvent, body))
        for seq, at_s, body in query_rows(reader, "labels_of_episode", wanted)
    )
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
    of = names_in(names)
    requests, ended = (
        {key: (seq, at_s, body) for key, seq, at_s, body in query_rows(reader, "events_by_keys", (kind, of))}
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
    wanted = {"names": names_in(responses), "until": until_seq}
    rows = query_rows(reader, "labels_of_episodes", wanted)
    by_response = query_rows(
        reader, "labels_of_responses", {**wanted, "names": names_in(filter(None, responses.values()))}
    )
    named = find_answers(reader, {response for response, *_ in by_response})
    rows += [(named[response], *row) for response, *row in by_response if named.get(response) in responses]
    labels = dict[str, list[StoredLabel]]()
    for name, seq, at_s, body in sorted(rows, key=itemgetter(1)):
        given = decoded(seq, FeedbackEvent, body)
        labels.setdefault(name, []).append(StoredLabel(seq, given.feedback, at_s, given.about))
    return labels


def find_answers(reader: LogReader, responses: Collection[str]) -> dict[str, str]:
    """Return the episode of each response id that exactly one answer has."""
    rows = query_rows(reader, "episodes_of_responses", {"names": names_in(responses)}) if responses else ()
    return {response: first for response, first, second in rows if first is not None and second is None}


def names_in(names: Iterable[str]) -> str:
    """Return names as queries take many of them: as JSON."""
    return msgspec.json.encode({"of": [*map(indexed_id, names)]}).decode()


def newest_request(source: LogSource, route: str) -> Request | None:
    return next((decoded(seq, Request, body) for seq, body in query_rows(source, "newest_request", (route,))), None)


def has_requests(reader: LogReader) -> bool:
    return bool(query_rows(reader, "has_requests"))


def n_requests_of(source: LogSource, routes: Collection[str], *, most: int) -> dict[str, int]:
    """Count the requests of each route, up to `most`; unlogged ones only in the latest `COUNTS` counts."""
    by_route = dict[str, int]()
    with open_reader(source) as connection:
        for route in routes:
            n = query_number(connection, "n_requests_up_to", (route, most))
            if n < most:
                n += query_number(connection, "n_unlogged_up_to", (route, COUNTS))
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
    return [bool(one) for (one,) in reversed(query_rows(source, "extracted_answers", wanted))]


# ---- one route within a range of the log ---------------------------------------------------------


def counted_cells(
    source: LogSource, route: str, *, since_seq: int = 0, until_seq: int | None = None
) -> Iterator[UnloggedRequests]:
    condition = "route = ? AND seq > ? AND seq <= ? ORDER BY seq"
    until = LAST_SEQ if until_seq is None else until_seq
    for count in select(source, RequestCount, condition, (route, since_seq, until)):
        yield from count.cells


def drawn_runs(connection: LogReader, route: str, since_seq: int, until_seq: int) -> Iterator[EpisodeWithLabels]:
    for row in query_rows(connection, "drawn_episodes", (since_seq, until_seq, route)):
        yield _labelled(row[:4], read_labels(connection, *row[4:]))


# ---- requests, counted ---------------------------------------------------------------------------


def n_counted(connection: LogReader, route: str, seq: int) -> int:
    return query_number(connection, "n_counted", (route, seq))


def counts_since(connection: LogReader, route: str, seq: int) -> tuple[int, int]:
    """Count a route's governed requests after a place, unlogged ones included, and those that nothing could stop."""
    n, n_full = query_rows(connection, "n_governed", (seq, route))[0]
    return n + n_counted(connection, route, seq), n_full


def requests_since(connection: LogReader, route: str, seq: int) -> int:
    return counts_since(connection, route, seq)[0]


def place_before(connection: LogReader, route: str, n_requests: int) -> int:
    """Return the place after which the latest `n_requests` requests of a route come, or fewer if there are fewer."""
    rows = query_rows(connection, "nth_latest_request", (route, n_requests)) or query_rows(
        connection, "place_before_first_request", (route,)
    )
    return last_place(connection) if rows[0][0] is None else int(rows[0][0])


# ---- reports of jobs -----------------------------------------------------------------------------


def job_history(source: LogSource, *, n: int = 50) -> list[JobRun]:
    return newest_events(source, JobRun, n)[::-1]


def read_publications(connection: LogReader, route: str, *, epoch: int | None = None) -> list[tuple[int, Publication]]:
    rows = query_rows(connection, "publications_of_route", (route,))
    made = ((seq, decoded(seq, Publication, body)) for seq, _, _, body in rows)
    return [one for one in made if epoch is None or one[1].epoch == epoch]


# ---- requested labels ----------------------------------------------------------------------------


def read_open_label_requests(connection: LogReader, route: str, *, most: int) -> list[LabelRequest]:
    rows = query_rows(connection, "open_label_requests", (route, most))
    return [decoded(seq, LabelRequest, body) for seq, _, _, body in rows]


def label_requests(connection: LogReader, route: str) -> dict[str, LabelRequest]:
    return {one.episode_id: one for one in select(connection, LabelRequest, "route = ?", (route,))}


# ---- connections ---------------------------------------------------------------------------------


@contextlib.contextmanager
def open_reader(source: LogSource, *, is_over: Callable[[], bool] | None = None) -> Iterator[LogReader]:
    """Yield the caller's own connection, or a read-only one; a query is interrupted when `is_over` returns True."""
    if hasattr(source, "execute"):  # a connection; isinstance takes long with a protocol
        yield cast("LogReader", source)
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

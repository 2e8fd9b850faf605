"""Rows of one route within a range of the log: requests, counts, publications, proposals, looks, open label requests.

Every reader here raises StoreError for a row that cannot be read.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from suffice.assurance.sampling import UnloggedRequests
from suffice.store.database.views import (
    EpisodeWithLabels,
    LogReader,
    LogSource,
    decoded,
    last_place,
    newest_events,
    query_number,
    query_rows,
    read_labels,
    select,
    select_placed,
)
from suffice.store.rows.records import RequestCount
from suffice.types import Episode, JobRun, LabelRequest, Outcome, Publication, Request

# A cross join reads the new rows and then their requests; SQLite would begin with all requests of the route.
_DRAWN: Final = """
    SELECT o.seq, o.body, r.seq, r.body FROM events o CROSS JOIN events r ON r.kind = 'request' AND r.key = o.key
    WHERE +o.kind = 'outcome' AND o.seq > ? AND o.seq <= ? AND r.route = ?
        AND json_extract(r.body, '$.request.kept_by') = 'lot' ORDER BY o.seq"""
_N: Final = """
    SELECT sum(json_extract(body, '$.counted.n_governed')) FROM events
    WHERE kind = 'requests_counted' AND route = ? AND seq > ?"""
# Keys begin with the route and sort by place, so the unique index finds the newest at once. ";" follows ":".
_PLACE: Final = """
    SELECT max(seq) FROM (SELECT seq FROM events
    WHERE kind = 'route_monitored' AND key > :route || ':' AND key < :route || ';' AND route = :route
    ORDER BY key DESC LIMIT 1)"""
_COUNTS: Final = """
    SELECT count(*), coalesce(sum(
        json_extract(body, '$.request.audit') OR json_extract(body, '$.request.mode') = 'observe'
    ), 0) FROM events WHERE kind = 'request' AND seq > ? AND route = ?
        AND json_extract(body, '$.request.ungoverned') IS NULL"""
_OPEN: Final = """
    route = :route AND NOT EXISTS (SELECT 1 FROM events f WHERE f.kind = 'feedback' AND f.episode_id = events.key)
        AND NOT EXISTS (SELECT 1 FROM events a WHERE a.kind = 'review_asked' AND a.key = events.key)
    ORDER BY seq DESC LIMIT :most"""
_NTH_LATEST: Final = "SELECT seq FROM events WHERE kind = 'request' AND route = ? ORDER BY seq DESC LIMIT 1 OFFSET ?"
_FIRST: Final = "SELECT min(seq) - 1 FROM events WHERE kind = 'request' AND route = ?"


def counted_cells(
    source: LogSource, route: str, *, since_seq: int = 0, until_seq: int | None = None
) -> Iterator[UnloggedRequests]:
    condition = "route = :route AND seq > :since AND (:until IS NULL OR seq <= :until) ORDER BY seq"
    for count in select(source, RequestCount, condition, {"route": route, "since": since_seq, "until": until_seq}):
        yield from count.cells


def drawn_runs(connection: LogReader, route: str, since_seq: int, until_seq: int) -> Iterator[EpisodeWithLabels]:
    for seq, ended, request_seq, request_body in query_rows(connection, _DRAWN, (since_seq, until_seq, route)):
        episode = Episode(request=decoded(request_seq, Request, request_body), outcome=decoded(seq, Outcome, ended))
        labels = read_labels(connection, episode.request.episode_id, episode.outcome.response_id)
        yield EpisodeWithLabels(seq=seq, episode=episode, labels=labels)


# ---- requests, counted ---------------------------------------------------------------------------


def n_counted(connection: LogReader, route: str, seq: int) -> int:
    return query_number(connection, _N, (route, seq))


def counts_since(connection: LogReader, route: str, seq: int) -> tuple[int, int]:
    """Count a route's governed requests after a place, unlogged ones included, and those that nothing could stop."""
    n, n_full = query_rows(connection, _COUNTS, (seq, route))[0]
    return n + n_counted(connection, route, seq), n_full


def requests_since(connection: LogReader, route: str, seq: int) -> int:
    return counts_since(connection, route, seq)[0]


def place_before(connection: LogReader, route: str, n_requests: int) -> int:
    """Return the place after which the latest `n_requests` requests of a route come, or fewer if there are fewer."""
    rows = query_rows(connection, _NTH_LATEST, (route, n_requests)) or query_rows(connection, _FIRST, (route,))
    return last_place(connection) if rows[0][0] is None else int(rows[0][0])


# ---- reports of jobs -----------------------------------------------------------------------------


def newest_place(connection: LogReader, route: str) -> int:
    return query_number(connection, _PLACE, {"route": route})


def job_history(source: LogSource, *, n: int = 50) -> list[JobRun]:
    return newest_events(source, JobRun, n)[::-1]


def read_publications(connection: LogReader, route: str, *, epoch: int | None = None) -> list[tuple[int, Publication]]:
    made = select_placed(connection, Publication, "route = ? ORDER BY seq", (route,), index="decisions")
    return [one for one in made if epoch is None or one[1].epoch == epoch]


# ---- requested labels ----------------------------------------------------------------------------


def read_open_label_requests(connection: LogReader, route: str, *, most: int) -> list[LabelRequest]:
    return [
        one for _, one in select_placed(connection, LabelRequest, _OPEN, {"route": route, "most": most}, index="jobs")
    ]


def label_requests(connection: LogReader, route: str) -> dict[str, LabelRequest]:
    return {one.episode_id: one for one in select(connection, LabelRequest, "route = ?", (route,))}

"""Reading what sampling left in the log: requests that were only counted, runs that were drawn, rates in force.

Knows rows; refuses to know what is made of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from suffice.assurance.sampling import Unkept
from suffice.store.database.views import (
    EpisodeWithLabels,
    LogReader,
    LogSource,
    decoded,
    newest_events,
    open_reader,
    read_labels,
)
from suffice.store.rows.records import RequestCount, RowRates
from suffice.types import Episode, Outcome, Request

# The kind stands to the letter, as in the index, and the route is compared in it.
_CELLS: Final = """
    SELECT seq, body FROM events
    WHERE kind = 'requests_counted' AND route = :route AND seq > :since AND (:until IS NULL OR seq <= :until)
    ORDER BY seq"""
# A cross join reads what is new and then its requests; SQLite would begin with all requests of the route otherwise.
_DRAWN: Final = """
    SELECT o.seq, o.body, r.seq, r.body FROM events o CROSS JOIN events r ON r.kind = 'request' AND r.key = o.key
    WHERE +o.kind = 'outcome' AND o.seq > ? AND o.seq <= ? AND r.route = ?
        AND json_extract(r.body, '$.request.kept_by') = 'lot' ORDER BY o.seq"""
_N: Final = """
    SELECT coalesce(sum(json_extract(body, '$.counted.n_governed')), 0) FROM events
    WHERE kind = 'requests_counted' AND route = ? AND seq > ?"""


def counted_cells(
    source: LogSource, route: str, *, since_seq: int = 0, until_seq: int | None = None
) -> Iterator[Unkept]:
    """What was counted of a route's requests without rows, behind a place in the log up to another. Raises StoreError.

    until_seq  None: all there is
    """
    with open_reader(source) as connection:
        rows = connection.execute(_CELLS, {"route": route, "since": since_seq, "until": until_seq}).fetchall()
    for seq, body in rows:
        yield from decoded(seq, RequestCount, body).cells


def drawn_runs(connection: LogReader, route: str, since_seq: int, until_seq: int) -> Iterator[EpisodeWithLabels]:
    """The runs of a route that have rows by lot, ended behind a place in the log up to another. Raises StoreError."""
    for seq, ended, asked_seq, asked in connection.execute(_DRAWN, (since_seq, until_seq, route)).fetchall():
        request = decoded(asked_seq, Request, asked)
        outcome = decoded(seq, Outcome, ended)
        yield EpisodeWithLabels(
            seq=seq,
            episode=Episode(request=request, outcome=outcome),
            labels=read_labels(connection, request.episode_id, outcome.response_id),
        )


def n_counted(connection: LogReader, route: str, seq: int) -> int:
    """Governed requests of a route that ended without rows, as counted behind a place in the log."""
    return int(connection.execute(_N, (route, seq)).fetchone()[0])


def newest_rates(source: LogSource, route: str) -> RowRates | None:
    """The rates that were set last on a route; None: nobody has set any. Raises StoreError."""
    with open_reader(source) as connection:
        return next(iter(newest_events(connection, RowRates, route=route)), None)

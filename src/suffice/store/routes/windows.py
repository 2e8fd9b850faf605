"""Rows of one route: requests and counts behind a place, publications, proposals, looks, rates, labels asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from suffice.assurance.forecast import Alert, Outlook
from suffice.assurance.sampling import UnloggedRequests
from suffice.store.database.log import StoredEvent
from suffice.store.database.views import (
    EpisodeWithLabels,
    LogReader,
    LogSource,
    decoded,
    locate_event,
    newest_events,
    open_reader,
    read_labels,
)
from suffice.store.rows.events import E
from suffice.store.rows.records import ArmWorth, FeedbackEvent, ProposedVersion, RequestCount, RowRates
from suffice.types import Episode, JobRun, LabelRequest, Outcome, Publication, Request

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
) -> Iterator[UnloggedRequests]:
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


# Keys begin with the route and sort by place, so the unique index finds the newest at once. ";" follows ":".
_PLACE: Final = """
    SELECT seq FROM events WHERE kind = ? AND key > ? || ':' AND key < ? || ';' AND route = ?
    ORDER BY key DESC LIMIT 1"""
_COUNTS: Final = """
    SELECT count(*), coalesce(sum(
        json_extract(body, '$.request.audit') OR json_extract(body, '$.request.mode') = 'observe'
    ), 0) FROM events WHERE kind = 'request' AND seq > ? AND route = ?
        AND json_extract(body, '$.request.ungoverned') IS NULL"""


def newest_outlook(source: LogSource, route: str) -> Outlook | None:
    """The latest look at a route; None: nobody has looked. Raises StoreError."""
    return _newest(source, Outlook, route)


def newest_place(connection: LogReader, route: str) -> int:
    """The place in the log of the latest look at a route; 0: nobody has looked."""
    row = connection.execute(_PLACE, ("route_monitored", route, route, route)).fetchone()
    return 0 if row is None else int(row[0])


def newest_proposal(source: LogSource, route: str) -> ProposedVersion | None:
    """The latest proposal of a refit for a route; None: there was none. Raises StoreError."""
    return _newest(source, ProposedVersion, route)


def newest_arm(source: LogSource, route: str) -> ArmWorth | None:
    """The latest proposal of the tuner for a route; None: there was none. Raises StoreError."""
    return _newest(source, ArmWorth, route)


def _newest(source: LogSource, payload: type[E], route: str) -> E | None:
    with open_reader(source) as connection:
        return next(iter(newest_events(connection, payload, route=route)), None)


def counts_since(connection: LogReader, route: str, seq: int) -> tuple[int, int]:
    """Governed requests of a route behind a place of the log, and those of them that nothing could stop."""
    row = connection.execute(_COUNTS, (seq, route)).fetchone()
    return int(row[0]) + n_counted(connection, route, seq), int(row[1])


def recent_outlooks(connection: LogReader, route: str, n: int) -> list[Outlook]:
    """The latest looks at a route, oldest first. Raises StoreError."""
    return newest_events(connection, Outlook, n, route=route)[::-1]


def recent_alerts(connection: LogReader, route: str, n: int) -> list[Alert]:
    """The latest alerts of a route, newest first. Raises StoreError."""
    return newest_events(connection, Alert, n, route=route)


_PUBLISHED = """
    SELECT seq, body FROM events INDEXED BY decisions
    WHERE kind = 'policy_published' AND kind IN
        ('alarm_raised', 'enforcement_paused', 'enforcement_resumed', 'epoch_began', 'policy_published')
        AND route = ? ORDER BY seq"""
_LABELS = """
    SELECT seq, at_s, body FROM events WHERE kind = 'feedback' AND episode_id = :episode AND seq <= :until
    UNION ALL
    SELECT seq, at_s, body FROM events WHERE kind = 'feedback' AND episode_id IS NULL AND seq <= :until
        AND json_extract(body, '$.feedback.response_id') = :response
    ORDER BY seq"""
_OPEN = """
    SELECT seq, body FROM events w WHERE w.kind IN ('job_ran', 'label_wanted') AND w.kind = 'label_wanted'
        AND w.route = :route
        AND NOT EXISTS (SELECT 1 FROM events f WHERE f.kind = 'feedback' AND f.episode_id = w.key)
        AND NOT EXISTS (SELECT 1 FROM events a WHERE a.kind = 'review_asked' AND a.key = w.key)
    ORDER BY seq DESC LIMIT :most"""
_NTH_LATEST = "SELECT seq FROM events WHERE kind = 'request' AND route = ? ORDER BY seq DESC LIMIT 1 OFFSET ?"
_FIRST = "SELECT min(seq) - 1 FROM events WHERE kind = 'request' AND route = ?"


def read_publications(connection: LogReader, route: str, *, epoch: int | None = None) -> list[tuple[int, Publication]]:
    """What was published on a route, each with its place in the log, oldest first. Raises StoreError.

    epoch  only in this one; None: ever
    """
    rows = connection.execute(_PUBLISHED, (route,)).fetchall()
    made = [(seq, decoded(seq, Publication, body)) for seq, body in rows]
    return [one for one in made if epoch is None or one[1].epoch == epoch]


def read_open_label_requests(connection: LogReader, route: str, *, most: int) -> list[LabelRequest]:
    """Labels that were asked for and that nobody has given or been asked about, the latest. Raises StoreError."""
    rows = connection.execute(_OPEN, {"route": route, "most": most}).fetchall()
    return [decoded(seq, LabelRequest, body) for seq, body in rows]


def read_requested_labels(connection: LogReader, route: str) -> set[str]:
    """Episodes of a route whose label was asked for."""
    rows = connection.execute("SELECT key FROM events WHERE kind = 'label_wanted' AND route = ?", (route,)).fetchall()
    return {key for (key,) in rows}


def label_requests(connection: LogReader, route: str) -> dict[str, LabelRequest]:
    """The labels of a route that were asked for, by episode. Raises StoreError."""
    rows = connection.execute("SELECT seq, body FROM events WHERE kind = 'label_wanted' AND route = ?", (route,))
    asked = [decoded(seq, LabelRequest, body) for seq, body in rows.fetchall()]
    return {one.episode_id: one for one in asked}


def whole_episodes(
    connection: LogReader, episodes: Sequence[str], until_seq: int
) -> list[tuple[StoredEvent, StoredEvent, list[StoredEvent]]]:
    """Request, outcome and labels of each of these episodes, as far as they stood in the log; others are left out.

    until_seq  labels that came later do not count

    Raises StoreError.
    """
    whole = list[tuple[StoredEvent, StoredEvent, list[StoredEvent]]]()
    for name in episodes:
        asked, ended = locate_event(connection, Request, name), locate_event(connection, Outcome, name)
        if asked is None or ended is None:
            continue
        wanted = {"episode": name, "response": ended[2].response_id, "until": until_seq}
        labels = [
            StoredEvent(seq=seq, at_s=at_s, event=decoded(seq, FeedbackEvent, body))
            for seq, at_s, body in connection.execute(_LABELS, wanted).fetchall()
        ]
        request, outcome = (StoredEvent(seq=seq, at_s=at_s, event=event) for seq, at_s, event in (asked, ended))
        whole.append((request, outcome, labels))
    return whole


def place_before(connection: LogReader, route: str, n_requests: int) -> int:
    """The place in the log behind which the latest `n_requests` requests of a route stand; all, if there are fewer."""
    found = connection.execute(_NTH_LATEST, (route, n_requests)).fetchone()
    if found is None:
        found = connection.execute(_FIRST, (route,)).fetchone()
    return last_place(connection) if found[0] is None else int(found[0])


def last_place(connection: LogReader) -> int:
    """The place of the last row of the log; 0: it is empty."""
    return int(connection.execute("SELECT coalesce(max(seq), 0) FROM events").fetchone()[0])


def job_history(path: Path | str, *, n: int = 50) -> list[JobRun]:
    """The latest runs of jobs that did something, oldest first. Raises StoreError."""
    with open_reader(path) as connection:
        return newest_events(connection, JobRun, n)[::-1]


def requests_since(connection: LogReader, route: str, seq: int) -> int:
    """Governed requests of a route behind a place of the log, those included that have no rows."""
    row = connection.execute(
        "SELECT count(*) FROM events WHERE kind = 'request' AND seq > ? AND route = ?"
        " AND json_extract(body, '$.request.ungoverned') IS NULL",
        (seq, route),
    ).fetchone()
    return int(row[0]) + n_counted(connection, route, seq)

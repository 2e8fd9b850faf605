"""What a control loop needs of the log to go on: publications of an epoch, audits that it keeps, places to begin."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from suffice.store.database.log import StoredEvent
from suffice.store.database.views import LogReader, decoded, locate_event, newest_events, open_reader
from suffice.store.routes.sampling import n_counted
from suffice.store.rows.records import FeedbackEvent
from suffice.types import JobRun, LabelRequest, Outcome, Publication, Request

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
    found = list[tuple[StoredEvent, StoredEvent, list[StoredEvent]]]()
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
        found.append((request, outcome, labels))
    return found


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
    found = connection.execute(
        "SELECT count(*) FROM events WHERE kind = 'request' AND seq > ? AND route = ?"
        " AND json_extract(body, '$.request.ungoverned') IS NULL",
        (seq, route),
    ).fetchone()
    return int(found[0]) + n_counted(connection, route, seq)

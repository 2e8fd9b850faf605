"""What a control loop needs of the log to go on: publications of an epoch, audits that it keeps, places to begin."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path

from suffice.store.database.log import StoredEvent
from suffice.store.database.views import decoded, open_reader
from suffice.store.routes.sampling import n_counted
from suffice.store.rows.records import FeedbackEvent
from suffice.types import JobRun, LabelRequest, Outcome, Publication, Request

_PUBLISHED = """
    SELECT seq, body FROM events INDEXED BY decisions
    WHERE kind = 'policy_published' AND kind IN
        ('alarm_raised', 'enforcement_paused', 'enforcement_resumed', 'epoch_began', 'policy_published')
        AND route = ? ORDER BY seq"""
_ROW = "SELECT seq, at_s, body FROM events WHERE kind = ? AND key = ?"
_LABELS = """
    SELECT seq, at_s, body FROM events WHERE kind = 'feedback' AND episode_id = :episode AND seq <= :until
    UNION ALL
    SELECT seq, at_s, body FROM events WHERE kind = 'feedback' AND episode_id IS NULL AND seq <= :until
        AND json_extract(body, '$.feedback.response_id') = :response
    ORDER BY seq"""
_NTH_LATEST = "SELECT seq FROM events WHERE kind = 'request' AND route = ? ORDER BY seq DESC LIMIT 1 OFFSET ?"
_FIRST = "SELECT min(seq) - 1 FROM events WHERE kind = 'request' AND route = ?"


def publications(connection: sqlite3.Connection, route: str, epoch: int) -> list[Publication]:
    """What was published on a route in one epoch, oldest first. Raises StoreError."""
    rows = connection.execute(_PUBLISHED, (route,)).fetchall()
    found = [decoded(seq, Publication, body) for seq, body in rows]
    return [one for one in found if one.epoch == epoch]


def read_requested_labels(connection: sqlite3.Connection, route: str) -> set[str]:
    """Episodes of a route whose label was asked for."""
    rows = connection.execute("SELECT key FROM events WHERE kind = 'label_wanted' AND route = ?", (route,)).fetchall()
    return {key for (key,) in rows}


def label_requests(connection: sqlite3.Connection, route: str) -> dict[str, LabelRequest]:
    """The labels of a route that were asked for, by episode. Raises StoreError."""
    rows = connection.execute("SELECT seq, body FROM events WHERE kind = 'label_wanted' AND route = ?", (route,))
    asked = [decoded(seq, LabelRequest, body) for seq, body in rows.fetchall()]
    return {one.episode_id: one for one in asked}


def whole_episodes(
    connection: sqlite3.Connection, episodes: Sequence[str], until_seq: int
) -> list[tuple[StoredEvent, StoredEvent, list[StoredEvent]]]:
    """Request, outcome and labels of each of these episodes, as far as they stood in the log; others are left out.

    until_seq  labels that came later do not count

    Raises StoreError.
    """
    found = list[tuple[StoredEvent, StoredEvent, list[StoredEvent]]]()
    for name in episodes:
        asked, ended = (connection.execute(_ROW, (kind, name)).fetchone() for kind in ("request", "outcome"))
        if asked is None or ended is None:
            continue
        outcome = decoded(ended[0], Outcome, ended[2])
        wanted = {"episode": name, "response": outcome.response_id, "until": until_seq}
        labels = [
            StoredEvent(seq=seq, at_s=at_s, event=decoded(seq, FeedbackEvent, body))
            for seq, at_s, body in connection.execute(_LABELS, wanted).fetchall()
        ]
        request = StoredEvent(seq=asked[0], at_s=asked[1], event=decoded(asked[0], Request, asked[2]))
        found.append((request, StoredEvent(seq=ended[0], at_s=ended[1], event=outcome), labels))
    return found


def place_before(connection: sqlite3.Connection, route: str, n_requests: int) -> int:
    """The place in the log behind which the latest `n_requests` requests of a route stand; all, if there are fewer."""
    found = connection.execute(_NTH_LATEST, (route, n_requests)).fetchone()
    if found is None:
        found = connection.execute(_FIRST, (route,)).fetchone()
    return last_place(connection) if found[0] is None else int(found[0])


def last_place(connection: sqlite3.Connection) -> int:
    """The place of the last row of the log; 0: it is empty."""
    return int(connection.execute("SELECT coalesce(max(seq), 0) FROM events").fetchone()[0])


def job_history(path: Path | str, *, n: int = 50) -> list[JobRun]:
    """The latest runs of jobs that did something, oldest first. Raises StoreError."""
    with open_reader(path) as connection:
        rows = connection.execute(
            "SELECT seq, body FROM events WHERE kind = 'job_ran' ORDER BY seq DESC LIMIT ?", (n,)
        ).fetchall()
    return [decoded(seq, JobRun, body) for seq, body in reversed(rows)]


def requests_since(connection: sqlite3.Connection, route: str, seq: int) -> int:
    """Governed requests of a route behind a place of the log, those included that have no rows."""
    found = connection.execute(
        "SELECT count(*) FROM events WHERE kind = 'request' AND seq > ? AND route = ?"
        " AND json_extract(body, '$.request.ungoverned') IS NULL",
        (seq, route),
    ).fetchone()
    return int(found[0]) + n_counted(connection, route, seq)

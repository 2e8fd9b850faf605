"""Feedback as it stands in the log: all of it, and what belongs to no request.

What names a request that is not there waits, and after a while it is a dead letter. Nothing is lost by that: whenever
the request comes, the feedback joins it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from suffice.store.audit.chain import repeats
from suffice.store.database.views import LogReader, decoded, episodes_of_response, find_event, open_reader
from suffice.store.rows.events import to_row
from suffice.store.rows.records import FeedbackEvent
from suffice.types import Feedback, Request

_PARKED: Final = """
    SELECT v.seq, v.at_s, v.feedback_id, v.episode_id, v.response_id, v.source
    FROM feedback v JOIN events f ON f.seq = v.seq
    WHERE NOT v.joined AND json_extract(f.body, '$.about') IS NULL ORDER BY v.seq"""
_SAID: Final = """
    SELECT f.seq, f.body, coalesce(v.route, json_extract(f.body, '$.about.route')),
        v.joined OR json_extract(f.body, '$.about') IS NOT NULL
    FROM feedback v JOIN events f ON f.seq = v.seq ORDER BY f.seq"""
_KEPT: Final = "SELECT seq, body FROM events WHERE kind = ? AND key = ?"


@dataclass(frozen=True, slots=True, kw_only=True)
class UnmatchedFeedback:
    """One piece of feedback that belongs to no request of the log."""

    seq: int  # place in the log
    at_s: float  # Unix time at which the log took it
    feedback_id: str
    episode_id: str | None  # as its sender named the request
    response_id: str | None
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedbackRecord:
    """One piece of feedback with what the log knows of its request."""

    feedback: Feedback
    route: str | None  # of its request; None: that is not there
    joined: bool


def read_unmatched(path: Path) -> Iterator[UnmatchedFeedback]:
    """All of it, in the order in which it came. Raises StoreError."""
    with open_reader(path) as connection:
        for seq, at_s, feedback_id, episode_id, response_id, source in connection.execute(_PARKED):
            yield UnmatchedFeedback(
                seq=seq,
                at_s=at_s,
                feedback_id=feedback_id,
                episode_id=episode_id,
                response_id=response_id,
                source=source or "",
            )


def read_all_feedback(path: Path) -> Iterator[FeedbackRecord]:
    """All feedback, in the order in which it came. Raises StoreError."""
    with open_reader(path) as connection:
        for seq, body, route, joined in connection.execute(_SAID):
            given = decoded(seq, FeedbackEvent, body).feedback
            yield FeedbackRecord(feedback=given, route=route, joined=bool(joined))


def find_feedback(connection: LogReader, given: Feedback) -> Literal["no", "yes", "otherwise"]:
    """Is there feedback of this sender with this id already? "otherwise": it says something else."""
    row = to_row(FeedbackEvent(given))
    found = connection.execute(_KEPT, (row.kind, row.key)).fetchone()
    if found is None:
        return "no"
    return "yes" if repeats(connection, row, *found) else "otherwise"


def would_join(connection: LogReader, episode_id: str | None, response_id: str | None) -> bool:
    """Is the request in the log that either id names? A response id that two answers share names neither."""
    if episode_id is not None:
        return find_event(connection, Request, episode_id) is not None
    return bool(response_id) and len(episodes_of_response(connection, response_id, most=2)) == 1

"""Feedback in the log: all of it, feedback without a request, and the senders of the requests.

Feedback whose request is missing waits, and later counts as a dead letter; it still joins if the request arrives.
Every reader here raises StoreError.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from suffice.store.audit.chain import repeats
from suffice.store.database.location import LogLocation
from suffice.store.database.views import LogReader, decoded, episodes_of_response, find_event, open_reader, query_rows
from suffice.store.rows.events import FeedbackEvent, to_row
from suffice.types import Feedback, Request

_UNMATCHED: Final = """
    SELECT v.seq, v.at_s, v.feedback_id, v.episode_id, v.response_id, coalesce(v.source, '')
    FROM feedback v JOIN events f ON f.seq = v.seq
    WHERE NOT v.joined AND json_extract(f.body, '$.about') IS NULL ORDER BY v.seq"""
_ALL: Final = """
    SELECT f.seq, f.body, coalesce(v.route, json_extract(f.body, '$.about.route')),
        v.joined OR json_extract(f.body, '$.about') IS NOT NULL
    FROM feedback v JOIN events f ON f.seq = v.seq ORDER BY f.seq"""


@dataclass(frozen=True, slots=True)
class UnmatchedFeedback:
    seq: int  # place in the log
    at_s: float  # Unix time at which the log accepted it
    feedback_id: str
    episode_id: str | None  # as its sender named it
    response_id: str | None
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedbackRecord:
    feedback: Feedback
    route: str | None  # of its request; None: the request is missing
    joined: bool


def read_unmatched(path: LogLocation) -> Iterator[UnmatchedFeedback]:
    with open_reader(path) as connection:
        yield from (UnmatchedFeedback(*row) for row in connection.stream(_UNMATCHED))


def read_all_feedback(path: LogLocation) -> Iterator[FeedbackRecord]:
    with open_reader(path) as connection:
        for seq, body, route, joined in connection.stream(_ALL):
            given = decoded(seq, FeedbackEvent, body).feedback
            yield FeedbackRecord(feedback=given, route=route, joined=bool(joined))


def find_feedback(connection: LogReader, given: Feedback) -> Literal["no", "yes", "otherwise"]:
    """Return whether this sender has sent feedback with this id; "otherwise": with other content."""
    row = to_row(FeedbackEvent(given))
    for seq, body in query_rows(
        connection, "SELECT seq, body FROM events WHERE kind = ? AND key = ?", (row.kind, row.key)
    ):
        return "yes" if repeats(connection, row, seq, body) else "otherwise"
    return "no"


def would_join(connection: LogReader, episode_id: str | None, response_id: str | None) -> bool:
    """Return whether the log has the request of either id. A response id shared by two answers names neither."""
    if episode_id is not None:
        return find_event(connection, Request, episode_id) is not None
    return bool(response_id) and len(episodes_of_response(connection, response_id, most=2)) == 1


def owners_of(path: LogLocation, named: Sequence[tuple[str | None, str | None]]) -> list[frozenset[tuple[str, str]]]:
    """Return for each (episode id, response id) the senders of its requests, each with its tenant."""
    with open_reader(path) as connection:
        return [_owners(connection, episode_id, response_id) for episode_id, response_id in named]


def _owners(connection: LogReader, episode_id: str | None, response_id: str | None) -> frozenset[tuple[str, str]]:
    episodes = [episode_id] if episode_id is not None else episodes_of_response(connection, response_id, most=100)
    requests = (find_event(connection, Request, episode) for episode in episodes)
    return frozenset((one.sender, one.tenant) for one in requests if one is not None)

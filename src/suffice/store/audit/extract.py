"""Parts of the log for somebody who does not have it: rows with their digests, and links of the audit log's chain.

    {"type": "row", "seq": …, "told": …, "kept": …}   a chained row without people's words: its digest is the link's
    {"type": "link", "of": [place, seq, digests …]}   one link of the chain; the first also has the link before it

Knows rows and links; refuses to know what the rows prove.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, Final

from suffice.errors import StoreError
from suffice.store.audit.chain import NOTHING, digest_event, digested_part
from suffice.store.audit.personal import split

Line = dict[str, Any]  # a line of JSON

_EVENT: Final = "SELECT seq, kind, key, episode_id, route, at_s, body FROM events WHERE seq = ?"
_DECIDED: Final = "SELECT seq, kind, body FROM events WHERE kind IN ('epoch_began', 'policy_published') AND route = ?"
_BEGAN: Final = """
    SELECT seq, kind, key, episode_id, route, at_s, body FROM events
    WHERE kind IN ('request', 'requests_counted') AND route = ? AND seq <= ? ORDER BY seq DESC"""
_OUTCOME: Final = """
    SELECT seq, kind, key, episode_id, route, at_s, body FROM events WHERE kind = 'outcome' AND key = ? AND seq <= ?"""
_LINKS: Final = "SELECT place, seq, kept, whole, answers, comments FROM chain WHERE place >= ? ORDER BY place"


def rows(connection: sqlite3.Connection, places: Collection[int]) -> Iterator[Line]:
    """Chained rows as the chain digests them, without people's words. Raises StoreError where one is gone.

    places  of the rows in the log
    """
    for place in sorted(places):
        found = connection.execute(_EVENT, (place,)).fetchone()
        if found is None:
            raise StoreError(f"the log: row {place} is gone")
        *columns, body = found
        told, kept = digested_part(*columns), split(columns[1], body).kept
        yield {"type": "row", "seq": place, "told": told.decode(), "kept": kept.decode()}


def links(connection: sqlite3.Connection, first_seq: int) -> Iterator[Line]:
    """The links of the chain from the row at this place in the log to the chain's end. Raises StoreError."""
    found = connection.execute("SELECT place FROM chain WHERE seq = ?", (first_seq,)).fetchone()
    if found is None:
        raise StoreError(f"the log: row {first_seq} stands in no chain; nothing vouches for it")
    before = connection.execute("SELECT link FROM chain WHERE place = ?", (found[0] - 1,)).fetchone()
    line: Line = {"before": (before[0] if before is not None else NOTHING).hex()}
    for place, seq, *digests in connection.execute(_LINKS, found):
        yield {"type": "link", "of": [place, seq or 0, *(one and one.hex() for one in digests)], **line}
        line = {}


@dataclass(frozen=True, slots=True)
class ExtractRow:
    """A row of the log, with a digest of all of it."""

    seq: int
    kind: str
    body: str
    digest: str


def read_decisions(connection: sqlite3.Connection, route: str) -> Iterator[tuple[int, str, str]]:
    """Place, kind and body of each epoch and publication of a route, oldest first."""
    yield from connection.execute(_DECIDED, (route,))


def begun(connection: sqlite3.Connection, route: str, until_seq: int) -> Iterator[ExtractRow]:
    """Requests of a route, and counts of those without rows, the newest first; until_seq: nothing behind this place."""
    for row in connection.execute(_BEGAN, (route, until_seq)):
        yield _entry(row)


def outcome_of(connection: sqlite3.Connection, episode: str, until_seq: int) -> ExtractRow | None:
    """The outcome of an episode, if it stood in the log at this place."""
    row = connection.execute(_OUTCOME, (episode, until_seq)).fetchone()
    return None if row is None else _entry(row)


def _entry(row: tuple[Any, ...]) -> ExtractRow:
    seq, kind, key, episode_id, route, at_s, body = row
    told = digested_part(seq, kind, key, episode_id, route, at_s)
    return ExtractRow(seq, kind, body, digest_event(told, body.encode()).hex())

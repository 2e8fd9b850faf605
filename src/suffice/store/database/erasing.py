"""Permanently erases personal text from rows, from the file's free pages and from the write-ahead log.

Each batch rewrites bodies and adds an `erased` row in one transaction. Ids, counts, tokens, ratings, verdicts, digests
and the equality of a run's answers stay. Erasing again does nothing.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import takewhile
from typing import Final

from suffice.store.audit.appender import Appender
from suffice.store.audit.chain import forget_salts
from suffice.store.audit.personal import WORDS, Part, without
from suffice.store.database.decisions import Decisions, forget_fold_states
from suffice.store.database.location import LogLocation, database_at
from suffice.store.database.schema import kinds_in
from suffice.store.database.views import LogReader, query_number
from suffice.store.rows.events import Erasure, to_row

BATCH_ROWS: Final = 2_000  # in one transaction; other writers wait that long

# Kinds whose key is the episode.
_BY_KEY: Final = ("request", "outcome", "label_wanted", "review_asked", "question_kept", "sources_kept")
_OF_EPISODE: Final = f"""
    SELECT seq FROM events WHERE {kinds_in(_BY_KEY)} AND key = :episode
    UNION
    SELECT seq FROM events WHERE {kinds_in(WORDS.keys() - {*_BY_KEY, "feedback"})} AND episode_id = :episode
"""  # noqa: S608 - names of kinds
# Kinds are literals as in the indexes: with parameters SQLite would scan all labels.
_LABELS: Final = """
    SELECT seq FROM events WHERE kind = 'feedback' AND episode_id = :episode
    UNION
    SELECT seq FROM events WHERE kind = 'feedback' AND episode_id IS NULL
        AND response_id = (SELECT response_id FROM events WHERE kind = 'outcome' AND key = :episode)
    ORDER BY seq"""
_OF_UNIT: Final = """
    SELECT key FROM events WHERE kind = 'request'
    AND ? IN (json_extract(body, '$.request.unit'), json_extract(body, '$.request.conversation'))
"""
_SENDERS: Final = """
    SELECT DISTINCT coalesce(json_extract(body, '$.request.sender'), '') FROM events
    WHERE kind = 'request' AND coalesce(json_extract(body, '$.request.conversation'), '') <> ''
"""
_NEXT: Final = "SELECT seq, at_s, kind, key FROM events WHERE seq > ? AND seq <= ? ORDER BY seq LIMIT ?"
_UNTIL: Final = """
    SELECT max(CAST(json_extract(body, '$.erasure.until_seq') AS BIGINT)) FROM events
    WHERE kind = 'erased' AND json_extract(body, '$.erasure.what') = ?"""
# Keys begin with the id; ";" follows ":".
_WRITTEN: Final = "SELECT count(*) FROM events WHERE kind = 'erased' AND key > :id || ':' AND key < :id || ';'"
_EXPORTS: Final = """
    SELECT at_s, json_extract(body, '$.export.where') FROM events WHERE kind = 'exported' AND seq > ? ORDER BY seq"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ErasureOrder:
    erasure_id: str
    what: str  # which rows, in words
    parts: tuple[Part, ...]
    author: str
    reason: str


def select_label_rows(connection: LogReader, episode: str) -> list[int]:
    return [seq for (seq,) in connection.execute(_LABELS, {"episode": episode})]


def select_word_rows(connection: LogReader, episode: str) -> list[int]:
    words = connection.execute(_OF_EPISODE, {"episode": episode})
    return sorted({*select_label_rows(connection, episode), *(seq for (seq,) in words)})


def find_episodes(connection: LogReader, unit: str) -> list[str]:
    return [name for (name,) in connection.execute(_OF_UNIT, (unit,))]


def conversation_senders(connection: LogReader) -> list[str]:
    """Return the keyed names of senders that used conversations; "" where the server needs no keys."""
    return [name for (name,) in connection.execute(_SENDERS)]


def select_expired_rows(
    connection: LogReader, limit_s: float, *, after_seq: int, until_seq: int, labels: bool = False
) -> tuple[int, list[int]]:
    """Return the next batch of rows after `after_seq`, up to the first that is younger, and the place of the last.

    limit_s  Unix time. Where a clock was set back, rows after a younger one wait until that one is old enough
    labels   with the labels of these runs, which may be younger: without its answer they would mark a run as wrong
    """
    batch = connection.execute(_NEXT, (after_seq, until_seq, BATCH_ROWS))
    expired = list(takewhile(lambda row: row[1] < limit_s, batch))
    rows = [seq for seq, *_ in expired]
    ended = [key for *_, kind, key in expired if labels and kind == "outcome"]
    later = {seq for key in ended for seq in select_label_rows(connection, key)}.difference(rows)
    return (rows[-1] if rows else after_seq), [*sorted(later), *rows]


def erase_words(writer: Decisions, order: ErasureOrder, rows: Sequence[int], *, until_seq: int = 0) -> int:
    """Erase the text of these rows, batch by batch; return how many changed. Finished batches stay erased.

    until_seq  recorded with the last batch: everything in scope up to this place is erased; 0: record no place

    Raise StoreError.
    """
    n_rows = 0
    for start in range(0, len(rows), BATCH_ROWS):
        is_last = start + BATCH_ROWS >= len(rows)
        n_rows += _erase_batch(writer, order, rows[start : start + BATCH_ROWS], until_seq if is_last else 0)
    return n_rows


def _erase_batch(writer: Decisions, order: ErasureOrder, batch: Sequence[int], until_seq: int) -> int:
    with writer.transaction() as connection:
        if isinstance(connection, sqlite3.Connection):
            connection.execute("PRAGMA secure_delete = ON")
        chained, n_rows = list[int](), 0
        for seq in batch:
            for kind, body in connection.execute("SELECT kind, body FROM events WHERE seq = ?", (seq,)).fetchall():
                left = without(kind, body, order.parts)
                if left is body:
                    continue
                connection.execute("UPDATE events SET body = ? WHERE seq = ?", (left, seq))
                n_rows += 1
                if forget_salts(connection, seq, order.parts):
                    chained.append(seq)
        if n_rows:
            forget_fold_states(connection)  # they may hold the text
            number = query_number(connection, _WRITTEN, {"id": order.erasure_id}) + 1
            places = tuple(chained)
            erasure = Erasure(**asdict(order), number=number, n_rows=n_rows, chained=places, until_seq=until_seq)
            Appender(connection, owner=writer.owner).add(to_row(erasure), writer.now())
        return n_rows


def erased_until(connection: LogReader, what: str) -> int:
    """Return the place up to which such an erasure was completed before; 0: never."""
    return query_number(connection, _UNTIL, (what,))


def purge(location: LogLocation) -> bool:
    """Remove erased text from where the database still keeps it. False: that is not finished; try again later."""
    return database_at(location).purge()


def exports_since(connection: LogReader, seq: int) -> list[tuple[float, str]]:
    return [(float(at_s), str(where)) for at_s, where in connection.execute(_EXPORTS, (seq,))]

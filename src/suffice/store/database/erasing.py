"""Permanently erases personal text from rows, from the file's free pages and from the write-ahead log.

Each batch rewrites bodies and adds an `erased` row in one transaction. Ids, counts, tokens, ratings, verdicts, digests
and the equality of a run's answers stay. Erasing again does nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import takewhile
from typing import Final

from suffice.store.audit.appender import Appender
from suffice.store.audit.chain import forget_salts
from suffice.store.audit.personal import Part, without
from suffice.store.database.decisions import Decisions, forget_fold_states
from suffice.store.database.location import LogLocation, database_at
from suffice.store.database.views import LogReader, query_number
from suffice.store.rows.events import Erasure, to_row

BATCH_ROWS: Final = 2_000  # in one transaction; other writers wait that long


@dataclass(frozen=True, slots=True, kw_only=True)
class ErasureOrder:
    erasure_id: str
    what: str  # which rows, in words
    parts: tuple[Part, ...]
    author: str
    reason: str


def select_label_rows(connection: LogReader, episode: str) -> list[int]:
    return [seq for (seq,) in connection.execute("label_rows_of_episode", {"episode": episode})]


def select_word_rows(connection: LogReader, episode: str) -> list[int]:
    words = connection.execute("word_rows_of_episode", {"episode": episode})
    return sorted({*select_label_rows(connection, episode), *(seq for (seq,) in words)})


def find_episodes(connection: LogReader, unit: str) -> list[str]:
    return [name for (name,) in connection.execute("episodes_of_unit", (unit,))]


def conversation_senders(connection: LogReader) -> list[str]:
    """Return the keyed names of senders that used conversations; "" where the server needs no keys."""
    return [name for (name,) in connection.execute("conversation_senders")]


def select_expired_rows(
    connection: LogReader, limit_s: float, *, after_seq: int, until_seq: int, labels: bool = False
) -> tuple[int, list[int]]:
    """Return the next batch of rows after `after_seq`, up to the first that is younger, and the place of the last.

    limit_s  Unix time. Where a clock was set back, rows after a younger one wait until that one is old enough
    labels   with the labels of these runs, which may be younger: without its answer they would mark a run as wrong
    """
    batch = connection.execute("rows_between", (after_seq, until_seq, BATCH_ROWS))
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
    with writer.transaction(erases=True) as connection:
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
            number = query_number(connection, "n_erasures", {"id": order.erasure_id}) + 1
            places = tuple(chained)
            erasure = Erasure(**asdict(order), number=number, n_rows=n_rows, chained=places, until_seq=until_seq)
            Appender(connection, owner=writer.owner).add(to_row(erasure), writer.now())
        return n_rows


def erased_until(connection: LogReader, what: str) -> int:
    """Return the place up to which such an erasure was completed before; 0: never."""
    return query_number(connection, "erased_until", (what,))


def purge(location: LogLocation) -> bool:
    """Remove erased text from where the database still keeps it. False: that is not finished; try again later."""
    return database_at(location).purge()


def exports_since(connection: LogReader, seq: int) -> list[tuple[float, str]]:
    return [(float(at_s), str(where)) for at_s, where in connection.execute("exports_since", (seq,))]

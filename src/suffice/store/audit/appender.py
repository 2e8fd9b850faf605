"""Adds rows to the log and links those of chained kinds, in a transaction that keeps every other writer out.

In SQLite that is BEGIN IMMEDIATE, in PostgreSQL an advisory lock that ends with the transaction: there, as here, rows
become visible in the order of `seq`, which is the order of the chain.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import groupby
from typing import Any, Final, NamedTuple, TypeAlias

from suffice.store.audit import chain
from suffice.store.audit.chain import CHAINED_PARTS, FORM, NOTHING, SALT_BYTES, ChainStart, Link
from suffice.store.audit.personal import Part, redact_row, split
from suffice.store.rows.events import UNCHAINED, Row
from suffice.store.sql import LogReader, PostgresConnection, SqliteConnection

COLUMNS: Final = ("seq", "kind", "key", "episode_id", "route", "at_s", "owner", "body", "response_id")
CHANNEL: Final = "suffice_orders"  # of PostgreSQL; a notification carries the log's schema
NOTIFIED: Final = frozenset(("kill_switched",))  # kinds that gateways must see at once

GivenRow: TypeAlias = tuple[Row, float]  # and the Unix time at which it was accepted


class AddedRow(NamedTuple):
    seq: int  # the row's place in the log; for a duplicate, of the first row
    is_new: bool


class Appender:
    def __init__(
        self, connection: LogReader, *, owner: int, redact: tuple[Part, ...] = (), is_retry: bool = False
    ) -> None:
        """`is_retry`: an earlier attempt may have been committed, so the owner's own rows that exist count as new."""
        self._connection, self._owner, self._redact, self._is_retry = connection, owner, redact, is_retry
        self._tail: tuple[int, bytes] | None = None

    def add(self, row: Row, at_s: float) -> bool:
        return self.add_all([(row, at_s)])[0].is_new

    def add_all(self, rows: Sequence[GivenRow]) -> list[AddedRow]:
        """Add the rows whose kind and key no row of the log has, in this order."""
        if self._redact:
            rows = [(redact_row(row, self._redact), at_s) for row, at_s in rows]
        if isinstance(self._connection, PostgresConnection):
            return self._insert_all(self._connection, rows) if rows else []
        added = list[AddedRow]()
        for is_linked, group in groupby(rows, lambda given: given[0].kind not in UNCHAINED):
            if is_linked:
                added += [self._insert_linked(self._connection, row, at_s) for row, at_s in group]
            else:
                added += self._insert(self._connection, [*group])
        return added

    def _insert(self, connection: SqliteConnection, rows: Sequence[GivenRow]) -> list[AddedRow]:
        n_new = connection.executemany("insert_event", [self._values(*given) for given in rows]).rowcount
        (last,) = connection.execute("SELECT last_insert_rowid()").fetchone()
        return self._places(rows, n_new, last)

    def _insert_linked(self, connection: SqliteConnection, row: Row, at_s: float) -> AddedRow:
        (added,) = self._insert(connection, [(row, at_s)])
        if added.is_new:
            connection.execute("insert_link", self._chained(added.seq, row, at_s))
        return added

    def _insert_all(self, connection: PostgresConnection, rows: Sequence[GivenRow]) -> list[AddedRow]:
        given = {(row.kind, row.key): (row, at_s) for row, at_s in reversed(rows)}  # the first of those with one name
        columns = zip(*(self._values(row, at_s) for row, at_s in reversed(given.values())), strict=True)
        n_new, last = connection.execute("append_events", [[*column] for column in columns]).fetchone()
        added = self._places(rows, n_new, last or 0)
        if n_new and any(kind in NOTIFIED for kind, _ in given):
            connection.execute("SELECT pg_notify(?, current_schema())", (CHANNEL,))
        links = [
            self._chained(place.seq, row, at_s)
            for (row, at_s), place in zip(rows, added, strict=True)
            if row.kind not in UNCHAINED and place.is_new and n_new and place.seq > last - n_new
        ]
        if links:
            connection.copy("chain", Link._fields, links)
        return added

    def _places(self, rows: Sequence[GivenRow], n_new: int, last: int) -> list[AddedRow]:
        """Return the places of rows of which `n_new` were just added, the last of them at `last`."""
        if n_new == len(rows):
            return [AddedRow(seq, is_new=True) for seq in range(last - n_new + 1, last + 1)]
        names, known = [(row.kind, row.key) for row, _ in rows], dict[tuple[str, str], tuple[int, int]]()
        if isinstance(self._connection, PostgresConnection):
            rows_now = self._connection.execute(
                "existing_events", [[*column] for column in zip(*{*names}, strict=True)]
            )
            known = {(kind, key): (seq, owner) for kind, key, seq, owner in rows_now}
        else:
            # A transaction of SQLite that failed is not committed, so a retry finds no rows of its own.
            known = {name: (self._connection.execute("place_of", name).fetchone()[0], -1) for name in names}
        newest = {*sorted((seq for seq, _ in known.values()), reverse=True)[:n_new]}
        added = list[AddedRow]()
        for name in names:
            seq, owner = known[name]
            added.append(AddedRow(seq, is_new=seq in newest or (self._is_retry and owner == self._owner)))
            newest.discard(seq)
            known[name] = seq, -1
        return added

    def _values(self, row: Row, at_s: float) -> tuple[Any, ...]:
        return row.kind, row.key, row.episode_id, row.route, at_s, self._owner, row.body, row.response_id

    def _chained(self, seq: int, row: Row, at_s: float) -> Link:
        taken = split(row.kind, row.body)
        columns = chain.columns_text(seq, row.kind, row.key, row.episode_id, row.route, at_s)
        answers, comments = (taken.words.get(part) for part in CHAINED_PARTS)
        salts = _salt_for(answers), _salt_for(comments)
        place, before = self.tail(at_s, before_seq=seq)
        link = Link(
            place=place + 1,
            seq=seq,
            form=FORM,
            kept=chain.digest_event(columns, taken.kept),
            whole=chain.digest_event(columns, row.body.encode(), salts) if any(salts) else None,
            answers=chain.salted_digest(salts[0], answers),
            answers_salt=salts[0],
            comments=chain.salted_digest(salts[1], comments),
            comments_salt=salts[1],
        )
        return self._sealed(link, before)

    def _sealed(self, link: Link, before: bytes) -> Link:
        sealed = link._replace(link=link.digest_after(before))
        self._tail = sealed.place, sealed.link
        return sealed

    def tail(self, now_s: float, *, before_seq: int | None = None) -> tuple[int, bytes]:
        """Return place and link of the chain's last row; start the chain before `before_seq` if there is none."""
        if self._tail is None:
            row = self._connection.execute("chain_tail").fetchone()
            if row is None:
                self._begin_chain(now_s, before_seq)
            else:
                self._tail = int(row[0]), bytes(row[1])
        assert self._tail is not None
        return self._tail

    def _begin_chain(self, now_s: float, before_seq: int | None) -> None:
        last = self._connection.execute("SELECT coalesce(max(seq), 0) FROM events").fetchone()[0]
        after_seq = last if before_seq is None else before_seq - 1
        marks = ", ".join("?" * len(UNCHAINED))
        count = f"SELECT count(*) FROM events WHERE seq <= ? AND kind NOT IN ({marks})"  # noqa: S608 - only marks
        n_before = self._connection.execute(count, (after_seq, *sorted(UNCHAINED))).fetchone()[0]
        start = ChainStart(chain=os.urandom(8).hex(), at_s=now_s, after_seq=after_seq, n_before=n_before)
        note = chain.ENCODE(start)
        first = Link(place=1, seq=None, form=FORM, kept=chain.digest(note), note=note.decode())
        self._connection.execute("insert_link", self._sealed(first, NOTHING))


def begin_chain(connection: LogReader, now_s: float) -> None:
    """Start the chain if there is none; in a transaction that keeps every other writer out."""
    Appender(connection, owner=0).tail(now_s)


def _salt_for(words: bytes | None) -> bytes | None:
    return None if words is None else os.urandom(SALT_BYTES)

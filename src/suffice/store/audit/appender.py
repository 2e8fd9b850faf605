"""Adds rows to the log and links those of chained kinds, in a transaction that keeps every other writer out.

In SQLite that is BEGIN IMMEDIATE, in PostgreSQL an advisory lock that ends with the transaction: there, as here, rows
become visible in the order of `seq`, which is the order of the chain.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from math import inf
from typing import Any, Final, NamedTuple, TypeAlias

from suffice.store.audit import chain
from suffice.store.audit.chain import CHAINED_PARTS, FORM, NOTHING, SALT_BYTES, ChainStart, Link
from suffice.store.audit.personal import Part, redact_row, split
from suffice.store.rows.events import UNCHAINED, Row
from suffice.store.sql import LogReader

COLUMNS: Final = ("seq", "kind", "key", "episode_id", "route", "at_s", "owner", "body", "response_id")

GivenRow: TypeAlias = tuple[Row, float]  # and the Unix time at which it was accepted


class AddedRow(NamedTuple):
    seq: int  # the row's place in the log; for a duplicate, of the first row
    is_new: bool


class Appender:
    def __init__(
        self, connection: LogReader, *, owner: int, redact: tuple[Part, ...] = (), is_retry: bool = False
    ) -> None:
        """`is_retry`: an earlier attempt may have been committed, so the owner's own rows that exist count as new."""
        self._connection = connection
        self._owner = owner
        self._redact = redact
        self._is_retry = is_retry
        self._tail: tuple[int, bytes] | None = None

    def add(self, row: Row, at_s: float) -> bool:
        return self.add_all([(row, at_s)])[0].is_new

    def add_all(self, rows: Sequence[GivenRow]) -> list[AddedRow]:
        """Add the rows whose kind and key no row of the log has, in this order."""
        if not rows:
            return []
        if self._redact:
            rows = [(redact_row(row, self._redact), at_s) for row, at_s in rows]
        n_new, last = self._connection.append_events([self._values(*given) for given in rows])
        added, first_new = self._places(rows, n_new, last)
        links = [
            self._chained(place.seq, row, at_s)
            for (row, at_s), place in zip(rows, added, strict=True)
            if row.kind not in UNCHAINED and place.is_new and place.seq >= first_new
        ]
        if links:
            self._connection.insert_rows("chain", Link._fields, links)
        return added

    def _places(self, rows: Sequence[GivenRow], n_new: int, last: int) -> tuple[list[AddedRow], float]:
        """Return the places of rows of which `n_new` were just added, the last of them at `last`, and of the first."""
        if n_new == len(rows):
            return [AddedRow(seq, is_new=True) for seq in range(last - n_new + 1, last + 1)], 0
        names = [(row.kind, row.key) for row, _ in rows]
        known = dict(self._connection.find_events({*names}))
        newest = {*sorted((seq for seq, _ in known.values()), reverse=True)[:n_new]}
        added, first_new = list[AddedRow](), min(newest, default=inf)
        for name in names:
            seq, owner = known[name]
            added.append(AddedRow(seq, is_new=seq in newest or (self._is_retry and owner == self._owner)))
            newest.discard(seq)
            known[name] = seq, -1
        return added, first_new

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
        self._connection.insert_rows("chain", Link._fields, [self._sealed(first, NOTHING)])


def begin_chain(connection: LogReader, now_s: float) -> None:
    """Start the chain if there is none; in a transaction that keeps every other writer out."""
    Appender(connection, owner=0).tail(now_s)


def _salt_for(words: bytes | None) -> bytes | None:
    return None if words is None else os.urandom(SALT_BYTES)

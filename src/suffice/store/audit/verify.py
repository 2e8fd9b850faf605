"""Walks the hash chain and reports the first row that was changed.

    edited       the digests differ, or text is missing and no erasure in the chain accounts for it
    removed      a place of the chain is missing, or its event
    reordered    the order differs from the order of writing, or the row does not follow from the one before it
    added        a row of a chained kind outside the chain, or a second beginning
    cut off      an exported head names a place that no longer exists
    rebuilt      the chain does not pass through an exported head

Only exported heads reveal the last two: anyone who can write the file can also write a consistent chain.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import msgspec

from suffice.store.audit import chain
from suffice.store.audit.personal import split
from suffice.store.rows.events import EVENTS, Erasure, decode_as
from suffice.store.sql import LogReader, in_snapshot

_MAX: Final = 2**63 - 1
_KNOWN: Final = frozenset(kind for kind in EVENTS if chain.is_chained(kind))


@dataclass(frozen=True, slots=True, kw_only=True)
class BadRow:
    place: int | None  # in the chain; None: it is not in the chain
    seq: int | None  # of the event in the log; None: unknown
    kind: str | None  # of the event; None: unknown
    what: str  # what is wrong, as a sentence


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainCheck:
    n_rows: int  # of the chain, its first row included
    n_erased: int  # parts of rows erased by an erasure in the chain
    n_heads: int  # exported heads compared with the chain
    beginning: chain.ChainStart | None  # None: there is no chain, or its first row is invalid
    head: chain.Head | None  # None: there is no chain
    bad: BadRow | None  # None: every row is intact

    @property
    def ok(self) -> bool:
        return self.bad is None


class _Event(NamedTuple):
    """The columns of a chained event; None: it is not in the log any more."""

    kind: Any  # a column may hold anything
    key: Any
    episode_id: Any
    route: Any
    at_s: Any
    body: Any


@dataclass(slots=True)
class _Walk:
    place: int = 0
    seq: int = 0
    link: bytes = chain.NOTHING
    n_rows: int = 0
    n_known: int = 0  # of kinds known to this version
    n_erased: int = 0
    first: bytes = b""
    beginning: chain.ChainStart | None = None
    bad: BadRow | None = None
    is_silent: bool = False  # is `bad` a row with missing text whose erasure may have been cut off?
    silent: dict[tuple[int, str], tuple[int, str]] = field(default_factory=dict)  # (seq, part): place, kind
    links: dict[int, bytes | None] = field(default_factory=dict)  # of the places that heads name

    def blame(self, place: int | None, seq: int | None, kind: str | None, what: str) -> None:
        if self.bad is None:
            self.bad = BadRow(place=place, seq=seq, kind=kind, what=what)

    def begin(self, row: chain.Link) -> None:
        self.place = row.place
        self.link = _link(row.link)
        self.first = _link(row.link)
        self.n_rows = 1
        if row.place != 1 or row.seq is not None or not isinstance(row.note, str):
            self.blame(1, None, None, "removed: the beginning of the chain is gone")
            return
        try:
            self.beginning = msgspec.json.decode(row.note, type=chain.ChainStart)
        except ValueError:
            self.blame(1, None, None, "edited: the beginning of the chain cannot be read")
            return
        self.seq = self.beginning.after_seq
        written = chain.Link(place=1, seq=None, form=chain.FORM, kept=chain.digest(row.note.encode()), note=row.note)
        if row != written._replace(link=written.digest_after(chain.NOTHING)):
            self.blame(1, None, None, "edited: the beginning of the chain is not what was written")

    def take(self, row: chain.Link, event: _Event) -> None:
        place = row.place
        seq = row.seq
        kind = event.kind
        before, self.link = self.link, _link(row.link)
        self.n_rows += 1
        self.n_known += kind in _KNOWN
        if place != self.place + 1:
            gone = "place is" if place == self.place + 2 else f"places up to {place - 1} are"
            self.blame(self.place + 1, None, None, f"removed: the {gone} not in the chain any more")
        self.place = place
        if seq is None or row.note is not None:
            self.blame(place, seq, kind, "added: a second beginning of the chain")
            return
        try:
            same = self._in_order(place, seq, kind) and self._is_same(row, seq, event)
            follows = row.digest_after(before) == row.link
        except (TypeError, struct.error):
            self.blame(place, None, kind, "edited: its digests are none")
            return
        if not follows:
            what = "does not follow from the row before it: rows were reordered, removed or added, or links edited"
            self.blame(place, seq, kind, what)
        elif same and kind == "erased":
            erasure = decode_as(Erasure, event.body)
            explained = ((gone, part) for gone in erasure.chained for part in erasure.parts)
            self.n_erased += sum(self.silent.pop(one, None) is not None for one in explained)

    def _in_order(self, place: int, seq: int, kind: str | None) -> bool:
        if seq <= self.seq:
            self.blame(place, seq, kind, f"reordered: it follows row {self.seq} of the log")
        self.seq = max(seq, self.seq)
        if kind is None:
            self.blame(place, seq, None, "removed: its event is not in the log any more")
        return kind is not None

    def _is_same(self, row: chain.Link, seq: int, event: _Event) -> bool:
        if row.form != chain.FORM:
            what = f"is digested in form {row.form!r}, and this version knows {chain.FORM}: upgrade"
            self.blame(row.place, seq, event.kind, what)
            return False
        try:
            columns, body = chain.columns_text(seq, *event[:-1]), event.body.encode()
        except (ValueError, AttributeError):  # not text, or not encodable
            same = False
        else:
            parts = chain.parts_of(row).values()
            if row.whole is None:
                same = chain.digest_event(columns, body) == row.kept and all(one == (None, None) for one in parts)
            elif all((words is None) is (salt is None) for words, salt in parts):
                same = chain.digest_event(columns, body, (row.answers_salt, row.comments_salt)) == row.whole
            else:
                same = self._is_same_without_words(row, seq, event, columns)
        if not same:
            self.blame(row.place, seq, event.kind, "edited: it is not what was written")
        return same

    def _is_same_without_words(self, row: chain.Link, seq: int, event: _Event, columns: bytes) -> bool:
        try:
            taken = split(event.kind, event.body)
        except (ValueError, TypeError, AttributeError):  # not valid JSON
            return False
        if chain.digest_event(columns, taken.kept) != row.kept:
            return False
        for part, (written, salt) in chain.parts_of(row).items():
            words = taken.words.get(part)
            if written is not None and salt is None and words is None:
                self.silent[seq, part] = row.place, event.kind
            elif (words is None) is not (salt is None) or chain.salted_digest(salt, words) != written:
                self.blame(row.place, seq, event.kind, f"edited: its {part} are not what was written")
        return True

    def end(self) -> None:
        left = min(((place, seq, part, kind) for (seq, part), (place, kind) in self.silent.items()), default=None)
        if left is not None and (self.bad is None or (self.bad.place or _MAX) > left[0]):
            place, seq, part, kind = left
            what, self.is_silent = f"edited: its {part} are gone, and no erasure in the chain explains it", True
            self.bad = BadRow(place=place, seq=seq, kind=kind, what=what)


def _link(value: object) -> bytes:
    return value if isinstance(value, bytes) else chain.NOTHING


def verify_chain(connection: LogReader, heads: Sequence[chain.Head] = ()) -> ChainCheck:
    chain.require_chain(connection)
    walk = _Walk(links={head.place: None for head in heads})
    with in_snapshot(connection):
        _walk_rows(connection, walk)
        _find_added(connection, walk)
    _compare_heads(walk, heads)
    head = chain.Head(walk.first.hex(), walk.place, walk.seq, walk.link.hex()) if walk.n_rows else None
    return ChainCheck(
        n_rows=walk.n_rows,
        n_erased=walk.n_erased,
        n_heads=len(heads),
        beginning=walk.beginning,
        head=head,
        bad=walk.bad,
    )


def _walk_rows(connection: LogReader, walk: _Walk) -> None:
    n_columns = len(chain.Link._fields)
    for columns in connection.stream("chain_with_events"):
        row = chain.Link._make(columns[:n_columns])
        if walk.n_rows:
            walk.take(row, _Event._make(columns[n_columns:]))
        else:
            walk.begin(row)
        if row.place in walk.links:
            walk.links[row.place] = walk.link
    if not walk.n_rows:
        walk.blame(1, None, None, "removed: the chain is empty, its beginning included")
    walk.end()


def _find_added(connection: LogReader, walk: _Walk) -> None:
    if walk.beginning is None:
        return
    wanted = f"e.seq > ? AND e.kind IN ({', '.join('?' * len(_KNOWN))})"
    values = (walk.beginning.after_seq, *sorted(_KNOWN))
    count = f"SELECT count(*) FROM events e WHERE {wanted}"  # noqa: S608 - only marks
    if walk.bad is None and connection.execute(count, values).fetchone()[0] == walk.n_known:
        return  # every such row is in the chain
    row = connection.execute(
        f"SELECT e.seq, e.kind FROM events e WHERE {wanted}"  # noqa: S608 - only marks
        " AND NOT EXISTS (SELECT 1 FROM chain c WHERE c.seq = e.seq) ORDER BY e.seq LIMIT 1",
        values,
    ).fetchone()
    if row is not None and (walk.bad is None or (walk.bad.seq or _MAX) > row[0]):
        walk.bad = BadRow(place=None, seq=row[0], kind=row[1], what="added: it is in the log but not in the chain")


def _compare_heads(walk: _Walk, heads: Sequence[chain.Head]) -> None:
    agreed = 0
    for head in sorted(heads, key=lambda head: head.place):
        link = walk.links.get(head.place)
        if head.begin != walk.first.hex():
            place, what = 1, "rebuilt: the chain begins otherwise than the one whose head was exported"
        elif link is None:
            place, what = walk.place + 1, f"cut off: a head at place {head.place} was exported"
        elif link.hex() != head.link:
            place, what = agreed + 1, f"rebuilt: from here to place {head.place} it is not the chain that was exported"
        else:
            agreed = head.place
            continue
        if walk.bad is None or walk.is_silent or (walk.bad.place or _MAX) > place:
            walk.bad = BadRow(place=place, seq=None, kind=None, what=what)
        return

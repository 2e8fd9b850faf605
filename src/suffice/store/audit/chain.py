"""The hash chain of the audit log: each chained row commits to itself and to all rows before it.

    link = digest of (previous link, place, the event's seq, digests of the event)

An event with personal text is digested as a whole and in parts: the part that is kept, and each erasable part with
a salt of its own. Erasing a part keeps its digest and drops its salt, so the text cannot be guessed and the rest of
the row stays verifiable. The digest of the whole covers the salts and means nothing once one is gone.

`extract` gives lines of JSON; an exported head is one signed line (HMAC-SHA-256, key derived from the deployment's
secret), to be kept where those who can write the log cannot write:

    {"type": "row", "seq": …, "told": …, "kept": …}   a chained row without personal text: its digest is the link's
    {"type": "link", "of": [place, seq, digests …]}   one link of the chain; the first also has the link before it
    {"at": "2026-11-26T09:00:00Z", "begin": …, "place": 812, "seq": 90211, "link": …, "signature": …}     a head
"""

from __future__ import annotations

import hmac
import os
import struct
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from suffice.errors import StoreError
from suffice.store.audit.personal import Part, split, without
from suffice.store.rows.events import EARLIER_KEYS, UNCHAINED, Row
from suffice.store.sql import LogReader, in_snapshot

Line = dict[str, Any]  # a line of JSON
FORM: Final = 1  # version of the digest format; another format gets another number, and both stay readable
NOTHING: Final = bytes(32)  # the link before the first row, and the digest of an absent part
SALT_BYTES: Final = 16
CHAINED_PARTS: Final[tuple[Part, Part]] = ("answers", "comments")

_LAST_SEQ: Final = 2**63 - 1
ENCODE: Final = msgspec.json.Encoder().encode
_PLACES: Final = struct.Struct(">QQB").pack


@dataclass(frozen=True, slots=True)
class Head:
    begin: str  # link of the chain's first row, hexadecimal: which chain it is
    place: int  # of the last row
    seq: int  # of its event in the log; 0: the chain has no rows yet
    link: str  # of the last row, hexadecimal


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainStart:
    chain: str  # a random name, so that no two chains begin alike
    at_s: float  # Unix time; informative
    after_seq: int  # the chain does not cover rows of the log up to here: they are older
    n_before: int  # of them, rows of kinds that would be chained


def is_chained(kind: str) -> bool:
    return kind not in UNCHAINED


class Link(NamedTuple):
    """A row of the table `chain`."""

    place: int
    seq: int | None  # of the event; None: the beginning
    form: int
    kept: bytes  # digest of the event without personal text
    whole: bytes | None = None  # digest of the event with it; None: it holds none
    answers: bytes | None = None  # digest of the answers in it
    answers_salt: bytes | None = None
    comments: bytes | None = None
    comments_salt: bytes | None = None
    link: bytes = NOTHING
    note: str | None = None  # what the beginning says

    def digest_after(self, before: bytes) -> bytes:
        digests = (self.kept, self.whole or NOTHING, self.answers or NOTHING, self.comments or NOTHING)
        return digest(before, _PLACES(self.place, self.seq or 0, FORM), *digests)


COLUMNS: Final = ", ".join(f"c.{name}" for name in Link._fields)


def digest(*parts: bytes) -> bytes:
    return sha256(b"".join(parts)).digest()


def columns_text(seq: int, kind: str, key: str, episode_id: str | None, route: str | None, at_s: float) -> bytes:
    return ENCODE((seq, kind, key, episode_id, route, at_s))


def digest_event(columns: bytes, body: bytes, salts: tuple[bytes | None, bytes | None] | None = None) -> bytes:
    """Digest an event; with personal text in it, its salts keep the text from being guessed."""
    salted = () if salts is None else (salt or bytes(SALT_BYTES) for salt in salts)
    return digest(*salted, columns, b"\n", body)


def salted_digest(salt: bytes | None, words: bytes | None) -> bytes | None:
    return None if salt is None or words is None else digest(salt, words)


def require_chain(connection: LogReader) -> None:
    if not connection.has_table("chain"):
        raise StoreError("the log has no chain: somebody has dropped it, and nothing vouches for its rows")


def head(connection: LogReader, until_seq: int = _LAST_SEQ) -> Head | None:
    """Return the end of the chain, or where it stood at a place of the log; None if it is empty or dropped."""
    if not connection.has_table("chain"):
        return None
    row = connection.execute("chain_head", (until_seq,)).fetchone()
    return None if row is None else Head(bytes(row[0]).hex(), int(row[1]), int(row[2]), bytes(row[3]).hex())


def repeats(connection: LogReader, row: Row, seq: int, stored: str, *, redact: Iterable[Part] = ()) -> bool:
    """Return whether a row equals the stored row of the same key, ignoring what the log has erased."""
    gone = {*redact, *_erased(connection, seq)}
    bodies = (msgspec.json.decode(without(row.kind, body, gone)) for body in (row.body, stored))
    now, then = (without_earlier_key(row.kind, body) for body in bodies)
    if row.kind == "feedback":
        for body in (now, then):
            body.pop("about", None)  # the gateway's memory of the run, which it may have lost since
        for feedback in (now["feedback"], then["feedback"]):
            for field in ("door", "satisfaction"):  # the channel, and the satisfaction under the metrics of that time
                feedback.pop(field, None)
    return bool(now == then)


def without_earlier_key(kind: str, body: Line) -> Line:
    """Return a decoded body as if only today's key of its payload had been written."""
    earlier, field = EARLIER_KEYS.get(kind, ("", ""))
    return {field: body[earlier]} if earlier in body else body


def _erased(connection: LogReader, seq: int) -> list[Part]:
    row = connection.execute(f"SELECT {COLUMNS} FROM chain c WHERE c.seq = ?", (seq,)).fetchone()  # noqa: S608 - names
    parts = {} if row is None else parts_of(Link._make(row))
    return [part for part, (words, salt) in parts.items() if words is not None and salt is None]


def parts_of(link: Link) -> dict[Part, tuple[bytes | None, bytes | None]]:
    """Return the digest and the salt of each part; a digest without its salt is of an erased part."""
    return {"answers": (link.answers, link.answers_salt), "comments": (link.comments, link.comments_salt)}


def forget_salts(connection: LogReader, seq: int, parts: Collection[Part]) -> bool:
    """Drop the salts of an event's erased parts and return whether the event was chained. Their digests stay."""
    n_changed = 0
    for part in CHAINED_PARTS:
        if part in parts:
            salt = f"{part}_salt"
            drop = f"UPDATE chain SET {salt} = NULL WHERE seq = ? AND {salt} IS NOT NULL"  # noqa: S608 - a name
            n_changed += connection.execute(drop, (seq,)).rowcount
    return n_changed > 0


_EVENT: Final = "SELECT seq, kind, key, episode_id, route, at_s, body FROM events"


def extract(connection: LogReader, places: Collection[int], *, exported: str) -> tuple[Head, list[Line]]:
    """Return the end of the chain, the rows at `places` and of this export, and the links between. Raise StoreError."""
    with in_snapshot(connection):
        (place,) = connection.execute("last_export", (exported,)).fetchone()
        end = head(connection)
        if end is None:
            raise StoreError("the log: its chain is empty")
        return end, [*_rows(connection, {*places, place}), *_links(connection, min(places))]


def _rows(connection: LogReader, places: Collection[int]) -> Iterator[Line]:
    for place in sorted(places):
        row = connection.execute(f"{_EVENT} WHERE seq = ?", (place,)).fetchone()
        if row is None:
            raise StoreError(f"the log: row {place} is gone")
        *columns, body = row
        text, kept = columns_text(*columns), split(columns[1], body).kept
        yield {"type": "row", "seq": place, "told": text.decode(), "kept": kept.decode()}


def _links(connection: LogReader, first_seq: int) -> Iterator[Line]:
    row = connection.execute("SELECT place FROM chain WHERE seq = ?", (first_seq,)).fetchone()
    if row is None:
        raise StoreError(f"the log: row {first_seq} is not in the chain, so nothing vouches for it")
    before = connection.execute("SELECT link FROM chain WHERE place = ?", (row[0] - 1,)).fetchone()
    line: Line = {"before": (before[0] if before is not None else NOTHING).hex()}
    for place, seq, *digests in connection.execute("links_from", row):
        yield {"type": "link", "of": [place, seq or 0, *(one and one.hex() for one in digests)], **line}
        line = {}


@dataclass(frozen=True, slots=True)
class ExtractRow:
    seq: int
    kind: str
    body: str
    digest: str


def read_starts(connection: LogReader, route: str, until_seq: int) -> Iterator[ExtractRow]:
    yield from (_entry(row) for row in connection.execute("starts_of_route", (route, until_seq)))


def find_outcome_row(connection: LogReader, episode: str, until_seq: int) -> ExtractRow | None:
    row = connection.execute("outcome_row", (episode, until_seq)).fetchone()
    return None if row is None else _entry(row)


def _entry(row: tuple[Any, ...]) -> ExtractRow:
    *columns, body = row
    return ExtractRow(row[0], row[1], body, digest_event(columns_text(*columns), body.encode()).hex())


_PURPOSE: Final = b"suffice audit head 1"
_MOST_BYTES: Final = 64 * 2**20  # of a file of heads


class _Line(msgspec.Struct, frozen=True):
    at: str
    begin: str
    place: int
    seq: int
    link: str
    signature: str = ""

    def signed_with(self, key: bytes) -> str:
        *signed, _ = map(str, msgspec.structs.astuple(self))
        return hmac.new(key, "\n".join(signed).encode(), sha256).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptHead:
    line: int
    at: str
    head: Head
    signed: bool | None  # None: not checked


def signing_key(salt: str) -> bytes:
    return hmac.digest(salt.encode("utf-8", "surrogatepass"), _PURPOSE, "sha256")


def line_of(head: Head, *, at: str, key: bytes) -> bytes:
    """Return a head as one signed line of JSON, newline included."""
    line = _Line(at, head.begin, head.place, head.seq, head.link)
    return msgspec.json.encode(msgspec.structs.replace(line, signature=line.signed_with(key))) + b"\n"


def append_line(file: Path, line: bytes) -> None:
    """Append a line to a file and sync it; a line that a crash left incomplete is ended first. Raise StoreError."""
    try:
        is_new = not file.exists()
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        with os.fdopen(descriptor, "a+b", buffering=0) as handle:
            if handle.seek(0, os.SEEK_END):
                handle.seek(-1, os.SEEK_END)
                line = line if handle.read(1) == b"\n" else b"\n" + line
            handle.write(line)
            os.fsync(handle.fileno())
        if is_new and os.name != "nt":  # where a folder cannot be opened
            folder = os.open(file.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    except OSError as error:
        raise StoreError(f"audit.file {file}: cannot be written ({error.strerror or error})") from None


def read_heads(file: Path, *, key: bytes | None) -> list[KeptHead]:
    """Read all heads of a file in order, without an incomplete last line. Raise StoreError."""
    try:
        with file.open("rb") as handle:
            content = handle.read(_MOST_BYTES + 1)
    except OSError as error:
        raise StoreError(f"heads {file}: cannot be read ({error.strerror or error})") from None
    if len(content) > _MOST_BYTES:
        raise StoreError(f"heads {file}: is larger than {_MOST_BYTES // 2**20} MiB; give a part of it")
    heads = []
    for number, text in enumerate(content.split(b"\n"), 1):
        if not text.strip():
            continue
        try:
            line = msgspec.json.decode(text, type=_Line)
        except ValueError:
            if text.startswith(b"{") and not text.rstrip().endswith(b"}"):
                continue  # the writer crashed in the middle of the line and never reported it as written
            raise StoreError(f"heads {file}: line {number} is no head; need the lines that Suffice exported") from None
        head = Head(line.begin, line.place, line.seq, line.link)
        signed = None if key is None else hmac.compare_digest(line.signature.encode(), line.signed_with(key).encode())
        heads.append(KeptHead(line=number, at=line.at, head=head, signed=signed))
    return heads

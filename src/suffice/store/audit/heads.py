"""Exported heads of the chain: one signed line each, kept where whoever can write the log cannot write.

    {"at": "2026-11-26T09:00:00Z", "begin": …, "place": 812, "seq": 90211, "link": …, "signature": …}

A line is signed with a key made of the deployment's secret (HMAC-SHA-256).
"""

from __future__ import annotations

import hmac
import os
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final

import msgspec

from suffice.errors import StoreError
from suffice.store.audit.chain import Head

_PURPOSE: Final = b"suffice audit head 1"
_MOST_BYTES: Final = 64 * 2**20  # of a file of heads


class _Line(msgspec.Struct, frozen=True, kw_only=True):
    at: str
    begin: str
    place: int
    seq: int
    link: str
    signature: str = ""

    def signed_with(self, key: bytes) -> str:
        text = "\n".join((self.at, self.begin, str(self.place), str(self.seq), self.link))
        return hmac.new(key, text.encode(), sha256).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptHead:
    line: int
    at: str
    head: Head
    signed: bool | None  # None: nobody could check


def signing_key(salt: str) -> bytes:
    return hmac.digest(salt.encode("utf-8", "surrogatepass"), _PURPOSE, "sha256")


def line_of(head: Head, *, at: str, key: bytes) -> bytes:
    """A head as one signed line of JSON, its end included."""
    line = _Line(at=at, begin=head.begin, place=head.place, seq=head.seq, link=head.link)
    return msgspec.json.encode(msgspec.structs.replace(line, signature=line.signed_with(key))) + b"\n"


def append_line(file: Path, line: bytes) -> None:
    """Add a line to a file so that it is on disk when this returns; half a line of a crash is closed first.

    Raises StoreError.
    """
    try:
        is_new = not file.exists()
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            size = os.fstat(descriptor).st_size
            if size:
                os.lseek(descriptor, size - 1, os.SEEK_SET)
                line = line if os.read(descriptor, 1) == b"\n" else b"\n" + line
            os.write(descriptor, line)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if is_new and os.name != "nt":  # where a folder cannot be opened
            folder = os.open(file.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    except OSError as error:
        raise StoreError(f"audit.file {file}: cannot be written ({error.strerror or error})") from None


def read_heads(file: Path, *, key: bytes | None) -> list[KeptHead]:
    """All heads of a file, in its order; a last line that a crash cut in half is left out. Raises StoreError."""
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
                continue  # the writer died in the middle of it: it never said that it was there
            raise StoreError(f"heads {file}: line {number} is no head; need the lines that Suffice exported") from None
        head = Head(begin=line.begin, place=line.place, seq=line.seq, link=line.link)
        signed = None
        if key is not None:
            signed = hmac.compare_digest(line.signature.encode(), line.signed_with(key).encode())
        heads.append(KeptHead(line=number, at=line.at, head=head, signed=signed))
    return heads

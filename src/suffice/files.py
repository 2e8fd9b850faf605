"""A file that is there in full or not at all; who may read it; a file's bytes, packed or not; a line of JSON lines.

A file is written under another name in the same folder, synced, and renamed: a reader sees the old one or the new one.
"""

from __future__ import annotations

import gzip
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final

import msgspec

from suffice.errors import ConfigError

PRIVATE: Final = 0o600  # mode of a file that its owner alone may read


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a name to write to; after the block it is `path`. After an error nothing is left.

    Folders that are missing are made. The file can be read by its owner alone. Raises OSError as the system does.
    """
    make_folder(path.parent)
    part = path.with_name(f".{path.name[:200]}.{secrets.token_hex(4)}.part")
    try:
        create_private(part)
        yield part
        with part.open("rb") as written:
            os.fsync(written.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """Write a text file in UTF-8, in full or not at all; half a surrogate pair becomes `?`."""
    with whole_file(path) as part:
        part.write_text(text, encoding="utf-8", errors="replace", newline="\n")


def create_private(path: Path) -> None:
    """Make an empty file that its owner alone may read, whatever the umask. Raises FileExistsError and OSError."""
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE))


def make_folder(path: Path) -> None:
    """Make a folder, and those that are missing above it, for their owner alone. Raises OSError."""
    missing = [one for one in (path, *path.parents) if not one.exists()]
    for one in reversed(missing):
        one.mkdir(mode=0o700, exist_ok=True)


def tighten(path: Path) -> str | None:
    """Let a file's owner alone read it; what the owner should know of that, None: nothing. Raises nothing."""
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        if os.name == "nt" or not mode & 0o077:
            return None
        path.chmod(mode & PRIVATE)
    except FileNotFoundError:
        return None
    except OSError as error:
        return f"{path}: can be read by others, and its mode cannot be changed ({error.strerror})"
    return f"{path}: could be read by others (mode {mode:04o}); its mode is {mode & PRIVATE:04o} now"


def read_start(path: Path, most_bytes: int) -> bytes:
    """The first bytes of a file, without ever waiting: a pipe that nobody writes to holds nothing. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    try:
        return os.read(descriptor, most_bytes)
    finally:
        os.close(descriptor)


def open_unpacked(path: Path) -> IO[bytes]:
    """Open a file to read its bytes, unpacked where its name ends in .gz.

    Raises OSError; what is read of a packed one may raise EOFError and zlib.error too.
    """
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]  # reads bytes


def json_object(line: str | bytes, where: str) -> dict[str, Any]:
    """The object that a line of JSON lines holds. Raises ConfigError; `where` is the file and the line."""
    try:
        item = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeError):
        raise ConfigError(f"{where}: is not JSON; need one object a line") from None
    if not isinstance(item, dict):
        raise ConfigError(f"{where}: is no object, got {type(item).__name__}")
    return item

"""Atomic, private file writes, and reading of gzip files and JSON lines."""

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

PRIVATE: Final = 0o600  # mode: the owner alone may read and write


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path that becomes `path` after the block, or is removed after an error.

    Missing folders are created. Only the owner can read the file. Raise OSError.
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
    """Write a text file in UTF-8 atomically; a lone surrogate becomes `?`."""
    with whole_file(path) as part:
        part.write_text(text, encoding="utf-8", errors="replace", newline="\n")


def create_private(path: Path) -> None:
    """Create an empty file that only its owner can read, whatever the umask. Raise FileExistsError or OSError."""
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE))


def make_folder(path: Path) -> None:
    """Create a folder and its missing parents for their owner alone. Raise OSError."""
    missing = [one for one in (path, *path.parents) if not one.exists()]
    for one in reversed(missing):
        one.mkdir(mode=0o700, exist_ok=True)


def tighten(path: Path) -> str | None:
    """Make a file readable by its owner alone. Return a warning for the owner if others could read it. Never raises."""
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


def file_mark(path: Path) -> tuple[int, int, int] | None:
    """Return what changes when a file is written or replaced: inode, bytes, time in nanoseconds; None: unreadable."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def read_start(path: Path, most_bytes: int) -> bytes:
    """Return the first bytes of a file without blocking, b"" for a pipe without a writer. Raise OSError."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    try:
        return os.read(descriptor, most_bytes)
    finally:
        os.close(descriptor)


def open_unpacked(path: Path) -> IO[bytes]:
    """Open a file to read bytes, unpacking .gz. Raise OSError, when reading a .gz also EOFError and zlib.error."""
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]  # reads bytes


def json_object(line: str | bytes, where: str) -> dict[str, Any]:
    """Return the object in a line of JSON lines. Raise ConfigError that begins with `where` (file and line)."""
    try:
        item = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeError):
        raise ConfigError(f"{where}: is not JSON; need one object a line") from None
    if not isinstance(item, dict):
        raise ConfigError(f"{where}: is not an object, got {type(item).__name__}")
    return item


def has_terminal() -> bool:
    """Return whether this process has a controlling terminal that was not closed."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | getattr(os, "O_NOCTTY", 0)))
    except OSError:
        return False
    return True

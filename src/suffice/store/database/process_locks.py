"""Which process wrote a request, and whether that process still lives.

Every open log claims one lock file beside the database and holds an operating-system lock on it for
its whole life. The kernel drops the lock when the process dies, however it dies, so "can I lock
it?" is the question "is it dead?", with no clock, no heartbeat and no process number that another
container could be using too. Names are never used twice.
"""

from __future__ import annotations

import os
import secrets
import sys
from dataclasses import dataclass
from pathlib import Path

if sys.platform == "win32":
    import msvcrt

    def try_lock(descriptor: int) -> bool:
        """Take the operating system's lock on an open file; False: somebody else holds it."""
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

    def is_locked(descriptor: int) -> bool:
        """Does another process hold the lock on an open file?"""
        if not try_lock(descriptor):
            return True
        msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)
        return False

else:
    import fcntl

    def _took(descriptor: int, kind: int) -> bool:
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def try_lock(descriptor: int) -> bool:
        """Take the operating system's lock on an open file; False: somebody else holds it."""
        return _took(descriptor, fcntl.LOCK_EX)

    def is_locked(descriptor: int) -> bool:
        """Does another process hold the lock on an open file? Two that ask at once do not take each other for it."""
        return not _took(descriptor, fcntl.LOCK_SH)


@dataclass(frozen=True, slots=True)
class ProcessLock:
    """A held lock: this process is alive."""

    name: str  # unique for ever
    path: Path  # the lock file
    descriptor: int  # open for as long as the lock is held

    def release(self) -> None:
        """Say that this owner is done; its unfinished requests may be marked as lost."""
        os.close(self.descriptor)
        self.path.unlink(missing_ok=True)


def claim(database: Path) -> ProcessLock:
    """Take a new name and hold its lock. Raises OSError when the folder cannot be written."""
    name = secrets.token_hex(6)
    path = _path(database, name)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try_lock(descriptor)
    return ProcessLock(name, path, descriptor)


def is_alive(database: Path, name: str) -> bool:
    try:
        descriptor = os.open(_path(database, name), os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        return is_locked(descriptor)
    finally:
        os.close(descriptor)


def forget(database: Path, name: str) -> None:
    _path(database, name).unlink(missing_ok=True)


def _path(database: Path, name: str) -> Path:
    return database.with_name(f"{database.name}-{name}.lock")

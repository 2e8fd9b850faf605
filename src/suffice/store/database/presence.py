"""Which gateways are running on a deployment, and which commands each of them has taken in.

    Announcement (in a gateway) ──▶ locked file beside the kill switch's ──▶ read_presences (in a command)

A gateway holds an operating-system lock on its file for its whole life, and every open log on one beside the database.
The kernel drops the lock when the process dies, however it dies, so "can I lock it?" is the question "is it dead?":
there is no clock, no heartbeat and no process number that another container could be using too. Names are never used
twice.
Neither side needs the database.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from suffice.files import read_start
from suffice.sanitize import printable
from suffice.telemetry import LOG

ENDING: Final = ".gateway"
SIZE_BYTES: Final = 4_096  # of the file, always: a reader never sees the end of an older, longer text
MOST_REASON_BYTES: Final = 2_000  # of the switch's file: more is no reason but an accident
NO_REASON: Final = "no reason is given"


class Presence(msgspec.Struct, frozen=True, kw_only=True):
    pid: int
    process: str = "serve"  # "serve" a gateway, "library" a caller's own loop
    killed: bool = False  # does it hold every route back, because of the kill switch?
    kill_stamp: int | None = None  # when the switch's file that it knows was written, ns; None: it knows none
    decided: int = 0  # place in the log up to which it acts on decisions
    damage: str = ""  # what its check of the log's pages found; "": nothing, or not finished

    @property
    def name(self) -> str:
        return f"{'gateway' if self.process == 'serve' else self.process} PID {self.pid}"


class Announcement:
    """One process's file. `update` raises nothing: without a file, commands say that nobody confirmed."""

    def __init__(self, switches: Sequence[Path], *, process: str) -> None:
        """Announce the process.

        switches  files of the kill switch, the best place first: the file lies beside the first whose folder takes it
        """
        self._switches = switches
        self._presence = Presence(pid=os.getpid(), process=process)
        self._lock = threading.Lock()
        self._path: Path | None = None
        self._descriptor: int | None = None
        self._has_warned = self._is_over = False
        for one in switches:
            _forget_dead(one)
        self.update()

    def update(self, **changes: Any) -> None:
        """Say something new, and make the file again where somebody has deleted it; O(1). Any: fields of `Presence`."""
        with self._lock:
            if self._is_over:
                return
            before, self._presence = self._presence, msgspec.structs.replace(self._presence, **changes)
            is_there = self._descriptor is not None and os.fstat(self._descriptor).st_nlink > 0
            if is_there and before == self._presence:
                return
            try:
                if not is_there:
                    self._claim()
                elif self._descriptor is not None:
                    os.pwrite(self._descriptor, self._content(), 0)
            except OSError as error:
                if not self._has_warned:
                    self._has_warned = True
                    LOG.warning(
                        "kill switch: no file can be written beside %s (%s): commands work, and cannot confirm it",
                        self._switches[0],
                        error.strerror,
                    )

    def release(self) -> None:
        with self._lock:
            self._is_over = True
            self._drop()
            if self._path is not None:
                with contextlib.suppress(OSError):
                    self._path.unlink(missing_ok=True)

    def _drop(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
        self._descriptor = None

    def _claim(self) -> None:
        """Make the file, locked before it has its name, in the first folder that takes it. Raises OSError."""
        self._drop()
        problem = OSError(2, "no folder")
        for switch in self._switches:
            try:
                self._path, self._descriptor = self._made_beside(switch)
            except OSError as error:
                problem = error
            else:
                return
        raise problem

    def _made_beside(self, switch: Path) -> tuple[Path, int]:
        path = switch.with_name(f"{switch.name}-{secrets.token_hex(6)}{ENDING}")
        draft = path.with_suffix(".draft")
        descriptor = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            try_lock(descriptor)
            os.pwrite(descriptor, self._content(), 0)
            draft.rename(path)
        except OSError:
            os.close(descriptor)
            draft.unlink(missing_ok=True)
            raise
        return path, descriptor

    def _content(self) -> bytes:
        return msgspec.json.encode(self._presence).ljust(SIZE_BYTES)


def switch_reason(switch: Path) -> str | None:
    """The reason in the kill switch's file; None: there is no such file. An unreadable one counts all the same."""
    try:
        return printable(read_start(switch, MOST_REASON_BYTES).decode("utf-8", "replace").strip()) or NO_REASON
    except FileNotFoundError:
        return NO_REASON if switch.is_symlink() else None  # a link that leads nowhere: somebody has put it there
    except OSError:
        return NO_REASON


def read_presences(switches: Iterable[Path]) -> tuple[Presence, ...]:
    """The processes that run now and lie beside one of these files; those that may not be read are left out."""
    by_path = dict[Path, Presence]()
    for switch in switches:
        for path in _files(switch):
            with contextlib.suppress(OSError, ValueError), _opened(path) as descriptor:
                if is_locked(descriptor):  # else it has ended meanwhile
                    by_path[path] = msgspec.json.decode(os.read(descriptor, SIZE_BYTES), type=Presence)
    return tuple(sorted(by_path.values(), key=lambda one: one.pid))


def _files(switch: Path) -> list[Path]:
    with contextlib.suppress(OSError):
        return [one for one in switch.parent.iterdir() if one.match(f"{switch.name}-*{ENDING}")]
    return []


def _forget_dead(switch: Path) -> None:
    for path in _files(switch):
        with contextlib.suppress(OSError), _opened(path) as descriptor:
            if not is_locked(descriptor):
                path.unlink(missing_ok=True)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    """A descriptor of a file that another process may have made: no link is followed, and no pipe waited for."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    try:
        yield descriptor
    finally:
        os.close(descriptor)


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

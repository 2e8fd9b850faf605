"""Announces running gateways and the commands that each has applied, and reads those announcements.

A gateway locks its file for its whole life, and every open log locks one beside the database. The kernel drops the
lock when the process dies, so a lock that can be taken means a dead owner: no clock, heartbeat or process id is needed,
and names are never reused. Neither side needs the database.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import socket
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import msgspec

from suffice.files import read_start, write_whole
from suffice.sanitize import printable
from suffice.settings import Settings
from suffice.telemetry import LOG

ENDING: Final = ".gateway"
ORDER_ENDING: Final = ".reload"  # of the file that says who wants the next reload of a gateway, and why
SIZE_BYTES: Final = 4_096  # fixed size of the file, so that a reader never sees the tail of a longer, older text
MOST_REASON_BYTES: Final = 2_000  # read of the switch's file at most
MOST_ORDER_BYTES: Final = 65_536
NO_REASON: Final = "no reason is given"
_ORDER: Final = re.compile(r"\norder ([0-9]{1,19})\n?\Z")  # last line of a file that carries out an order


def replica_name(settings: Settings) -> str:
    """Return the name of this process among the gateways of a log."""
    return settings.server.replica or f"{socket.gethostname()}:{os.getpid()}"


class Presence(msgspec.Struct, frozen=True, kw_only=True):
    pid: int
    replica: str = ""  # name of the gateway, as `server.replica`
    process: str = "serve"  # "serve" a gateway, "library" a caller's own loop
    killed: bool = False  # it holds every route back because of the kill switch
    kill_stamp: int | None = None  # of the newest order or file that it applied, ns; None: none
    kill_reason: str = ""
    kill_local: bool = False  # by a file that a person made, or its environment: a release elsewhere does not reach it
    decided: int = 0  # place in the log up to which it applied decisions
    damage: str = ""  # what its check of the log's pages found; "": nothing, or not finished
    n_reloads: int = 0  # of its settings, failed ones included
    reloaded: str = ""  # what the latest of them changed, as a sentence; "": none

    @property
    def name(self) -> str:
        what = f"{'gateway' if self.process == 'serve' else self.process} PID {self.pid}"
        return what if self.replica in ("", f"{socket.gethostname()}:{self.pid}") else f"{what} ({self.replica})"


class ReloadOrder(msgspec.Struct, frozen=True, kw_only=True):
    author: str
    reason: str


class Announcement:
    def __init__(self, switches: Sequence[Path], **fields: Any) -> None:
        """Announce the process beside the first of these kill switch files whose folder is writable.

        fields  of `Presence`, as known at the start
        """
        self._switches = switches
        self._presence = Presence(pid=os.getpid(), **fields)
        self._lock = threading.Lock()
        self._file: ProcessLock | None = None
        self._has_warned = self._is_over = False
        for path in _files(switches):
            with contextlib.suppress(OSError), _opened(path) as descriptor:
                if not is_locked(descriptor):  # of a dead process
                    path.unlink(missing_ok=True)
                    path.with_suffix(ORDER_ENDING).unlink(missing_ok=True)
        self.update()

    def update(self, **changes: Any) -> None:
        """Publish changed fields of `Presence`, O(1). Never raises: without a file, commands see no process."""
        with self._lock:
            if self._is_over:
                return
            before, self._presence = self._presence, msgspec.structs.replace(self._presence, **changes)
            try:
                if self._file is None or not os.fstat(self._file.descriptor).st_nlink:
                    self._claim()
                elif before != self._presence:
                    os.pwrite(self._file.descriptor, self._content(), 0)
            except OSError as error:
                if not self._has_warned:
                    self._has_warned = True
                    LOG.warning(
                        "kill switch: no file can be written beside %s (%s): commands work, and cannot confirm it",
                        self._switches[0],
                        error.strerror,
                    )

    def take_order(self) -> ReloadOrder | None:
        """Return who wants the next reload, and forget it; None: nobody has said."""
        if self._file is None:
            return None
        path = self._file.path.with_suffix(ORDER_ENDING)
        try:
            order = msgspec.json.decode(read_start(path, MOST_ORDER_BYTES), type=ReloadOrder)
            path.unlink()
        except (OSError, ValueError):
            return None
        return order

    def release(self) -> None:
        with self._lock:
            self._is_over = True
            if self._file is not None:
                with contextlib.suppress(OSError):
                    self._file.release()

    def _claim(self) -> None:
        if self._file is not None:
            os.close(self._file.descriptor)
            self._file = None
        problem = OSError(2, "no folder")
        for switch in self._switches:
            try:
                self._file = self._claim_beside(switch)
            except OSError as error:
                problem = error
            else:
                return
        raise problem

    def _claim_beside(self, switch: Path) -> ProcessLock:
        name = secrets.token_hex(6)
        path = switch.with_name(f"{switch.name}-{name}{ENDING}")
        draft = _create_locked(name, path.with_suffix(".draft"))
        try:
            os.pwrite(draft.descriptor, self._content(), 0)
            draft.path.rename(path)
        except OSError:
            draft.release()
            raise
        return replace(draft, path=path)

    def _content(self) -> bytes:
        return msgspec.json.encode(self._presence).ljust(SIZE_BYTES)


@dataclass(frozen=True, slots=True)
class SwitchFile:
    """The kill switch's file as one look found it."""

    reason: str
    changed_ns: int
    order: int | None = None  # stamp of the order that it carries out; None: a person made it

    @property
    def stamp(self) -> int:
        return self.changed_ns if self.order is None else self.order


def switch_text(reason: str, order: int | None) -> str:
    """Return the content of the kill switch's file."""
    if order is None:
        return f"{reason}\n"
    return f"{reason.encode(errors='replace')[: MOST_REASON_BYTES - 64].decode(errors='ignore')}\norder {order}\n"


def read_switch(switch: Path) -> SwitchFile:
    """Read the kill switch's file; an unreadable one counts as made by a person. Raise FileNotFoundError, OSError."""
    changed = changed_ns(switch)
    try:
        content = read_start(switch, MOST_REASON_BYTES).decode("utf-8", "replace")
    except OSError:
        return SwitchFile(NO_REASON, changed)
    last = _ORDER.search(content)
    reason = printable((content if last is None else content[: last.start()]).strip()) or NO_REASON
    return SwitchFile(reason, changed, None if last is None else int(last[1]))


def switch_reason(switch: Path) -> str | None:
    """Return the reason in the kill switch's file; None: no file. What cannot be read counts as set."""
    try:
        return read_switch(switch).reason
    except FileNotFoundError:
        return None
    except OSError:
        return NO_REASON


def changed_ns(file: Path) -> int:
    """Return when a file was changed; a dangling link counts, because somebody placed it there. Raise OSError."""
    try:
        return file.stat().st_mtime_ns
    except OSError:
        return file.lstat().st_mtime_ns


def read_presences(switches: Iterable[Path]) -> tuple[Presence, ...]:
    """Return the running processes announced beside these files; unreadable announcements are skipped."""
    return tuple(sorted(_announced(switches).values(), key=lambda one: one.pid))


def order_reload(switches: Iterable[Path], order: ReloadOrder) -> None:
    """Leave each gateway word of who reloads it and why, for its next signal. Raise OSError."""
    for path, one in _announced(switches).items():
        if one.process == "serve":
            file = path.with_suffix(ORDER_ENDING)
            write_whole(file, msgspec.json.encode(order).decode())
            file.chmod(0o644)  # root may reload the gateway of another user


def _announced(switches: Iterable[Path]) -> dict[Path, Presence]:
    by_path = dict[Path, Presence]()
    for path in _files(switches):
        with contextlib.suppress(OSError, ValueError), _opened(path) as descriptor:
            if is_locked(descriptor):  # otherwise it has ended meanwhile
                by_path[path] = msgspec.json.decode(os.read(descriptor, SIZE_BYTES), type=Presence)
    return by_path


def _files(switches: Iterable[Path]) -> Iterator[Path]:
    for switch in switches:
        with contextlib.suppress(OSError):
            yield from (one for one in switch.parent.iterdir() if one.match(f"{switch.name}-*{ENDING}"))


@contextlib.contextmanager
def _opened(path: Path, mode: int = os.O_RDONLY) -> Iterator[int]:
    descriptor = os.open(path, mode | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
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
        """Return whether another process holds the lock on an open file."""
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
        """Return whether another process holds the lock; concurrent calls do not mistake each other for the owner."""
        return not _took(descriptor, fcntl.LOCK_SH)


@dataclass(frozen=True, slots=True)
class ProcessLock:
    name: str  # unique for ever
    path: Path  # the lock file
    descriptor: int  # open while the lock is held

    def release(self) -> None:
        os.close(self.descriptor)
        self.path.unlink(missing_ok=True)


def _create_locked(name: str, path: Path) -> ProcessLock:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try_lock(descriptor)
    return ProcessLock(name, path, descriptor)


def claim(database: Path) -> ProcessLock:
    name = secrets.token_hex(6)
    return _create_locked(name, _path(database, name))


def is_alive(database: Path, name: str) -> bool:
    try:
        with _opened(_path(database, name), os.O_RDWR) as descriptor:
            return is_locked(descriptor)
    except FileNotFoundError:
        return False


def forget(database: Path, name: str) -> None:
    _path(database, name).unlink(missing_ok=True)


def _path(database: Path, name: str) -> Path:
    return database.with_name(f"{database.name}-{name}.lock")

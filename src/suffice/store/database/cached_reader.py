"""One read-only connection to a log that stays open between looks, and says whether there is anything to look at.

To open a log costs more than a millisecond, most of it for its schema. Whoever looks once a second, and nearly always
in vain, pays that for nothing. Knows the file and SQLite's count of commits; refuses to know what is read.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from suffice.store.database.views import connect_reader, translate_errors

_FEW_ROWS: Final = 64  # that are gone through to see of which kinds they are: more are looked at in any case
_NEWER: Final = "SELECT seq, kind FROM events WHERE seq > ? ORDER BY seq LIMIT ?"
_NEWEST: Final = "SELECT max(seq) FROM events"
_WAITS_MS: Final = 5_000  # for another process that holds the file, in a look; `has_new` waits for nobody


class KeptReader:
    """Reads one log again and again. One look at a time; looks may come from different threads."""

    def __init__(self, path: Path, *, besides: frozenset[str] = frozenset()) -> None:
        """Begin; nothing is opened before the first look.

        besides  kinds of rows that are never looked at: where only they are new, there is nothing new
        """
        self._path, self._besides = path, besides
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None  # the one that is open, as the file system numbers it
        self._commits = -1  # SQLite's number of what the latest look saw
        self._seq = 0  # the newest row then

    @property
    def seq(self) -> int:
        """The newest row of the log when the latest look began; 0: nobody has looked."""
        return self._seq

    def has_new(self) -> bool:
        """Was anything committed since the latest look began? Also True where that cannot be told. Never waits."""
        if not self._lock.acquire(blocking=False):
            return True
        try:
            connection = self._connection
            if connection is None or self._file != _file(self._path):
                return True
            commits = _commits(connection)
            return commits != self._commits and not self._only_besides(connection, commits)
        except sqlite3.Error:
            return True
        finally:
            self._lock.release()

    def _only_besides(self, connection: sqlite3.Connection, commits: int) -> bool:
        """Is all that is new a few rows of kinds that nobody looks at? A commit without rows changed something else."""
        rows = connection.execute(_NEWER, (self._seq, _FEW_ROWS + 1)).fetchall()
        if not 0 < len(rows) <= _FEW_ROWS or any(kind not in self._besides for _, kind in rows):
            return False
        self._commits, self._seq = commits, rows[-1][0]
        return True

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A look: what the block reads is one state of the log. Raises StoreError; the next look then opens anew."""
        with self._lock, translate_errors(self._path):
            try:
                connection = self._open()
                connection.execute(f"PRAGMA busy_timeout = {_WAITS_MS}")
                connection.execute("BEGIN")
                self._commits = _commits(connection)
                self._seq = int(connection.execute(_NEWEST).fetchone()[0] or 0)
                yield connection
                connection.execute("COMMIT")
                connection.execute("PRAGMA busy_timeout = 0")
            except BaseException:
                self._drop()
                raise

    def close(self) -> None:
        """Let go of the file, once a look that is under way has ended."""
        with self._lock:
            self._drop()

    def _open(self) -> sqlite3.Connection:
        """The connection, a new one where the file is another one than before."""
        file = _file(self._path)
        if self._connection is None or file != self._file:
            self._drop()
            self._connection = connect_reader(self._path, one_thread=False)
            self._file = file
        return self._connection

    def _drop(self) -> None:
        connection, self._connection, self._file, self._commits = self._connection, None, None, -1
        if connection is not None:
            with contextlib.suppress(sqlite3.Error):
                connection.close()


def _file(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _commits(connection: sqlite3.Connection) -> int:
    """A number that changes with each commit of another connection, in this process or not."""
    return int(connection.execute("PRAGMA data_version").fetchone()[0])

"""A log in one SQLite file, which several processes of one machine may share.

A process is dead once the operating system has dropped its lock (see `presence`); clocks and process ids play no part.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final

from suffice.errors import StoreError, StoreFull
from suffice.files import create_private, file_mark, tighten
from suffice.store.audit.appender import begin_chain
from suffice.store.database import presence, schema
from suffice.store.database.protocol import LastWrite
from suffice.store.rows.events import Row
from suffice.store.sql import LogReader, Values, load_queries

log = logging.getLogger("suffice.store")

WATCH_S: Final = 0.2  # between two looks whether the file has changed
BUSY_S: Final = 5.0  # how long a transaction waits for another process's
WRITER_BUSY_S: Final = 0.2  # … of the writer's batches, which are tried again
OPEN_BUSY_S: Final = 3.0  # … at start-up
PURGE_BUSY_S: Final = 30.0  # how long rewriting the file waits for other processes
CHECKPOINT_PAGES: Final = 2_000  # of 8 KiB, in the write-ahead log: pages of indexes are written often until then
CLOCK_TICK_S: Final = 0.05  # two writes within a tick of the file system's clock look like one
_WAITING_CODES: Final = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
_DAMAGE_CODES: Final = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


class SqliteConnection(sqlite3.Connection, LogReader):
    """A query is named as in `sqlite.sql`, or SQL with marks (?); `constants` replace the braces of a named one."""

    def execute(self, query: str, values: Values = (), /, **constants: str) -> sqlite3.Cursor:  # type: ignore[override]
        if (named := load_queries("sqlite").get(query)) is None:
            return super().execute(query, values)
        text = named.text.format(**constants) if constants else named.text
        return super().execute(text, named.bound(values))

    def executemany(self, query: str, values: Iterable[Values], /) -> sqlite3.Cursor:  # type: ignore[override]
        if (named := load_queries("sqlite").get(query)) is None:
            return super().executemany(query, values)
        return super().executemany(named.text, values if "?" in named.text else map(named.bound, values))

    def stream(self, query: str, values: Values = ()) -> Iterator[Any]:
        return self.execute(query, values)

    def append_events(self, rows: Sequence[Sequence[Any]]) -> tuple[int, int]:
        n_new = self.executemany("insert_event", rows).rowcount
        return n_new, self.execute("SELECT last_insert_rowid()").fetchone()[0]

    def find_events(self, names: Collection[tuple[str, str]]) -> Mapping[tuple[str, str], tuple[int, int]]:
        return {name: self.execute("find_event", name).fetchone() for name in names}

    def insert_rows(self, table: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        marks = ", ".join("?" * len(columns))
        self.executemany(f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({marks})", rows)  # noqa: S608 - names

    def has_table(self, name: str) -> bool:
        return self.execute("SELECT 1 FROM sqlite_schema WHERE name = ?", (name,)).fetchone() is not None

    def begin_snapshot(self) -> None:
        self.execute("BEGIN")


@dataclass(frozen=True, slots=True)
class SqliteDatabase:
    Error: ClassVar = sqlite3.Error
    path: Path

    def __str__(self) -> str:
        return str(self.path)

    @property
    def location(self) -> Path:
        return self.path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def files(self) -> tuple[Path, Path, Path]:
        wal, shared = (self.path.with_name(f"{self.path.name}-{ending}") for ending in ("wal", "shm"))
        return self.path, wal, shared

    # ── processes ────────────────────────────────────────────────────────────────────────────────

    def enter(self, *, now_s: float, create: bool = True) -> tuple[presence.ProcessLock, int]:
        with self._prepared(now_s, create=create) as (connection, _):
            claim = presence.claim(self.path)
            insert = "INSERT INTO owners (lock, pid, started_s) VALUES (?, ?, ?) RETURNING id"
            return claim, int(connection.execute(insert, (claim.name, os.getpid(), now_s)).fetchone()[0])

    def migrate(self, *, now_s: float) -> int:
        with self._prepared(now_s, create=True) as (_, n_migrations):
            return n_migrations

    @contextlib.contextmanager
    def _prepared(self, now_s: float, *, create: bool) -> Iterator[tuple[SqliteConnection, int]]:
        """Yield a connection to a log of this version, and how many migrations ran. Raise StoreError."""
        path = self.path
        if not path.parent.is_dir():
            raise StoreError(f"store {path}: the folder {path.parent} does not exist; create it first")
        try:
            self._make_private(create=create)
            with contextlib.closing(self.connect(OPEN_BUSY_S, create=create)) as connection:
                if schema.check_version(connection, str(path), may_be_older=True) == 0 and not create:
                    raise StoreError(f"store {path}: is empty; it holds no event log")
                schema.check_pages(connection, str(path))
                n_migrations = schema.create(connection, str(path))
                if connection.execute("SELECT 1 FROM chain LIMIT 1").fetchone() is None:
                    with connection:
                        connection.execute("BEGIN IMMEDIATE")
                        begin_chain(connection, now_s)
                yield connection, n_migrations
        except (sqlite3.Error, OSError, UnicodeDecodeError) as error:  # UnicodeDecodeError: damaged names in the schema
            raise self.unusable(error) from error

    def _make_private(self, *, create: bool) -> None:
        if create:
            with contextlib.suppress(FileExistsError):
                create_private(self.path)
        for one in self.files:
            if (problem := tighten(one)) is not None:
                log.warning("store %s", problem)

    def is_alive(self, connection: LogReader, owner: int) -> bool:
        row = connection.execute("SELECT lock FROM owners WHERE id = ?", (owner,)).fetchone()
        return row is not None and presence.is_alive(self.path, row[0])

    def forget(self, connection: LogReader, owner: int) -> None:
        for (name,) in connection.execute("DELETE FROM owners WHERE id = ? RETURNING lock", (owner,)).fetchall():
            presence.forget(self.path, name)

    @property
    def is_server(self) -> bool:
        return False

    @property
    def notes(self) -> None:
        return None

    @property
    def beat_s(self) -> float | None:
        return None

    def beat(self, connection: LogReader, owner: int) -> None:
        """Nothing: the operating system knows which processes live."""

    def clock_s(self, connection: LogReader) -> float | None:  # noqa: ARG002 - as PostgreSQL's
        return None

    # ── connections ──────────────────────────────────────────────────────────────────────────────

    def connect(self, busy_s: float, *, create: bool = False) -> SqliteConnection:
        name = f"{self.path.resolve().as_uri()}?mode={'rwc' if create else 'rw'}"
        return sqlite3.connect(name, timeout=busy_s, isolation_level=None, uri=True, factory=SqliteConnection)

    @contextlib.contextmanager
    def reader(self, is_over: Callable[[], bool] | None = None) -> Iterator[SqliteConnection]:
        try:
            with contextlib.closing(self.connect_reader()) as connection:
                if is_over is not None:
                    connection.set_progress_handler(is_over, 20_000)
                yield connection
        except (sqlite3.Error, UnicodeDecodeError) as error:  # UnicodeDecodeError: damaged text, or names in the schema
            raise StoreError(f"store {self.path}: cannot be read: {error}") from error

    def connect_reader(self) -> SqliteConnection:
        if not self.path.is_file():
            raise StoreError(f"store {self.path}: no such file; `suffice serve` makes a log when it first runs")
        connection = sqlite3.connect(f"{self.path.resolve().as_uri()}?mode=ro", uri=True, factory=SqliteConnection)
        try:
            if schema.check_version(connection, str(self.path)) == 0:
                raise StoreError(f"store {self.path}: is empty; it holds no event log")
        except BaseException:
            connection.close()
            raise
        return connection

    def watch(self, is_over: threading.Event) -> Iterator[SqliteConnection]:
        written = None
        while not is_over.is_set():
            now_s = time.time()
            if not self.is_unchanged(written, now_s=now_s):
                with self.reader() as connection:
                    written = self.find_last_write(connection, now_s=now_s)
                    yield connection
            is_over.wait(WATCH_S)

    @contextlib.contextmanager
    def transaction(self, *, erases: bool = False) -> Iterator[SqliteConnection]:
        try:
            connection = sqlite3.connect(self.path, timeout=BUSY_S, isolation_level=None, factory=SqliteConnection)
            with contextlib.closing(connection), connection:
                if erases:
                    connection.execute("PRAGMA secure_delete = ON")
                self.begin(connection, synced=True)
                yield connection
        except (sqlite3.Error, OSError) as error:
            raise self.unusable(error) from error

    def connect_writer(self) -> SqliteConnection:
        connection = self.connect(WRITER_BUSY_S, create=True)
        connection.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
        return connection

    def begin(self, connection: LogReader, *, synced: bool) -> None:
        connection.execute(f"PRAGMA synchronous = {'FULL' if synced else 'NORMAL'}")
        connection.execute("BEGIN IMMEDIATE")

    # ── the file ─────────────────────────────────────────────────────────────────────────────────

    def exists(self) -> bool:
        return self.path.is_file()

    def find_damage(self, *, within_s: float | None = None, thorough: bool = False) -> str | None:
        """Return what is wrong, in time only from SQLite 3.41 on: earlier ones do not stop inside a table."""
        try:
            with contextlib.closing(self.connect_reader()) as connection:
                if within_s is not None:
                    end_s = time.monotonic() + within_s
                    connection.set_progress_handler(lambda: time.monotonic() > end_s, 10_000)
                return schema.find_bad_page(connection, thorough=thorough)
        except sqlite3.DatabaseError as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            return str(error)[: schema.MOST_TEXT] if code in _DAMAGE_CODES else None
        except UnicodeDecodeError as error:  # names in the schema
            return f"damaged names: {error.reason}"
        except (OSError, StoreError):
            return None

    def engine(self, connection: LogReader) -> str:
        return f"SQLite {connection.execute('SELECT sqlite_version()').fetchone()[0]}"

    def size_bytes(self) -> int:
        return self.path.stat().st_size

    def is_unchanged(self, since: LastWrite | None, *, now_s: float) -> bool:
        return since is not None and self._find_last_write(now_s) == since

    def find_last_write(self, connection: LogReader, *, now_s: float) -> LastWrite | None:  # noqa: ARG002 - PostgreSQL's
        return self._find_last_write(now_s)

    def _find_last_write(self, now_s: float) -> LastWrite | None:
        """By its files; None: it is too recent to tell it from the next one."""
        writes = tuple(file_mark(file) for file in self.files[:2])
        is_recent = any(one is not None and now_s - one[2] / 1e9 < CLOCK_TICK_S for one in writes)
        return None if is_recent else writes

    def purge(self) -> bool:
        """Rewrite the file without its free pages and empty the write-ahead log.

        False: another process still reads an older snapshot, so the write-ahead log is not empty; try again later.
        Needs as much free disk as the log takes, and blocks writers meanwhile. Raise StoreError.
        """
        try:
            with contextlib.closing(
                sqlite3.connect(self.path, timeout=PURGE_BUSY_S, isolation_level=None)
            ) as connection:
                connection.execute("PRAGMA secure_delete = ON")
                connection.execute("VACUUM")
                end_s = time.monotonic() + PURGE_BUSY_S
                while busy := connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
                    if time.monotonic() >= end_s:
                        break
                    time.sleep(0.1)
                return not busy
        except sqlite3.Error as error:
            raise self.unusable(error) from error

    def refuses(self, row: Row) -> bool:  # noqa: ARG002 - as PostgreSQL's
        return False

    # ── errors ───────────────────────────────────────────────────────────────────────────────────

    def is_passing(self, error: Exception) -> bool:
        """Return whether another attempt may succeed: another process writes."""
        return getattr(error, "sqlite_errorcode", 0) & 0xFF in _WAITING_CODES

    def is_lost(self, error: Exception) -> bool:  # noqa: ARG002 - as PostgreSQL's
        return False

    def unusable(self, error: Exception) -> StoreError:
        path, code = self.path, getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in _WAITING_CODES:
            return StoreError(f"store {path}: another process has held it for {OPEN_BUSY_S:.0f} s; try again")
        if code in _DAMAGE_CODES or isinstance(error, UnicodeDecodeError):
            return StoreError(
                f"store {path}: the file is damaged or no SQLite database ({error}); restore a backup or name a new"
                " file"
            )
        if code == sqlite3.SQLITE_FULL:
            return StoreFull(f"store {path}: no space is left on the disk")
        return StoreError(f"store {path}: cannot be used: {error}")

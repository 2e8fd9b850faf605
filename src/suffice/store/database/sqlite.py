"""The event log in one SQLite file: a writer thread, batches, and a bounded queue.

Rows leave the queue only after their commit, so a locked database or a full disk loses nothing: the writer retries,
the queue fills, and further rows are counted as dropped. Keys are unique, so a retry cannot write twice. A batch with a
durable row commits with synchronous=FULL.

Several processes may share a file. A process is dead once the operating system has dropped its lock (see
`presence`); clocks and process ids play no part.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, InvalidStateError
from functools import partial
from pathlib import Path

from suffice.errors import ConfigError, StoreError, StoreFull
from suffice.files import create_private, tighten
from suffice.settings import Store
from suffice.store.audit.chain import Appender, begin_chain, is_chained, repeats
from suffice.store.audit.personal import Part
from suffice.store.database import presence, schema
from suffice.store.database.log import EventQueue, QueueItem, Receipt
from suffice.store.rows.events import Event, Row, to_row
from suffice.types import Outcome, Request

log = logging.getLogger("suffice.store")

BATCH_ROWS = 1_000  # per transaction at most
DURABLE_TIMEOUT_S = 4.5  # a durable append fails after this long; the interface promises 5 s
_BUSY_S = 0.2  # one attempt waits this long for another process's transaction
_OPEN_BUSY_S = 3.0  # at start-up
_PAUSES_S = (0.05, 0.1, 0.2, 0.5, 1.0)  # between attempts; the last one repeats
_WAITING_CODES = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}  # another process writes: wait
_SETTLED_ROWS = 1_000  # after how many rows to save the place up to which none of our requests is open

# The outcome of a request whose process died.
_LOST = partial(Outcome, end_reason="lost", status=0, answer=None, response_id=None, usage=None)
_UNFINISHED = """SELECT r.key FROM events r INDEXED BY requests_by_owner
                 WHERE r.kind = 'request' AND r.owner = ? AND r.seq > ?
                 AND NOT EXISTS (SELECT 1 FROM events o WHERE o.kind = 'outcome' AND o.key = r.key)"""
_JOINED = """SELECT f.joined OR json_extract(e.body, '$.about') IS NOT NULL
             FROM feedback f JOIN events e ON e.seq = f.seq WHERE f.seq = ?"""


class OpenRequests:
    def __init__(self) -> None:
        self._open: dict[str, int] = {}  # episode to place, in the order of places
        self._newest = 0
        self.saved = 0  # the `settled` stored in the database

    @property
    def settled(self) -> int:
        """Every request up to this place in the log has its outcome."""
        return next(iter(self._open.values())) - 1 if self._open else self._newest

    def note(self, rows: Iterable[tuple[Event, int]]) -> None:
        for event, seq in rows:
            self._newest = seq
            if isinstance(event, Request):
                self._open[event.episode_id] = seq
            elif isinstance(event, Outcome):
                self._open.pop(event.episode_id, None)


def database_path(url: str) -> Path:
    """Return the file of `sqlite:///relative.db` or `sqlite:////absolute.db`. Raises ConfigError."""
    scheme, separator, name = url.partition(":///")
    if url != "sqlite://" and (scheme != "sqlite" or not separator):
        got = url.partition(":")[0]  # the rest may hold a password
        raise ConfigError(f"store.url: got {got!r:.80}; allowed: sqlite:///relative.db, sqlite:////absolute.db")
    if url == "sqlite://" or name in ("", ":memory:"):
        raise ConfigError(
            f"store.url: got {url!r}: a database in memory is seen by one connection only, and the log "
            "has a writer thread and readers; allowed: a file, for example sqlite:///suffice.db"
        )
    if "?" in name or name.endswith("/"):
        raise ConfigError(f"store.url: got {url!r}; need a file's name without options")
    return Path(name)


def enter(path: Path, *, now_s: float, create: bool = True) -> tuple[presence.ProcessLock, int]:
    """Open or create the file for writing; return the process lock and the number of this writer. Raise StoreError."""
    if not path.parent.is_dir():
        raise StoreError(f"store {path}: the folder {path.parent} does not exist; create it first")
    try:
        _make_private(path, create=create)
        with contextlib.closing(_connect(path, _OPEN_BUSY_S, create=create)) as connection:
            if schema.check_version(connection, str(path)) == 0 and not create:
                raise StoreError(f"store {path}: is empty; it holds no event log")
            schema.check_pages(connection, str(path))
            schema.create(connection, str(path))
            begin_chain(connection, now_s)
            claim = presence.claim(path)
            insert = "INSERT INTO owners (lock, pid, started_s) VALUES (?, ?, ?) RETURNING id"
            owner = int(connection.execute(insert, (claim.name, os.getpid(), now_s)).fetchone()[0])
    except (sqlite3.Error, OSError, UnicodeDecodeError) as error:  # UnicodeDecodeError: damaged names in the schema
        raise unusable(path, error) from error
    return claim, owner


def _make_private(path: Path, *, create: bool) -> None:
    if create:
        with contextlib.suppress(FileExistsError):
            create_private(path)
    for one in (path, path.with_name(f"{path.name}-wal"), path.with_name(f"{path.name}-shm")):
        if (problem := tighten(one)) is not None:
            log.warning("store %s", problem)


class SqliteLog(EventQueue):
    def __init__(
        self, settings: Store, *, now: Callable[[], float], redact: tuple[Part, ...] = (), create: bool = True
    ) -> None:
        """Open or create the file that `settings.url` names, and start its writer.

        now     Unix time in seconds; stored in rows, never used to order them

        Raises ConfigError for an invalid URL and StoreError for a file that cannot be used: damaged, of another
        version, not ours, locked for 3 s, or in a missing folder.
        """
        super().__init__(settings.queue_rows)
        # Resolved, so that two spellings of one path share one set of lock files.
        self.path = database_path(settings.url).resolve()
        self._claim, self._owner = enter(self.path, now_s=now(), create=create)
        self._settings, self._now, self._redact = settings, now, redact
        self.n_retries = 0  # failed and retried transactions; growth means disk trouble
        self._deadline_s = 0.0  # monotonic; set by `close`
        self._connection: sqlite3.Connection | None = None
        self._unfinished = OpenRequests()
        self._writer = threading.Thread(target=self._work, name="suffice-store", daemon=True)
        self._writer.start()

    def append(self, event: Event) -> bool:
        return self.accept(QueueItem(event, self._now()))

    async def append_durable(self, event: Event) -> Receipt:
        done: Future[Receipt] = Future()
        item = QueueItem(event, self._now(), done)
        if not self.accept(item):
            rows = self._settings.queue_rows
            raise StoreFull(f"store {self.path}: the queue is full ({rows} rows), or the log is closed")
        try:
            return await asyncio.wait_for(asyncio.wrap_future(done), DURABLE_TIMEOUT_S)
        except TimeoutError:
            self.give_up(item)
            raise StoreError(
                f"store {self.path}: not written within {DURABLE_TIMEOUT_S} s; send it again with the same id"
            ) from None

    def recover(self) -> int:
        """Give every unfinished request of a dead process the outcome "lost"; return how many. May run concurrently."""
        n_lost, at_s = 0, self._now()
        try:
            with contextlib.closing(_connect(self.path, _OPEN_BUSY_S)) as connection:
                others = connection.execute("SELECT id, lock, settled FROM owners WHERE id <> ?", (self._owner,))
                dead = [one for one in others.fetchall() if not presence.is_alive(self.path, one[1])]
                if not dead:
                    return 0
                connection.execute("BEGIN IMMEDIATE")
                appender = Appender(connection, owner=self._owner, redact=self._redact)
                for owner, _, settled in dead:
                    for (episode_id,) in connection.execute(_UNFINISHED, (owner, settled)).fetchall():
                        n_lost += appender.add(to_row(_LOST(episode_id=episode_id)), at_s)
                    connection.execute("DELETE FROM owners WHERE id = ?", (owner,))
                connection.execute("COMMIT")
                for _, name, _ in dead:
                    presence.forget(self.path, name)
        except (sqlite3.Error, OSError) as error:
            raise unusable(self.path, error) from error
        return n_lost

    def close(self, timeout_s: float = 5.0) -> None:
        already, self._deadline_s = self._closing, time.monotonic() + timeout_s
        super().close()
        self._writer.join(timeout_s + 2 * _BUSY_S + 1.0)
        if not already:
            self._claim.release()

    # ── the writer thread ────────────────────────────────────────────────────────────────────────

    def _work(self) -> None:
        n_misses = 0
        while batch := self.gather(BATCH_ROWS, self._settings.flush_ms / 1000):
            for item in batch:
                self._fill_row(item)
            try:
                n_written, receipts = self._commit(batch)
            except sqlite3.Error as error:
                self._postpone(batch, error)
                if self._closing and time.monotonic() >= self._deadline_s:
                    break
                self._pause(_PAUSES_S[min(n_misses, len(_PAUSES_S) - 1)])
                n_misses += 1
                continue
            n_misses = 0
            self.settle(len(batch), n_written)
            for done, receipt in receipts:
                with contextlib.suppress(InvalidStateError):  # the sender stopped waiting; its row is safe
                    done.set_result(receipt)
        self.abandon(StoreError(f"store {self.path}: closed before this row was written"))
        self._close_connection()

    def _fill_row(self, item: QueueItem) -> None:
        if item.row is not None or item.given_up:
            return
        if self.is_orphan(item.event):
            self.give_up(item, StoreError(f"store {self.path}: the request of this outcome was not written"))
            return
        try:
            item.row = to_row(item.event)
        except ValueError as error:
            log.warning("an event of type %s cannot be stored: %s", type(item.event).__name__, error)
            self.give_up(item, StoreError(f"store {self.path}: the event cannot be stored: {error}"))

    def _commit(self, items: list[QueueItem]) -> tuple[int, list[tuple[Future[Receipt], Receipt]]]:
        # Sync chained rows: a duplicate is answered without a write, and an exported head must refer to a row on disk.
        synced = any(item.done is not None or (item.row is not None and is_chained(item.row.kind)) for item in items)
        connection = self._open_connection("FULL" if synced else "NORMAL")
        written, waiting, settled = list[tuple[Event, int]](), [], self._unfinished.settled
        saves = settled - self._unfinished.saved >= _SETTLED_ROWS
        connection.execute("BEGIN IMMEDIATE")
        if saves:
            connection.execute("UPDATE owners SET settled = ? WHERE id = ?", (settled, self._owner))
        appender = Appender(connection, owner=self._owner, redact=self._redact)
        for item in items:
            row = item.row
            if row is None or item.given_up:  # checked here, since another process may have held the lock until now
                continue
            is_new = appender.add(row, item.at_s)
            if is_new:
                written.append((item.event, appender.seq))
            if item.done is not None:
                waiting.append((item.done, row, not is_new))
        # Only now: the episode may come later in this batch than its feedback.
        receipts = [(done, _receipt(connection, row, duplicate, self._redact)) for done, row, duplicate in waiting]
        connection.execute("COMMIT")
        self._unfinished.note(written)
        if saves:
            self._unfinished.saved = settled
        return len(written), receipts

    def _open_connection(self, synchronous: str) -> sqlite3.Connection:
        if self._connection is None:
            self._connection = _connect(self.path, _BUSY_S)
        self._connection.execute(f"PRAGMA synchronous = {synchronous}")
        return self._connection

    def _postpone(self, batch: list[QueueItem], error: sqlite3.Error) -> None:
        self.n_retries += 1
        log.warning("store %s: writing failed and will be tried again: %s", self.path, error)
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):  # closing rolls back the rest
                self._connection.execute("ROLLBACK")
        if code in _WAITING_CODES:
            return
        self._close_connection()
        kind = StoreFull if code == sqlite3.SQLITE_FULL else StoreError
        for item in batch:
            if item.done is not None:
                self.give_up(item, kind(f"store {self.path}: could not write: {error}"))

    def _pause(self, seconds: float) -> None:
        if self._closing:
            time.sleep(_PAUSES_S[0])
            return
        with self._wake:
            self._wake.wait_for(lambda: self._closing, seconds)

    def _close_connection(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):  # nothing is left to be done about it
                self._connection.close()
            self._connection = None


def _connect(path: Path, busy_s: float, *, create: bool = True) -> sqlite3.Connection:
    name = f"{path.resolve().as_uri()}?mode={'rwc' if create else 'rw'}"
    return sqlite3.connect(name, timeout=busy_s, isolation_level=None, check_same_thread=True, uri=True)


def _receipt(connection: sqlite3.Connection, row: Row, duplicate: bool, redact: tuple[Part, ...]) -> Receipt:
    query = "SELECT seq, body FROM events WHERE kind = ? AND key = ?"
    seq, body = connection.execute(query, (row.kind, row.key)).fetchone()
    conflict = duplicate and not repeats(connection, row, seq, body, redact=redact)
    if row.kind == "feedback":
        joined = connection.execute(_JOINED, (seq,)).fetchone()[0]
    else:
        joined = connection.execute(query, ("request", row.key)).fetchone() is not None
    return Receipt(seq=seq, duplicate=duplicate, joined=bool(joined), conflict=conflict)


def unusable(path: Path, error: sqlite3.Error | OSError | UnicodeDecodeError) -> StoreError:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in _WAITING_CODES:
        return StoreError(f"store {path}: another process has held it for {_OPEN_BUSY_S:.0f} s; try again")
    if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT) or isinstance(error, UnicodeDecodeError):
        return StoreError(
            f"store {path}: the file is damaged or no SQLite database ({error}); restore a backup or name a new file"
        )
    if code == sqlite3.SQLITE_FULL:
        return StoreFull(f"store {path}: no space is left on the disk")
    return StoreError(f"store {path}: cannot be used: {error}")

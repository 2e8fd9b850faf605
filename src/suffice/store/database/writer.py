"""Writes events to the log's database: a bounded queue, a writer thread and batches; and a log that opens late.

Rows leave the queue only after their commit, so a locked database, a full disk or a server that fails over loses
nothing: the writer retries, the queue fills, and further rows are counted as dropped. Keys are unique, so a retry
cannot write twice. A batch with a durable row is synced to disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass
from functools import partial
from itertools import islice

from suffice.errors import StoreError, StoreFull
from suffice.settings import Store
from suffice.store.audit.appender import Appender
from suffice.store.audit.chain import is_chained, repeats
from suffice.store.audit.personal import Part
from suffice.store.database.location import database_at, log_location
from suffice.store.database.log import EventLog, Receipt
from suffice.store.database.protocol import DEAD_S
from suffice.store.rows.events import Event, Row, to_row
from suffice.store.sql import LogReader
from suffice.types import Outcome, Request

log = logging.getLogger("suffice.store")

BATCH_ROWS = 1_000  # per transaction at most
DURABLE_TIMEOUT_S = 4.5  # a durable append fails after this long; the interface promises 5 s
_PAUSES_S = (0.05, 0.1, 0.2, 0.5, 1.0)  # between attempts; the last one repeats
_SETTLED_ROWS = 1_000  # after how many rows to save the place up to which none of our requests is open

# The outcome of a request whose process died.
_LOST = partial(Outcome, end_reason="lost", status=0, answer=None, response_id=None, usage=None)


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


@dataclass(slots=True)
class QueueItem:
    event: Event
    at_s: float = 0.0  # Unix time
    done: Future[Receipt] | None = None  # None: no sender waits
    row: Row | None = None  # filled by the writer
    given_up: bool = False  # not encodable, or reported to its sender as failed


class EventQueue:
    """A bounded queue of events. Any thread may add; one thread gathers and settles."""

    def __init__(self, most_rows: int) -> None:
        self._most_rows = most_rows
        lock = threading.Lock()
        self._wake = threading.Condition(lock)  # the writer waits on this one
        self._settled = threading.Condition(lock)  # `drain` waits on this one
        self._queue: deque[QueueItem] = deque()
        self._n_durable = 0  # items in the queue whose sender waits
        self._unlogged: set[str] = set()  # episodes whose request was dropped: their outcome is dropped too
        self._n_accepted = self._n_settled = 0
        self.n_written = 0  # rows committed by this process, without duplicates
        self.n_dropped = 0  # events refused because the queue was full or closed
        self.n_failed = 0  # events accepted and then given up: not encodable, durable but too late, left at close
        self._closing = False
        self.owner = 0  # number of this process among those that write to the log; 0: it has none yet

    @property
    def n_waiting(self) -> int:
        return len(self._queue)

    def is_orphan(self, event: Event) -> bool:
        return isinstance(event, Outcome) and event.episode_id in self._unlogged

    def accept(self, item: QueueItem) -> bool:
        event = item.event
        with self._wake:
            # The outcome of a request that was accepted has room, or the request would stay open. There are at most as
            # many of them as runs under way.
            is_full = len(self._queue) >= self._most_rows and not isinstance(event, Outcome)
            if self._closing or self.is_orphan(event) or is_full:
                self.n_dropped += 1
                if isinstance(event, Request):
                    self._unlogged.add(event.episode_id)
                elif isinstance(event, Outcome):
                    self._unlogged.discard(event.episode_id)
                return False
            self._queue.append(item)
            self._n_accepted += 1
            self._n_durable += item.done is not None
            if item.done is not None or len(self._queue) == 1:
                self._wake.notify()
        return True

    def give_up(self, item: QueueItem, error: StoreError | None = None) -> None:
        with self._wake:
            if item.given_up:
                return
            item.given_up = True
            self.n_failed += 1
            if isinstance(item.event, Request):
                self._unlogged.add(item.event.episode_id)
        if item.done is not None and error is not None:
            with contextlib.suppress(InvalidStateError):  # the sender left in the meantime
                item.done.set_exception(error)

    def gather(self, most: int, flush_s: float, idle_s: float | None = None) -> list[QueueItem]:
        """Return the next rows, once `flush_s` has passed, `most` wait or a sender does.

        [] when the queue is closed, or empty for `idle_s`.
        """
        with self._wake:
            self._wake.wait_for(lambda: self._queue or self._closing, idle_s)
            if 0 < len(self._queue) < most and not self._closing and not self._n_durable:
                self._wake.wait_for(lambda: self._closing or self._n_durable, flush_s)
            return list(islice(self._queue, most))

    def settle(self, n_items: int, n_written: int = 0) -> None:
        with self._wake:
            for _ in range(n_items):
                self._n_durable -= self._queue.popleft().done is not None
            self._n_settled += n_items
            self.n_written += n_written
            self._settled.notify_all()

    def abandon(self, error: StoreError | None = None) -> None:
        left = list(self._queue)
        for item in left:
            self.give_up(item, error)
        self.settle(len(left))

    def close(self, timeout_s: float = 5.0) -> None:  # noqa: ARG002 - those who write the queue out need it
        with self._wake:
            self._closing = True
            self._wake.notify_all()

    def drain(self, timeout_s: float = 5.0) -> bool:
        with self._settled:
            target = self._n_accepted
            return self._settled.wait_for(lambda: self._n_settled >= target, timeout_s)


class LogWriter(EventQueue):
    def __init__(
        self, settings: Store, *, now: Callable[[], float], redact: tuple[Part, ...] = (), create: bool = True
    ) -> None:
        """Open or create the log that `settings.url` names, and start its writer.

        now     Unix time in seconds; stored in rows, never used to order them

        Raises ConfigError for an invalid URL and StoreError for a log that cannot be used: damaged, of another
        version, not ours, locked for 3 s, in a missing folder, or on a server that does not answer.
        """
        super().__init__(settings.queue_rows)
        # Resolved, so that two spellings of one path share one set of lock files.
        self.database = database_at(log_location(settings))
        self.path = self.database.location
        self._claim, self.owner = self.database.enter(now_s=now(), create=create)
        self._settings = settings
        self._now = now
        self._redact = redact
        self.n_retries = 0  # failed and retried transactions; growth means trouble with the disk or the server
        self._deadline_s = 0.0  # monotonic; set by `close`
        self._failed_s = float("-inf")  # monotonic; of the latest failed transaction
        self._problem = ""  # why it failed; "": the latest one did not
        self._connection: LogReader | None = None
        self._unfinished = OpenRequests()
        self._is_retry = False
        self._beaten_s = time.monotonic()
        self._writer = threading.Thread(target=self._work, name="suffice-store", daemon=True)
        self._writer.start()

    def append(self, event: Event) -> bool:
        return self.accept(QueueItem(event, self._now()))

    async def append_durable(self, event: Event) -> Receipt:
        done: Future[Receipt] = Future()
        item = QueueItem(event, self._now(), done)
        if not self.accept(item):
            rows = self._settings.queue_rows
            raise StoreFull(f"store {self.database}: the queue is full ({rows} rows), or the log is closed")
        try:
            return await asyncio.wait_for(asyncio.wrap_future(done), DURABLE_TIMEOUT_S)
        except TimeoutError:
            self.give_up(item)
            raise StoreError(
                f"store {self.database}: not written within {DURABLE_TIMEOUT_S} s; send it again with the same id"
            ) from None

    def recover(self) -> int:
        """Give every unfinished request of a dead process the outcome "lost"; return how many. May run concurrently.

        Where this process could not write, others could not show that they live: they have time to do so afterwards.
        """
        n_lost = 0
        at_s = self._now()
        database = self.database
        if database.beat_s is not None and time.monotonic() - self._failed_s < DEAD_S:
            return 0
        with database.reader() as reader:
            owners = reader.execute("SELECT id FROM owners WHERE id <> ?", (self.owner,)).fetchall()
            if all(database.is_alive(reader, owner) for (owner,) in owners):
                return 0
        with database.transaction() as connection:
            appender = Appender(connection, owner=self.owner, redact=self._redact)
            others = connection.execute("SELECT id, settled FROM owners WHERE id <> ?", (self.owner,)).fetchall()
            for owner, settled in others:
                if not database.is_alive(connection, owner):
                    lost = connection.execute("unfinished_requests", (owner, settled)).fetchall()
                    rows = [(to_row(_LOST(episode_id=episode_id)), at_s) for (episode_id,) in lost]
                    n_lost += sum(one.is_new for one in appender.add_all(rows))
                    database.forget(connection, owner)
        return n_lost

    def close(self, timeout_s: float = 5.0) -> None:
        already, self._deadline_s = self._closing, time.monotonic() + timeout_s
        super().close()
        self._writer.join(timeout_s + 1.5)
        if not already:
            self._claim.release()

    # ── the writer thread ────────────────────────────────────────────────────────────────────────

    def _work(self) -> None:
        n_misses = 0
        while (
            batch := self.gather(BATCH_ROWS, self._settings.flush_ms / 1000, self.database.beat_s)
        ) or not self._closing:
            for item in batch:
                self._fill_row(item)
            try:
                n_written, receipts = self._commit(batch)
            except (self.database.Error, StoreError) as error:
                self._postpone(batch, error)
                if self._closing and time.monotonic() >= self._deadline_s:
                    break
                self._pause(_PAUSES_S[min(n_misses, len(_PAUSES_S) - 1)])
                n_misses += 1
                continue
            n_misses = 0
            self._is_retry = False
            self._problem = ""
            self.settle(len(batch), n_written)
            for done, receipt in receipts:
                with contextlib.suppress(InvalidStateError):  # the sender stopped waiting; its row is safe
                    done.set_result(receipt)
        self.abandon(StoreError(f"store {self.database}: closed before this row was written"))
        self._close_connection()

    def _fill_row(self, item: QueueItem) -> None:
        if item.row is not None or item.given_up:
            return
        if self.is_orphan(item.event):
            self.give_up(item, StoreError(f"store {self.database}: the request of this outcome was not written"))
            return
        try:
            row = to_row(item.event)
            if self.database.refuses(row):
                raise ValueError("it holds a null character")
            item.row = row
        except ValueError as error:
            log.warning("an event of type %s cannot be stored: %s", type(item.event).__name__, error)
            self.give_up(item, StoreError(f"store {self.database}: the event cannot be stored: {error}"))

    def _commit(self, items: list[QueueItem]) -> tuple[int, list[tuple[Future[Receipt], Receipt]]]:
        # Sync chained rows: a duplicate is answered without a write, and an exported head must refer to a row on disk.
        synced = any(item.done is not None or (item.row is not None and is_chained(item.row.kind)) for item in items)
        if self._connection is None:
            self._connection = self.database.connect_writer()
        connection = self._connection
        settled = self._unfinished.settled
        now_s = time.monotonic()
        saves = settled - self._unfinished.saved >= _SETTLED_ROWS
        self.database.begin(connection, synced=synced)
        if saves:
            connection.execute("UPDATE owners SET settled = ? WHERE id = ?", (settled, self.owner))
        if (beat_s := self.database.beat_s) is not None and now_s - self._beaten_s >= beat_s:
            self.database.beat(connection, self.owner)
            self._beaten_s = now_s
        # Checked here, since another process may have held the lock until now.
        wanted = [(item, item.row) for item in items if item.row is not None and not item.given_up]
        appender = Appender(connection, owner=self.owner, redact=self._redact, is_retry=self._is_retry)
        added = [*zip(wanted, appender.add_all([(row, item.at_s) for item, row in wanted]), strict=True)]
        # Only now: the episode may come later in this batch than its feedback.
        receipts = [
            (item.done, _receipt(connection, row, not one.is_new, self._redact))
            for (item, row), one in added
            if item.done is not None
        ]
        connection.commit()
        written = [(item.event, one.seq) for (item, _), one in added if one.is_new]
        self._unfinished.note(written)
        if saves:
            self._unfinished.saved = settled
        return len(written), receipts

    def _postpone(self, batch: list[QueueItem], error: Exception) -> None:
        self.n_retries += 1
        is_passing, is_lost = self.database.is_passing(error), self.database.is_lost(error)
        self._is_retry, self._failed_s = self._is_retry or is_lost, time.monotonic()
        if str(error) != self._problem:  # once while it lasts; `n_retries` counts the attempts
            log.warning("store %s: writing failed and will be tried again: %s", self.database, error)
            self._problem = str(error)
        if self._connection is not None:
            with contextlib.suppress(self.database.Error):  # closing rolls back the rest
                self._connection.rollback()
        if is_lost or not is_passing:
            self._close_connection()
        if is_passing:
            return
        kind = type(self.database.unusable(error))
        for item in batch:
            if item.done is not None:
                self.give_up(item, kind(f"store {self.database}: could not write: {error}"))

    def _pause(self, seconds: float) -> None:
        if self._closing:
            time.sleep(_PAUSES_S[0])
            return
        with self._wake:
            self._wake.wait_for(lambda: self._closing, seconds)

    def _close_connection(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(self.database.Error):  # nothing is left to be done about it
                self._connection.close()
            self._connection = None


def _receipt(connection: LogReader, row: Row, duplicate: bool, redact: tuple[Part, ...]) -> Receipt:
    query = "SELECT seq, body FROM events WHERE kind = ? AND key = ?"
    seq, body = connection.execute(query, (row.kind, row.key)).fetchone()
    conflict = duplicate and not repeats(connection, row, seq, body, redact=redact)
    if row.kind == "feedback":
        joined = connection.execute("is_joined", (seq,)).fetchone()[0]
    else:
        joined = connection.execute(query, ("request", row.key)).fetchone() is not None
    return Receipt(seq=seq, duplicate=duplicate, joined=bool(joined), conflict=conflict)


class LateLog(EventQueue):
    """An EventLog whose database opens later, or never: rows wait until then. For one thread at a time."""

    def __init__(self, problem: str, *, most_rows: int) -> None:
        """`problem` is the error text of durable appends; beyond `most_rows`, waiting rows are counted as dropped."""
        super().__init__(most_rows)
        self.problem = problem
        self._log: EventLog | None = None

    def append(self, event: Event) -> bool:
        if self._log is None or self.is_orphan(event):
            return self.accept(QueueItem(event))
        return self._log.append(event)

    async def append_durable(self, event: Event) -> Receipt:
        if self._log is None:
            raise StoreError(f"{self.problem}; send it again with the same id")
        return await self._log.append_durable(event)

    def drain(self, timeout_s: float = 5.0) -> bool:
        return not self.n_waiting if self._log is None else self._log.drain(timeout_s)

    def attach(self, log: EventLog) -> int:
        n, self._log = self.n_waiting, log
        self.owner = log.owner if isinstance(log, EventQueue) else 0
        for item in self.gather(n, 0.0) if n else ():
            log.append(item.event)
        self.settle(n)
        return n

    def close(self, timeout_s: float = 5.0) -> None:
        super().close()
        self.abandon()
        if self._log is not None:
            self._log.close(timeout_s)

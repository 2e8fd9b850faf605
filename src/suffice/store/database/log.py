"""What the rest of Suffice may ask of an event log, whichever database is behind it; its queue; a log that opens late.

    append ──▶ bounded queue ──▶ the writer of a database
               bounded queue ──▶ attach(log) ──▶ that log, from then on        `LateLog`

The data path calls `append`, which costs microseconds and cannot fail: a full queue or a broken disk is counted, and
the answer goes out. Feedback calls `append_durable`, which returns only when the row is on disk, or raises. Nothing
here edits or deletes.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

from suffice.errors import StoreError
from suffice.store.rows.events import Event, Row
from suffice.types import Outcome, Request


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    seq: int  # the row's place in the log; of the first row when this one is a duplicate
    duplicate: bool  # a row with this key was there already, and this one changed nothing
    joined: bool  # the episode that it names is known now; if not, it joins when that arrives
    conflict: bool = False  # it is a duplicate that says something else than the row that is there


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredEvent:
    seq: int  # grows with every row; the only order there is
    at_s: float  # Unix time at which the log took it; informative
    event: Event


class EventLog(Protocol):
    """An append-only log with one order, shared by any number of processes."""

    @property
    def n_written(self) -> int:
        """Rows committed by this process; duplicates are not counted."""

    @property
    def n_dropped(self) -> int:
        """Events that `append` refused: the queue was full, or the log was closed."""

    @property
    def n_failed(self) -> int:
        """Events that were taken and then given up: unreadable, durable but too late, left at close."""

    def append(self, event: Event) -> bool:
        """Hand the event to the writer. Never blocks, never raises; False: dropped and counted.

        When the request of an episode had to be dropped, its outcome is dropped too: an outcome without its request
        says nothing, and the two counts must agree.
        """

    async def append_durable(self, event: Event) -> Receipt:
        """Return when the row is synced to disk, within 5 s.

        Raises StoreFull when there is no space or the queue is full, and StoreError otherwise.
        After an error the row may still arrive; sending it again with the same key is safe.
        """

    def read(self, since_seq: int = 0, limit: int | None = None) -> Iterator[StoredEvent]:
        """Yield the committed events after `since_seq` in order, at most `limit`.

        Kinds that this version does not know are skipped. Raises StoreError.
        """

    def drain(self, timeout_s: float = 5.0) -> bool:
        """Wait until all that was appended so far is committed or given up. False: it took too long."""

    def close(self, timeout_s: float = 5.0) -> None:
        """Write what waits, for at most `timeout_s`, and release everything; what could not be written is counted.

        Blocks; call it once the last request has ended.
        """


@dataclass(slots=True)
class QueueItem:
    event: Event
    at_s: float = 0.0  # Unix time
    done: Future[Receipt] | None = None  # None: nobody waits for it
    row: Row | None = None  # filled by the writer
    given_up: bool = False  # unreadable, or its sender was told that it failed


class EventQueue:
    """Events that wait to be written. Any thread may add; one gathers and settles."""

    def __init__(self, most_rows: int) -> None:
        self._most_rows = most_rows
        lock = threading.Lock()
        self._wake = threading.Condition(lock)  # the writer waits on this one
        self._settled = threading.Condition(lock)  # `drain` waits on this one
        self._queue: deque[QueueItem] = deque()
        self._n_durable = 0  # items in the queue that somebody waits for
        self._unlogged: set[str] = set()  # episodes whose request was dropped: no outcome either
        self._n_accepted = self._n_settled = 0
        self.n_written = self.n_dropped = self.n_failed = 0
        self._closing = False

    @property
    def n_waiting(self) -> int:
        return len(self._queue)

    def is_orphan(self, event: Event) -> bool:
        return isinstance(event, Outcome) and event.episode_id in self._unlogged

    def accept(self, item: QueueItem) -> bool:
        event = item.event
        with self._wake:
            if self._closing or self.is_orphan(event) or len(self._queue) >= self._most_rows:
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
        """Stop trying to write this item, once; tell its sender, if one still waits."""
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

    def gather(self, most: int, flush_s: float) -> list[QueueItem]:
        """Wait for work, let a batch gather for `flush_s`, return it without taking it out; empty: closed."""
        with self._wake:
            self._wake.wait_for(lambda: self._queue or self._closing)
            if not self._closing and not self._n_durable:
                self._wake.wait_for(lambda: self._closing or self._n_durable, flush_s)
            return list(islice(self._queue, most))

    def settle(self, n_items: int, n_written: int = 0) -> None:
        """Take the first `n_items` out of the queue: they are committed, or given up."""
        with self._wake:
            for _ in range(n_items):
                self._n_durable -= self._queue.popleft().done is not None
            self._n_settled += n_items
            self.n_written += n_written
            self._settled.notify_all()

    def abandon(self, error: StoreError | None = None) -> None:
        """Give up and count whatever still waits."""
        left = list(self._queue)
        for item in left:
            self.give_up(item, error)
        self.settle(len(left))

    def close(self) -> None:
        """Accept nothing more, and wake the writer."""
        with self._wake:
            self._closing = True
            self._wake.notify_all()

    def drain(self, timeout_s: float = 5.0) -> bool:
        with self._settled:
            target = self._n_accepted
            return self._settled.wait_for(lambda: self._n_settled >= target, timeout_s)


class LateLog:
    """An EventLog that has its file later, or never: until then rows wait, and feedback is refused.

    Belongs to one thread at a time.
    """

    def __init__(self, problem: str, *, most_rows: int) -> None:
        """Wait.

        problem    why it could not be opened, for whoever wants something that cannot wait
        most_rows  that are kept until then; what finds no place is counted, as in a log that is open
        """
        self.problem = problem
        self._queue = EventQueue(most_rows)
        self._log: EventLog | None = None

    @property
    def n_written(self) -> int:
        return 0 if self._log is None else self._log.n_written

    @property
    def n_dropped(self) -> int:
        return self._queue.n_dropped + (0 if self._log is None else self._log.n_dropped)

    @property
    def n_failed(self) -> int:
        return self._queue.n_failed + (0 if self._log is None else self._log.n_failed)

    @property
    def n_waiting(self) -> int:
        return self._queue.n_waiting

    def append(self, event: Event) -> bool:
        if self._log is not None and not self._queue.is_orphan(event):
            return self._log.append(event)
        return self._queue.accept(QueueItem(event))

    async def append_durable(self, event: Event) -> Receipt:
        """As the log behind it does; without one nothing can be promised. Raises StoreError."""
        if self._log is None:
            raise StoreError(f"{self.problem}; send it again with the same id")
        return await self._log.append_durable(event)

    def read(self, since_seq: int = 0, limit: int | None = None) -> Iterator[StoredEvent]:
        if self._log is None:
            raise StoreError(self.problem)
        return self._log.read(since_seq, limit)

    def drain(self, timeout_s: float = 5.0) -> bool:
        return not self.n_waiting if self._log is None else self._log.drain(timeout_s)

    def attach(self, log: EventLog) -> int:
        """Write to this log from now on, what waited first; how many rows that were."""
        n, self._log = self.n_waiting, log
        for item in self._queue.gather(n, 0.0) if n else ():
            log.append(item.event)
        self._queue.settle(n)
        return n

    def close(self, timeout_s: float = 5.0) -> None:
        """Release everything; what still waits is lost, and counted."""
        self._queue.close()
        self._queue.abandon()
        if self._log is not None:
            self._log.close(timeout_s)

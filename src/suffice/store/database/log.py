"""The interface of an event log, its bounded queue, and a log that is opened late.

The data path calls `append`, which takes microseconds and cannot fail: a full queue or a broken disk is counted.
Feedback calls `append_durable`, which returns when the row is on disk, or raises. Nothing here edits or deletes.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

from suffice.errors import StoreError
from suffice.store.rows.events import Event, Row
from suffice.types import Outcome, Request


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    seq: int  # the row's place in the log; for a duplicate, the place of the first row
    duplicate: bool  # a row with this key existed, and nothing was written
    joined: bool  # the log has the request that it names; if not, it joins when the request arrives
    conflict: bool = False  # a duplicate whose content differs from the stored row


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredEvent:
    seq: int  # the only order of rows
    at_s: float  # Unix time at which the log accepted the row; informative
    event: Event


class EventLog(Protocol):
    def append(self, event: Event) -> bool:
        """Queue the event. Never blocks, never raises; False: dropped and counted.

        If the request of an episode was dropped, its outcome is dropped too, so that the two counts agree.
        """

    async def append_durable(self, event: Event) -> Receipt:
        """Return when the row is synced to disk, within 5 s.

        Raises StoreFull when there is no space or the queue is full, and StoreError otherwise. After an error the row
        may still arrive; sending it again with the same key is safe.
        """

    def drain(self, timeout_s: float = 5.0) -> bool:
        """Wait until everything appended so far is committed or given up. False: timed out."""

    def close(self, timeout_s: float = 5.0) -> None:
        """Write queued events for at most `timeout_s`, count the rest as failed, and release everything.

        Blocks; call it after the last request has ended.
        """


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

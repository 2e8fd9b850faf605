"""A log that could not be opened when its gateway started: rows wait in memory, and feedback is refused, until it can.

    append ──▶ bounded queue ──▶ attach(SqliteLog) ──▶ that log, from then on

What the queue cannot hold is counted, as in a log that is open. Belongs to one thread at a time. Knows logs; refuses to
know when it is time to try again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Final

from suffice.errors import StoreError
from suffice.store.database.log import Receipt, StoredEvent
from suffice.store.database.sqlite import SqliteLog
from suffice.store.rows.events import Event
from suffice.types import Outcome, Request

AGAIN: Final = "send it again with the same id"


class LateLog:
    """An EventLog that has its file later, or never."""

    def __init__(self, problem: str, *, most_rows: int) -> None:
        """Wait.

        problem    why it could not be opened, for whoever wants something that cannot wait
        most_rows  that are kept until then
        """
        self.problem = problem
        self._most_rows = most_rows
        self._log: SqliteLog | None = None
        self._waiting: deque[Event] = deque()
        self._unlogged: set[str] = set()  # episodes whose request was dropped: no outcome either
        self._n_dropped = self._n_lost = 0
        self._closed = False

    @property
    def n_written(self) -> int:
        return 0 if self._log is None else self._log.n_written

    @property
    def n_dropped(self) -> int:
        return self._n_dropped + (0 if self._log is None else self._log.n_dropped)

    @property
    def n_failed(self) -> int:
        return self._n_lost + (0 if self._log is None else self._log.n_failed)

    @property
    def n_waiting(self) -> int:
        return len(self._waiting)

    def append(self, event: Event) -> bool:
        """Keep the event until it can be written. Never blocks, never raises; False: dropped and counted."""
        orphan = isinstance(event, Outcome) and event.episode_id in self._unlogged
        if self._log is not None and not orphan:
            return self._log.append(event)
        if self._closed or orphan or len(self._waiting) >= self._most_rows:
            self._n_dropped += 1
            if isinstance(event, Request):
                self._unlogged.add(event.episode_id)
            elif isinstance(event, Outcome):
                self._unlogged.discard(event.episode_id)
            return False
        self._waiting.append(event)
        return True

    async def append_durable(self, event: Event) -> Receipt:
        """As the log behind it does; without one nothing can be promised. Raises StoreError."""
        if self._log is None:
            raise StoreError(f"{self.problem}; {AGAIN}")
        return await self._log.append_durable(event)

    def read(self, since_seq: int = 0, limit: int | None = None) -> Iterator[StoredEvent]:
        """As the log behind it does. Raises StoreError."""
        if self._log is None:
            raise StoreError(self.problem)
        return self._log.read(since_seq, limit)

    def drain(self, timeout_s: float = 5.0) -> bool:
        """Wait until all that was appended so far is on disk. False: it took too long, or there is no file yet."""
        return not self._waiting if self._log is None else self._log.drain(timeout_s)

    def attach(self, log: SqliteLog) -> int:
        """Write to this log from now on, what waited first; how many rows that were."""
        n, self._log = len(self._waiting), log
        while self._waiting:
            log.append(self._waiting.popleft())
        return n

    def close(self, timeout_s: float = 5.0) -> None:
        """Release everything; what still waits is lost, and counted."""
        self._closed = True
        self._n_lost += len(self._waiting)
        self._waiting.clear()
        if self._log is not None:
            self._log.close(timeout_s)

"""What the rest of Suffice may ask of an event log, whichever database is behind it.

The data path calls `append`, which costs microseconds and cannot fail: a full queue or a broken
disk is counted, and the answer goes out. Feedback calls `append_durable`, which returns only when
the row is on disk, or raises. Nothing here edits or deletes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from suffice.store.rows.events import Event


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
        """Hand the event to the writer. Never blocks, never raises; False: dropped and counted."""

    async def append_durable(self, event: Event) -> Receipt:
        """Return when the row is synced to disk, within 5 s.

        Raises StoreFull when there is no space or the queue is full, and StoreError otherwise.
        After an error the row may still arrive; sending it again with the same key is safe.
        """

    def read(self, since_seq: int = 0, limit: int | None = None) -> Iterator[StoredEvent]:
        """Yield the committed events after `since_seq` in order, at most `limit`.

        Kinds that this version does not know are skipped. Raises StoreError.
        """

    def close(self, timeout_s: float = 5.0) -> None:
        """Write what waits, for at most `timeout_s`, and release everything.

        Blocks; call it once the last request has ended.
        """

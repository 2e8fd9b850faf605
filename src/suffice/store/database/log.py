"""The interface of an event log.

The data path calls `append`, which takes microseconds and cannot fail: a full queue or a broken disk is counted.
Feedback calls `append_durable`, which returns when the row is on disk, or raises. Nothing here edits or deletes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from suffice.store.rows.events import Event


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

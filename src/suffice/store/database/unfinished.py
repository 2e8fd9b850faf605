"""Which requests of this process have no outcome yet, by their place in the log: where to look after it has died.

    rows that were committed ──▶ note ──▶ settled: every request of ours up to there has its outcome

So whoever marks the requests of a dead process as lost reads its last rows, however many it has written. Belongs to
the writer's thread. Knows rows and places; refuses to know databases.
"""

from __future__ import annotations

from collections.abc import Iterable

from suffice.store.rows.events import Event
from suffice.types import Outcome, Request


class OpenRequests:
    def __init__(self) -> None:
        self._open: dict[str, int] = {}  # by episode, in the order of their places
        self._newest = 0

    @property
    def settled(self) -> int:
        """Place in the log up to which each of its requests has its outcome."""
        return next(iter(self._open.values())) - 1 if self._open else self._newest

    def note(self, rows: Iterable[tuple[Event, int]]) -> None:
        """Take in rows of this process that are committed, with their places, in order."""
        for event, seq in rows:
            self._newest = seq
            if isinstance(event, Request):
                self._open[event.episode_id] = seq
            elif isinstance(event, Outcome):
                self._open.pop(event.episode_id, None)

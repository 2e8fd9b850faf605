"""What the log says is in force on each route: a fold over decisions, and its cheap reader.

A follower asks as often as it likes: only rows that it has not seen are read, through an index that holds nothing
else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from suffice.store.database.log import StoredEvent
from suffice.store.database.views import LogReader, LogSource, read_newer, stored_events
from suffice.store.rows.events import Event, route_of
from suffice.types import Alarm, Epoch, Pause, Publication, Resumption

# The condition stands to the letter as in the index. Left to itself, SQLite would look through all decisions.
_NEW: Final = """
    SELECT seq, at_s, kind, body FROM events INDEXED BY decisions WHERE seq > ? AND kind IN
        ('alarm_raised', 'enforcement_paused', 'enforcement_resumed', 'epoch_began', 'policy_published')
    ORDER BY seq"""


@dataclass(frozen=True, slots=True, kw_only=True)
class InForce:
    epoch: Epoch | None = None  # the latest; None: no worker has begun with this route
    publication: Publication | None = None  # the latest of this epoch; None: nothing was published in it
    last: Publication | None = None  # the latest of any epoch
    pause: Pause | None = None  # that has not ended
    alarm: Alarm | None = None  # the latest
    n_publications: int = 0  # numbers that are taken
    n_pauses: int = 0
    n_epochs: int = 0

    @property
    def level(self) -> int:
        """The level that may be acted on, certified or as the budgeted mode has it; 0: none."""
        found = self.publication
        return found.level if found is not None and found.may_act and self.pause is None else 0

    @property
    def classes(self) -> tuple[tuple[str, int], ...]:
        """Classes of questions that run below the level, and theirs; also where an ended epoch's level goes on."""
        found = self.publication or self.last
        return found.classes if found is not None else ()

    @property
    def in_burst(self) -> bool:
        """Does every request run in full, as an audit, until something is published?"""
        return self.publication is None

    def after(self, event: Event) -> InForce:
        """What holds after one more decision; other events change nothing."""
        if isinstance(event, Epoch) and event.number > self.n_epochs:
            return replace(self, epoch=event, publication=None, n_epochs=event.number)
        if isinstance(event, Publication) and event.number > self.n_publications:
            made = event
            mine = made if made.epoch == self.n_epochs else self.publication  # of an ended epoch: void
            return replace(self, publication=mine, last=made, n_publications=made.number)
        if isinstance(event, Alarm):
            return replace(self, alarm=event)
        if isinstance(event, Pause) and event.number > self.n_pauses:
            return replace(self, pause=event, n_pauses=event.number)
        if isinstance(event, Resumption) and self.pause is not None:
            return replace(self, pause=None) if event.number >= self.pause.number else self
        return self


NOTHING: Final = InForce()


@dataclass(frozen=True, slots=True)
class DeploymentState:
    """What holds on all routes, as far as the log has been read."""

    seq: int
    routes: Mapping[str, InForce]

    def of(self, route: str) -> InForce:
        """What holds on a route; nothing where nothing was decided."""
        return self.routes.get(route, NOTHING)


NOTHING_DECIDED: Final = DeploymentState(0, {})


def read_decided(source: LogSource, known: DeploymentState = NOTHING_DECIDED) -> DeploymentState:
    """What holds now, given what was known before; the same object where nothing is new. Raises StoreError."""
    rows = read_newer(source, _NEW, known.seq)
    if not rows:
        return known
    return DeploymentState(rows[-1].seq, fold_decisions((stored.event for stored in rows), known.routes))


def fold_decisions(events: Iterable[Event], known: Mapping[str, InForce]) -> dict[str, InForce]:
    """What holds on each route after these decisions."""
    routes = dict(known)
    for event in events:
        route = route_of(event)
        if route is not None:
            routes[route] = routes.get(route, NOTHING).after(event)
    return routes


_OF_ROUTE: Final = """
    SELECT seq, at_s, kind, body FROM events INDEXED BY decisions WHERE kind IN
        ('alarm_raised', 'enforcement_paused', 'enforcement_resumed', 'epoch_began', 'policy_published')
        AND route = ? ORDER BY seq DESC LIMIT ?"""


def decisions_of(connection: LogReader, route: str, n: int) -> list[StoredEvent]:
    """The latest decisions about a route, newest first. Raises StoreError."""
    return stored_events(connection.execute(_OF_ROUTE, (route, n)).fetchall())

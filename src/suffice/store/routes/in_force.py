"""What the log says is in force on each route: folds over decisions and over what people hold, and their readers.

A follower asks as often as it likes: only rows that it has not seen are read, through indexes that hold nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from suffice.review.holds import NO_HOLDS, Incident, IncidentDecision, Override, OverrideEnd, RouteHolds
from suffice.store.database import schema
from suffice.store.database.log import StoredEvent
from suffice.store.database.views import LogReader, LogSource, query_rows, read_events_where, read_newer
from suffice.store.rows.events import Event, route_of
from suffice.types import Alarm, Epoch, Pause, Publication, Resumption


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
        made = self.publication
        return made.level if made is not None and made.may_act and self.pause is None else 0

    @property
    def classes(self) -> tuple[tuple[str, int], ...]:
        """Classes of questions that run below the level, and theirs; also where an ended epoch's level goes on."""
        made = self.publication or self.last
        return made.classes if made is not None else ()

    @property
    def in_burst(self) -> bool:
        """Does every request run in full, as an audit, until something is published?"""
        return self.publication is None

    def after(self, event: Event) -> InForce:
        """What holds after one more decision; other events change nothing."""
        if isinstance(event, Epoch) and event.number > self.n_epochs:
            return replace(self, epoch=event, publication=None, n_epochs=event.number)
        if isinstance(event, Publication) and event.number > self.n_publications:
            mine = event if event.epoch == self.n_epochs else self.publication  # of an ended epoch: void
            return replace(self, publication=mine, last=event, n_publications=event.number)
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
    seq: int
    routes: Mapping[str, InForce]

    def of(self, route: str) -> InForce:
        return self.routes.get(route, NOTHING)


NOTHING_DECIDED: Final = DeploymentState(0, {})


def read_decided(source: LogSource, known: DeploymentState = NOTHING_DECIDED) -> DeploymentState:
    """What holds now, given what was known before; the same object where nothing is new. Raises StoreError."""
    rows = read_newer(source, "decisions", known.seq)
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


def decisions_of(connection: LogReader, route: str, n: int) -> list[StoredEvent]:
    """The latest decisions about a route, newest first. Raises StoreError."""
    condition = f"{schema.kinds_in(schema.INDEXED_KINDS['decisions'])} AND route = ? ORDER BY seq DESC LIMIT ?"
    return read_events_where(connection, condition, (route, n), index="decisions")


@dataclass(frozen=True, slots=True)
class Holds:
    """What people hold and have to decide on all routes, as far as the log has been read."""

    seq: int = 0
    routes: Mapping[str, RouteHolds] = field(default_factory=dict)

    def of(self, route: str) -> RouteHolds:
        return self.routes.get(route, NO_HOLDS)


NOTHING_HELD: Final = Holds()


def read_holds(source: LogSource, known: Holds = NOTHING_HELD) -> Holds:
    """What is held now, given what was known before; the same object where nothing is new. Raises StoreError."""
    rows = read_newer(source, "holds", known.seq)
    if not rows:
        return known
    routes = dict(known.routes)
    for stored in rows:
        event = stored.event
        if isinstance(event, Override | OverrideEnd | Incident | IncidentDecision | Pause | Resumption):
            routes[event.route] = routes.get(event.route, NO_HOLDS).after(event, stored.at_s)
    return Holds(rows[-1].seq, routes)


def last_at_s(connection: LogReader) -> float:
    """Unix time at which the log took its last row; 0 where it is empty. A control loop has no other clock."""
    return next(
        (float(at_s) for (at_s,) in query_rows(connection, "SELECT at_s FROM events ORDER BY seq DESC LIMIT 1")), 0.0
    )

"""What people hold and have to decide, route by route, read from the log through an index of such rows alone.

    read_holds ──▶ Holds.of(route) ──▶ RouteHolds: overrides with their expiry, incidents, the pause that stands

Knows rows; refuses to know what time it is: whoever asks what is in effect says when.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from suffice.review.holds import NO_HOLDS, Held, RouteHolds
from suffice.store.database.views import decoded, newer
from suffice.store.people.reviews import SINCE_SCHEMA
from suffice.store.rows.control_events import EnforcementPaused, EnforcementResumed
from suffice.store.rows.events import EVENTS, Event
from suffice.store.rows.hold_events import IncidentDecided, IncidentOpened, OverrideEnded, OverrideSet

_NEW: Final = """
    SELECT seq, at_s, kind, body FROM events INDEXED BY holds WHERE seq > ? AND kind IN
        ('enforcement_paused', 'enforcement_resumed', 'incident_decided', 'incident_opened', 'override_ended',
         'override_set')
    ORDER BY seq"""


@dataclass(frozen=True, slots=True)
class Holds:
    """What people hold on all routes, as far as the log has been read."""

    seq: int = 0
    routes: Mapping[str, RouteHolds] = field(default_factory=dict)

    def of(self, route: str) -> RouteHolds:
        """What is held on a route; nothing where nobody decided anything."""
        return self.routes.get(route, NO_HOLDS)


NOTHING_HELD: Final = Holds()


def read_holds(path_or_connection: Path | str | sqlite3.Connection, known: Holds = NOTHING_HELD) -> Holds:
    """What is held now, given what was known before; the same object where nothing is new. Raises StoreError."""
    rows = newer(path_or_connection, _NEW, known.seq, schema=SINCE_SCHEMA)
    if not rows:
        return known
    routes = dict(known.routes)
    for seq, at_s, kind, body in rows:
        event = decoded(seq, EVENTS[kind], body)
        record = _record(event)
        if record is not None and event.route is not None:
            routes[event.route] = routes.get(event.route, NO_HOLDS).after(record, at_s)
    return Holds(rows[-1][0], routes)


def _record(event: Event) -> Held | None:
    if isinstance(event, OverrideSet):
        return event.override
    if isinstance(event, OverrideEnded):
        return event.end
    if isinstance(event, IncidentOpened):
        return event.incident
    if isinstance(event, IncidentDecided):
        return event.decision
    if isinstance(event, EnforcementPaused):
        return event.pause
    return event.resumption if isinstance(event, EnforcementResumed) else None


def last_at_s(connection: sqlite3.Connection) -> float:
    """Unix time at which the log took its last row; 0 where it is empty. A control loop has no other clock."""
    found = connection.execute("SELECT at_s FROM events ORDER BY seq DESC LIMIT 1").fetchone()
    return 0.0 if found is None else float(found[0])

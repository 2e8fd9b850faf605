"""What people hold and have to decide, route by route, read from the log through an index of such rows alone.

read_holds ──▶ Holds.of(route) ──▶ RouteHolds: overrides with their expiry, incidents, the pause that stands
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from suffice.review.holds import NO_HOLDS, Incident, IncidentDecision, Override, OverrideEnd, RouteHolds
from suffice.store.database.views import LogReader, LogSource, read_newer
from suffice.types import Pause, Resumption

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


def read_holds(source: LogSource, known: Holds = NOTHING_HELD) -> Holds:
    """What is held now, given what was known before; the same object where nothing is new. Raises StoreError."""
    rows = read_newer(source, _NEW, known.seq)
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
    row = connection.execute("SELECT at_s FROM events ORDER BY seq DESC LIMIT 1").fetchone()
    return 0.0 if row is None else float(row[0])

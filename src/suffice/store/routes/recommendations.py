"""The newest of what the control loop tells people about a route."""

from __future__ import annotations

from typing import Final

from suffice.assurance.route_forecast import Alert, Outlook
from suffice.store.database.views import LogReader, LogSource, newest_events, open_reader
from suffice.store.routes.sampling import n_counted
from suffice.store.rows.events import E
from suffice.store.rows.records import ArmWorth, ProposedVersion

# Keys begin with the route and sort by place, so the unique index finds the newest at once. ";" follows ":".
_PLACE: Final = """
    SELECT seq FROM events WHERE kind = ? AND key > ? || ':' AND key < ? || ';' AND route = ?
    ORDER BY key DESC LIMIT 1"""
_COUNTS: Final = """
    SELECT count(*), coalesce(sum(
        json_extract(body, '$.request.audit') OR json_extract(body, '$.request.mode') = 'observe'
    ), 0) FROM events WHERE kind = 'request' AND seq > ? AND route = ?
        AND json_extract(body, '$.request.ungoverned') IS NULL"""


def newest_outlook(source: LogSource, route: str) -> Outlook | None:
    """The latest look at a route; None: nobody has looked. Raises StoreError."""
    return _newest(source, Outlook, route)


def newest_place(connection: LogReader, route: str) -> int:
    """The place in the log of the latest look at a route; 0: nobody has looked."""
    found = connection.execute(_PLACE, ("route_monitored", route, route, route)).fetchone()
    return 0 if found is None else int(found[0])


def newest_alert(source: LogSource, route: str) -> Alert | None:
    """The latest alert of a route, standing or not; None: there was none. Raises StoreError."""
    return _newest(source, Alert, route)


def newest_proposal(source: LogSource, route: str) -> ProposedVersion | None:
    """The latest proposal of a refit for a route; None: there was none. Raises StoreError."""
    return _newest(source, ProposedVersion, route)


def newest_arm(source: LogSource, route: str) -> ArmWorth | None:
    """The latest proposal of the tuner for a route; None: there was none. Raises StoreError."""
    return _newest(source, ArmWorth, route)


def _newest(source: LogSource, payload: type[E], route: str) -> E | None:
    with open_reader(source) as connection:
        return next(iter(newest_events(connection, payload, route=route)), None)


def counts_since(connection: LogReader, route: str, seq: int) -> tuple[int, int]:
    """Governed requests of a route behind a place of the log, and those of them that nothing could stop."""
    found = connection.execute(_COUNTS, (seq, route)).fetchone()
    return int(found[0]) + n_counted(connection, route, seq), int(found[1])


def recent_outlooks(connection: LogReader, route: str, n: int) -> list[Outlook]:
    """The latest looks at a route, oldest first. Raises StoreError."""
    return newest_events(connection, Outlook, n, route=route)[::-1]


def recent_alerts(connection: LogReader, route: str, n: int) -> list[Alert]:
    """The latest alerts of a route, newest first. Raises StoreError."""
    return newest_events(connection, Alert, n, route=route)

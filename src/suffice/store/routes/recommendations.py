"""The newest of what the control loop tells people about a route."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Final

from suffice.assurance.route_forecast import Alert, Outlook
from suffice.store.database.views import decoded, open_reader
from suffice.store.routes.sampling import n_counted
from suffice.store.rows.records import ArmWorth, ProposedVersion

# Keys begin with the route and sort by place, so the unique index finds the newest at once. ";" follows ":".
_PLACE: Final = """
    SELECT seq FROM events WHERE kind = ? AND key > ? || ':' AND key < ? || ';' AND route = ?
    ORDER BY key DESC LIMIT 1"""
_NEWEST: Final = """
    SELECT seq, body FROM events WHERE kind = ? AND key > ? || ':' AND key < ? || ';' AND route = ?
    ORDER BY key DESC LIMIT 1"""

_COUNTS: Final = """
    SELECT count(*), coalesce(sum(
        json_extract(body, '$.request.audit') OR json_extract(body, '$.request.mode') = 'observe'
    ), 0) FROM events WHERE kind = 'request' AND seq > ? AND route = ?
        AND json_extract(body, '$.request.ungoverned') IS NULL"""


def newest_outlook(path_or_connection: Path | str | sqlite3.Connection, route: str) -> Outlook | None:
    """The latest look at a route; None: nobody has looked. Raises StoreError."""
    found = _newest(path_or_connection, "route_monitored", route)
    return None if found is None else decoded(found[0], Outlook, found[1])


def newest_place(connection: sqlite3.Connection, route: str) -> int:
    """The place in the log of the latest look at a route; 0: nobody has looked."""
    found = connection.execute(_PLACE, ("route_monitored", route, route, route)).fetchone()
    return 0 if found is None else int(found[0])


def newest_alert(path_or_connection: Path | str | sqlite3.Connection, route: str) -> Alert | None:
    """The latest alert of a route, standing or not; None: there was none. Raises StoreError."""
    found = _newest(path_or_connection, "alert_raised", route)
    return None if found is None else decoded(found[0], Alert, found[1])


def newest_proposal(path_or_connection: Path | str | sqlite3.Connection, route: str) -> ProposedVersion | None:
    """The latest proposal of a refit for a route; None: there was none. Raises StoreError."""
    found = _newest(path_or_connection, "version_proposed", route)
    return None if found is None else decoded(found[0], ProposedVersion, found[1])


def newest_arm(path_or_connection: Path | str | sqlite3.Connection, route: str) -> ArmWorth | None:
    """The latest proposal of the tuner for a route; None: there was none. Raises StoreError."""
    found = _newest(path_or_connection, "arm_proposed", route)
    return None if found is None else decoded(found[0], ArmWorth, found[1])


def counts_since(connection: sqlite3.Connection, route: str, seq: int) -> tuple[int, int]:
    """Governed requests of a route behind a place of the log, and those of them that nothing could stop."""
    found = connection.execute(_COUNTS, (seq, route)).fetchone()
    return int(found[0]) + n_counted(connection, route, seq), int(found[1])


def _newest(path_or_connection: Path | str | sqlite3.Connection, kind: str, route: str) -> tuple[int, str] | None:
    with open_reader(path_or_connection) as connection:
        found = connection.execute(_NEWEST, (kind, route, route, route)).fetchone()
    return None if found is None else (int(found[0]), str(found[1]))


def recent_outlooks(connection: sqlite3.Connection, route: str, n: int) -> list[Outlook]:
    """The latest looks at a route, oldest first. Raises StoreError."""
    found = _recent(connection, "route_monitored", route, n)
    return [decoded(seq, Outlook, body) for seq, body in found]


def recent_alerts(connection: sqlite3.Connection, route: str, n: int) -> list[Alert]:
    """The latest alerts of a route, newest first. Raises StoreError."""
    found = _recent(connection, "alert_raised", route, n)
    return [decoded(seq, Alert, body) for seq, body in reversed(found)]


def _recent(connection: sqlite3.Connection, kind: str, route: str, n: int) -> list[tuple[int, str]]:
    """The latest rows of a kind, oldest first."""
    told = _NEWEST.replace("LIMIT 1", "LIMIT ?")
    return list(reversed(connection.execute(told, (kind, route, route, route, n)).fetchall()))

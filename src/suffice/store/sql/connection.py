"""A connection to the database of a log, whichever it is: SQLite or PostgreSQL."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, TypeAlias

from suffice.store.sql.postgres import PostgresConnection, PostgresError

LogReader: TypeAlias = sqlite3.Connection | PostgresConnection  # opaque outside `store`: passed on, never queried
Values: TypeAlias = Sequence[object] | Mapping[str, object]
DATABASE_ERRORS: Final = (sqlite3.Error, PostgresError)


@contextlib.contextmanager
def in_snapshot(connection: LogReader) -> Iterator[LogReader]:
    """Let every query see one state of the log, whatever other processes write."""
    with connection:
        if isinstance(connection, PostgresConnection):
            connection.begin_snapshot()
        else:
            connection.execute("BEGIN")
        yield connection


def stream_rows(connection: LogReader, query: str, values: Values = ()) -> Iterator[Any]:
    """Yield rows that may be too many to hold at once."""
    if isinstance(connection, PostgresConnection):
        return connection.stream(query, values)
    return connection.execute(query, values)


def has_table(connection: LogReader, name: str) -> bool:
    if isinstance(connection, PostgresConnection):
        return bool(connection.execute("SELECT to_regclass(?) IS NOT NULL", (name,)).fetchone()[0])
    return connection.execute("SELECT 1 FROM sqlite_schema WHERE name = ?", (name,)).fetchone() is not None

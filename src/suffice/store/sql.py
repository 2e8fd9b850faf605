"""A connection to the database of a log: SQLite's own, or psycopg's to PostgreSQL, with the same methods.

On PostgreSQL, every statement runs in a transaction, without prepared statements and with settings that end with the
transaction, so that a connection pooler in transaction mode may stand between.

The log's queries are in `sqlite.sql` and `postgres.sql`, by name. Functions that only SQLite has (`json_extract`,
`json_each`) exist in our schema of PostgreSQL, so the two differ by hints to SQLite's planner, and by types.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import os
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self, TypeAlias

if TYPE_CHECKING:
    from suffice.store.supervised import SupervisedConnection

# Shut down, crashed, starting up, only reading (a standby), no connection left.
_LOST_CODES: Final = frozenset(("57P01", "57P02", "57P03", "25006", "53300"))
_STREAM_ROWS: Final = 500  # fetched at once
_STREAMS: Final = itertools.count()


Values: TypeAlias = Sequence[object] | Mapping[str, object]


class NamedQuery(NamedTuple):
    text: str
    parameters: tuple[str, ...]

    def bound(self, values: Values) -> Mapping[str, object]:
        """Return values by name, which are given by name or in the order of the parameters."""
        return values if isinstance(values, Mapping) else dict(zip(self.parameters, values, strict=True))


@cache
def load_queries(dialect: str) -> dict[str, NamedQuery]:
    """Return the queries of `sqlite.sql` or `postgres.sql` by name."""
    queries, text = dict[str, NamedQuery](), files("suffice.store").joinpath(f"{dialect}.sql").read_text("utf-8")
    for part in text.split("-- name: ")[1:]:
        head, _, query = part.partition("\n")
        name, _, parameters = head.rstrip(")").partition("(")
        queries[name] = NamedQuery(query.rstrip(), tuple(filter(None, parameters.split(", "))))
    return queries


class SqliteConnection(sqlite3.Connection):
    """A query is named as in `sqlite.sql`, or SQL with marks (?); `constants` replace the braces of a named one."""

    def execute(self, query: str, values: Values = (), /, **constants: str) -> sqlite3.Cursor:  # type: ignore[override]
        if (named := load_queries("sqlite").get(query)) is None:
            return super().execute(query, values)
        text = named.text.format(**constants) if constants else named.text
        return super().execute(text, named.bound(values))

    def executemany(self, query: str, values: Iterable[Values], /) -> sqlite3.Cursor:  # type: ignore[override]
        if (named := load_queries("sqlite").get(query)) is None:
            return super().executemany(query, values)
        return super().executemany(named.text, values if "?" in named.text else map(named.bound, values))


class PostgresError(Exception):
    """A statement failed. `code` is its SQLSTATE, or "" if the connection was lost or could not be made."""

    def __init__(self, message: str, code: str = "") -> None:
        super().__init__(message)
        self.code = code

    @property
    def is_lost(self) -> bool:
        """Whether the server went away or shuts down: another attempt may find it, or the one that took over."""
        return self.code == "" or self.code[:2] == "08" or self.code in _LOST_CODES

    @property
    def is_busy(self) -> bool:
        """Whether another transaction held what this one needs."""
        return self.code in ("55P03", "40001", "40P01")


class PostgresConnection:
    """Not for two threads at a time. Methods raise PostgresError."""

    def __init__(self, connect: Callable[[], SupervisedConnection], setup: str) -> None:
        """Connect. Each transaction begins with the SQL of `setup`."""
        self._setup, self._in_transaction = setup, False
        self._payload = ""  # of the notifications that are waited for
        self.pid = os.getpid()
        with self._translated():
            self._connection = connect()

    def interrupt_when(self, is_over: Callable[[], bool] | None) -> None:
        """Interrupt a query when `is_over` returns True."""
        self._connection.is_over = is_over

    # ── transactions ─────────────────────────────────────────────────────────────────────────────

    def begin(self, how: str = "READ ONLY", settings: str = "") -> None:
        self._in_transaction = True
        self._execute(f"BEGIN {how}; {self._setup}{settings}")

    def begin_snapshot(self) -> None:
        if self._in_transaction:
            self.commit()
        self.begin("ISOLATION LEVEL REPEATABLE READ READ ONLY")

    def commit(self) -> None:
        self._in_transaction = False
        if self._execute("COMMIT").statusmessage != "COMMIT":  # a statement failed, so the server rolls back
            raise PostgresError("the transaction was rolled back", "40000")

    def rollback(self) -> None:
        self._in_transaction = False
        self._execute("ROLLBACK")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if not self._in_transaction:
            return
        if kind is None:
            self.commit()
        elif self.is_open:
            with contextlib.suppress(PostgresError):
                self.rollback()

    # ── statements ───────────────────────────────────────────────────────────────────────────────

    def execute(self, query: str, values: Values = (), /, **constants: str) -> Any:
        """Run a query, as SQLite's connection does; return its rows, as SQLite's cursor gives them."""
        if not self._in_transaction:
            self.begin()
        return self._execute(*_bound(query, values, **constants))

    def executemany(self, query: str, values: Iterable[Values], /) -> None:
        if rows := [_bound(query, one) for one in values]:
            with self._translated():
                self._connection.cursor().executemany(rows[0][0].encode(), [one for _, one in rows])

    def copy(self, table: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Add rows with COPY."""
        command = f"COPY {table} ({', '.join(columns)}) FROM STDIN"
        with self._translated(), self._connection.cursor().copy(command.encode()) as copy:
            for row in rows:
                copy.write_row(row)

    def run_script(self, script: str) -> None:
        """Run several statements, without parameters and as they are."""
        self._execute(script)

    def stream(self, query: str, values: Values = ()) -> Iterator[Any]:
        if not self._in_transaction:
            self.begin()
        text, values = _bound(query, values)
        with self._translated(), self._connection.cursor(f"stream_{next(_STREAMS)}") as cursor:
            cursor.execute(text.encode(), values)
            while rows := cursor.fetchmany(_STREAM_ROWS):
                yield from rows

    def has_rows(self, query: str) -> bool:
        """Return whether a query has rows, in one round trip and outside of a transaction."""
        return self._execute(query).fetchone() is not None

    def listen(self, channel: str, payload: str) -> None:
        """Note each notification of a channel with this payload, for `wait_for_notice`."""
        self._payload = payload
        self._execute(f"LISTEN {channel}")

    def wait_for_notice(self, most_s: float) -> bool:
        """Return whether a notification came within this time, or since the last call."""
        with self._translated():
            notices = [*self._connection.notifies(timeout=most_s, stop_after=1)]
            return any(one.payload == self._payload for one in notices)

    def ping(self) -> None:
        self._execute("SELECT 1")

    def _execute(self, query: str, values: Values | None = None) -> Any:
        with self._translated():
            return self._connection.execute(query.encode(), values)

    # ── the connection ───────────────────────────────────────────────────────────────────────────

    @property
    def is_open(self) -> bool:
        return not self._connection.closed

    def close(self) -> None:
        """End the connection, and a transaction with it. Never raises."""
        self._connection.close()

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        import psycopg

        try:
            yield
        except psycopg.Error as error:
            is_lost = isinstance(error, psycopg.OperationalError) and not isinstance(error, psycopg.DataError)
            text = str(error).partition("\n")[0] or "no answer"
            raise PostgresError(text, error.sqlstate or ("" if is_lost else "22000")) from error
        except UnicodeError as error:
            raise PostgresError(str(error), "22000") from error


def _bound(query: str, values: Values, **constants: str) -> tuple[str, Values]:
    if (named := load_queries("postgres").get(query)) is None:
        return query.replace("%", "%%").replace("?", "%s"), values
    return named.text.format(**constants) if constants else named.text, named.bound(values)


class Idle:
    """Open connections that nobody uses: a new one takes a round trip or three, and a process of the server."""

    def __init__(self, most: int) -> None:
        self._most, self._lock = most, threading.Lock()
        self._idle: dict[object, list[PostgresConnection]] = {}
        atexit.register(self.close)

    def take(self, key: object) -> PostgresConnection | None:
        with self._lock:
            idle = self._idle.get(key, [])
            while idle:
                one = idle.pop()
                if one.pid == os.getpid() and one.is_open:  # a forked process leaves its parent's alone
                    return one
        return None

    def close(self) -> None:
        with self._lock:
            for one in (one for idle in self._idle.values() for one in idle if one.pid == os.getpid()):
                one.close()
            self._idle.clear()

    def give(self, key: object, one: PostgresConnection) -> None:
        one.interrupt_when(None)
        with self._lock:
            idle = self._idle.setdefault(key, [])
            if one.is_open and len(idle) < self._most:
                idle.append(one)
                return
        one.close()


# ── either database ──────────────────────────────────────────────────────────────────────────────

LogReader: TypeAlias = SqliteConnection | PostgresConnection  # opaque outside `store`: passed on, never queried
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

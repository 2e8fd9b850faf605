"""A connection to the database of a log: SQLite's own, or a blocking one to PostgreSQL over asyncpg that serves as one.

On PostgreSQL, every statement runs in a transaction, with unnamed prepared statements and settings that end with the
transaction, so that a connection pooler in transaction mode may stand between. A connection has its own event loop,
which runs in the thread that asks; a thread that runs a loop already asks another one.

The log's queries are written for SQLite, in what both databases understand: `CAST` where a value of JSON is no text,
`FILTER`, `ON CONFLICT`, named subqueries. Functions that only SQLite has (`json_extract`, `json_each`) exist in our
schema. `translate` does the rest: the marks of parameters, and hints to SQLite's planner, which are left out.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import re
import sqlite3
import threading
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, Self, TypeAlias, TypeVar

if TYPE_CHECKING:
    import asyncpg

T = TypeVar("T")

_CLOSE_S: Final = 0.5
_LOOKS_S: Final = 0.05  # between two looks whether a query is still wanted
# Shut down, crashed, starting up, only reading (a standby), no connection left.
_LOST_CODES: Final = frozenset(("57P01", "57P02", "57P03", "25006", "53300"))
_STREAM_ROWS: Final = 500  # fetched at once
_THREADS: Final = ThreadPoolExecutor(8, thread_name_prefix="suffice-postgres")  # for threads that run a loop


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


class Rows:
    """The rows of a statement, with the cursor methods of SQLite that the queries use."""

    def __init__(self, rows: Sequence[Any], rowcount: int) -> None:
        self._rows, self.rowcount = iter(rows), rowcount

    def fetchone(self) -> Any:
        return next(self._rows, None)

    def fetchall(self) -> list[Any]:
        return [*self._rows]

    def __iter__(self) -> Iterator[Any]:
        return self._rows


class PostgresConnection:
    """Not for two threads at a time. Methods raise PostgresError."""

    def __init__(self, connect: Callable[[], Coroutine[Any, Any, asyncpg.Connection]], setup: str) -> None:
        """Connect. Each transaction begins with the SQL of `setup`."""
        self._connection: Any = None  # until it is made
        self._loop, self._setup, self._in_transaction = asyncio.SelectorEventLoop(), setup, False
        self.is_over: Callable[[], bool] | None = None  # interrupts a query when it returns True
        self._noticed: asyncio.Event | None = None  # a notification came; None: nobody listens
        self.pid = os.getpid()
        try:
            self._connection = self._run(connect())
        except BaseException:
            self._loop.close()
            raise

    # ── transactions ─────────────────────────────────────────────────────────────────────────────

    def begin(self, how: str = "READ ONLY", settings: str = "") -> None:
        self._in_transaction = True
        self._run(self._connection.execute(f"BEGIN {how}; {self._setup}{settings}"))

    def begin_snapshot(self) -> None:
        if self._in_transaction:
            self.commit()
        self.begin("ISOLATION LEVEL REPEATABLE READ READ ONLY")

    def commit(self) -> None:
        self._in_transaction = False
        status = self._run(self._connection.execute("COMMIT"))
        if status != "COMMIT":  # the server rolls back a transaction in which a statement failed
            raise PostgresError("the transaction was rolled back", "40000")

    def rollback(self) -> None:
        self._in_transaction = False
        self._run(self._connection.execute("ROLLBACK"))

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

    def execute(self, query: str, values: Sequence[object] | Mapping[str, object] = ()) -> Rows:
        query, arguments = _bound(query, values)
        if not self._in_transaction:
            self.begin()
        if query.lstrip()[:6].upper() in ("SELECT", "WITH R") or "RETURNING" in query:
            rows = self._run(self._connection.fetch(query, *arguments))
            return Rows(rows, len(rows))
        status = self._run(self._connection.execute(query, *arguments))
        n_rows = status.rpartition(" ")[2]
        return Rows((), int(n_rows) if n_rows.isdecimal() else -1)

    def executemany(self, query: str, values: Iterable[Sequence[object]]) -> None:
        rows = [*values]
        if rows:
            self._run(self._connection.executemany(translate(query)[0], rows))

    def copy(self, table: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Add rows with COPY."""
        self._run(self._connection.copy_records_to_table(table, columns=columns, records=rows))

    def run_script(self, script: str) -> None:
        """Run several statements, without parameters and as they are."""
        self._run(self._connection.execute(script))

    def stream(self, query: str, values: Sequence[object] | Mapping[str, object] = ()) -> Iterator[Any]:
        query, arguments = _bound(query, values)
        if not self._in_transaction:
            self.begin()
        cursor = self._run(self._open_cursor(query, arguments))
        while rows := self._run(cursor.fetch(_STREAM_ROWS)):
            yield from rows

    async def _open_cursor(self, query: str, arguments: Sequence[object]) -> Any:
        return await self._connection.cursor(query, *arguments)

    def has_rows(self, query: str) -> bool:
        """Return whether a query has rows, in one round trip and outside of a transaction."""
        return not self._run(self._connection.execute(query)).endswith(" 0")

    def listen(self, channel: str, payload: str) -> None:
        """Note each notification of a channel with this payload, for `wait_for_notice`."""

        async def work() -> None:
            self._noticed = asyncio.Event()
            noticed = self._noticed
            await self._connection.add_listener(channel, lambda *got: noticed.set() if got[3] == payload else None)

        self._run(work())

    def wait_for_notice(self, most_s: float) -> bool:
        """Return whether a notification came within this time, or since the last call."""

        async def work() -> bool:
            assert self._noticed is not None
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._noticed.wait(), most_s)
            is_set = self._noticed.is_set()
            self._noticed.clear()
            return is_set

        return self._run(work())

    def ping(self) -> None:
        self._run(self._connection.execute("SELECT 1"))

    # ── the connection ───────────────────────────────────────────────────────────────────────────

    @property
    def is_open(self) -> bool:
        return not self._connection.is_closed()

    def close(self) -> None:
        """End the connection, and a transaction with it. Never raises."""
        if not self._loop.is_closed():
            with contextlib.suppress(PostgresError):
                self._run(self._end())
            self._loop.close()

    async def _end(self) -> None:
        try:
            await self._connection.close(timeout=_CLOSE_S)
        finally:
            self._connection.terminate()
            await asyncio.sleep(0)  # the loop closes the socket

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        answer = self._translated(work)
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return self._loop.run_until_complete(answer)
        return _THREADS.submit(self._loop.run_until_complete, answer).result()

    async def _translated(self, work: Coroutine[Any, Any, T]) -> T:
        import asyncpg

        try:
            return await (work if self.is_over is None else self._interruptible(work))
        except asyncpg.PostgresError as error:
            raise PostgresError(str(error).partition("\n")[0], error.sqlstate or "") from error
        except (TimeoutError, OSError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
            if isinstance(error, ValueError):
                raise PostgresError(str(error).partition("\n")[0], "22000") from error  # a value of another type
            if self._connection is not None:
                self._connection.terminate()  # nobody knows what it still waits for
            raise PostgresError(str(error) or "no answer in time") from error

    async def _interruptible(self, work: Coroutine[Any, Any, T]) -> T:
        assert self.is_over is not None
        task = asyncio.ensure_future(work)
        while not (await asyncio.wait({task}, timeout=_LOOKS_S))[0]:
            if self.is_over():
                task.cancel()
                await asyncio.wait({task})
                raise PostgresError("interrupted", "57014")
        return task.result()


_TOKENS = re.compile(
    r"""(?P<kept>'(?:[^']|'')*'|::)
    |(?P<dropped>\bINDEXED\ BY\ \w+|\bNOT\ INDEXED\b|\+(?=(?:\w+\.)?kind\b))
    |(?P<cross>\bCROSS\ JOIN\b)
    |(?P<mark>\?)
    |:(?P<name>[a-z_]+)""",
    re.VERBOSE,
)


@lru_cache(maxsize=1_024)
def translate(query: str) -> tuple[str, tuple[str, ...]]:
    """Return the query for PostgreSQL, and the names of its parameters in order; () if they are numbered."""
    names, n_marks = list[str](), 0

    def replaced(token: re.Match[str]) -> str:
        nonlocal n_marks
        if token["mark"]:
            n_marks += 1
            return f"${n_marks}"
        if name := token["name"]:
            if name not in names:
                names.append(name)
            return f"${names.index(name) + 1}"
        return "JOIN" if token["cross"] else token["kept"] or ""

    return _TOKENS.sub(replaced, query), tuple(names)


def _bound(query: str, values: Sequence[object] | Mapping[str, object]) -> tuple[str, Sequence[object]]:
    text, names = translate(query)
    return text, [values[name] for name in names] if isinstance(values, Mapping) else values


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
        one.is_over = None
        with self._lock:
            idle = self._idle.setdefault(key, [])
            if one.is_open and len(idle) < self._most:
                idle.append(one)
                return
        one.close()


# ── either database ──────────────────────────────────────────────────────────────────────────────

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

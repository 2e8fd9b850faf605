"""A log in a schema of a PostgreSQL server, which any number of gateways and workers share.

One advisory lock lets one writer append at a time: commits come in the order of `seq` and of the chain, so that no
reader ever passes a row that has yet to appear. The lock, like every setting, ends with its transaction, so a pooler
in transaction mode may stand between. Processes prove by their beats that they live, and leases end, by the server's
clock alone. A failover with a synchronous standby loses nothing that was acknowledged.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import os
import re
import secrets
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

from suffice.errors import ConfigError, StoreError, StoreFull
from suffice.extras import how_to_install
from suffice.settings import Store
from suffice.store.audit.appender import begin_chain
from suffice.store.database import schema
from suffice.store.database.notes import Notes
from suffice.store.database.protocol import DEAD_S, LastWrite
from suffice.store.rows.events import Row
from suffice.store.sql import LogReader, Values, load_queries

if TYPE_CHECKING:
    from suffice.store.supervised import SupervisedConnection

CHANNEL: Final = "suffice_orders"  # a notification carries the log's schema
NOTIFIED: Final = frozenset(("kill_switched",))  # kinds that gateways must see at once
# Shut down, crashed, starting up, only reading (a standby), no connection left.
_LOST_CODES: Final = frozenset(("57P01", "57P02", "57P03", "25006", "53300"))
_STREAM_ROWS: Final = 500  # fetched at once
_STREAMS: Final = itertools.count()
WATCH_S: Final = 0.5  # for a notification: a pooler in transaction mode swallows them
BEAT_S: Final = 10.0  # between two signs of life of a process
LOCK_S: Final = 5.0  # how long a transaction waits for another writer's
_FULL_CODES: Final = ("53100",)
NOW_S: Final = "CAST(extract(epoch FROM clock_timestamp()) AS DOUBLE PRECISION)"
_ENTER: Final = f"INSERT INTO owners (lock, pid, started_s, beat_s) VALUES (?, ?, ?, {NOW_S}) RETURNING id"  # noqa: S608 - a constant
_BEAT: Final = f"""
    INSERT INTO owners (id, lock, pid, started_s, beat_s) VALUES (?, ?, ?, {NOW_S}, {NOW_S})
    ON CONFLICT (id) DO UPDATE SET beat_s = excluded.beat_s"""  # noqa: S608 - a constant
_LAST_WRITE: Final = """
    SELECT coalesce((SELECT max(seq) FROM events), 0), coalesce((SELECT max(seq) FROM rolled), 0),
        coalesce((SELECT sum(beat + n_failures) FROM watches), 0)::bigint"""
_IS_NEW: Final = """
    (SELECT 1 FROM "{schema}".events WHERE seq > {last} LIMIT 1) UNION ALL
    SELECT 1 WHERE {summed} <> coalesce((SELECT max(seq) FROM "{schema}".rolled), 0)
        OR {looks} <> coalesce((SELECT sum(beat + n_failures) FROM "{schema}".watches), 0)"""
# While the server is down nobody can beat, so silence counts from its start.
_IS_ALIVE: Final = f"""
    SELECT {NOW_S} - CASE beat_s WHEN 0 THEN 0 ELSE greatest(beat_s,
        CAST(extract(epoch FROM pg_postmaster_start_time()) AS DOUBLE PRECISION)) END < {DEAD_S}
    FROM owners WHERE id = ?"""  # noqa: S608 - constants


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


class PostgresConnection(LogReader):
    Error: ClassVar = PostgresError

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
        if not self._in_transaction:
            self.begin()
        return self._execute(*_bound(query, values, **constants))

    def executemany(self, query: str, values: Iterable[Values], /) -> None:
        if rows := [_bound(query, one) for one in values]:
            with self._translated():
                self._connection.cursor().executemany(rows[0][0].encode(), [one for _, one in rows])

    def append_events(self, rows: Sequence[Sequence[Any]]) -> tuple[int, int]:
        given = {(kind, key): (kind, key, *rest) for kind, key, *rest in reversed(rows)}  # the first of one name
        columns = zip(*reversed(given.values()), strict=True)
        n_new, last = self.execute("append_events", [[*column] for column in columns]).fetchone()
        if n_new and any(kind in NOTIFIED for kind, _ in given):
            self.execute("SELECT pg_notify(?, current_schema())", (CHANNEL,))
        return n_new, last or 0

    def find_events(self, names: Collection[tuple[str, str]]) -> Mapping[tuple[str, str], tuple[int, int]]:
        rows = self.execute("find_events", [[*column] for column in zip(*names, strict=True)])
        return {(kind, key): (seq, owner) for kind, key, seq, owner in rows}

    def insert_rows(self, table: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
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

    def has_table(self, name: str) -> bool:
        return bool(self.execute("SELECT to_regclass(?) IS NOT NULL", (name,)).fetchone()[0])

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


_IDLE: Final = Idle(4)


def _migrate(connection: PostgresConnection, name: str, where: str, now_s: float) -> int:
    """Create the schema, or bring it up to this version, in a transaction of its own; return how many steps ran."""
    if not connection.execute("SELECT 1 FROM pg_namespace WHERE nspname = ?", (name,)).fetchone():
        connection.run_script(f'CREATE SCHEMA "{name}"')
    version = _check(connection, where, is_new=True)
    steps = schema.steps_from(version)
    for one in steps:
        connection.run_script(load_queries("postgres")[one.name].text)
        values = (one.version, one.oldest, now_s)
        connection.execute("INSERT INTO schema_versions (version, oldest, at_s) VALUES (?, ?, ?)", values)
    return len(steps)


def _check(connection: PostgresConnection, where: str, *, is_new: bool = False) -> int:
    """Return the schema's version, which this one can work with. Raise StoreError.

    is_new  the schema may be missing, or older
    """
    if not connection.has_table("schema_versions"):
        if is_new:
            return 0
        raise StoreError(f"store {where}: holds no event log; `suffice serve` or `suffice store migrate` makes one")
    query = "SELECT version, oldest FROM schema_versions ORDER BY version DESC LIMIT 1"
    version, oldest = connection.execute(query).fetchone()
    newest = schema.MIGRATIONS[-1].version
    if oldest > newest:
        raise StoreError(
            f"store {where}: has schema {version}, which needs a gateway of schema {oldest} or later; this one is of"
            f" schema {newest}: upgrade it"
        )
    if version < schema.FIRST.version:
        raise StoreError(
            f"store {where}: has schema {version}, written by an older version; this one reads schema {newest}: keep"
            " the schema with that version, or name a new one"
        )
    if version < newest and not is_new:
        raise StoreError(f"store {where}: has schema {version}, this version {newest}: run `suffice store migrate`")
    return int(version)


@dataclass(frozen=True, slots=True)
class PostgresClaim:
    """A process's entry among the owners; it ends when it is released, or when its beats cease."""

    database: PostgresDatabase
    owner: int

    def release(self) -> None:
        with contextlib.suppress(StoreError), self.database.transaction() as connection:
            connection.execute("UPDATE owners SET beat_s = 0 WHERE id = ?", (self.owner,))


@dataclass(frozen=True, slots=True)
class PostgresDatabase:
    Error: ClassVar = PostgresError
    url: str = field(repr=False)  # without a password
    schema: str
    password_env: str = ""
    password_file: str = ""
    statement_s: float = 30.0

    def __str__(self) -> str:
        parts = urlsplit(self.url)
        return f"postgresql://{parts.netloc.rpartition('@')[2]}{parts.path} (schema {self.schema})"

    @property
    def location(self) -> PostgresDatabase:
        return self

    @property
    def name(self) -> str:
        return str(self)

    # ── processes ────────────────────────────────────────────────────────────────────────────────

    def enter(self, *, now_s: float, create: bool = True) -> tuple[PostgresClaim, int]:
        if create:
            self.migrate(now_s=now_s)
        with self.transaction() as connection:
            values = (secrets.token_hex(6), os.getpid(), now_s)
            owner = int(connection.execute(_ENTER, values).fetchone()[0])
        return PostgresClaim(self, owner), owner

    def migrate(self, *, now_s: float) -> int:
        with self._translated():
            connection = self._connect(checks=False)
            try:
                with connection:
                    self.begin(connection, synced=True)
                    n_migrations = _migrate(connection, self.schema, str(self), now_s)
                    begin_chain(connection, now_s)
                return n_migrations
            finally:
                _IDLE.give(self, connection)

    def is_alive(self, connection: LogReader, owner: int) -> bool:
        row = connection.execute(_IS_ALIVE, (owner,)).fetchone()
        return row is not None and bool(row[0])

    def forget(self, connection: LogReader, owner: int) -> None:
        connection.execute("DELETE FROM owners WHERE id = ?", (owner,))

    @property
    def is_server(self) -> bool:
        return True

    @property
    def notes(self) -> Notes:
        return Notes(self.transaction, self.has_rows, f'"{self.schema}".notes')

    @property
    def beat_s(self) -> float | None:
        return BEAT_S

    def beat(self, connection: LogReader, owner: int) -> None:
        connection.execute(_BEAT, (owner, secrets.token_hex(6), os.getpid()))

    def clock_s(self, connection: LogReader) -> float | None:
        return float(connection.execute(f"SELECT {NOW_S}").fetchone()[0])

    # ── connections ──────────────────────────────────────────────────────────────────────────────

    @contextlib.contextmanager
    def reader(self, is_over: Callable[[], bool] | None = None) -> Iterator[PostgresConnection]:
        with self._translated():
            connection = self._take()
            connection.interrupt_when(is_over)
            try:
                with connection:
                    yield connection
            finally:
                _IDLE.give(self, connection)

    def watch(self, is_over: threading.Event) -> Iterator[PostgresConnection]:
        with self._translated(), contextlib.closing(self._connect()) as connection:
            connection.listen(CHANNEL, self.schema)
            while not is_over.is_set():
                with connection:
                    yield connection
                connection.wait_for_notice(WATCH_S)

    @contextlib.contextmanager
    def transaction(self, *, erases: bool = False) -> Iterator[PostgresConnection]:  # noqa: ARG002 - as SQLite's
        with self._translated():
            connection = self._take()
            try:
                with connection:
                    self.begin(connection, synced=True)
                    yield connection
            finally:
                _IDLE.give(self, connection)

    def connect_writer(self) -> PostgresConnection:
        return self._connect()

    def begin(self, connection: LogReader, *, synced: bool) -> None:  # noqa: ARG002 - as SQLite's
        """Begin a transaction that is on disk once it commits: otherwise a crash of the server alone loses rows."""
        assert isinstance(connection, PostgresConnection)
        lock = int.from_bytes(sha256(f"suffice log {self.schema}".encode()).digest()[:8], signed=True)
        connection.begin("ISOLATION LEVEL READ COMMITTED READ WRITE", f"SELECT pg_advisory_xact_lock({lock})")

    def _take(self) -> PostgresConnection:
        """Return an idle connection that answers, or a new one."""
        while (idle := _IDLE.take(self)) is not None:
            with contextlib.suppress(PostgresError):
                idle.ping()
                return idle
            idle.close()
        return self._connect()

    def _connect(self, *, checks: bool = True) -> PostgresConnection:
        if find_spec("psycopg") is None:
            raise StoreError(f"store {self}: needs psycopg: {how_to_install('postgres')}")
        settings = {
            "search_path": f'"{self.schema}"',
            "statement_timeout": f"{self.statement_s * 1000:.0f}",
            "lock_timeout": f"{LOCK_S * 1000:.0f}",
            "idle_in_transaction_session_timeout": "0",  # a reader may think for a while between two queries
        }
        connection = PostgresConnection(
            self._open, "".join(f"SET LOCAL {name} = {value}; " for name, value in settings.items())
        )
        try:
            if checks:
                with connection:
                    _check(connection, str(self))
        except BaseException:
            connection.close()
            raise
        return connection

    def _open(self) -> SupervisedConnection:
        from suffice.store.supervised import connect_supervised

        return connect_supervised(self.url, self._password(), most_s=self.statement_s + LOCK_S)

    def _password(self) -> str | None:
        """Read at every connection, so that a rotated password needs no restart."""
        if self.password_env:
            if not (password := os.environ.get(self.password_env)):
                raise StoreError(f"store.password_env: the environment has no {self.password_env}")
            return password
        if self.password_file:
            try:
                return Path(self.password_file).read_text("utf-8").rstrip("\r\n")
            except OSError as error:
                problem = error.strerror or error
                raise StoreError(f"store.password_file {self.password_file}: cannot be read ({problem})") from None
        return None

    # ── the database ─────────────────────────────────────────────────────────────────────────────

    def exists(self) -> bool:
        return True  # whether it has our schema shows when it is opened

    def find_damage(self, *, within_s: float | None = None, thorough: bool = False) -> str | None:  # noqa: ARG002
        """Return "": a server checks its own pages."""
        return ""

    def engine(self, connection: LogReader) -> str:
        (version,) = connection.execute("SELECT current_setting('server_version')").fetchone()
        return f"PostgreSQL {version}"

    def size_bytes(self) -> int:
        query = """SELECT coalesce(sum(pg_total_relation_size(c.oid)), 0) FROM pg_class c
                   JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = ? AND c.relkind = 'r'"""
        with self.reader() as connection:
            return int(connection.execute(query, (self.schema,)).fetchone()[0])

    def is_unchanged(self, since: LastWrite | None, *, now_s: float) -> bool:  # noqa: ARG002 - as SQLite's
        """Return whether nothing was appended or summed up since; a single round trip. Raise StoreError."""
        if since is None:
            return False
        return (
            self.has_rows(_IS_NEW.format(schema=self.schema, last=since[0], summed=since[1], looks=since[2])) is False
        )

    def has_rows(self, query: str) -> bool | None:
        """Return whether a query has rows, in a single round trip; None: no idle connection answers. Raise StoreError.

        It names its tables with their schema.
        """
        with self._translated():
            while (connection := _IDLE.take(self)) is not None:
                with contextlib.suppress(PostgresError):
                    is_any = connection.has_rows(query)
                    _IDLE.give(self, connection)
                    return is_any
                connection.close()  # the server has ended it
        return None

    def find_last_write(self, connection: LogReader, *, now_s: float) -> LastWrite | None:  # noqa: ARG002 - as SQLite's
        last, summed, looks = connection.execute(_LAST_WRITE).fetchone()
        return int(last), int(summed), int(looks)

    def purge(self) -> bool:
        """Return True: erased text leaves the tables with the server's own vacuum, which `purge` does not wait for."""
        return True

    def refuses(self, row: Row) -> bool:
        """Return whether the database cannot hold such a row: PostgreSQL's text has no null character."""
        return any("\0" in (text or "") for text in (row.key, row.episode_id, row.route, row.body))

    # ── errors ───────────────────────────────────────────────────────────────────────────────────

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except PostgresError as error:
            raise self.unusable(error) from error

    def is_passing(self, error: Exception) -> bool:
        """Return whether another attempt may succeed: another process writes, or the server fails over."""
        return isinstance(error, PostgresError) and (error.is_busy or error.is_lost)

    def is_lost(self, error: Exception) -> bool:
        return not (isinstance(error, PostgresError) and error.is_busy)

    def unusable(self, error: Exception) -> StoreError:
        code = error.code if isinstance(error, PostgresError) else ""
        if code == "55P03":
            return StoreError(f"store {self}: another process has held it for {LOCK_S:.0f} s; try again")
        if code in _FULL_CODES:
            return StoreFull(f"store {self}: no space is left on the server's disk")
        if code == "57014":
            return StoreError(f"store {self}: a query took longer than {self.statement_s:g} s, or was interrupted")
        return StoreError(f"store {self}: cannot be used: {error}")


_SCHEMA_NAME: Final = re.compile(r"[a-z_][a-z0-9_]{0,62}")


def postgres_database(store: Store) -> PostgresDatabase:
    """Return the database that the settings name. Raise ConfigError."""
    try:
        parts = urlsplit(store.url)
        has_password = bool(parts.password) or any(name == "password" for name, _ in parse_qsl(parts.query))
    except ValueError:
        raise ConfigError("store.url: cannot be read; need postgresql://user@host:5432/database") from None
    if has_password:
        raise ConfigError("store.url: holds a password; name its place in store.password_env or store.password_file")
    if not _SCHEMA_NAME.fullmatch(store.schema_name):
        raise ConfigError(f"store.schema_name: got {store.schema_name!r:.80}; need a lower-case name, as in suffice_1")
    if store.password_env and store.password_file:
        raise ConfigError("store.password_file: store.password_env is set, too; name one place of the password")
    options = dict(parse_qsl(parts.query))
    options |= {"sslmode": store.sslmode} if store.sslmode else {}
    options |= {"sslrootcert": store.ca_file} if store.ca_file else {}
    return PostgresDatabase(
        url=urlunsplit(parts._replace(query=urlencode(options, quote_via=quote))),
        schema=store.schema_name,
        password_env=store.password_env,
        password_file=store.password_file,
        statement_s=store.statement_timeout_s,
    )

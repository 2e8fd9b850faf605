"""A log in a schema of a PostgreSQL server, which any number of gateways and workers share.

One advisory lock lets one writer append at a time: commits come in the order of `seq` and of the chain, so that no
reader ever passes a row that has yet to appear. The lock, like every setting, ends with its transaction, so a pooler
in transaction mode may stand between. Processes prove by their beats that they live, and leases end, by the server's
clock alone. A failover with a synchronous standby loses nothing that was acknowledged.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

from suffice.errors import ConfigError, StoreError, StoreFull
from suffice.extras import how_to_install
from suffice.settings import Store
from suffice.store.audit.appender import begin_chain
from suffice.store.database import schema
from suffice.store.rows.events import Row
from suffice.store.sql import Idle, LogReader, PostgresConnection, PostgresError

if TYPE_CHECKING:
    from suffice.store.database.sqlite import LastWrite
    from suffice.store.supervised import SupervisedConnection

BEAT_S: Final = 10.0  # between two signs of life of a process
DEAD_S: Final = 60.0  # after so long without one a process counts as dead
LOCK_S: Final = 5.0  # how long a transaction waits for another writer's
CONNECT_S: Final = 5.0
_IDLE: Final = Idle(4)
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
        """Open or create the log for writing; return the process's claim and its number as owner. Raise StoreError."""
        if create:
            self.migrate(now_s=now_s)
        with self.transaction() as connection:
            values = (secrets.token_hex(6), os.getpid(), now_s)
            owner = int(connection.execute(_ENTER, values).fetchone()[0])
        return PostgresClaim(self, owner), owner

    def migrate(self, *, now_s: float) -> int:
        """Create the schema, or bring it up to this version; return how many migrations ran. Raise StoreError."""
        with self._translated():
            connection = self._connect(checks=False)
            try:
                with connection:
                    self.begin(connection, synced=True)
                    n_migrations = schema.migrate_postgres(connection, self.schema, str(self), now_s)
                    begin_chain(connection, now_s)
                return n_migrations
            finally:
                _IDLE.give(self, connection)

    def is_alive(self, connection: LogReader, owner: int) -> bool:
        row = connection.execute(_IS_ALIVE, (owner,)).fetchone()
        return row is not None and bool(row[0])

    def forget(self, connection: LogReader, owner: int) -> None:
        """Remove a dead owner."""
        connection.execute("DELETE FROM owners WHERE id = ?", (owner,))

    @property
    def is_server(self) -> bool:
        return True

    @property
    def beat_s(self) -> float | None:
        return BEAT_S

    def beat(self, connection: LogReader, owner: int) -> None:
        """Show that an owner lives; one that was taken for dead comes back."""
        connection.execute(_BEAT, (owner, secrets.token_hex(6), os.getpid()))

    def clock_s(self, connection: LogReader) -> float | None:
        """Return the server's Unix time, by which leases end on every machine."""
        return float(connection.execute(f"SELECT {NOW_S}").fetchone()[0])

    # ── connections ──────────────────────────────────────────────────────────────────────────────

    @contextlib.contextmanager
    def reader(self, is_over: Callable[[], bool] | None = None) -> Iterator[PostgresConnection]:
        """Yield a read-only connection; a query is interrupted when `is_over` returns True. Raise StoreError."""
        with self._translated():
            connection = self._take()
            connection.interrupt_when(is_over)
            try:
                with connection:
                    yield connection
            finally:
                _IDLE.give(self, connection)

    @contextlib.contextmanager
    def listener(self, channel: str) -> Iterator[PostgresConnection]:
        """Yield a connection of its own that notes this log's notifications of a channel. Raise StoreError."""
        with self._translated(), contextlib.closing(self._connect()) as connection:
            connection.listen(channel, self.schema)
            yield connection

    @contextlib.contextmanager
    def transaction(self) -> Iterator[PostgresConnection]:
        """Yield a synced transaction that keeps every other writer out. Raise StoreError."""
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
                    schema.check_postgres(connection, str(self))
        except BaseException:
            connection.close()
            raise
        return connection

    def _open(self) -> SupervisedConnection:
        from suffice.store.supervised import SupervisedConnection

        connection = SupervisedConnection.connect(
            self.url,
            password=self._password(),
            connect_timeout=round(CONNECT_S),
            autocommit=True,  # transactions are begun by their statements
            prepare_threshold=None,  # a pooler in transaction mode knows no prepared statements
            client_encoding="utf8",
            application_name="suffice",
        )
        connection.most_s = self.statement_s + LOCK_S
        return connection

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
        """Identify the last write that a snapshot sees."""
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


# ── notes of processes ───────────────────────────────────────────────────────────────────────────


class Note(NamedTuple):
    """What a process says of now, by name: replaced whole, no history, and part of no decision.

    A log in a file needs none: what processes of one machine share stands in files beside it.
    """

    body: str
    age_s: float
    at_s: float  # by the server's clock


def write_note(connection: LogReader, name: str, body: str) -> None:
    """Write a note."""
    connection.execute(
        f"INSERT INTO notes (name, body, at_s) VALUES (?, ?, {NOW_S})"  # noqa: S608 - a constant
        " ON CONFLICT (name) DO UPDATE SET body = excluded.body, at_s = excluded.at_s",
        (name, body),
    )


def read_notes(connection: LogReader, prefix: str) -> dict[str, Note]:
    query = f"SELECT name, body, {NOW_S} - at_s, at_s FROM notes WHERE starts_with(name, ?)"  # noqa: S608 - a constant
    return {name: Note(*note) for name, *note in connection.execute(query, (prefix,)).fetchall()}


def is_note_of(database: PostgresDatabase, name: str, at_s: float) -> bool:
    """Return whether a note is the one of this time, or absent if that is 0, in a single round trip."""
    written = f"(SELECT at_s FROM \"{database.schema}\".notes WHERE name = '{name}')"  # noqa: S608 - names of ours
    return database.has_rows(f"SELECT 1 WHERE coalesce({written}, 0) <> {at_s!r}") is False


def exchange_notes(
    database: PostgresDatabase, prefix: str, own: str, answer: Callable[[list[str]], str], *, lasts_s: float
) -> None:
    """Write this process's note `prefix + own` in answer to the others', in one transaction. Raise StoreError.

    lasts_s  older notes count no more, and are dropped
    """
    with database.transaction() as connection:
        notes = read_notes(connection, prefix)
        others = [note.body for name, note in notes.items() if note.age_s <= lasts_s and name != prefix + own]
        write_note(connection, prefix + own, answer(others))
        old = [(name,) for name, note in notes.items() if note.age_s > lasts_s and name != prefix + own]
        connection.executemany("DELETE FROM notes WHERE name = ?", old)

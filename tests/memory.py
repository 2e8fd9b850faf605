"""A log in this process's memory: a third database for the tests of the store, which shares no code with a file's.

Each transaction works on a copy of the last committed state, and one at a time may replace it. SQLite keeps the copy.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

from suffice.errors import StoreError
from suffice.settings import Store
from suffice.store.audit.appender import begin_chain
from suffice.store.database import schema
from suffice.store.database.location import SCHEMES, Scheme
from suffice.store.database.protocol import LastWrite
from suffice.store.database.sqlite import SqliteConnection
from suffice.store.rows.events import Row
from suffice.store.sql import LogReader, Values

BUSY_S = 5.0


@dataclass(eq=False)
class State:
    committed: tuple[int, bytes] = (0, b"")  # how many transactions wrote it, and the database
    living: set[int] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)


STATES: defaultdict[str, State] = defaultdict(State)


class MemoryConnection(LogReader):
    Error: ClassVar = sqlite3.Error

    def __init__(self, state: State) -> None:
        self._state, self._writes, self._is_fixed = state, False, False
        self._is_over: Callable[[], bool] | None = None
        self._copies = list[SqliteConnection]()  # earlier ones, whose rows somebody may still read
        self._load()

    def _load(self) -> None:
        self.seen, image = self._state.committed
        self._copy = SqliteConnection(":memory:", isolation_level=None, check_same_thread=False)
        self._copies.append(self._copy)
        if image:
            self._copy.deserialize(image)
        self._copy.set_progress_handler(self._is_over, 1_000)

    def interrupt_when(self, is_over: Callable[[], bool] | None) -> None:
        self._is_over = is_over
        self._copy.set_progress_handler(is_over, 1_000)

    def _now(self) -> SqliteConnection:
        if not self._is_fixed and self.seen != self._state.committed[0]:
            self._load()
        return self._copy

    def begin(self, busy_s: float) -> None:
        if not self._state.lock.acquire(timeout=busy_s):
            raise sqlite3.OperationalError("another process has held it")
        self._load()
        self._writes = self._is_fixed = True
        self._copy.execute("BEGIN")

    def begin_snapshot(self) -> None:
        self._load()
        self._is_fixed = True

    def commit(self) -> None:
        if self._writes:
            self._copy.execute("COMMIT")
            self.seen += 1
            self._state.committed = self.seen, self._copy.serialize()
        self._end()

    def rollback(self) -> None:
        if self._writes:
            self._copy.execute("ROLLBACK")
        self._end()

    def _end(self) -> None:
        self._is_fixed = False
        if self._writes:
            self._writes = False
            self._state.lock.release()

    def close(self) -> None:
        self.rollback()
        for one in self._copies:
            one.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.commit()
        else:
            self.rollback()

    def execute(self, query: str, values: Values = (), /, **constants: str) -> Any:
        return self._now().execute(query, values, **constants)

    def executemany(self, query: str, values: Iterable[Values], /) -> Any:
        return self._now().executemany(query, values)

    def stream(self, query: str, values: Values = ()) -> Iterator[Any]:
        return self._now().execute(query, values)

    def append_events(self, rows: Sequence[Sequence[Any]]) -> tuple[int, int]:
        return self._now().append_events(rows)

    def find_events(self, names: Collection[tuple[str, str]]) -> Mapping[tuple[str, str], tuple[int, int]]:
        return self._now().find_events(names)

    def insert_rows(self, table: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        self._now().insert_rows(table, columns, rows)

    def has_table(self, name: str) -> bool:
        return self._now().has_table(name)


@dataclass(frozen=True, slots=True)
class MemoryClaim:
    state: State
    owner: int

    def release(self) -> None:
        self.state.living.discard(self.owner)


@dataclass(frozen=True, slots=True)
class MemoryDatabase:
    Error: ClassVar = sqlite3.Error
    name: str

    def __str__(self) -> str:
        return f"memory:///{self.name}"

    @property
    def location(self) -> MemoryDatabase:
        return self

    @property
    def state(self) -> State:
        return STATES[self.name]

    # ── processes ────────────────────────────────────────────────────────────────────────────────

    @property
    def is_server(self) -> bool:
        return False

    @property
    def notes(self) -> None:
        return None

    @property
    def beat_s(self) -> float | None:
        return None

    def beat(self, connection: LogReader, owner: int) -> None:
        pass

    def clock_s(self, connection: LogReader) -> float | None:
        return None

    def enter(self, *, now_s: float, create: bool = True) -> tuple[MemoryClaim, int]:
        if create:
            self.migrate(now_s=now_s)
        with self.transaction() as connection:
            owner: int
            insert = "INSERT INTO owners (lock, pid, started_s) VALUES (hex(randomblob(6)), 0, ?) RETURNING id"
            ((owner,),) = connection.execute(insert, (now_s,)).fetchall()
        self.state.living.add(owner)
        return MemoryClaim(self.state, owner), owner

    def is_alive(self, connection: LogReader, owner: int) -> bool:
        return owner in self.state.living

    def forget(self, connection: LogReader, owner: int) -> None:
        connection.execute("DELETE FROM owners WHERE id = ?", (owner,))

    # ── connections ──────────────────────────────────────────────────────────────────────────────

    @contextlib.contextmanager
    def reader(self, is_over: Callable[[], bool] | None = None) -> Iterator[MemoryConnection]:
        if not self.exists():
            raise StoreError(f"store {self}: holds no event log")
        with self._translated(), contextlib.closing(MemoryConnection(self.state)) as connection:
            connection.interrupt_when(is_over)
            yield connection

    def watch(self, is_over: threading.Event) -> Iterator[MemoryConnection]:
        seen = -1
        while not is_over.wait(0.0 if seen < 0 else 0.05):
            if seen != self.state.committed[0]:
                with self.reader() as connection:
                    seen = connection.seen
                    yield connection

    @contextlib.contextmanager
    def transaction(self, *, erases: bool = False) -> Iterator[MemoryConnection]:
        with self._translated(), contextlib.closing(MemoryConnection(self.state)) as connection, connection:
            connection.begin(BUSY_S)
            yield connection

    def connect_writer(self) -> MemoryConnection:
        return MemoryConnection(self.state)

    def begin(self, connection: MemoryConnection, *, synced: bool) -> None:
        connection.begin(0.2)

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise self.unusable(error) from error

    # ── the database ─────────────────────────────────────────────────────────────────────────────

    def exists(self) -> bool:
        return bool(self.state.committed[1])

    def migrate(self, *, now_s: float) -> int:
        with self.state.lock:
            if self.exists():
                return 0
            with contextlib.closing(SqliteConnection(":memory:", isolation_level=None)) as connection:
                n_migrations = schema.create(connection, str(self))
                begin_chain(connection, now_s)
                self.state.committed = 1, connection.serialize()
            return n_migrations

    def engine(self, connection: LogReader) -> str:
        return "memory"

    def find_damage(self, *, within_s: float | None = None, thorough: bool = False) -> str | None:
        return ""

    def size_bytes(self) -> int:
        return len(self.state.committed[1])

    def is_unchanged(self, since: LastWrite | None, *, now_s: float) -> bool:
        return since == (self.state.committed[0],)

    def find_last_write(self, connection: LogReader, *, now_s: float) -> LastWrite | None:
        assert isinstance(connection, MemoryConnection)
        return (connection.seen,)

    def purge(self) -> bool:
        return True

    def refuses(self, row: Row) -> bool:
        return False

    # ── errors ───────────────────────────────────────────────────────────────────────────────────

    def is_passing(self, error: Exception) -> bool:
        return isinstance(error, sqlite3.OperationalError)

    def is_lost(self, error: Exception) -> bool:
        return False

    def unusable(self, error: Exception) -> StoreError:
        return StoreError(f"store {self}: cannot be used: {error}")


def memory_database(store: Store) -> MemoryDatabase:
    return MemoryDatabase(store.url.removeprefix("memory:///"))


SCHEMES["memory"] = Scheme(memory_database, "memory:///name")

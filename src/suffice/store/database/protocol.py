"""What a database must do to hold a log; `location` lists those that do. Methods raise StoreError, or say what else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from threading import Event
from typing import Any, Final, Protocol, TypeAlias

from suffice.errors import StoreError
from suffice.store.database.notes import Notes
from suffice.store.rows.events import Row
from suffice.store.sql import LogReader

DEAD_S: Final = 60.0  # after so long without a beat a process counts as dead

LastWrite: TypeAlias = tuple[Any, ...]  # each database's own; equal ones are the same write


class Claim(Protocol):
    """A process's entry among the owners of a log."""

    def release(self) -> None: ...


class Database(Protocol):
    @property
    def Error(self) -> type[Exception]:  # noqa: N802 - as of its connections
        """What its connections raise."""

    def __hash__(self) -> int: ...

    @property
    def name(self) -> str: ...

    @property
    def location(self) -> Path | Database: ...

    # ── processes ────────────────────────────────────────────────────────────────────────────────

    @property
    def is_server(self) -> bool:
        """Whether processes of several machines share it."""

    @property
    def notes(self) -> Notes | None:
        """What its processes say of now; None: they are of one machine, and share files."""

    @property
    def beat_s(self) -> float | None:
        """How often a process shows that it lives; None: the operating system knows."""

    def beat(self, connection: LogReader, owner: int) -> None:
        """Show that an owner lives; one that was taken for dead comes back."""

    def clock_s(self, connection: LogReader) -> float | None:
        """Return the Unix time by which leases end on every machine; None: each process's own."""

    def enter(self, *, now_s: float, create: bool = True) -> tuple[Claim, int]:
        """Open or create the log for writing; return the process's claim and its number as owner."""

    def is_alive(self, connection: LogReader, owner: int) -> bool: ...

    def forget(self, connection: LogReader, owner: int) -> None:
        """Remove a dead owner."""

    # ── connections ──────────────────────────────────────────────────────────────────────────────

    def reader(self, is_over: Callable[[], bool] | None = None) -> AbstractContextManager[LogReader]:
        """Yield a read-only connection; a query is interrupted when `is_over` returns True."""

    def watch(self, is_over: Event) -> Iterator[LogReader]:
        """Yield a reader at first, and each time that an urgent row may have come."""

    def transaction(self, *, erases: bool = False) -> AbstractContextManager[LogReader]:
        """Yield a synced transaction that keeps every other writer out.

        erases  leave nothing on the disk of what it removes
        """

    def connect_writer(self) -> Any:
        """Return a connection for `begin`. Raise StoreError, Error."""

    def begin(self, connection: Any, *, synced: bool) -> None:
        """Begin a transaction that keeps every other writer out. Raise Error.

        synced  it is on disk once it commits
        """

    # ── the database ─────────────────────────────────────────────────────────────────────────────

    def exists(self) -> bool: ...

    def migrate(self, *, now_s: float) -> int:
        """Create the schema, or bring it up to this version; return how many migrations ran."""

    def engine(self, connection: LogReader) -> str:
        """Return the name and version of its software."""

    def find_damage(self, *, within_s: float | None = None, thorough: bool = False) -> str | None:
        """Return what is wrong with the log's pages; "": nothing; None: not checked in time, or unreadable.

        within_s  None: no limit
        thorough  compare indexes with their tables too; several times slower
        """

    def size_bytes(self) -> int: ...

    def is_unchanged(self, since: LastWrite | None, *, now_s: float) -> bool:
        """Return whether nothing was appended or summed up since."""

    def find_last_write(self, connection: LogReader, *, now_s: float) -> LastWrite | None:
        """Identify the last write that a snapshot sees, if nothing has been read in it; None: unknown."""

    def purge(self) -> bool:
        """Remove what was erased from wherever the database still keeps it. False: not finished; try again later."""

    def refuses(self, row: Row) -> bool:
        """Return whether the database cannot hold such a row."""

    # ── errors ───────────────────────────────────────────────────────────────────────────────────

    def is_passing(self, error: Exception) -> bool:
        """Return whether another attempt may succeed."""

    def is_lost(self, error: Exception) -> bool:
        """Return whether the connection is of no more use, and its last commit in doubt."""

    def unusable(self, error: Exception) -> StoreError:
        """Return the error to raise in place of one of a connection."""

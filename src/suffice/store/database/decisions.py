"""How the control loop and people write: one job, one worker; all of a decision, or nothing of it.

    acquire ──▶ JobLease ──▶ renew … ──▶ write(events, artefacts) in one transaction ──▶ release

A lease is a row with an owner and a token. It passes on when its owner has let go, when the operating system says
that the owner is dead, or when a waiting worker has seen no renewal for `LEASE_S` on its own clock: no two clocks are
compared, so none that steps can take a job away. A worker that was merely slow finds its token gone, and then nothing
of what it decided is written.

Every method raises StoreError where the log cannot be used, and then nothing was written.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeVar

from suffice.errors import StoreError
from suffice.store.audit.chain import Appender
from suffice.store.audit.personal import Part
from suffice.store.database import presence
from suffice.store.database.sqlite import enter, unusable
from suffice.store.database.views import LogReader, open_reader
from suffice.store.rows.events import Event, to_row

T = TypeVar("T")

LEASE_S: Final = 30.0  # without a renewal, after which a waiting worker takes a job over
_BUSY_S: Final = 5.0  # one attempt waits this long for another process's transaction
_TRIES: Final = 20  # decisions that are made anew because somebody else was quicker

_TAKE = """INSERT INTO leases (job, owner, token, beat, held, until_s) VALUES (:job, :owner, 1, 0, 1, :until_s)
           ON CONFLICT (job) DO UPDATE
           SET owner = :owner, token = token + 1, beat = 0, held = 1, until_s = :until_s RETURNING token"""
_MINE = "job = :job AND owner = :owner AND token = :token AND held = 1"
_HELD = f"SELECT 1 FROM leases WHERE {_MINE}"  # noqa: S608 - a constant
_RENEW = f"UPDATE leases SET beat = beat + 1, until_s = :until_s WHERE {_MINE}"  # noqa: S608 - a constant
_RELEASE = f"UPDATE leases SET held = 0 WHERE {_MINE}"  # noqa: S608 - a constant


@dataclass(frozen=True, slots=True)
class JobLease:
    job: str
    token: int


@dataclass(frozen=True, slots=True)
class _Sight:
    """A lease of somebody else, and since when it has stood still."""

    token: int
    beat: int
    since_s: float  # monotonic


class Decisions:
    """One writer of decisions on one log. Open it with `Decisions.open`, close it when done."""

    def __init__(
        self,
        path: Path,
        claim: presence.ProcessLock,
        owner: int,
        *,
        now: Callable[[], float],
        monotonic_s: Callable[[], float],
        lease_s: float,
        redact: tuple[Part, ...] = (),
    ) -> None:
        self.path, self.owner, self.now, self._redact = path, owner, now, redact
        self.n_new = 0  # rows that `write` has added
        self._claim, self._monotonic_s, self._lease_s = claim, monotonic_s, lease_s
        self._seen: dict[str, _Sight] = {}
        self._closed = False

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        now: Callable[[], float],
        monotonic_s: Callable[[], float],
        lease_s: float = LEASE_S,
        redact: tuple[Part, ...] = (),
        create: bool = True,
    ) -> Self:
        whole = path.resolve()
        claim, owner = enter(whole, now_s=now(), create=create)
        return cls(whole, claim, owner, now=now, monotonic_s=monotonic_s, lease_s=lease_s, redact=redact)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let everything go: leases that are still held pass on at once. Closing again does nothing."""
        if self._closed:
            return
        self._closed = True
        with contextlib.suppress(sqlite3.Error, StoreError), self.transaction() as connection:
            connection.execute("UPDATE leases SET held = 0 WHERE owner = ?", (self.owner,))
            connection.execute("DELETE FROM owners WHERE id = ?", (self.owner,))
        self._claim.release()

    # ── leases ───────────────────────────────────────────────────────────────────────────────────

    def acquire(self, job: str) -> JobLease | None:
        with self.transaction() as connection:
            row = connection.execute("SELECT owner, token, beat, held FROM leases WHERE job = ?", (job,)).fetchone()
            if row is not None and row[3] and not self._has_ended(connection, job, *row[:3]):
                return None
            wanted = {"job": job, "owner": self.owner, "until_s": self.now() + self._lease_s}
            token = int(connection.execute(_TAKE, wanted).fetchone()[0])
        self._seen.pop(job, None)
        return JobLease(job, token)

    def renew(self, lease: JobLease) -> bool:
        """Say that the work goes on; False: the lease is lost, and so is what was being done."""
        with self.transaction() as connection:
            return connection.execute(_RENEW, self._named(lease)).rowcount == 1

    def release(self, lease: JobLease) -> None:
        with self.transaction() as connection:
            connection.execute(_RELEASE, self._named(lease))

    def _named(self, lease: JobLease) -> dict[str, object]:
        until_s = self.now() + self._lease_s
        return {"job": lease.job, "owner": self.owner, "token": lease.token, "until_s": until_s}

    def _has_ended(self, connection: sqlite3.Connection, job: str, owner: int, token: int, beat: int) -> bool:
        """Is the holder of a lease dead, or has it not been heard of for too long?"""
        if owner == self.owner:
            return False  # this very worker, in another of its threads
        row = connection.execute("SELECT lock FROM owners WHERE id = ?", (owner,)).fetchone()
        if row is None or not presence.is_alive(self.path, row[0]):
            return True
        sight, now_s = self._seen.get(job), self._monotonic_s()
        if sight is None or (sight.token, sight.beat) != (token, beat):
            self._seen[job] = _Sight(token, beat, now_s)
            return False
        return now_s - sight.since_s >= self._lease_s

    # ── decisions ────────────────────────────────────────────────────────────────────────────────

    def write(
        self,
        lease: JobLease | None,
        events: Iterable[Event],
        artefacts: Mapping[str, str] | None = None,
        *,
        all_new: bool = False,
    ) -> list[bool] | None:
        """Write all of it in one synced transaction; for each event whether its row is new.

        lease      under which it was decided; None: a person did. A row that is there already stays as it is
        all_new    write no row at all where one of them is there already: somebody was quicker

        None: the lease is lost, and nothing was written.
        """
        rows = [to_row(event) for event in events]
        with self.transaction() as connection:
            if lease is not None and connection.execute(_HELD, self._named(lease)).fetchone() is None:
                return None
            at_s, appender = self.now(), Appender(connection, owner=self.owner, redact=self._redact)
            connection.executemany(
                "INSERT OR IGNORE INTO artefacts (address, body, at_s) VALUES (?, ?, ?)",
                [(address, body, at_s) for address, body in (artefacts or {}).items()],
            )
            connection.execute("SAVEPOINT rows")
            new = [appender.add(row, at_s) for row in rows]
            if all_new and not all(new):
                connection.execute("ROLLBACK TO rows")
            else:
                self.n_new += sum(new)
            return new

    def write_new(self, *events: Event, artefacts: Mapping[str, str] | None = None) -> bool:
        """Write what a person decided; False: somebody was quicker with a part of it, and no row was written."""
        new = self.write(None, events, artefacts, all_new=True)
        return new is not None and all(new)

    def decide(self, step: Callable[[LogReader], tuple[Sequence[Event], T] | str]) -> T | str:
        """Decide on what the log holds, and write that; where somebody was quicker, decide anew on what it holds then.

        step  gives the events to be written and the result, or a sentence why nothing can be decided
        """
        for _ in range(_TRIES):
            with open_reader(self.path) as connection:
                made = step(connection)
            if isinstance(made, str):
                return made
            events, result = made
            if not events or self.write_new(*events):
                return result
        raise StoreError(f"store {self.path}: others were quicker {_TRIES} times; try again")

    def keep(self, lease: JobLease, work: Callable[[sqlite3.Connection], None]) -> bool:
        """Have a cache beside the log written in one transaction; False: the lease is lost, and nothing was written.

        Raises what `work` raises; then nothing was written either.
        """
        with self.transaction() as connection:
            if connection.execute(_HELD, self._named(lease)).fetchone() is None:
                return False
            work(connection)
            return True

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """One transaction that is on disk when the block ends, or was never there."""
        try:
            with contextlib.closing(sqlite3.connect(self.path, timeout=_BUSY_S, isolation_level=None)) as connection:
                connection.execute("PRAGMA synchronous = FULL")
                connection.execute("BEGIN IMMEDIATE")
                try:
                    yield connection
                except BaseException:
                    connection.execute("ROLLBACK")
                    raise
                connection.execute("COMMIT")
        except (sqlite3.Error, OSError) as error:
            raise unusable(self.path, error) from error


def read_artefact(connection: LogReader, address: str) -> str | None:
    """What is kept under an address; None: nothing. Whoever reads it checks that it still has that address.

    Raises StoreError, so that a caller tells a log that cannot be read from a version that cannot be loaded.
    """
    try:
        row = connection.execute("SELECT body FROM artefacts WHERE address = ?", (address,)).fetchone()
    except sqlite3.Error as error:
        raise StoreError(f"store: artefact {address} cannot be read: {error}") from error
    return None if row is None else str(row[0])


def is_attended(connection: LogReader, path: Path) -> bool:
    """Does a living worker hold a job of this log now?"""
    rows = connection.execute("SELECT o.lock FROM leases l JOIN owners o ON o.id = l.owner WHERE l.held = 1").fetchall()
    return any(presence.is_alive(path.resolve(), lock) for (lock,) in rows)

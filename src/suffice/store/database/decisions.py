"""Writes decisions of the control loop and of people: one worker per job or route, all of a decision or nothing.

A lease passes on when its owner releases it, when the owner's process is dead, or when a waiting worker has seen no
renewal for `LEASE_S` on its own clock; clocks of two machines are never compared. A slow worker that lost its token
writes nothing. Every method raises StoreError if the log cannot be used; then nothing was written.

On a server, workers share a job by its parts: each part has a lease of its own, and belongs to the worker with the
highest hash of worker and part, so that few parts move when a worker comes or goes (rendezvous hashing: Thaler and
Ravishankar, 1998).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import KW_ONLY, InitVar, dataclass, field
from hashlib import sha256
from typing import Final, Self, TypeAlias, TypeVar

from suffice.errors import StoreError, SufficeError
from suffice.store.audit.appender import Appender
from suffice.store.audit.personal import Part
from suffice.store.database.location import LogLocation, database_at
from suffice.store.database.protocol import Claim, Database
from suffice.store.database.views import LogReader, find_event, open_reader
from suffice.store.rows.events import Event, key_of, to_row

T = TypeVar("T")

LEASE_S: Final = 30.0  # seconds without a renewal after which a waiting worker takes over
_TRIES: Final = 20  # attempts of `decide` when others keep writing first


class LeaseLost(SufficeError):
    """Another worker holds the job's lease; the decision in progress is discarded."""


@dataclass(frozen=True, slots=True)
class JobLease:
    job: str
    token: int


_PartRow: TypeAlias = tuple[int, int, int, float]  # owner, token, held, until_s of a part's lease


@dataclass(frozen=True, slots=True)
class _Sight:
    token: int
    beat: int
    since_s: float  # monotonic


@dataclass(eq=False)
class Decisions:
    """Opens a log for decisions, or creates it. Raise StoreError."""

    path: LogLocation
    _: KW_ONLY
    now: Callable[[], float]
    monotonic_s: Callable[[], float]
    lease_s: float = LEASE_S
    redact: tuple[Part, ...] = ()
    create: InitVar[bool] = True
    owner: int = field(init=False)
    n_new: int = field(init=False, default=0)  # rows added by `write`
    rehearsed: list[Event] | None = field(init=False, default=None)  # that a rehearsal would write; None: it is none
    database: Database = field(init=False)
    _claim: Claim = field(init=False)
    _seen: dict[str, _Sight] = field(init=False, default_factory=dict)
    _closed: bool = field(init=False, default=False)

    def __post_init__(self, create: bool) -> None:
        self.database = database_at(self.path)
        self.path = self.database.location
        self._claim, self.owner = self.database.enter(now_s=self.now(), create=create)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def rehearsal(self) -> Decisions:
        """Return a writer on the same log, which stays open, that keeps rows instead of writing them: for a preview."""
        one = copy(self)
        one.rehearsed = []
        return one

    @property
    def rehearses(self) -> bool:
        return self.rehearsed is not None

    def close(self) -> None:
        """Release everything, leases included. Closing again does nothing."""
        if self._closed or self.rehearses:
            return
        self._closed = True
        with contextlib.suppress(StoreError), self.transaction() as connection:
            connection.execute("UPDATE leases SET held = 0 WHERE owner = ?", (self.owner,))
            connection.execute("DELETE FROM owners WHERE id = ?", (self.owner,))
        self._claim.release()

    # ── leases ───────────────────────────────────────────────────────────────────────────────────

    def acquire(self, job: str) -> JobLease | None:
        with self.transaction() as connection:
            query = "SELECT owner, token, beat, until_s FROM leases WHERE job = ? AND held = 1"
            row = connection.execute(query, (job,)).fetchone()
            if row is not None and not self._has_ended(connection, job, *row):
                return None
            lease = self._take(connection, job)
        self._seen.pop(job, None)
        return lease

    def _take(self, connection: LogReader, job: str) -> JobLease:
        wanted = {"job": job, "owner": self.owner, "until_s": self._until_s(connection)}
        token = int(connection.execute("take_lease", wanted).fetchone()[0])
        self.database.beat(connection, self.owner)
        return JobLease(job, token)

    def renew(self, lease: JobLease) -> None:
        """Show that this process lives: all of its leases go on. Raise LeaseLost if this one is gone."""
        with self.leased(lease) as connection:
            self._renew_all(connection)

    def _renew_all(self, connection: LogReader) -> None:
        query = "UPDATE leases SET beat = beat + 1, until_s = ? WHERE owner = ? AND held = 1"
        connection.execute(query, (self._until_s(connection), self.owner))
        self.database.beat(connection, self.owner)

    def join(self, job: str, *, alone: bool = False) -> JobLease | None:
        """Become one of the workers that share a job; None: there are others, and this one should be `alone`."""
        with self.transaction() as connection:
            if alone and self._sharers(_read_parts(connection, job), job, self._now_s(connection)) != [self.owner]:
                return None
            return self._take(connection, f"{job}@@{self.owner}")

    def share(self, job: str, keys: Mapping[str, str]) -> dict[str, JobLease]:
        """Renew this worker's parts of a job, lease those that have come to it, and release those that have left.

        keys  by part; parts of one key go to one worker
        """
        with self.transaction() as connection:
            rows, now_s = _read_parts(connection, job), self._now_s(connection)
            workers = self._sharers(rows, job, now_s)
            leases, new = dict[str, JobLease](), list[tuple[str, int, int, float]]()
            owner, token, held, until_s = rows.get(job, (self.owner, 0, 0, 0.0))
            if not held or until_s <= now_s:
                new.append((job, self.owner, token + 1, now_s + self.lease_s))
            elif owner not in workers:  # it shares nothing, as workers of an earlier version: the whole job is its
                keys = {}
            for part in (one for one, key in keys.items() if _chosen(workers, key) == self.owner):
                name = f"{job}@{part}"
                owner, token, held, until_s = rows.get(name, (self.owner, 0, 0, 0.0))
                if held and owner == self.owner:
                    leases[part] = JobLease(name, token)
                elif not held or until_s <= now_s:  # otherwise its worker will release it
                    leases[part] = JobLease(name, token + 1)
                    new.append((name, self.owner, token + 1, now_s + self.lease_s))
            connection.executemany("take_part", new)
            kept = {lease.job for lease in leases.values()} | {job, f"{job}@@{self.owner}"}
            gone = [(name,) for name, (owner, *_) in rows.items() if owner == self.owner and name not in kept]
            connection.executemany("release_lease", gone)
            self._renew_all(connection)
        return leases

    def _sharers(self, rows: Mapping[str, _PartRow], job: str, now_s: float) -> list[int]:
        seats = [row for name, row in rows.items() if name.startswith(f"{job}@@")]
        return sorted({self.owner, *(owner for owner, _, held, until_s in seats if held and until_s > now_s)})

    @contextlib.contextmanager
    def holding(self, job: str) -> Iterator[JobLease | None]:
        """Hold a lease during the block; None: another process has it."""
        lease = self.acquire(job)
        try:
            yield lease
        finally:
            with contextlib.suppress(LeaseLost, StoreError):
                if lease is not None:
                    with self.leased(lease) as connection:
                        connection.execute("release_lease", (job,))

    @contextlib.contextmanager
    def leased(self, lease: JobLease) -> Iterator[LogReader]:
        """Yield a transaction under a lease. Raise LeaseLost if somebody else holds it."""
        with self.transaction() as connection:
            if not self.holds(connection, lease):
                raise LeaseLost(f"job {lease.job}: another worker has it")
            yield connection

    def holds(self, connection: LogReader, lease: JobLease | None) -> bool:
        """Whether this process has the lease, within a transaction."""
        if lease is None:
            return False
        return connection.execute("has_lease", (lease.job, self.owner, lease.token)).fetchone() is not None

    def _now_s(self, connection: LogReader) -> float:
        clock_s = self.database.clock_s(connection)
        return self.now() if clock_s is None else clock_s

    def _until_s(self, connection: LogReader) -> float:
        return self._now_s(connection) + self.lease_s

    def _has_ended(self, connection: LogReader, job: str, owner: int, token: int, beat: int, until_s: float) -> bool:
        if owner == self.owner:
            return False  # held by this process, in another thread
        if not self.database.is_alive(connection, owner):
            return True
        if (clock_s := self.database.clock_s(connection)) is not None:
            return clock_s >= until_s
        sight, now_s = self._seen.get(job), self.monotonic_s()
        if sight is None or (sight.token, sight.beat) != (token, beat):
            self._seen[job] = _Sight(token, beat, now_s)
            return False
        return now_s - sight.since_s >= self.lease_s

    # ── decisions ────────────────────────────────────────────────────────────────────────────────

    def write(
        self,
        lease: JobLease | None,
        events: Iterable[Event],
        artefacts: Mapping[str, str] | None = None,
        *,
        all_new: bool = False,
    ) -> list[bool]:
        """Write all events in one synced transaction; return for each whether its row is new. Raise LeaseLost.

        lease      under which the decision was made; None: a person made it. An existing row stays unchanged
        all_new    write nothing if any of the rows exists
        """
        if self.rehearsed is not None:
            return self._rehearse(self.rehearsed, [*events], all_new=all_new)
        rows = [to_row(event) for event in events]
        with self.transaction() if lease is None else self.leased(lease) as connection:
            at_s, appender = self.now(), Appender(connection, owner=self.owner, redact=self.redact)
            connection.executemany(
                "INSERT INTO artefacts (address, body, at_s) VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
                [(address, body, at_s) for address, body in (artefacts or {}).items()],
            )
            connection.execute("SAVEPOINT rows")
            new = [one.is_new for one in appender.add_all([(row, at_s) for row in rows])]
            if all_new and not all(new):
                connection.execute("ROLLBACK TO rows")
            else:
                self.n_new += sum(new)
            return new

    def _rehearse(self, rehearsed: list[Event], events: Sequence[Event], *, all_new: bool) -> list[bool]:
        new = [find_event(self.path, type(one), key_of(one)) is None for one in events]
        if all(new) or not all_new:
            rehearsed += [one for one, is_new in zip(events, new, strict=True) if is_new]
        return new

    def write_new(self, *events: Event, artefacts: Mapping[str, str] | None = None) -> bool:
        return all(self.write(None, events, artefacts, all_new=True))

    def decide(self, step: Callable[[LogReader], tuple[Sequence[Event], T] | str]) -> T | str:
        """Decide on the current log and write what `step` returns; decide again if another writer was first."""
        for _ in range(_TRIES):
            with open_reader(self.path) as connection:
                made = step(connection)
            if isinstance(made, str):
                return made
            events, result = made
            if not events or self.write_new(*events):
                return result
        raise StoreError(f"store {self.path}: others were quicker {_TRIES} times; try again")

    def transaction(self, *, erases: bool = False) -> contextlib.AbstractContextManager[LogReader]:
        """Begin a transaction; one that `erases` leaves nothing of what it removes on the disk."""
        return self.database.transaction(erases=erases)


def _read_parts(connection: LogReader, job: str) -> dict[str, _PartRow]:
    rows = connection.execute("leases_between", (job, f"{job}A")).fetchall()  # A follows @
    return {name: (owner, token, held, until_s) for name, owner, token, held, until_s in rows}


def _chosen(workers: Sequence[int], key: str) -> int:
    return max(workers, key=lambda worker: sha256(f"{worker} {key}".encode()).digest())


def read_artefact(connection: LogReader, address: str) -> str | None:
    """Return the artefact at an address, which the caller verifies; None if there is none. Raise StoreError."""
    try:
        row = connection.execute("SELECT body FROM artefacts WHERE address = ?", (address,)).fetchone()
    except connection.Error as error:
        raise StoreError(f"store: artefact {address} cannot be read: {error}") from error
    return None if row is None else str(row[0])


def is_attended(connection: LogReader, location: LogLocation) -> bool:
    database, query = database_at(location), "SELECT owner FROM leases WHERE held = 1"
    return any(database.is_alive(connection, owner) for (owner,) in connection.execute(query).fetchall())


# States of the workers' folds: a cache beside the log, one row for each job and route. It is in the database, because
# a route's next worker may run on another machine, a state is written under the lease of its route, and erased text has
# to leave it in the same transaction.


def read_fold_state(log: LogReader, job: str, route: str) -> tuple[int, bytes] | None:
    """Return the place in the log up to which a state was folded, and the state."""
    row = log.execute("SELECT seq, body FROM fold_states WHERE job = ? AND route = ?", (job, route)).fetchone()
    return None if row is None else (int(row[0]), bytes(row[1]))


def write_fold_state(log: LogReader, job: str, route: str, seq: int, body: bytes, *, built_at_seq: int) -> bool:
    """Write a state, unless text was erased from the log after the fold was built, which may still hold it."""
    if log.execute("SELECT 1 FROM events WHERE kind = 'erased' AND seq > ? LIMIT 1", (built_at_seq,)).fetchone():
        return False
    log.execute("write_fold_state", (job, route, seq, body))
    return True


def forget_fold_states(log: LogReader) -> None:
    log.execute("DELETE FROM fold_states")

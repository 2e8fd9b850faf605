"""Jobs: work that one worker at a time does, again and again, and that goes on wherever the last one stopped.

    Worker.round ──▶ lease ──▶ job.run(Desk) ──▶ events under the lease ──▶ JobRun

A job keeps what it knows in memory for as long as it holds its lease, and finds out again from the log when it does
not. It writes through its `JobWriter` alone; when the lease is lost nothing of a decision is written, and the job is
told to forget. Knows leases and history; refuses to know what jobs do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Final, Protocol

from suffice.errors import StoreError, SufficeError
from suffice.store.database.decisions import Decisions, JobLease
from suffice.store.database.views import LogReader
from suffice.store.rows.events import Event
from suffice.telemetry import LOG
from suffice.types import JobRun

RENEW_S: Final = 10.0  # a lease is renewed after so long


class LeaseLost(SufficeError):
    """Another worker has the job; what was being decided is not written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobReport:
    """What a run of a job did."""

    said: str  # in one sentence; "": there was nothing to do
    route: str = ""  # "": about all of them
    ok: bool = True
    read_to_seq: int = 0  # place in the log that it has read up to
    at: int = 0  # requests of the route up to which everything is decided


class JobWriter(Protocol):
    """How a job writes."""

    def write(self, events: Iterable[Event], artefacts: Mapping[str, str] | None = None) -> None:
        """Write all of it or nothing. Raises LeaseLost and StoreError."""
        ...

    def keep(self, work: Callable[[LogReader], None]) -> None:
        """Have a cache beside the log written in one transaction. Raises LeaseLost and StoreError."""
        ...

    def renew(self) -> None:
        """Say that the work goes on, where it takes long. Raises LeaseLost and StoreError."""
        ...

    def timed(self, route: str) -> AbstractContextManager[None]:  # noqa: ARG002 - a desk may have no use for it
        """Count what happens inside as the route's own time; a desk that keeps no history counts nothing."""
        return nullcontext()


class Job(Protocol):
    """One kind of work."""

    name: str

    def run(self, desk: JobWriter) -> Sequence[JobReport]:
        """Do what is due. Raises LeaseLost as the desk does."""
        ...

    def forget(self) -> None:
        """Another worker may have had the job since: nothing that is in memory holds any more."""
        ...


@dataclass(slots=True)
class _Held:
    """A job with its lease."""

    job: Job
    lease: JobLease | None = None
    renewed_s: float = 0.0  # monotonic


@dataclass(slots=True)
class _Stopwatch:
    """A route's time within a pass. Entered once for each row of the log, so it is made once."""

    monotonic_s: Callable[[], float]
    spent_s: float = 0.0
    began_s: float = 0.0

    def __enter__(self) -> None:
        self.began_s = self.monotonic_s()

    def __exit__(self, *_: object) -> None:
        self.spent_s += self.monotonic_s() - self.began_s


@dataclass(slots=True)
class _LeasedDesk:
    """Writes under one lease."""

    decisions: Decisions
    held: _Held
    monotonic_s: Callable[[], float]
    watches: dict[str, _Stopwatch] = field(default_factory=dict)  # by route

    def timed(self, route: str) -> _Stopwatch:
        watch = self.watches.get(route)
        if watch is None:
            watch = self.watches[route] = _Stopwatch(self.monotonic_s)
        return watch

    def write(self, events: Iterable[Event], artefacts: Mapping[str, str] | None = None) -> None:
        if self.decisions.write(self.held.lease, events, artefacts) is None:
            raise LeaseLost(f"job {self.held.job.name}: another worker has it")

    def renew(self) -> None:
        now_s, lease = self.monotonic_s(), self.held.lease
        if lease is None or now_s - self.held.renewed_s < RENEW_S:
            return
        if not self.decisions.renew(lease):
            raise LeaseLost(f"job {self.held.job.name}: another worker has it")
        self.held.renewed_s = now_s

    def keep(self, work: Callable[[LogReader], None]) -> None:
        lease = self.held.lease
        if lease is None or not self.decisions.keep(lease, work):
            raise LeaseLost(f"job {self.held.job.name}: another worker has it")


@dataclass(slots=True, kw_only=True)
class Worker:
    """Runs jobs on one log.

    author  who decides: written into events
    new_id  a fresh id for each row of history
    """

    decisions: Decisions
    jobs: Sequence[Job]
    author: str
    now: Callable[[], float]
    monotonic_s: Callable[[], float]
    new_id: Callable[[], str]
    _held: dict[str, _Held] = field(init=False)

    def __post_init__(self) -> None:
        """No job is held yet."""
        self._held = {job.name: _Held(job) for job in self.jobs}

    def round(self) -> list[JobReport]:
        """Run every job that this worker may run; what they did."""
        reports = list[JobReport]()
        for held in self._held.values():
            try:
                if self._hold(held):
                    reports += self._run(held, by_hand=False)
            except StoreError as error:  # a locked or full disk: the next round may find it well again
                LOG.warning("job %s: %s", held.job.name, error)
                held.job.forget()
        return reports

    def once(self, name: str) -> list[JobReport] | None:
        """Run one job now, for a person; None: another worker has it. Raises StoreError, and KeyError for a name."""
        held = self._held[name]
        if not self._hold(held):
            return None
        return self._run(held, by_hand=True)

    def _hold(self, held: _Held) -> bool:
        """Make sure of the lease."""
        if held.lease is None:
            held.lease = self.decisions.acquire(held.job.name)
            held.renewed_s = self.monotonic_s()
            if held.lease is not None:
                held.job.forget()
        return held.lease is not None

    def _run(self, held: _Held, *, by_hand: bool) -> list[JobReport]:
        began_s, began_at_s = self.monotonic_s(), self.now()
        desk = _LeasedDesk(self.decisions, held, self.monotonic_s)
        try:
            desk.renew()
            reports = list(held.job.run(desk))
            told = [one for one in reports if one.said or by_hand]
            if told:
                whole_s = self.monotonic_s() - began_s
                spent_s = {route: watch.spent_s for route, watch in desk.watches.items()} | {"": whole_s}
                desk.write([self._history(held, one, began_at_s, spent_s.get(one.route, 0.0)) for one in told])
        except LeaseLost as error:
            LOG.warning("%s", error)
            held.lease = None
            held.job.forget()
            return []
        return told

    def _history(self, held: _Held, report: JobReport, began_at_s: float, duration_s: float) -> JobRun:
        return JobRun(
            run_id=self.new_id(),
            job=held.job.name,
            route=report.route,
            author=self.author,
            began_at_s=began_at_s,
            duration_s=duration_s,
            ok=report.ok,
            said=report.said or "nothing to do",
            read_to_seq=report.read_to_seq,
            at=report.at,
        )

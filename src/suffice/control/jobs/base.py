"""Jobs: work that one worker at a time does, again and again, and that goes on wherever the last one stopped.

    Worker.round ──▶ lease ──▶ job.run(JobWriter) ──▶ events under the lease ──▶ JobRun

A job keeps what it knows in memory for as long as it holds its lease, and finds out again from the log when it does
not. It writes through its `JobWriter` alone; when the lease is lost nothing of a decision is written, and the job is
told to forget.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Final, Protocol

from suffice.control.evidence.scorers import Matches, ScorerCache
from suffice.errors import StoreError, SufficeError
from suffice.settings import Route, Settings
from suffice.store.database.decisions import Decisions, JobLease
from suffice.store.database.log import StoredEvent
from suffice.store.database.views import LogReader, open_reader, read_events
from suffice.store.routes.in_force import InForce, read_decided
from suffice.store.routes.windows import last_place, place_before
from suffice.store.rows.events import Event
from suffice.telemetry import LOG
from suffice.types import JobRun

RENEW_S: Final = 10.0  # a lease is renewed after so long


class LeaseLost(SufficeError):
    """Another worker has the job; what was being decided is not written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobReport:
    said: str  # in one sentence; "": there was nothing to do
    route: str = ""  # "": about all of them
    ok: bool = True
    read_to_seq: int = 0  # place in the log that it has read up to
    at: int = 0  # requests of the route up to which everything is decided


class JobWriter(Protocol):
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
    name: str

    def run(self, desk: JobWriter) -> Sequence[JobReport]:
        """Do what is due. Raises LeaseLost as the desk does."""
        ...

    def forget(self) -> None:
        """Another worker may have had the job since: nothing that is in memory holds any more."""
        ...


@dataclass(slots=True)
class _Held:
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


LOOK_BACK: Final = 20_000  # requests of a route that a cold start looks back on
RENEW_ROWS: Final = 1_000  # read between two renewals of the lease
FIRST_REST_S: Final = 5.0  # of a route whose work failed, doubling …
LONGEST_REST_S: Final = 600.0  # … up to this


def rows_since(connection: LogReader, since_seq: int, desk: JobWriter) -> Iterator[StoredEvent]:
    """The rows after a place, with the lease renewed on the way. Raises LeaseLost and StoreError."""
    for number, stored in enumerate(read_events(connection, since_seq=since_seq), 1):
        yield stored
        if number % RENEW_ROWS == 0:
            desk.renew()


def why_of(error: Exception) -> str:
    """What a failure says for itself: our own errors hold no prompt; a stranger's may quote what it was given."""
    return str(error) if isinstance(error, SufficeError) else type(error).__name__


@dataclass(slots=True, kw_only=True)
class ComparisonJob:
    """A job's part that knows where the log is, and what answers are compared with.

    author   who decides: written into events
    matches  how answers of a route are compared with references, for as long as the job lives
    """

    settings: Settings
    path: Path
    author: str
    matches: Matches
    monotonic_s: Callable[[], float]
    _matched: ScorerCache = field(default_factory=ScorerCache)

    def close(self) -> None:
        self._matched.close()


@dataclass(slots=True, kw_only=True)
class ByRoute(ComparisonJob, ABC):
    rests_s: ClassVar[float]  # between two looks at a route
    failing: ClassVar[str] = "nothing proposed"  # what becomes of a route whose work fails

    name: str
    _rests: dict[str, float] = field(default_factory=dict)  # routes that are left alone until then, monotonic

    @abstractmethod
    def concerns(self, route: Route) -> bool:
        """Is there anything to do for such a route?"""

    @abstractmethod
    def propose(
        self, name: str, route: Route, held: InForce, connection: LogReader, desk: JobWriter, until: int
    ) -> str | None:
        """Do a route's work on the log up to `until`; what was proposed, or "". None: there was nothing to look at."""

    def forget(self) -> None:
        self._rests.clear()

    def run(self, desk: JobWriter) -> Sequence[JobReport]:
        now_s = self.monotonic_s()
        routes = {
            name: route
            for name, route in self.settings.routes.items()
            if self.concerns(route) and self._rests.get(name, now_s) <= now_s
        }
        if not routes or not self.path.is_file():
            return ()
        reports = list[JobReport | None]()
        with open_reader(self.path) as connection:
            decided = read_decided(connection)
            for name, route in routes.items():
                self._rests[name] = now_s + self.rests_s
                reports.append(self._alone(name, route, decided.of(name), connection, desk))
        return [report for report in reports if report is not None]

    def _alone(
        self, name: str, route: Route, held: InForce, connection: LogReader, desk: JobWriter
    ) -> JobReport | None:
        """Do a route's work; one that fails is left alone for a while."""
        until = last_place(connection)
        try:
            with desk.timed(name):
                said = self.propose(name, route, held, connection, desk, until)
        except (LeaseLost, StoreError):
            raise
        except Exception as error:  # noqa: BLE001 - one route's trouble is not the others'
            why = why_of(error)
            self._rests[name] = self.monotonic_s() + LONGEST_REST_S
            LOG.error("%s: route %s is left alone for a while: %s", self.name, name, why)
            LOG.debug("the same, with its traceback", exc_info=True)
            return JobReport(said=f"{self.failing}: {why}", route=name, ok=False, read_to_seq=until)
        return None if said is None else JobReport(said=said, route=name, read_to_seq=until)


def since(name: str, held: InForce, connection: LogReader) -> int:
    """Where the runs of a route begin that count: what came before the epoch is of another world."""
    looked_back = place_before(connection, name, LOOK_BACK)
    return looked_back if held.epoch is None else max(held.epoch.since_seq, looked_back)

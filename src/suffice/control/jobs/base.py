"""Jobs that one worker at a time repeats under a lease, each continuing where the last one stopped.

A job keeps its state in memory while it holds its lease, and reads it from the log again after losing it. It writes
through its `JobWriter` alone: after the lease is lost, no part of a decision is written. On a server the workers share
the jobs that work route by route, under a lease of each route.
"""

from __future__ import annotations

import signal
import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from math import inf
from typing import ClassVar, Final, Generic, Protocol, TypeVar

from suffice.assurance.runs import Match
from suffice.edge.math import Matches, open_match
from suffice.errors import StoreError, problem_of, why_of
from suffice.settings import Route, Settings
from suffice.store.database.decisions import Decisions, JobLease, LeaseLost
from suffice.store.database.location import LogLocation
from suffice.store.database.views import LogReader, LogRow, last_place, open_reader, place_before, read_log_rows
from suffice.store.database.watches import Look, Watch, read_watches, write_looks
from suffice.store.routes.deployments import RouteDeployment, read_decided
from suffice.store.routes.rollups import ReadTo, read_to
from suffice.store.rows.events import Event
from suffice.telemetry import LOG
from suffice.types import JobRun

RENEW_S: Final = 10.0  # between two renewals of a lease
QUIET_S: Final = RENEW_S + 0.5  # between two rounds while the log stays as it is …
WATCH_QUIET_S: Final = 4.0  # … of jobs whose looks keep certificates alive
NOTE_S: Final = 1.0  # between two notes that a look was completed
RUN_NOTE_S: Final = 10.0  # … that a job was
LOOK_S: Final = 0.5  # between two rounds of the jobs that watch, on a busy log …
LOOK_SHARE: Final = 0.25  # … and the largest share of the time that they take
RENEW_ROWS: Final = 1_000  # … or rows read
LOOK_BACK: Final = 20_000  # requests of a route that a cold start reads
FIRST_REST_S: Final = 5.0
LONGEST_REST_S: Final = 600.0
LONGEST_JOB_REST_S: Final = 60.0  # of a job that failed as a whole
HANGS: Final = "it hangs"  # begins the problem of a look that did not end

T = TypeVar("T")
M = TypeVar("M")


@dataclass(frozen=True, slots=True, kw_only=True)
class JobReport:
    summary: str  # one sentence; "": there was nothing to do
    route: str = ""  # "": all routes
    ok: bool = True
    read_to_seq: int = 0  # position in the log
    at: int = 0  # requests of the route that have been decided


class Job(Protocol):
    @property
    def name(self) -> str: ...

    def run(self, writer: JobWriter) -> Sequence[JobReport]:
        """Do what is due. Raises LeaseLost from the writer."""
        ...

    def forget(self) -> None:
        """Drop the state in memory: another worker may have run the job since."""
        ...


class JobWriter:
    """Writes a job's decisions under its lease. Its methods raise LeaseLost and StoreError.

    is_shared  workers share the job: then its lease is the worker's place among them, and each route has one, too
    """

    def __init__(
        self, decisions: Decisions, job: str, monotonic_s: Callable[[], float], *, is_shared: bool = False
    ) -> None:
        self._decisions = decisions
        self._job = job
        self._monotonic_s = monotonic_s
        self.is_shared = is_shared
        self.lease: JobLease | None = None
        self._parts = dict[str, JobLease]()
        self._keys: Mapping[str, str] = {}  # of the parts, as they were shared last
        self._part = ""  # that is being worked on
        self._renewed_s = 0.0
        self._shared_s = 0.0
        self.spent_s = defaultdict[str, float](float)  # by route, of this run
        self.bound_s = 0.0  # of one step of a look, after which SIGALRM comes; 0: none

    def acquire(self, *, alone: bool = False) -> bool:
        """Acquire the lease; of a shared job, with `alone`, only if no other worker shares it."""
        join = self.is_shared
        self.lease = self._decisions.join(self._job, alone=alone) if join else self._decisions.acquire(self._job)
        self._renewed_s, self._keys = self._monotonic_s(), {}
        return self.lease is not None

    def share(self, keys: Mapping[str, str]) -> dict[str, int]:
        """Return the parts of the job that are this worker's now, each with its lease's token.

        keys  by part; parts of one key go to one worker
        """
        if not self.is_shared:
            return dict.fromkeys(keys, 0)
        now_s = self._monotonic_s()
        # By a time of its own: `renew` keeps what this worker has, and takes nothing over from one that has died.
        if keys != self._keys or now_s - self._shared_s >= RENEW_S:
            self._parts, self._keys = self._decisions.share(self._job, keys), dict(keys)
            self._renewed_s = self._shared_s = now_s
        return {part: lease.token for part, lease in self._parts.items()}

    def lose(self, part: str) -> bool:
        """Forget the lease of a part that another worker has; False: the job has no such part here."""
        return self._parts.pop(part, None) is not None

    def write(self, events: Iterable[Event], artefacts: Mapping[str, str] | None = None) -> None:
        """Write everything or nothing, in one transaction, under the lease of the route that is being worked on."""
        self._decisions.write(self._current_lease(), events, artefacts)

    def note(self, looks: Sequence[Look], *, at_s: float) -> None:
        """Note which looks were completed or failed. Never raises: a look that is not noted renews nothing."""
        if not looks or self._decisions.rehearses:
            return
        try:
            with self._decisions.transaction() as connection:
                held = [one for one in looks if self._decisions.holds(connection, self._lease_of(one.route))]
                write_looks(connection, self._job, held, at_s=at_s)
        except StoreError as error:
            LOG.warning("job %s: its looks could not be noted: %s", self._job, error)

    def note_hang(self, *, at_s: float) -> None:
        """Note that the look which is going on does not end."""
        if self._part:
            problem = f"{HANGS}: a step of the look took {self.bound_s:g} s, half of control.lease_s"
            LOG.error("job %s, route %s: %s; the worker is started again without it", self._job, self._part, problem)
            self.note([Look(route=self._part, problem=problem)], at_s=at_s)

    def _lease_of(self, part: str) -> JobLease | None:
        return self._parts.get(part) if self.is_shared and part else self.lease

    def keep(self, work: Callable[[LogReader], T]) -> T:
        """Write a cache beside the log, in one transaction under the same lease."""
        lease = self._current_lease()
        assert lease is not None
        with self._decisions.leased(lease) as connection:
            return work(connection)

    def _current_lease(self) -> JobLease | None:
        if not (self.is_shared and self._part):
            return self.lease
        lease = self._parts.get(self._part)
        if lease is None:
            raise LeaseLost(f"job {self._job}, route {self._part}: another worker has it")
        return lease

    def renew(self) -> None:
        now_s = self._monotonic_s()
        if self.lease is not None and now_s - self._renewed_s >= RENEW_S:
            self._decisions.renew(self.lease)
            self._renewed_s = now_s

    @contextmanager
    def working_on(self, part: str) -> Iterator[None]:
        """Renew the lease if it is time, count the time of the block as the route's, and write under its lease."""
        began_s, self._part = self._monotonic_s(), part
        if self.bound_s:
            signal.setitimer(signal.ITIMER_REAL, self.bound_s)
        try:
            if began_s - self._renewed_s >= RENEW_S:
                self.renew()
            yield
        finally:
            if self.bound_s:
                signal.setitimer(signal.ITIMER_REAL, 0)
            self._part = ""
            self.spent_s[part] += self._monotonic_s() - began_s


@dataclass(slots=True, kw_only=True)
class Worker:
    """Runs jobs on one log; events name `author` as the one who decided."""

    decisions: Decisions
    jobs: Sequence[Job]
    author: str
    now: Callable[[], float]
    monotonic_s: Callable[[], float]
    new_id: Callable[[], str]
    _writers: dict[str, tuple[Job, JobWriter]] = field(init=False, default_factory=dict)
    _seen: ReadTo | None = field(init=False, default=None)  # the log when the last round began …
    _began_s: float = field(init=False, default=0.0)  # … and when that was
    doing: tuple[str, float] | None = field(init=False, default=None)  # the job that runs, and since when
    polled_s: float | None = field(init=False, default=None)  # when it last looked for new rows
    _took_s: float = field(init=False, default=0.0)  # the last round
    _problems: set[str] = field(init=False, default_factory=set)  # of the last round, each of which was logged once
    _rests: dict[str, tuple[float, float]] = field(init=False, default_factory=dict)  # failed jobs: for how long, until
    _noted_s: dict[str, float] = field(init=False, default_factory=dict)  # when a job's run was noted last

    def __post_init__(self) -> None:
        for job in self.jobs:
            is_shared = self.decisions.database.is_server and isinstance(job, RouteJob) and job.is_shared
            writer = JobWriter(self.decisions, job.name, self.monotonic_s, is_shared=is_shared)
            self._writers[job.name] = job, writer

    def bound_looks(self, within_s: float, end: Callable[[], object]) -> None:
        """Note it where a step of a look takes longer, and `end` this process, on whose main thread the jobs run.

        A hanging call cannot be interrupted safely, and other routes wait behind it.
        """
        if not hasattr(signal, "setitimer"):  # Windows
            return

        writers = [writer for _, writer in self._writers.values()]

        def end_hanging(*_: object) -> None:
            for writer in writers:
                writer.note_hang(at_s=self.now())
            end()

        signal.signal(signal.SIGALRM, end_hanging)
        for writer in writers:
            writer.bound_s = within_s

    @property
    def _only_watches(self) -> bool:
        return all(map(is_watcher, self.jobs))

    @property
    def _quiet_s(self) -> float:
        return WATCH_QUIET_S if self._only_watches else QUIET_S

    def round_if_due(self) -> list[JobReport]:
        """Do a round if the log has changed, after a quiet time, or while another worker has a lease."""
        seen, now_s = None, self.monotonic_s()
        with suppress(StoreError), open_reader(self.decisions.path) as log:  # else the round says what is wrong
            seen = read_to(log)
        holds_all = all(writer.lease is not None for _, writer in self._writers.values())
        self.polled_s = now_s
        if seen is not None and seen == self._seen and holds_all and now_s - self._began_s < self._quiet_s:
            return []
        self._seen, self._began_s = seen, now_s
        reports = self.round()
        self._took_s = self.monotonic_s() - now_s
        return reports

    def round(self) -> list[JobReport]:
        reports, problems = list[JobReport](), set[str]()
        for job, writer in self._writers.values():
            if self._rests.get(job.name, (0.0, -inf))[1] > self.monotonic_s():
                continue
            try:
                reports += self._run(job, writer, by_hand=False) or ()
                self._note_run(job, writer)
            except StoreError as error:  # such as a locked or full disk: the next round tries again
                if str(error) not in self._problems | problems:
                    LOG.warning("job %s, and others that meet the same: %s", job.name, error)
                problems.add(str(error))
                self._note_failure(job, writer, error)
            except Exception as error:  # noqa: BLE001 - a job that fails holds up no other
                rest_s = min(LONGEST_JOB_REST_S, 2 * self._rests.get(job.name, (FIRST_REST_S / 2, 0.0))[0])
                self._rests[job.name] = rest_s, self.monotonic_s() + rest_s
                LOG.error("job %s failed and is tried again in %.0f s: %s", job.name, rest_s, why_of(error))
                LOG.debug("the same, with its traceback", exc_info=True)
                self._note_failure(job, writer, error)
        self._problems = problems
        return reports

    def _note_run(self, job: Job, writer: JobWriter) -> None:
        """Note that a job has run, at once after a failure."""
        was_failing = self._rests.pop(job.name, None) is not None
        now_s = self.monotonic_s()
        is_due = now_s - self._noted_s.get(job.name, -inf) >= RUN_NOTE_S
        if writer.lease is not None and (was_failing or is_due):
            self._noted_s[job.name] = now_s
            writer.note([Look(route="")], at_s=self.now())

    def _note_failure(self, job: Job, writer: JobWriter, error: Exception) -> None:
        job.forget()
        self._noted_s.pop(job.name, None)  # the next run that succeeds says so at once
        writer.note([Look(route="", problem=problem_of(error))], at_s=self.now())

    def pause_s(self) -> float:
        """Return how long to wait for the next round: shorter for jobs that watch, unless their rounds take long."""
        usual_s = min(one.settings.control.period_s for one in self.jobs if isinstance(one, LogJob))
        if not self._only_watches:
            return usual_s
        return min(usual_s, max(LOOK_S, self._took_s * (1 - LOOK_SHARE) / LOOK_SHARE))

    def once(self, name: str) -> list[JobReport] | None:
        """Run one job now; None: another worker holds it. Raises StoreError, and KeyError for an unknown name."""
        return self._run(*self._writers[name], by_hand=True)

    def _run(self, job: Job, writer: JobWriter, *, by_hand: bool) -> list[JobReport] | None:
        if writer.lease is None:
            if not writer.acquire(alone=by_hand):
                return None
            job.forget()
        began_s, began_at_s = self.monotonic_s(), self.now()
        writer.spent_s.clear()
        try:
            writer.renew()
            self.doing = job.name, began_s
            reports = [one for one in job.run(writer) if one.summary or by_hand]
            writer.spent_s[""] = self.monotonic_s() - began_s
            history = [
                JobRun(
                    run_id=self.new_id(),
                    job=job.name,
                    author=self.author,
                    began_at_s=began_at_s,
                    duration_s=writer.spent_s[one.route],
                    **asdict(replace(one, summary=one.summary or "nothing to do")),
                )
                for one in reports
            ]
            if history:
                writer.write(history)
        except LeaseLost as error:
            LOG.warning("%s", error)
            writer.lease = None
            job.forget()
            return []
        finally:
            self.doing = None
        return reports


# --------------------------------------------------------------------------- what jobs share


@dataclass(kw_only=True)
class LogJob:
    name: ClassVar[str]
    settings: Settings
    path: LogLocation
    author: str = ""
    matches: Matches = open_match
    now: Callable[[], float] = time.time
    monotonic_s: Callable[[], float] = time.monotonic
    secret: str = field(default="", repr=False)
    _due_s: dict[str, float] = field(init=False, default_factory=dict)  # by route, or "": when it may work, monotonic
    _matches: dict[str, Match] = field(init=False, default_factory=dict)
    _open: ExitStack = field(init=False, default_factory=ExitStack)

    def is_due(self, route: str = "") -> bool:
        return self._due_s.get(route, -inf) <= self.monotonic_s()

    def rest(self, seconds: float, route: str = "") -> None:
        self._due_s[route] = self.monotonic_s() + seconds

    def forget(self) -> None:
        self._due_s.clear()

    def match(self, route: str) -> Match:
        """Open a route's match. Raises ConfigError, and whatever else its scorer raises."""
        if route not in self._matches:
            self._matches[route] = self._open.enter_context(self.matches(self.settings.routes[route]))
        return self._matches[route]

    def close(self) -> None:
        self._open.close()


@dataclass(slots=True)
class JobPass:
    log: LogReader
    writer: JobWriter
    until: int = 0  # the end of the log when the route's turn came


@dataclass(kw_only=True)
class RouteJob(LogJob, ABC, Generic[M]):
    """A job that works route by route. A route that fails rests for a while, and the others continue."""

    is_shared: ClassVar[bool] = True  # workers may share it: what it decides for a route needs no other route

    failing: ClassVar[str]  # effect of a failure on the route, for the error message
    first_rest_s: ClassVar[float] = LONGEST_REST_S  # of a failed route, doubled each time up to the longest
    raises: ClassVar[tuple[type[Exception], ...]] = (LeaseLost, StoreError)  # errors that end the whole pass
    is_watcher: ClassVar[bool] = False  # each completed look is noted; of other jobs, failures and their ends
    look_parts: ClassVar[tuple[str, ...]] = ()  # of a look, that may fail without it
    _rest_s: dict[str, float] = field(init=False, default_factory=dict)  # of routes that have failed
    _failed: dict[str, str] = field(init=False, default_factory=dict)  # reason by route, in this pass
    _problems: dict[tuple[str, str], str] = field(init=False, default_factory=dict)  # of this pass, by part and route
    _failing: set[tuple[str, str]] | None = field(init=False, default=None)  # … noted before; None: not read yet
    _noted: dict[str, tuple[int, float]] = field(init=False, default_factory=dict)  # by route: requests, and when
    _tokens: dict[str, int] = field(init=False, default_factory=dict)  # of this worker's parts, usually routes
    _memory: dict[str, M] = field(init=False, default_factory=dict)  # what the job knows of a route from earlier passes

    @abstractmethod
    def concerns(self, route: Route) -> bool:
        """Whether the job works on such a route."""

    @abstractmethod
    def work(self, names: Sequence[str], here: JobPass) -> Sequence[JobReport]:
        """Do the work of these routes."""

    def forget(self) -> None:
        super().forget()
        self._tokens = {}
        self._memory.clear()
        self._failing = None
        self._noted.clear()

    def parts(self, names: Sequence[str]) -> Mapping[str, str]:
        """Return what workers share, by part: these routes. Parts of one key go to one worker."""
        return {name: name for name in names}

    def run(self, writer: JobWriter) -> Sequence[JobReport]:
        self._failed.clear()
        self._problems.clear()
        names = [name for name, route in self.settings.routes.items() if self.concerns(route)]
        if not names or not self.path.exists():
            return ()
        before, self._tokens = self._tokens, writer.share(self.parts(names))
        for name, token in before.items():
            if self._tokens.get(name) != token:
                self.drop(name)
        if self._failing is None or before != self._tokens:
            with open_reader(self.path) as log:
                self._recall(read_watches(log))
        due = [name for name in names if name in self._tokens and self.is_due(name)]
        if not due:
            return ()
        with open_reader(self.path) as log:
            reports = self.work(due, JobPass(log, writer))
        self._note_looks(due, {one.route: one for one in reports}, writer)
        return reports

    def _recall(self, watches: Mapping[tuple[str, str], Watch]) -> None:
        """Take over what failed before; a route whose look hung rests, longer each time."""
        self._failing = {(part, name) for (part, name), one in watches.items() if one.n_failures and name}
        for (job, name), one in watches.items():
            if job == self.name and name and one.problem.startswith(HANGS):
                self.rest(min(LONGEST_REST_S, self.first_rest_s * 2 ** min(one.n_failures - 1, 10)), name)

    def has_looked(self, name: str) -> bool:  # noqa: ARG002 - a job without folds has
        """Whether this pass looked at the route to the end, if it did not fail."""
        return True

    def note_part(self, name: str, part: str, problem: str) -> None:
        """Note that a part of the look at a route failed, and that the rest of the look did not."""
        if (part, name) not in (self._failing or ()):
            LOG.error("%s: route %s: %s failed: %s", self.name, name, part, problem)
        self._problems[part, name] = problem

    def _note_looks(self, names: Sequence[str], reports: Mapping[str, JobReport], writer: JobWriter) -> None:
        now_s = self.monotonic_s()
        failing = self._failing or set()
        looks = list[Look]()
        for name in names:
            for part in ("", *self.look_parts):
                key, report = (part or self.name, name), reports.get(name)
                problem = self._problems.get((part, name), "")
                if problem:
                    failing.add(key)
                    looks.append(Look(route=name, part=part, problem=problem))
                elif report is None or name not in self._tokens or not self.has_looked(name):
                    continue
                elif key in failing or (not part and self._is_worth_noting(name, report.at, now_s)):
                    failing.discard(key)
                    self._noted[name] = report.at, now_s
                    looks.append(Look(route=name, part=part, seq=report.read_to_seq, n=report.at))
        self._failing = failing
        writer.note(looks, at_s=self.now())

    def _is_worth_noting(self, name: str, n: int, now_s: float) -> bool:
        n_before, noted_s = self._noted.get(name, (-1, -inf))
        since_s = now_s - noted_s
        return self.is_watcher and since_s >= (NOTE_S if n != n_before else WATCH_QUIET_S - NOTE_S)

    def drop(self, name: str) -> None:
        """Drop what is in memory of a route: another worker may have worked on it since."""
        self._memory.pop(name, None)

    def attempt(self, name: str, here: JobPass, work: Callable[..., T], *arguments: object) -> T | None:
        """Do a route's work; None if it fails."""
        try:
            with here.writer.working_on(name):
                return work(*arguments)
        except LeaseLost as error:
            if not here.writer.lose(name):
                raise
            LOG.warning("%s", error)
            self._tokens.pop(name, None)
            self.drop(name)
            return None
        except self.raises:
            raise
        except Exception as error:  # noqa: BLE001 - a failing route must not stop the others
            self._problems["", name] = problem_of(error)
            self.leave(name, f"{self.failing}: {why_of(error)}")
            return None

    def leave(self, name: str, why: str) -> None:
        """Let a route rest; `why` must not contain text of users."""
        rest_s = self._rest_s[name] = min(LONGEST_REST_S, 2 * self._rest_s.get(name, self.first_rest_s / 2))
        self.rest(rest_s, name)
        self._failed[name] = why
        self._problems.setdefault(("", name), why)
        LOG.error("%s: route %s failed and will be retried later: %s", self.name, name, why)
        LOG.debug("the same, with its traceback", exc_info=True)

    def report(self, name: str, *sentences: str, read_to_seq: int, at: int = 0) -> JobReport:
        failed = self._failed.get(name)
        if failed is None:
            self._rest_s.pop(name, None)
        text = "; ".join(one for one in (*sentences, failed) if one)
        return JobReport(summary=text, route=name, ok=failed is None, read_to_seq=read_to_seq, at=at)


@dataclass(kw_only=True)
class ProposalJob(RouteJob[M]):
    failing = "nothing proposed"
    rests_s: ClassVar[float]  # between two looks at a route

    @abstractmethod
    def propose(self, name: str, held: RouteDeployment, here: JobPass) -> str | None:
        """Look at a route; return what was proposed, or "". None: there was nothing to look at."""

    def work(self, names: Sequence[str], here: JobPass) -> Sequence[JobReport]:
        decided, reports = read_decided(here.log), list[JobReport]()
        for name in names:
            self.rest(self.rests_s, name)
            here.until = last_place(here.log)
            sentence = self.attempt(name, here, self.propose, name, decided.of(name), here)
            if sentence is not None or name in self._failed:
                reports.append(self.report(name, sentence or "", read_to_seq=here.until))
        return reports


def is_watcher(job: Job) -> bool:
    """Whether the looks of a job keep certificates alive, or pause what they cover."""
    return isinstance(job, RouteJob) and job.is_watcher


def rows_since(log: LogReader, since_seq: int, writer: JobWriter) -> Iterator[LogRow]:
    """Read the rows after a position, renewing the lease meanwhile. Raises LeaseLost and StoreError."""
    for number, row in enumerate(read_log_rows(log, since_seq=since_seq), 1):
        yield row
        if number % RENEW_ROWS == 0:
            writer.renew()


def since(name: str, held: RouteDeployment, log: LogReader) -> int:
    """Return the position from which a route's runs count: earlier epochs belong to another regime."""
    looked_back = place_before(log, name, LOOK_BACK)
    return looked_back if held.epoch is None else max(held.epoch.since_seq, looked_back)

"""What a failing look, or a failing part of one, does to the others: nothing, and it is said from the first failure."""

from __future__ import annotations

import multiprocessing
import operator
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import numpy as np
import pytest

from suffice.agent.plan import AgentPlan
from suffice.assurance.runs import Match
from suffice.cli.server.worker_main import HUNG
from suffice.control.jobs.base import (
    FIRST_REST_S,
    HANGS,
    LONGEST_REST_S,
    LOOK_S,
    NOTE_S,
    Job,
    JobReport,
    JobWriter,
    Worker,
)
from suffice.control.jobs.certify import Certify, Critical
from suffice.control.loop.live_agent import LiveAgent
from suffice.errors import ConfigError, StoreError
from suffice.settings import Route
from suffice.store.database.decisions import Decisions
from suffice.store.database.views import open_reader, read_kinds
from suffice.store.database.watches import Watch, failing, read_watches
from suffice.store.routes.deployments import RouteDeployment, read_decided
from suffice.types import Publication
from suffice.wiring.worker import open_worker
from tests.control.made import traffic
from tests.control.test_worker import fill, settings_for

N = 400
PROMPT = "what the user wrote"


@dataclass
class Clock:
    """Seconds that pass only when a test says so."""

    s: float = 1_000.0

    def __call__(self) -> float:
        return self.s


@contextmanager
def worker_of(folder: Path, *jobs: Job, clock: Clock) -> Iterator[Worker]:
    with Decisions(folder / "log.db", now=clock, monotonic_s=clock) as writer:
        yield Worker(decisions=writer, jobs=jobs, author="w", now=clock, monotonic_s=clock, new_id=lambda: uuid4().hex)


def watches(folder: Path) -> dict[tuple[str, str], Watch]:
    with open_reader(folder / "log.db") as log:
        return read_watches(log)


# ---- jobs ------------------------------------------------------------------------------------------


@dataclass
class Scripted:
    """A job that does what it is told: raises, or counts its runs."""

    name: str
    error: Exception | None = None
    n_runs: int = 0

    def run(self, writer: JobWriter) -> Sequence[JobReport]:
        self.n_runs += 1
        if self.error is not None:
            raise self.error
        return ()

    def forget(self) -> None:
        """Nothing is kept."""


def every_job(folder: Path) -> list[str]:
    with open_worker(settings_for(folder)) as here:
        return [job.name for job in here.jobs]


ERRORS: dict[str, tuple[Exception, str]] = {
    "raises": (ValueError(PROMPT), "ValueError"),
    "our own error": (ConfigError("routes.r: is wrong"), "ConfigError: routes.r: is wrong"),
    "numpy": (TypeError(f"unsupported {np.float64(1)}"), "TypeError"),
    "memory": (MemoryError(), "MemoryError"),
    "log": (StoreError("store x: is locked"), "StoreError: store x: is locked"),
}


@pytest.mark.parametrize("how", ERRORS)
def test_a_job_that_fails_holds_up_no_other_and_is_listed_from_its_first_failure(tmp_path: Path, how: str) -> None:
    fill(tmp_path, traffic(10))
    error, problem = ERRORS[how]
    clock = Clock()
    for name in every_job(tmp_path):
        broken, other = Scripted(name, error), Scripted(f"after {name}")
        with worker_of(tmp_path, broken, other, clock=clock) as here:
            here.round()
            row = watches(tmp_path)[name, ""]
            assert (row.n_failures, row.problem, row.failing_since_s) == (1, problem, clock.s)
            assert PROMPT not in row.problem
            assert other.n_runs == 1
            assert watches(tmp_path)[other.name, ""].beat == 1
            clock.s += 3_600
            here.round()
            row = watches(tmp_path)[name, ""]
            assert (row.n_failures, row.failing_since_s, other.n_runs) == (2, clock.s - 3_600, 2)
            broken.error = None
            clock.s += 3_600
            here.round()
            row = watches(tmp_path)[name, ""]
            assert (row.n_failures, row.problem, row.failing_since_s, row.beat) == (0, "", None, 1)


def test_a_job_that_fails_is_not_asked_in_every_round(tmp_path: Path) -> None:
    fill(tmp_path, traffic(1))
    clock, broken = Clock(), Scripted("notify", ValueError())
    with worker_of(tmp_path, broken, clock=clock) as here:
        for _ in range(600):
            here.round()
            clock.s += 1
    assert 8 < broken.n_runs < 20, "it rests for 5 s, then twice as long, up to a minute"


# ---- looks -----------------------------------------------------------------------------------------


@dataclass
class Matches:
    """Opens a scorer for each route; those with a budget in `broken` raise."""

    broken: set[float] = field(default_factory=set)  # budgets

    @contextmanager
    def __call__(self, route: Route) -> Iterator[Match]:
        if route.max_em_drop in self.broken:
            raise ValueError(PROMPT)
        yield operator.eq


def certify(folder: Path, matches: Any, clock: Clock) -> Certify:
    settings = settings_for(folder, s={"max_em_drop": 0.09})
    return Certify(
        settings=settings, path=folder / "log.db", author="w", secret="s", matches=matches, now=clock, monotonic_s=clock
    )


def test_a_look_that_fails_for_one_route_is_noted_and_renews_nothing_there(tmp_path: Path) -> None:
    fill(tmp_path, traffic(N))
    clock, matches = Clock(), Matches({0.09})
    job = certify(tmp_path, matches, clock)
    with worker_of(tmp_path, job, clock=clock) as here:
        for _ in range(5):
            here.round()
            clock.s += 2
        rows = watches(tmp_path)
        assert (rows["certify", "s"].beat, rows["certify", "s"].problem) == (0, "ValueError")
        assert rows["certify", "r"].beat >= 2, "the log is quiet, and looks go on"
        assert rows["certify", "r"].n == N
        assert rows["certify", "r"].n_failures == 0
        assert [one.route for one in failing(rows)] == ["s"]
        assert read_decided(tmp_path / "log.db").of("r").level > 0
        matches.broken.clear()
        clock.s += 3_600
        here.round()
        assert (watches(tmp_path)["certify", "s"].beat, failing(watches(tmp_path))) == (1, [])


def test_a_new_worker_knows_what_failed_and_notes_that_it_does_not_any_more(tmp_path: Path) -> None:
    fill(tmp_path, traffic(50))
    clock = Clock()
    with worker_of(tmp_path, certify(tmp_path, Matches({0.09}), clock), clock=clock) as here:
        here.round()
    assert failing(watches(tmp_path))
    with worker_of(tmp_path, certify(tmp_path, Matches(), clock), clock=clock) as here:
        here.round()
    assert not failing(watches(tmp_path))


def test_looks_are_noted_no_more_than_once_a_second(tmp_path: Path) -> None:
    fill(tmp_path, traffic(50))
    clock = Clock()
    with worker_of(tmp_path, certify(tmp_path, Matches(), clock), clock=clock) as here:
        for _ in range(10):
            here.round()
            clock.s += NOTE_S / 20
    assert watches(tmp_path)["certify", "r"].beat == 1


def test_a_worker_that_has_lost_its_lease_notes_nothing(tmp_path: Path) -> None:
    fill(tmp_path, traffic(50))
    clock = Clock()
    job = certify(tmp_path, Matches(), clock)
    with worker_of(tmp_path, job, clock=clock) as first:
        first.round()
        with closing(sqlite3.connect(tmp_path / "log.db")) as log, log:
            log.execute("UPDATE leases SET token = token + 1")  # as another worker does
        before = watches(tmp_path)
        clock.s += 5
        job.run(first._writers["certify"][1])
        assert watches(tmp_path) == before


# ---- parts of a look -------------------------------------------------------------------------------


@dataclass
class BrokenAgent:
    """An agent whose methods do as they are told: raise, or return what no row can hold."""

    broken: str
    result: Callable[[RouteDeployment, int], object]

    def __getattr__(self, name: str) -> Callable[..., object]:
        def method(*arguments: Any, **options: Any) -> object:
            if name != self.broken:
                return None
            return self.result(arguments[0], options.get("at", 0))

        return method


def raises(held: RouteDeployment, at: int) -> object:
    raise ValueError(PROMPT)


def planned(held: RouteDeployment, at: int, **changes: Any) -> AgentPlan:
    known: dict[str, Any] = {
        "route": "r",
        "number": held.n_plans + 1,
        "epoch": held.n_epochs,
        "at": at,
        "classes": (),
        "token_price": 0.1,
        "reason": "a test",
        "author": "w",
    }
    return AgentPlan(**(known | changes))


BROKEN_PARTS: dict[str, tuple[str, Callable[[RouteDeployment, int], object]]] = {
    "counting runs raises": ("add_run", raises),
    "reading audits raises": ("read", raises),
    "its look raises": ("look", raises),
    "its plan raises": ("plan", raises),
    "its plan holds an array": ("plan", lambda held, at: planned(held, at, classes=(np.zeros(2),))),
    "its plan holds an object": ("plan", lambda held, at: planned(held, at, reason=object())),
    "its plan is none": ("plan", lambda _, __: object()),
}


@pytest.mark.parametrize("case", BROKEN_PARTS)
def test_what_the_certifier_decides_is_published_whatever_the_agent_does(tmp_path: Path, case: str) -> None:
    events = traffic(N, certified=True)
    fill(tmp_path, events[:200])
    clock = Clock()
    job = certify(tmp_path, Matches(), clock)
    method, result = BROKEN_PARTS[case]
    with worker_of(tmp_path, job, clock=clock) as here:
        here.round()
        job._memory["r"].source.agent = cast("LiveAgent", BrokenAgent(method, result))
        fill(tmp_path, events[200:])
        clock.s += 2
        here.round()
        first = watches(tmp_path)
        clock.s += 2
        fill(tmp_path, traffic(40, seed=1, first=N))
        here.round()
    rows = watches(tmp_path)
    for one in (first, rows):
        assert one["certify", "r"].n_failures == 0
        assert one["agent", "r"].n_failures >= 1, "from the first failure"
        assert PROMPT not in one["agent", "r"].problem
    assert rows["certify", "r"].beat > first["certify", "r"].beat
    with open_reader(tmp_path / "log.db") as log:
        made = [one.event for one in read_kinds(log, "policy_published")]
        assert not read_kinds(log, "agent_planned")
    assert any(isinstance(one, Publication) and one.level for one in made)


def test_a_pause_that_cannot_be_decided_is_no_completed_look(tmp_path: Path) -> None:
    fill(tmp_path, traffic(50))
    clock = Clock()
    job = certify(tmp_path, Matches(), clock)
    with worker_of(tmp_path, job, clock=clock) as here:
        here.round()
        before = watches(tmp_path)["certify", "r"].beat
        job._memory["r"].critical_em = cast("Any", None)
        clock.s += 10
        fill(tmp_path, traffic(1, seed=1, first=50))
        here.round()
        row = watches(tmp_path)["certify", "r"]
        assert (row.beat, row.n_failures, row.problem) == (before, 1, "AttributeError")
        clock.s += 10
        here.round()
        assert watches(tmp_path)["certify", "r"].n_failures == 0, "the loop was built again from the log"


def test_the_job_critical_notes_its_looks_too(tmp_path: Path) -> None:
    fill(tmp_path, traffic(5))
    changes = {"policy": {"policy": "never"}, "uncertified": True, "critical_em": 0.5}
    settings, clock = settings_for(tmp_path, r=changes), Clock()
    job = Critical(settings=settings, path=tmp_path / "log.db", author="w", now=clock, monotonic_s=clock)
    with worker_of(tmp_path, job, clock=clock) as here:
        here.round()
    assert watches(tmp_path)["critical", "r"].beat == 1


# ---- looks and jobs that hang --------------------------------------------------------------------------------


def test_no_look_waits_behind_another_job(tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    with open_worker(settings, part="watch") as watch, open_worker(settings, part="chores") as chores:
        watching, others = ({job.name for job in one.jobs} for one in (watch, chores))
        assert watching == {"certify", "critical"}
        assert watching | others == set(every_job(tmp_path))
        assert not watching & others
        fill(tmp_path, traffic(50))
        assert watch.round_if_due(), "the other process has not begun a round, and may never"
        assert watches(tmp_path)["certify", "r"].beat == 1
        assert LOOK_S <= watch.pause_s() <= chores.pause_s() == settings.control.period_s


@contextmanager
def hanging(route: Route) -> Iterator[Match]:
    """A scorer that never answers on the route with this budget."""
    while route.max_em_drop == 0.09:
        time.sleep(3_600)
    yield operator.eq


def look_once(folder: Path, now_s: float) -> None:
    """What a worker's process does, and what ends it where a look hangs."""
    clock = Clock(now_s)
    with worker_of(folder, certify(folder, hanging, clock), clock=clock) as here:
        here.bound_looks(0.2, lambda: os._exit(HUNG))
        for _ in range(2):
            here.round()
            clock.s += FIRST_REST_S  # after the first rest, and before the end of any later one


def status_of_look(folder: Path, now_s: float) -> int | None:
    process = multiprocessing.get_context("spawn").Process(target=look_once, args=(folder, now_s))
    process.start()
    process.join(120)
    return process.exitcode


def test_a_look_that_hangs_at_one_route_ends_its_process_and_the_next_one_looks_at_the_others(tmp_path: Path) -> None:
    fill(tmp_path, traffic(50))
    assert status_of_look(tmp_path, 1_000.0) == HUNG
    row = watches(tmp_path)["certify", "s"]
    assert (row.beat, row.n_failures, row.problem.startswith(HANGS)) == (0, 1, True)
    assert status_of_look(tmp_path, 2_000.0) == HUNG, "the route is tried again after a rest"
    rows = watches(tmp_path)
    assert rows["certify", "r"].beat >= 1, "the others were looked at first"
    assert (rows["certify", "s"].beat, rows["certify", "s"].n_failures) == (0, 2)
    assert status_of_look(tmp_path, 3_000.0) == 0, "it rests for longer than these two rounds"
    assert watches(tmp_path)["certify", "r"].beat > rows["certify", "r"].beat
    assert [one.route for one in failing(watches(tmp_path))] == ["s"]


def test_a_route_whose_look_hung_rests_longer_each_time(tmp_path: Path) -> None:
    fill(tmp_path, traffic(5))
    for n_failures, rest_s in ((1, FIRST_REST_S), (3, 4 * FIRST_REST_S), (50, LONGEST_REST_S)):
        clock = Clock()
        job = certify(tmp_path, Matches(), clock)
        with worker_of(tmp_path, job, clock=clock) as here:
            here.round()
            with closing(sqlite3.connect(tmp_path / "log.db")) as log, log:
                log.execute("UPDATE watches SET n_failures = ?, problem = ? WHERE route = 's'", (n_failures, HANGS))
            job.forget()
            clock.s += rest_s
            here.round()
            clock.s += rest_s - 1
            here.round()
            assert watches(tmp_path)["certify", "s"].problem == HANGS
            clock.s += 1
            here.round()
            assert watches(tmp_path)["certify", "s"].problem == "", "the look was completed"

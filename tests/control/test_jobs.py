"""Jobs: one worker at a time, all of a decision or nothing, a history, and no failure that spreads."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from suffice.control.jobs.base import JobReport, JobWriter, Worker
from suffice.errors import StoreError
from suffice.store.database.decisions import Decisions, LeaseLost
from suffice.store.database.views import job_history
from tests.store.test_decisions import Clock, began


@dataclass
class Counting:
    """A job that writes one epoch each time, and may be disturbed in the middle."""

    name: str = "count"
    n: int = 0
    n_forgotten: int = 0
    disturb: Callable[[], None] = lambda: None
    reports: Sequence[JobReport] = (JobReport(summary="counted"),)
    writers: list[JobWriter] = field(default_factory=list)

    def run(self, writer: JobWriter) -> Sequence[JobReport]:
        self.disturb()
        writer.write([began(self.n + 1)])
        self.n += 1
        return self.reports

    def forget(self) -> None:
        self.n_forgotten += 1


Make = Callable[..., Worker]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "log.db"


@pytest.fixture
def make(database: Path, clock: Clock) -> Iterator[Make]:
    ids = itertools.count()
    with ExitStack() as stack:

        def made(*jobs: Counting) -> Worker:
            decisions = stack.enter_context(Decisions(database, now=lambda: 5.0, monotonic_s=clock))
            return Worker(
                decisions=decisions,
                jobs=jobs,
                author="w",
                now=lambda: 5.0,
                monotonic_s=clock,
                new_id=lambda: f"jr_{next(ids)}",
            )

        yield made


def test_a_job_is_done_by_one_worker_and_passes_on_with_nothing_in_memory(make: Make) -> None:
    first, second = Counting(), Counting()
    one, other = make(first), make(second)
    assert [report.summary for report in one.round()] == ["counted"]
    assert other.round() == []
    assert (first.n, second.n, first.n_forgotten) == (1, 0, 1)
    one.round()
    assert first.n_forgotten == 1, "what is known stays known while the lease is held"
    one.decisions.close()
    other.round()
    assert (second.n, second.n_forgotten) == (1, 1)


def test_by_hand_it_says_who_has_it_and_leaves_a_history(make: Make, database: Path) -> None:
    held, wanted = make(Counting()), make(Counting(reports=(JobReport(summary="", route="quiz", at=7),)))
    held.round()
    assert wanted.once("count") is None
    held.decisions.close()
    reports = wanted.once("count")
    assert reports is not None
    assert [(report.route, report.at) for report in reports] == [("quiz", 7)]
    history = job_history(database)
    assert [(run.job, run.route, run.summary, run.ok, run.author) for run in history] == [
        ("count", "", "counted", True, "w"),
        ("count", "quiz", "nothing to do", True, "w"),
    ]
    with pytest.raises(KeyError):
        wanted.once("unheard of")


def test_each_route_has_its_own_time_in_the_history_and_all_of_them_the_whole_pass(
    make: Make, clock: Clock, database: Path
) -> None:
    class Uneven(Counting):
        def run(self, writer: JobWriter) -> Sequence[JobReport]:
            for route, seconds in (("quick", 1.0), ("slow", 40.0), ("quick", 0.5)):
                with writer.working_on(route):
                    clock.now_s += seconds
            clock.now_s += 3.0  # for all of them
            return self.reports

    reports = tuple(JobReport(summary="done", route=route) for route in ("quick", "slow", "idle", ""))
    make(Uneven(reports=reports)).round()
    took = {run.route: run.duration_s for run in job_history(database)}
    assert took == {"quick": 1.5, "slow": 40.0, "idle": 0.0, "": 44.5}


def test_a_round_without_news_leaves_no_row(make: Make, database: Path) -> None:
    quiet = make(Counting(reports=(JobReport(summary=""),)))
    assert quiet.round() == []
    assert job_history(database) == []


def test_what_stops_all_jobs_is_logged_once_while_it_lasts(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    problem = ["the server is gone"]

    def fail() -> None:
        if problem:
            raise StoreError(problem[0])

    worker = make(Counting(name="one", disturb=fail), Counting(name="two", disturb=fail))

    def logged() -> list[str]:
        caplog.clear()
        worker.round()
        return [record.getMessage() for record in caplog.records]

    assert logged() == ["job one, and others that meet the same: the server is gone"]
    assert logged() == []
    problem[0] = "the disk is full"
    assert logged() == ["job one, and others that meet the same: the disk is full"]
    problem.clear()
    assert logged() == []
    problem.append("the disk is full")
    assert len(logged()) == 1


def test_a_worker_that_was_too_slow_writes_nothing_of_what_it_decided(make: Make, clock: Clock, database: Path) -> None:
    slow, quick = Counting(), Counting()
    late, other = make(slow), make(quick)
    late.round()
    assert other.round() == []

    def sleeps() -> None:
        clock.now_s += 31.0
        assert other.round() != []

    slow.disturb = sleeps
    assert late.round() == []
    assert (slow.n, quick.n) == (1, 1)
    assert slow.n_forgotten == 2
    assert len(job_history(database)) == 2


def test_a_desk_renews_and_says_when_the_lease_is_gone(make: Make, clock: Clock) -> None:
    job = Counting()
    worker, other = make(job), make(Counting())

    def long_work() -> None:
        writer = job.writers[-1]
        for _ in range(4):
            clock.now_s += 12.0
            writer.renew()
            assert other.round() == [], "renewed in time"

    class Long(Counting):
        def run(self, writer: JobWriter) -> Sequence[JobReport]:
            self.writers.append(writer)
            return Counting.run(self, writer)

    job.__class__ = Long
    job.disturb = long_work
    assert worker.round() != []
    clock.now_s += 40.0
    assert other.round() != []
    with pytest.raises(LeaseLost):
        job.writers[-1].renew()


def test_a_disk_that_fails_is_not_the_end(make: Make) -> None:
    ill = Counting()

    def fails() -> None:
        raise StoreError("disk")

    ill.disturb = fails
    well = Counting(name="well")
    worker = make(ill, well)
    assert [report.summary for report in worker.round()] == ["counted"]
    ill.disturb = lambda: None
    assert len(worker.round()) == 2

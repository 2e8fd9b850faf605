"""One job, one worker; all of a decision or nothing of it; and whoever follows sees the same."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suffice.errors import StoreError
from suffice.store.database.decisions import Decisions, JobLease, LeaseLost, read_artefact
from suffice.store.database.location import LogLocation
from suffice.store.database.sqlite import SqliteConnection
from suffice.store.database.views import open_reader
from suffice.store.routes.deployments import NOTHING, fold_decisions, read_decided
from suffice.store.rows.events import Event
from suffice.types import Alarm, Epoch, Pause, Publication, Resumption
from tests.drawn import examples

Query = Callable[..., list[tuple[Any, ...]]]


@dataclass
class Clock:
    """A clock that only the test moves."""

    now_s: float = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def writer(database: LogLocation, clock: Clock) -> Iterator[Callable[[], Decisions]]:
    with ExitStack() as opened:
        yield lambda: opened.enter_context(Decisions(database, now=lambda: 1.0, monotonic_s=clock))


def published(number: int, *, epoch: int = 1, level: int = 5, route: str = "r") -> Publication:
    return Publication(
        route=route,
        number=number,
        epoch=epoch,
        at=number,
        version=f"c-{number}",
        fit="f-1",
        level=level,
        n_levels=41,
        certified=True,
        share=0.1,
        reason="because",
        author="worker",
    )


def began(number: int, route: str = "r") -> Epoch:
    return Epoch(route=route, number=number, at=0, since_seq=0, reason="cold start", author="worker")


def paused(number: int) -> Pause:
    return Pause(route="r", number=number, cause="critical_em", reason="too low", author="worker")


def resumed(number: int) -> Resumption:
    return Resumption(route="r", number=number, reason="looked at it", author="ann")


def held(lease: JobLease | None) -> JobLease:
    assert lease is not None
    return lease


def test_of_two_workers_one_has_the_job_until_it_lets_go(writer: Callable[[], Decisions]) -> None:
    first, second = writer(), writer()
    lease = held(first.acquire("certify"))
    assert second.acquire("certify") is None
    assert first.acquire("certify") is None, "twice in one process is twice, too"
    assert second.acquire("another") is not None
    first.renew(lease)
    first.close()
    assert held(second.acquire("certify")).token == 2


def test_a_race_of_many_workers_for_one_job_has_one_winner(database: LogLocation) -> None:
    workers = [Decisions(database, now=lambda: 1.0, monotonic_s=lambda: 0.0) for _ in range(8)]
    won: list[JobLease | None] = []
    threads = [threading.Thread(target=lambda w=w: won.append(w.acquire("certify"))) for w in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(lease is not None for lease in won) == 1
    assert len(won) == 8
    for worker in workers:
        worker.close()


@pytest.mark.sqlite_only
def test_a_lease_without_renewal_passes_on_and_its_old_owner_can_write_nothing(
    writer: Callable[[], Decisions], clock: Clock, query: Query
) -> None:
    slow, quick = writer(), writer()
    lost = held(slow.acquire("certify"))
    assert quick.acquire("certify") is None
    clock.now_s = 29.0
    slow.renew(lost)
    assert quick.acquire("certify") is None, "a renewal counts from when it was seen"
    clock.now_s = 58.0
    assert quick.acquire("certify") is None
    clock.now_s = 59.5
    lease = held(quick.acquire("certify"))
    with pytest.raises(LeaseLost, match="job certify: another worker has it"):
        slow.renew(lost)
    with pytest.raises(LeaseLost):
        slow.write(lost, [published(1, level=40)], {"f-1": "{}"})
    assert query("SELECT count(*) FROM events") == query("SELECT count(*) FROM artefacts") == [(0,)]
    assert quick.write(lease, [published(1, level=3)]) == [True]


@pytest.mark.parametrize("step_s", [86_400.0, -86_400.0])
def test_a_wall_clock_that_steps_takes_no_job_away(database: LogLocation, step_s: float) -> None:
    wall, steady = Clock(1e9), Clock()
    with (
        Decisions(database, now=wall, monotonic_s=steady) as owner,
        Decisions(database, now=wall, monotonic_s=steady) as other,
    ):
        lease = held(owner.acquire("certify"))
        wall.now_s += step_s
        assert other.acquire("certify") is None
        assert owner.write(lease, [began(1)]) == [True]


HOLDS = """
import sys, time
from pathlib import Path
from suffice.store.database.decisions import Decisions
from tests.store.test_decisions import began
worker = Decisions(Path(sys.argv[1]), now=time.time, monotonic_s=time.monotonic)
lease = worker.acquire("certify")
print("held", flush=True)
n = 0
while True:
    n += 1
    assert worker.write(lease, [began(2 * n - 1), began(2 * n)]) == [True, True]
"""


@pytest.mark.sqlite_only
def test_the_job_of_a_killed_worker_is_free_at_once_and_nothing_of_it_is_half_written(
    database: LogLocation, query: Query
) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([sys.executable, "-c", HOLDS, str(database)], stdout=subprocess.PIPE, env=environment)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        with Decisions(database, now=lambda: 1.0, monotonic_s=lambda: 0.0) as next_one:
            assert next_one.acquire("certify") is None
            while query("SELECT count(*) FROM events") == [(0,)]:
                pass
            process.send_signal(signal.SIGKILL)
            process.wait()
            assert next_one.acquire("certify") is not None
        ((n_rows,),) = query("SELECT count(*) FROM events")
        assert n_rows >= 2
        assert n_rows % 2 == 0
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def test_of_two_decisions_for_one_place_the_first_stands(
    writer: Callable[[], Decisions], database: LogLocation
) -> None:
    worker = writer()
    assert worker.write(None, [published(1, level=3), published(1, level=9), published(2)]) == [True, False, True]
    assert worker.write(None, [published(2)]) == [False]
    result = read_decided(database).of("r")
    assert (result.n_publications, result.last and result.last.level) == (2, 5)


def test_a_decision_that_cannot_be_written_leaves_nothing(writer: Callable[[], Decisions], query: Query) -> None:
    worker = writer()
    broken = began(1)
    wrong = replace(broken, number=2, at=object())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="epoch_began"):
        worker.write(None, [broken, wrong], {"f-1": "{}"})
    assert query("SELECT count(*) FROM events") == query("SELECT count(*) FROM artefacts") == [(0,)]


@pytest.mark.sqlite_only
def test_artefacts_are_kept_once_under_their_address(writer: Callable[[], Decisions], database: LogLocation) -> None:
    worker = writer()
    worker.write(None, [], {"f-1": "one"})
    worker.write(None, [], {"f-1": "another", "f-2": "two"})
    with closing(SqliteConnection(str(database))) as connection:
        assert [read_artefact(connection, address) for address in ("f-1", "f-2", "f-3")] == ["one", "two", None]


def test_an_epoch_voids_what_was_published_before_it_and_what_comes_late() -> None:
    before = fold_decisions([began(1), published(1, level=9)], {})["r"]
    assert (before.level, before.in_burst) == (9, False)
    after = fold_decisions([Alarm(route="r", epoch=1, at=7, cause="change", reason="m2"), began(2)], {"r": before})
    assert (after["r"].level, after["r"].in_burst, after["r"].last) == (0, True, before.last)
    late = fold_decisions([published(2, epoch=1, level=9)], after)["r"]
    assert (late.level, late.in_burst, late.n_publications) == (0, True, 2)
    assert fold_decisions([published(3, epoch=2, level=4)], {"r": late})["r"].level == 4


def test_a_pause_holds_until_somebody_ends_that_very_pause() -> None:
    running = fold_decisions([began(1), published(1, level=9)], {})["r"]
    rests = running.after(paused(1))
    assert (rests.level, rests.pause is not None) == (0, True)
    assert rests.after(published(2, level=7)).level == 0
    assert rests.after(resumed(1)).level == 9
    again = rests.after(resumed(1)).after(paused(2))
    assert again.after(resumed(1)).level == 0
    assert again.after(resumed(2)).level == 9


def test_nothing_is_certified_without_a_test_that_accepted_it() -> None:
    guess = replace(published(1), certified=False)
    assert NOTHING.after(began(1)).after(guess).level == 0


ANY_EVENT = st.one_of(
    st.builds(published, st.integers(1, 6), epoch=st.integers(1, 3), level=st.integers(0, 40)),
    st.builds(began, st.integers(1, 3)),
    st.builds(paused, st.integers(1, 3)),
    st.builds(resumed, st.integers(1, 3)),
)


@given(events=st.lists(ANY_EVENT, max_size=20), cut=st.integers(0, 20))
@settings(max_examples=examples(60))
def test_following_in_pieces_is_the_same_as_reading_all_at_once(events: list[Event], cut: int) -> None:
    assert fold_decisions(events[cut:], fold_decisions(events[:cut], {})) == fold_decisions(events, {})


@pytest.mark.sqlite_only
def test_a_follower_reads_only_what_is_new_and_through_its_own_index(
    writer: Callable[[], Decisions], database: LogLocation
) -> None:
    worker = writer()
    worker.write(None, [began(1)])
    known = read_decided(database)
    assert read_decided(database, known) is known
    worker.write(None, [published(1), began(1, route="other")])
    newer = read_decided(database, known)
    assert newer.of("r").level == 5
    assert newer.of("other").in_burst
    assert newer.of("unheard of") == NOTHING
    request = list[str]()
    with open_reader(database) as connection:
        assert isinstance(connection, SqliteConnection)
        connection.set_trace_callback(request.append)
        read_decided(connection)
        plan = connection.execute(f"EXPLAIN QUERY PLAN {request[0]}").fetchall()
    assert "USING INDEX decisions" in plan[0][3]


def test_a_file_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="does not exist"):
        Decisions(tmp_path / "nowhere" / "log.db", now=lambda: 0.0, monotonic_s=lambda: 0.0)

"""Workers share the routes of a job; who certifies a route changes no row of it, not even when one dies or sleeps."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from suffice.control.jobs import base
from suffice.control.jobs.base import JobWriter, Worker
from suffice.control.jobs.certify import Certify
from suffice.settings import Settings, Store
from suffice.store.database.decisions import Decisions, LeaseLost, _chosen
from suffice.store.database.location import LogLocation, log_location
from suffice.store.database.views import open_reader, read_kinds
from suffice.store.database.writer import LogWriter
from suffice.store.rows.events import Event, to_row
from suffice.types import Request
from tests.control.made import CONTROL, ROUTE, traffic
from tests.postgres import empty_log
from tests.store.test_decisions import began

LEASE_S = 1.0
LONG_LEASE_S = 6.0  # of workers that fit models, beside other work
DECIDED = ("alarm_raised", "enforcement_paused", "epoch_began", "incident_opened", "label_wanted", "policy_published")


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    with empty_log() as made:
        yield made


@pytest.fixture
def here(store: Store) -> LogLocation:
    return log_location(store)


# --------------------------------------------------------------------------- leases of parts


@pytest.fixture
def join(here: LogLocation) -> Iterator[Callable[[], Decisions]]:
    with ExitStack() as stack:
        yield lambda: stack.enter_context(Decisions(here, now=lambda: 1.0, monotonic_s=time.monotonic, lease_s=LEASE_S))


def test_parts_are_divided_and_every_part_has_one_worker(join: Callable[[], Decisions]) -> None:
    keys = {f"r{n}": f"r{n}" for n in range(60)}
    first, second, third = join(), join(), join()
    first.join("a")
    assert set(first.share("a", keys)) == set(keys), "alone, it has all of them"
    second.join("a")
    third.join("a")
    assert second.share("a", keys) == {}, "what another one holds is not taken"
    mine = first.share("a", keys)
    others = [*second.share("a", keys), *third.share("a", keys)]
    assert sorted([*mine, *others]) == sorted(keys)
    assert 5 < len(mine) < 40
    assert first.share("a", keys) == mine, "the leases stay while nobody comes or goes"
    third.close()
    left = {**first.share("a", keys), **second.share("a", keys)}
    assert set(left) == set(keys)
    assert all(left[part] == lease for part, lease in mine.items()), "nothing moves between those that stay"


def test_a_part_that_another_worker_took_cannot_be_written_under(join: Callable[[], Decisions]) -> None:
    late, other = join(), join()
    late.join("b")
    lease = late.share("b", {"r": "r"})["r"]
    other.join("b")
    assert other.join("b", alone=True) is None
    time.sleep(1.2 * LEASE_S)
    other.join("b")
    taken = other.share("b", {"r": "r"})
    if not taken:  # the hash gives it to the sleeper, who counts no more
        pytest.fail("an expired lease was not taken")
    with pytest.raises(LeaseLost):
        late.write(lease, [began(1)])
    assert other.write(taken["r"], [began(1)]) == [True]


def test_a_worker_that_renews_its_leases_still_takes_over_from_one_that_left(join: Callable[[], Decisions]) -> None:
    now_s, keys = 0.0, {f"r{n}": f"r{n}" for n in range(20)}
    staying = JobWriter(join(), "e", lambda: now_s, is_shared=True)
    leaving = JobWriter(other := join(), "e", lambda: now_s, is_shared=True)
    assert staying.acquire()
    assert leaving.acquire()
    assert set(staying.share(keys)) | set(leaving.share(keys)) == set(keys) != set(staying.share(keys))
    other.close()
    for _ in range(3):  # as the rounds of a worker do: renew, then share
        now_s += base.RENEW_S
        staying.renew()
        shared = staying.share(keys)
    assert set(shared) == set(keys)


def test_parts_of_one_key_go_to_one_worker(join: Callable[[], Decisions]) -> None:
    workers = [join() for _ in range(3)]
    for one in workers:
        one.join("c")
    keys = dict.fromkeys([f"r{n}" for n in range(20)], "together")
    assert sorted(len(one.share("c", keys)) for one in workers) == [0, 0, 20]


def test_a_worker_that_shares_nothing_and_those_that_do_never_work_at_once(join: Callable[[], Decisions]) -> None:
    """During an upgrade, the workers of the version before know leases of whole jobs alone."""
    old, new, late = join(), join(), join()
    assert old.acquire("d") is not None
    new.join("d")
    assert new.share("d", {"r": "r"}) == {}
    old.close()
    assert set(new.share("d", {"r": "r"})) == {"r"}
    assert late.acquire("d") is None


@given(st.sets(st.integers(1, 10_000), min_size=2, max_size=8), st.text(max_size=8))
def test_a_worker_that_leaves_moves_its_own_parts_only(workers: set[int], key: str) -> None:
    chosen = _chosen(sorted(workers), key)
    for gone in workers - {chosen}:
        assert _chosen(sorted(workers - {gone}), key) == chosen


# --------------------------------------------------------------------------- certification by three workers

N_ROUTES, N_RUNS = 6, 300


def settings(store: Store) -> Settings:
    routes = {f"r{n}": ROUTE for n in range(N_ROUTES)}
    return Settings(upstreams={}, routes=routes, control=CONTROL, store=store)


def events() -> list[Event]:
    """Runs of all routes, in turn; one route's upstream changes, another one's answers turn bad."""
    by_route = list[list[Event]]()
    for n in range(N_ROUTES):
        first, half = 1_000 * n, N_RUNS // 2
        changes: dict[str, Any] = {"model": "m2"} if n == 1 else {"sure": False, "p_right": 0.4} if n == 2 else {}
        runs = traffic(half, seed=n, first=first) + traffic(N_RUNS - half, seed=50 + n, first=first + half, **changes)
        by_route.append([replace(one, route=f"r{n}") if isinstance(one, Request) else one for one in runs])
    return [one for at in zip(*by_route, strict=True) for one in at]


def fill(store: Store) -> LogLocation:
    log = LogWriter(replace_store(store), now=lambda: 1.0)
    for event in events():
        log.append(event)
        if log.n_waiting > 500:
            log.drain(60)
    assert log.drain(60)
    log.close()
    return log_location(store)


def replace_store(store: Store) -> Store:
    return msgspec.structs.replace(store, queue_rows=100_000)


@dataclass
class Disturbed(Certify):
    """Does what the test wants before a decision of a route is written."""

    disturb: Callable[[str], None] = field(default=lambda _: None, kw_only=True)

    def _write(self, name: str, resolution: Any, writer: JobWriter) -> None:
        if resolution is not None:
            self.disturb(name)
        super()._write(name, resolution, writer)


def worker(store: Store, stack: ExitStack, name: str, disturb: Callable[[str], None] = lambda _: None) -> Worker:
    path = log_location(store)
    decisions = Decisions(path, now=lambda: 1.0, monotonic_s=time.monotonic, lease_s=LONG_LEASE_S)
    stack.callback(decisions.close)
    return Worker(
        decisions=decisions,
        jobs=(Disturbed(settings=settings(store), path=path, author=name, disturb=disturb),),
        author=name,
        now=lambda: 1.0,
        monotonic_s=time.monotonic,
        new_id=lambda: uuid4().hex,
    )


def decided(path: LogLocation) -> tuple[dict[str, list[Any]], Counter[str]]:
    """The decisions of each route in order, without their authors, and how many each author made."""
    rows, authors = dict[str, list[Any]](), Counter[str]()
    with open_reader(path) as log:
        for stored in read_kinds(log, *DECIDED):
            row = to_row(stored.event)
            body = msgspec.json.decode(row.body)
            for fields in (one for one in body.values() if isinstance(one, dict) and "author" in one):
                authors[fields.pop("author")] += 1
            rows.setdefault(str(row.route), []).append((row.kind, row.key, body))
    return rows, authors


def work(one: Worker, until: Callable[[], bool]) -> None:
    while not until():
        one.round()
        time.sleep(0.3)


class Killed(BaseException):
    pass


@pytest.mark.slow
def test_three_workers_of_whom_one_dies_and_one_sleeps_decide_what_one_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "RENEW_S", 0.2)
    alone_store = Store(url=f"sqlite:///{tmp_path / 'log.db'}")
    with ExitStack() as stack:
        fill(alone_store)
        worker(alone_store, stack, "alone").round()
    expected, _ = decided(tmp_path / "log.db")
    assert len(expected) == N_ROUTES
    assert {kind for rows in expected.values() for kind, *_ in rows} >= {"alarm_raised", "policy_published"}

    with empty_log() as store, ExitStack() as stack:
        path, slept, n_written = fill(store), threading.Event(), Counter[str]()

        def dies(_: str) -> None:
            n_written["dead"] += 1
            if n_written["dead"] > N_ROUTES:  # each route's epoch has begun
                raise Killed

        def sleeps(_: str) -> None:
            n_written["sleeper"] += 1
            if not slept.is_set() and n_written["sleeper"] > 2:
                time.sleep(2 * LONG_LEASE_S)
                slept.set()

        workers = [
            worker(store, stack, "dead", dies),
            worker(store, stack, "sleeper", sleeps),
            worker(store, stack, "third"),
        ]
        ends_s = time.monotonic() + 300

        def is_over() -> bool:
            if time.monotonic() > ends_s:
                return True
            done, _ = decided(path)
            return slept.is_set() and sum(map(len, done.values())) >= sum(map(len, expected.values()))

        def run(one: Worker) -> None:
            with contextlib.suppress(Killed):  # nothing is released: its leases end by themselves
                work(one, is_over)

        threads = [threading.Thread(target=run, args=(one,)) for one in workers]
        for one in threads:
            one.start()
        for one in threads:
            one.join()
        done, authors = decided(path)
    assert {name: len(rows) for name, rows in done.items()} == {name: len(rows) for name, rows in expected.items()}
    assert done == expected
    assert set(authors) == {"dead", "sleeper", "third"}, "all of them had routes"
    assert slept.is_set()

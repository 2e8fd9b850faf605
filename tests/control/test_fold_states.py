"""A state that was stored is as good as the rows it was folded from, and any doubt about it makes it worthless."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec
import numpy as np
import pytest

from suffice.control.jobs import folds
from suffice.control.jobs.base import Worker
from suffice.control.jobs.certify import Certify
from suffice.control.jobs.folds import FoldStates, RowRouter
from suffice.control.jobs.monitor import Monitor
from suffice.control.jobs.review import ReviewJob
from suffice.control.jobs.snapshot import UnstorableState, restore_snapshot, take_snapshot
from suffice.control.loop.route_loop import RouteLoop
from suffice.settings import Route, Settings, Store
from suffice.store.database.decisions import Decisions
from suffice.store.database.erasing import ErasureOrder, erase_words
from suffice.store.database.location import LogLocation, log_location
from suffice.store.database.log import StoredEvent
from suffice.store.database.views import LogRow, last_place, open_reader, query_number, query_rows, read_log_rows
from suffice.store.database.writer import LogWriter
from suffice.store.rows.events import Event, to_row
from suffice.types import Request
from tests.control.made import CONTROL, ROUTE, Story, label, rows, story, traffic
from tests.control.test_shared_jobs import decided, events
from tests.postgres import empty_log

OWNED = msgspec.structs.replace(ROUTE, policy={"policy": "vote-share"})


def given(loop: RouteLoop) -> Mapping[str, object]:
    return Certify(settings=Settings(upstreams={}), path=Path("none")).given("r", loop)


def with_labels(n: int) -> list[StoredEvent]:
    """Traffic in which the upstream changes, with labels of every seventh run, some before it ends."""
    log = list[Event]()
    for number, one in enumerate([*traffic(n), *traffic(n // 4, seed=3, first=n, model="m2")]):
        log.append(one)
        if number % 14 in (0, 7):
            log.append(label(number // 2, correct=number % 3 > 0))
    return rows(log)


@pytest.mark.slow(keep=1)
@pytest.mark.parametrize(("route", "stride"), [(ROUTE, 40), (ROUTE, 1), (OWNED, 1)])
def test_a_loop_that_is_stored_and_made_again_wherever_it_is_cut_decides_the_same(route: Route, stride: int) -> None:
    log = with_labels(260)
    whole, cut = story(route).feed(log).settle(), story(route)
    for number, row in enumerate(log):
        cut.feed([row])
        if number % stride == 0:
            body = take_snapshot(cut.loop, given(cut.loop))
            cut = Story(restore_snapshot(body, given(cut.loop)), cut.artefacts, cut.decided)
    cut.settle()
    assert [type(one).__name__ for one in whole.decided].count("Epoch") == 1
    assert cut.decided == whole.decided
    assert take_snapshot(cut.loop, given(cut.loop)) == take_snapshot(whole.loop, given(whole.loop))


def test_shared_objects_stay_shared_and_numbers_keep_every_bit() -> None:
    array = np.asfortranarray(np.arange(6.0).reshape(2, 3) / 7)
    loop = [0.1, float("nan"), -0.0, 2**70, array, array, np.float64(1 / 3), range(3), {("a", 1): {3, 4}}, Counter(a=2)]
    loop.append(loop)
    made = restore_snapshot(take_snapshot(loop, {}), {})
    assert made[4] is made[5]
    assert made[4].flags.f_contiguous
    assert np.array_equal(made[4], array)
    assert made[10] is made
    assert [repr(one) for one in (*made[:4], *made[6:10])] == [repr(one) for one in (*loop[:4], *loop[6:10])]


@pytest.mark.parametrize("value", [lambda: 1, Path("x"), np.array([object()]), open])
def test_what_is_no_plain_data_of_ours_is_not_stored(value: object) -> None:
    with pytest.raises(UnstorableState):
        take_snapshot([value], {})


def test_a_state_names_no_class_of_another_package() -> None:
    body = msgspec.msgpack.encode(["object", "pathlib:Path", {}])
    with pytest.raises(ValueError, match="none of this package"):
        restore_snapshot(body, {})


# --------------------------------------------------------------------------- jobs


@pytest.fixture(params=["sqlite", "postgres"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    if request.param == "sqlite":
        yield Store(url=f"sqlite:///{tmp_path / 'log.db'}")
    else:
        with empty_log() as made:
            yield made


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folds, "SAVE_ROWS", 1)
    monkeypatch.setattr(folds, "ROW_BYTES", 10**9)


def settings_of(store: Store, **changes: Any) -> Settings:
    routes = {f"r{n}": ROUTE for n in range(6)}
    return Settings(upstreams={}, routes=routes, control=msgspec.structs.replace(CONTROL, **changes), store=store)


def append(store: Store, new: list[Event]) -> LogLocation:
    log = LogWriter(msgspec.structs.replace(store, queue_rows=100_000), now=lambda: 1.0)
    for event in new:
        log.append(event)
        if log.n_waiting > 500:
            log.drain(60)
    assert log.drain(60)
    log.close()
    return log_location(store)


def worker_of(decisions: Decisions, jobs: list[Any]) -> Worker:
    clocks: dict[str, Any] = {"now": lambda: 1.0, "monotonic_s": lambda: 0.0}
    return Worker(decisions=decisions, jobs=jobs, author="w", new_id=lambda: uuid4().hex, **clocks)


def rounds(settings: Settings, *kinds: type[Any], secret: str = "s", n: int = 1) -> None:
    """A worker that starts, does its rounds and is gone."""
    path = log_location(settings.store)
    common: dict[str, Any] = {"settings": settings, "path": path, "author": "w", "secret": secret, "now": lambda: 1.0}
    with Decisions(path, now=lambda: 1.0, monotonic_s=lambda: 0.0) as decisions, ExitStack() as stack:
        jobs = [kind(**common) for kind in kinds or (Certify,)]
        for job in jobs:
            stack.callback(job.close)
        worker = worker_of(decisions, jobs)
        for _ in range(n):
            worker.round()


@pytest.fixture
def n_read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts the rows that jobs read."""
    count, read = [0], read_log_rows

    def counted(*arguments: Any, **options: Any) -> Iterator[LogRow]:
        for row in read(*arguments, **options):
            count[0] += 1
            yield row

    monkeypatch.setattr("suffice.control.jobs.base.read_log_rows", counted)
    return count


@pytest.mark.slow
def test_workers_that_follow_each_other_decide_what_one_decides(store: Store, tmp_path: Path) -> None:
    alone, log = Store(url=f"sqlite:///{tmp_path / 'alone.db'}"), events()
    append(alone, log)
    rounds(settings_of(alone))
    expected, _ = decided(log_location(alone))
    for start in range(0, len(log), 500):
        path = append(store, log[start : start + 500])
        rounds(settings_of(store), Certify, Monitor, ReviewJob)
    done, _ = decided(path)
    for name, made in expected.items():
        ours = [one for one in done[name] if one[0] != "label_wanted"]
        assert [one[:2] for one in ours] == [one[:2] for one in made if one[0] != "label_wanted"]
        published = [[one for one in each if one[0] == "policy_published"] for each in (ours, made)]
        assert published[0] == published[1]


def test_a_worker_reads_only_the_rows_after_the_states(store: Store, n_read: list[int]) -> None:
    path = append(store, events()[:600])
    rounds(settings_of(store), Certify, Monitor, ReviewJob, n=2)
    with open_reader(path) as log:
        assert query_number(log, "SELECT count(*) FROM fold_states") == 3 * 6
        last = last_place(log)
    n_read[0] = 0
    rounds(settings_of(store), Certify, Monitor, ReviewJob)
    with open_reader(path) as log:
        assert n_read[0] <= 3 * (last_place(log) - last) + 30, "what the second round decided"


def change(path: LogLocation, *statements: tuple[str, tuple[object, ...]]) -> None:
    with Decisions(path, now=lambda: 1.0, monotonic_s=lambda: 0.0) as writer, writer.transaction() as log:
        for statement, values in statements:
            log.execute(statement, values)


def flip_bit(path: LogLocation, _: pytest.MonkeyPatch) -> None:
    ((body,),) = query_rows(path, "SELECT body FROM fold_states WHERE route = 'r0'")
    changed = bytes(body)[:-1] + bytes([bytes(body)[-1] ^ 1])
    change(path, ("UPDATE fold_states SET body = ? WHERE route = 'r0'", (changed,)))


def take_anothers(path: LogLocation, _: pytest.MonkeyPatch) -> None:
    move = "UPDATE fold_states SET route = 'r0' WHERE route = 'r1'"
    change(path, ("DELETE FROM fold_states WHERE route = 'r0'", ()), (move, ()))


def upgrade(_: LogLocation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folds, "code_digest", lambda: "other")


Doubt = tuple[Callable[[LogLocation, pytest.MonkeyPatch], None], dict[str, Any]]
DOUBTS: dict[str, Doubt] = {
    "another secret": (lambda *_: None, {"secret": "t"}),
    "other settings": (lambda *_: None, {"tick_requests": 25}),
    "other code": (upgrade, {}),
    "a changed bit": (flip_bit, {}),
    "another route's": (take_anothers, {}),
}


@pytest.mark.parametrize("doubt", DOUBTS)
def test_a_doubtful_state_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, doubt: str) -> None:
    store = Store(url=f"sqlite:///{tmp_path / 'log.db'}")
    path = append(store, events()[:300])
    rounds(settings_of(store))

    def state(secret: str = "s", **changes: Any) -> object:
        settings = settings_of(store, **changes)
        job = Certify(settings=settings, path=path, secret=secret)
        states = FoldStates(job="certify", settings=settings, secret=secret)
        with open_reader(path) as log:
            return states.load(log, "r0", job.given("r0", None))

    assert isinstance(state(), RouteLoop)
    disturb, changes = DOUBTS[doubt]
    disturb(path, monkeypatch)
    assert state(**changes) is None


def test_erased_text_leaves_the_states_and_does_not_come_back(store: Store) -> None:
    path = append(store, events()[:300])
    settings = settings_of(store)
    job = Certify(settings=settings, path=path, author="w", secret="s", now=lambda: 1.0)
    with Decisions(path, now=lambda: 1.0, monotonic_s=lambda: 0.0) as writer:
        worker = Worker(
            decisions=writer,
            jobs=[job],
            author="w",
            now=lambda: 1.0,
            monotonic_s=lambda: 0.0,
            new_id=lambda: uuid4().hex,
        )
        worker.round()
        count = "SELECT count(*) FROM fold_states"
        assert query_number(path, count) == 6
        order = ErasureOrder(erasure_id="e1", what="a run", parts=("answers",), author="a", reason="asked")
        erase_words(
            writer, order, [seq for (seq,) in query_rows(path, "SELECT seq FROM events WHERE kind = 'outcome'")]
        )
        assert query_number(path, count) == 0
        append(store, events()[300:400])
        worker.round()
        assert query_number(path, count) == 0, "what this worker has in memory may hold the text"
    rounds(settings)
    assert query_number(path, count) == 6


def test_a_row_reaches_the_folds_that_it_concerns(tmp_path: Path) -> None:
    log = [row._replace(seq=seq) for seq, row in enumerate(map(as_row, events()[:200]), 1)]
    router = RowRouter(("r0", "r1"), reads_senders=False)
    fed = {row.seq: router.routes_of(row) for row in log}
    run_of = {row.key: row.route for row in log if row.kind == "request"}
    for row in log:
        assert fed[row.seq] == tuple({run_of[row.key]} & {"r0", "r1"})
    late = as_row(label(999, correct=True))
    assert RowRouter(("r0", "r1"), reads_senders=False).routes_of(late) == ("r0", "r1"), "of a run it has not seen"


def test_a_new_sender_on_any_route_reaches_all_routes_once() -> None:
    router = RowRouter(("r0", "r1"), reads_senders=True)
    requests = [one for one in events() if isinstance(one, Request)][:3]
    sent = [as_row(replace(one, sender="key:1")) for one in requests]
    assert router.routes_of(sent[0]) == ("r0", "r1")
    assert {router.routes_of(row) for row in sent[1:]} <= {(), ("r0",), ("r1",)}


def as_row(event: Event) -> LogRow:
    row = to_row(event)
    return LogRow(1, 1.0, row.kind, row.key, row.episode_id, row.route, row.body)

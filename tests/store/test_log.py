"""What every database of a log promises: order, one row a key, an intact chain, nothing lost that was acknowledged."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from suffice.settings import Store
from suffice.store.audit.appender import Appender
from suffice.store.audit.verify import verify_chain
from suffice.store.database.location import LogLocation, database_at
from suffice.store.database.views import last_place, open_reader, read_episodes, read_events, snapshot
from suffice.store.database.writer import LogWriter
from suffice.store.rows.events import FeedbackEvent, to_row
from suffice.types import Feedback, Outcome
from tests.store.made_chain import named_request, published

Open = Callable[..., LogWriter]


def label(number: int, sender: str = "a", **more: Any) -> FeedbackEvent:
    name = f"{sender}-{number}"
    return FeedbackEvent(Feedback(feedback_id=name, episode_id=f"e{number}", correct=True, source="user", **more))


def ended(name: str, answer: str = "4") -> Outcome:
    return Outcome(episode_id=name, end_reason="done", status=200, answer=answer, response_id=name, usage=None)


def test_a_reader_never_passes_a_row_that_has_yet_to_appear(open_log: Open, database: LogLocation) -> None:
    """A transaction that began first and commits last would have the lower place, behind what a reader has read."""
    log, order = open_log(flush_ms=0), list[str]()
    with database_at(database).transaction() as connection:
        slow = Appender(connection, owner=1).add_all([(to_row(published(1)), 1.0)])[0].seq

        async def append() -> int:
            receipt = await log.append_durable(label(1))
            order.append("label")
            return receipt.seq

        later = threading.Thread(target=lambda: order.append(str(asyncio.run(append()))))
        later.start()
        time.sleep(0.3)
        with open_reader(database) as reader:
            assert last_place(reader) < slow, "nothing is visible before it is committed"
        assert not order, "and nobody commits a later place"
        order.append("publication")
    later.join()
    assert order == ["publication", "label", str(slow + 1)]


def test_a_poller_beside_many_writers_misses_nothing_and_the_chain_holds(open_log: Open, database: LogLocation) -> None:
    logs, n = [open_log(flush_ms=1) for _ in range(4)], 150
    seen, is_over = list[int](), threading.Event()

    def poll() -> None:
        while True:
            last_round = is_over.is_set()
            seen.extend(one.seq for one in read_events(database, since_seq=seen[-1] if seen else 0))
            if last_round:
                return

    def fill(number: int) -> None:
        for i in range(n):
            assert logs[number].append(label(i, f"w{number}"))
            time.sleep(0.0005)

    poller, writers = threading.Thread(target=poll), [threading.Thread(target=fill, args=(i,)) for i in range(4)]
    for one in (poller, *writers):
        one.start()
    for one in writers:
        one.join()
    assert all(log.drain(20.0) for log in logs)
    is_over.set()
    poller.join()
    assert seen == [one.seq for one in read_events(database)]
    assert len(seen) == 4 * n
    with open_reader(database) as reader:
        check = verify_chain(reader)
    assert check.ok, check.bad
    assert check.n_rows == 4 * n + 1


async def test_a_key_is_written_once_whoever_sends_it(open_log: Open, database: LogLocation) -> None:
    one, other = open_log(), open_log()
    one.append(named_request("e1"))
    first = await one.append_durable(label(1, comment="good"))
    again = await other.append_durable(label(1, comment="good"))
    changed = await other.append_durable(label(1, comment="bad"))
    assert (first.duplicate, first.joined) == (False, True)
    assert (again.duplicate, again.conflict, again.seq) == (True, False, first.seq)
    assert (changed.duplicate, changed.conflict) == (True, True)
    assert len([*read_events(database)]) == 2


def test_a_batch_may_hold_a_key_twice(open_log: Open, database: LogLocation) -> None:
    log = open_log(flush_ms=200)
    for _ in range(3):
        log.append(label(1))
    assert log.drain()
    assert log.n_written == len([*read_events(database)]) == 1


def test_a_snapshot_shows_one_state(open_log: Open, database: LogLocation) -> None:
    log = open_log()
    log.append(label(1))
    assert log.drain()
    with snapshot(database) as reader:
        before = last_place(reader)
        log.append(label(2))
        assert log.drain()
        assert last_place(reader) == before
    with open_reader(database) as reader:
        assert last_place(reader) == before + 1


@pytest.mark.parametrize(
    "answer", ["", "null \0 character", r"a backslash before \u0000", "🐘 '; DROP TABLE events; --", "\\"]
)
def test_any_answer_comes_back_as_it_was(open_log: Open, database: LogLocation, answer: str) -> None:
    log = open_log()
    log.append(named_request("e1"))
    log.append(ended("e1", answer))
    assert log.drain()
    assert log.n_failed == 0
    assert [one.episode.outcome.answer for one in read_episodes(database)] == [answer]


def test_requests_of_a_process_that_ended_are_lost_once(open_log: Open, database: LogLocation) -> None:
    gone, here = open_log(), open_log()
    gone.append(named_request("open"))
    gone.append(named_request("done"))
    gone.append(ended("done"))
    assert gone.drain()
    assert here.recover() == 0, "it lives"
    gone.close()
    assert [here.recover(), open_log().recover()] == [1, 0]
    by_name = {one.episode.request.episode_id: one.episode.outcome.end_reason for one in read_episodes(database)}
    assert by_name == {"open": "lost", "done": "done"}


def test_what_is_queued_at_the_end_is_written(open_log: Open, store: Store, database: LogLocation) -> None:
    log = open_log(flush_ms=5_000)
    for number in range(50):
        log.append(label(number))
    log.close()
    assert not log.append(label(99))
    assert len([*read_events(database)]) == 50


def test_whoever_watches_gets_a_reader_at_first_and_after_each_write(open_log: Open, database: LogLocation) -> None:
    log, is_over = open_log(), threading.Event()
    seen = (last_place(reader) for reader in database_at(database).watch(is_over))
    before = next(seen)
    log.append(named_request("e1"))
    assert log.drain()
    assert next(one for one in seen if one > before) == before + 1
    is_over.set()
    assert [*seen] == []

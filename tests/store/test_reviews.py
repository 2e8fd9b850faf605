"""The queue on a real file: two at once, twice the same, and a file that somebody else has locked."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest

from suffice.errors import StoreError
from suffice.review.items import ReviewItem, ReviewLease, Verdict, VerdictForm
from suffice.review.queue import Submission
from suffice.store.database import sqlite
from suffice.store.database.decisions import Decisions
from suffice.store.database.location import LogLocation
from suffice.store.database.sqlite import SqliteConnection
from suffice.store.database.views import open_reader, read_events
from suffice.store.people.deciding import (
    NO_REVIEWS,
    give_item_back,
    kept_question,
    lease_next,
    read_reviews,
    submit_verdict,
)
from suffice.store.routes.deployments import read_holds
from suffice.store.rows.events import FeedbackEvent, QuestionText
from tests.review.made import item
from tests.review.test_select import drawing

Query = Callable[..., list[tuple[Any, ...]]]


@pytest.fixture
def writer(database: LogLocation) -> Iterator[Decisions]:
    with Decisions(database, now=lambda: 1.0, monotonic_s=lambda: 0.0) as opened:
        yield opened


def verdict(reviewer: str = "ann", *, full: bool = True, name: str = "ep_1", **more: Any) -> VerdictForm:
    return VerdictForm(item=name, reviewer=reviewer, word="full" if full else "early", **more)


def given(answer: Submission | str) -> Submission:
    assert isinstance(answer, Submission), answer
    return answer


def labels(database: LogLocation) -> list[Any]:
    return [one.event.feedback for one in read_events(database) if isinstance(one.event, FeedbackEvent)]


def test_an_item_goes_its_way_through_the_log(writer: Decisions, database: LogLocation) -> None:
    assert lease_next(writer, "ann", now_s=1.0) is None
    assert writer.write_new(item())
    assert not writer.write_new(item(why="person")), "a run is asked about once"
    lease = lease_next(writer, "ann", now_s=1.0)
    assert isinstance(lease, ReviewLease)
    assert lease_next(writer, "ann", now_s=2.0) == lease
    assert lease_next(writer, "bob", now_s=2.0) is None
    submission = given(submit_verdict(writer, verdict(reason="carry"), now_s=3.0))
    assert submission.label is not None
    assert labels(database) == [submission.label]
    place = read_reviews(database).queue.places["ep_1"]
    assert place.state(4.0) == "settled"
    assert isinstance(place.verdicts[0], Verdict)


def test_sent_twice_is_one_row_and_one_label(writer: Decisions, database: LogLocation, query: Query) -> None:
    writer.write_new(item())
    for _ in range(3):
        given(submit_verdict(writer, verdict(), now_s=3.0))
    assert query("SELECT count(*) FROM events WHERE kind = 'review_verdict'") == [(1,)]
    assert len(labels(database)) == 1
    changed = given(submit_verdict(writer, verdict(full=False), now_s=4.0))
    assert changed.verdict is not None
    assert [one.correct for one in labels(database)] == [True, False], "the last one is the one that counts"


def test_two_who_reach_for_the_last_place_at_once_do_not_both_get_it(database: LogLocation, writer: Decisions) -> None:
    writer.write_new(item())
    got: list[ReviewLease | None] = []
    words: list[Submission | str] = []

    def reach(name: str) -> None:
        with Decisions(database, now=lambda: 1.0, monotonic_s=lambda: 0.0) as own:
            got.append(lease_next(own, name, now_s=1.0))
            words.append(submit_verdict(own, verdict(name), now_s=2.0))

    threads = [threading.Thread(target=reach, args=(f"reviewer {n}",)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(one is not None for one in got) <= 1
    place = read_reviews(database).queue.places["ep_1"]
    assert sum(one.slot is not None for one in place.verdicts) == 1
    assert len(place.verdicts) == 6, "nothing that was said is lost"
    assert len(labels(database)) == 1


def test_one_form_sent_by_many_windows_at_once_is_one_verdict(
    database: LogLocation, writer: Decisions, query: Query
) -> None:
    writer.write_new(item())

    def send() -> None:
        with Decisions(database, now=lambda: 1.0, monotonic_s=lambda: 0.0) as own:
            given(submit_verdict(own, verdict(), now_s=2.0))

    threads = [threading.Thread(target=send) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert query("SELECT count(*) FROM events WHERE kind IN ('review_verdict', 'feedback')") == [(2,)]


@pytest.mark.sqlite_only
def test_a_locked_file_loses_nothing_and_says_what_to_do(
    writer: Decisions, database: LogLocation, query: Query, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "BUSY_S", 0.5)  # for which a transaction waits
    writer.write_new(item())
    lease_next(writer, "ann", now_s=1.0)
    before = query("SELECT count(*) FROM events")
    with closing(sqlite3.connect(str(database), isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="another process has held it"):
            submit_verdict(writer, verdict(), now_s=2.0)
        other.execute("ROLLBACK")
    assert query("SELECT count(*) FROM events") == before
    assert given(submit_verdict(writer, verdict(), now_s=3.0)).label is not None


def test_giving_back_is_for_whoever_has_it(writer: Decisions) -> None:
    writer.write_new(item())
    assert not give_item_back(writer, "ep_1", "ann", "", now_s=1.0)
    assert not give_item_back(writer, "ep_9", "ann", "", now_s=1.0)
    lease_next(writer, "ann", now_s=1.0)
    assert give_item_back(writer, "ep_1", "ann", "later", now_s=2.0)
    bob = lease_next(writer, "bob", now_s=3.0)
    assert bob is not None
    assert bob.turn == 2


def test_a_third_is_shown_contradictions_alone(writer: Decisions) -> None:
    writer.write_new(item("ep_1", n_reviewers=2, priority=1.0))
    writer.write_new(item("ep_2", priority=9.0))
    assert lease_next(writer, "cas", now_s=1.0, third=True) is None
    for name, full in (("ann", True), ("bob", False)):
        given(submit_verdict(writer, verdict(name, full=full), now_s=2.0))
    lease = lease_next(writer, "cas", now_s=3.0, third=True)
    assert lease is not None
    assert (lease.item, lease.slot) == ("ep_1", 0)
    assert submit_verdict(writer, verdict("cas", name="ep_7"), now_s=4.0) == (
        "unknown item 'ep_7': no review was requested for such a run"
    )
    assert "needs the reviewer's name" in str(submit_verdict(writer, verdict(""), now_s=4.0))


def test_only_what_is_new_is_read(writer: Decisions, database: LogLocation) -> None:
    assert read_reviews(database) is NO_REVIEWS
    writer.write_new(item())
    known = read_reviews(database)
    assert read_reviews(database, known) is known
    writer.write(None, [drawing(1, 9, ("ep_1",))])
    later = read_reviews(database, known)
    assert later == read_reviews(database)
    assert known.queue.drawings == {}, "a snapshot does not change"


def test_a_kept_question_is_shown_for_its_time(writer: Decisions, database: LogLocation) -> None:
    writer.write(None, [QuestionText(episode_id="ep_1", route="r", text="2 + 2?", expires_at_s=50.0)])
    assert kept_question(database, "ep_1", now_s=49.0) == "2 + 2?"
    assert kept_question(database, "ep_1", now_s=50.0) is None
    assert kept_question(database, "ep_2", now_s=1.0) is None


def test_all_new_writes_all_or_nothing(writer: Decisions, query: Query) -> None:
    one, two = item("ep_1"), item("ep_2")
    assert writer.write(None, [one], all_new=True) == [True]
    assert writer.write(None, [two, one], all_new=True) == [True, False]
    assert query("SELECT key FROM events") == [("ep_1",)]
    assert writer.write(None, [two, one]) == [True, False]
    assert query("SELECT key FROM events ORDER BY key") == [("ep_1",), ("ep_2",)]


@pytest.mark.sqlite_only
def test_the_queue_and_what_people_hold_are_read_through_their_own_indexes(writer: Decisions, query: Query) -> None:
    request = list[str]()
    for read, index in ((read_reviews, "reviews"), (read_holds, "holds")):
        with open_reader(writer.path) as connection:
            assert isinstance(connection, SqliteConnection)
            connection.set_trace_callback(request.append)
            read(connection)
        plan = query(f"EXPLAIN QUERY PLAN {request[-1]}")
        assert any(f"USING INDEX {index}" in str(row) for row in plan), plan


def test_an_item_is_what_it_was(writer: Decisions, database: LogLocation) -> None:
    made: ReviewItem = item(deadline_s=9.0, propensity=0.25, drawing=3, question_key="q", query_class="choice")
    writer.write_new(made)
    assert read_reviews(database).queue.places["ep_1"].item == made

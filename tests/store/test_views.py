"""Whole episodes come back with their labels, whatever the order in which the rows arrived."""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suffice.errors import StoreError
from suffice.settings import Store
from suffice.store.events import Event, FeedbackGiven, RequestEnded, RequestSeen
from suffice.store.sqlite import SqliteLog
from suffice.store.views import Labelled, read_episodes, read_recent, route_counts
from suffice.types import Feedback, Mode, Outcome, Request

Open = Callable[..., SqliteLog]


def seen(episode_id: str, route: str = "math", mode: Mode = "observe") -> RequestSeen:
    return RequestSeen(Request(
        episode_id=episode_id, route=route, kind="reasoning", mode=mode, model="m", stream=False,
        n_samples=1, audit=False, propensity=1.0, policy_version="v", certified=False, question_key="",
        ungoverned=None, received_at_s=0.0,
    ))


def ended(episode_id: str) -> RequestEnded:
    return RequestEnded(Outcome(
        episode_id=episode_id, end_reason="done", status=200, answer="4", response_id=f"r-{episode_id}",
        usage=None))


def said(feedback_id: str, **fields: Any) -> FeedbackGiven:
    return FeedbackGiven(Feedback(feedback_id=feedback_id, **fields))


def read_after(events: Sequence[Event]) -> list[Labelled]:
    """What a reader finds when the events arrived in this order."""
    with tempfile.TemporaryDirectory() as folder:
        log = SqliteLog.open(Store(url=f"sqlite:///{folder}/a.db", flush_ms=0), now=lambda: 0.0)
        for event in events:
            assert log.append(event)
        log.close()
        return list(read_episodes(log.path))


def plain(found: Labelled) -> tuple[Request, Outcome, list[str]]:
    """An episode without its places in the log."""
    labels = [label.feedback.feedback_id for label in found.labels]
    return found.episode.request, found.episode.outcome, labels


EPISODE: list[Event] = [seen("a"), ended("a"), seen("b"), ended("b")]
LABELS: list[Event] = [
    said("1", episode_id="a", correct=True),
    said("2", response_id="r-a", correct=False),
    said("3", episode_id="b", gold="4"),
    said("4", response_id="r-a", gold="5"),
    said("5", episode_id="a", thumbs="up"),
    said("6", episode_id="nobody", correct=True),
]


@given(order=st.permutations(range(len(EPISODE) + len(LABELS))))
@settings(max_examples=40, derandomize=True, deadline=None)
def test_labels_join_in_the_order_received_wherever_their_episode_arrived(order: list[int]) -> None:
    events = [(EPISODE + LABELS)[i] for i in order]
    found = {episode.episode.request.episode_id: episode for episode in read_after(events)}
    assert sorted(found) == ["a", "b"]
    for name, response in (("a", "r-a"), ("b", "r-b")):
        received = [
            event.feedback.feedback_id for event in events
            if isinstance(event, FeedbackGiven) and
            (event.feedback.episode_id == name or event.feedback.response_id == response)
        ]
        assert plain(found[name]) == (seen(name).request, ended(name).outcome, received)
        places = [label.seq for label in found[name].labels]
        assert places == sorted(places)


SLOTS = ["label"] * len(LABELS) + ["row"] * len(EPISODE)


@given(slots=st.permutations(SLOTS), rows=st.permutations(EPISODE))
@settings(max_examples=30, derandomize=True, deadline=None)
def test_the_same_labels_in_the_same_order_give_the_same_state(slots: list[str], rows: list[Event]) -> None:
    labels, others = iter(LABELS), iter(rows)
    events = [next(labels) if slot == "label" else next(others) for slot in slots]
    state = {found.episode.request.episode_id: plain(found) for found in read_after(events)}
    assert {name: ids for name, (_, _, ids) in state.items()} == {"a": ["1", "2", "4", "5"], "b": ["3"]}


def test_a_route_can_be_read_alone_and_from_a_place_on(open_log: Open, database: Path) -> None:
    log = open_log()
    for i in range(1_100):
        log.append(seen(f"e{i}", route="math" if i % 2 else ""))
        log.append(ended(f"e{i}"))
    log.append(seen("still running"))
    assert log.drain()
    everything = list(read_episodes(database))
    assert [e.episode.request.episode_id for e in everything] == [f"e{i}" for i in range(1_100)]
    assert {e.episode.request.route for e in read_episodes(database, "math")} == {"math"}
    assert len(list(read_episodes(database, ""))) == 550
    rest = list(read_episodes(str(database), since_seq=everything[599].seq))
    assert rest == everything[600:]
    with closing(sqlite3.connect(database)) as connection:
        assert list(read_episodes(connection, "math")) == list(read_episodes(database, "math"))


def test_an_episode_whose_request_came_last_is_not_passed_over(open_log: Open, database: Path) -> None:
    log = open_log()
    log.append(ended("late"))
    log.append(seen("a"))
    log.append(ended("a"))
    assert log.drain()
    first = list(read_episodes(database))
    log.append(seen("late"))
    assert log.drain()
    later = list(read_episodes(database, since_seq=first[-1].seq))
    assert [e.episode.request.episode_id for e in later] == ["late"]


def test_routes_are_counted(open_log: Open, database: Path) -> None:
    log = open_log()
    for event in (seen("a"), ended("a"), seen("b"), seen("c", mode="enforce"), seen("d", route=""),
                  said("1", episode_id="a"), said("2", response_id="r-a"), said("3", episode_id="b")):
        log.append(event)
    assert log.drain()
    unmatched, math = route_counts(database)
    assert (unmatched.route, unmatched.n_requests, unmatched.n_outcomes) == ("", 1, 0)
    assert unmatched.n_feedback == 0
    assert (math.route, math.n_requests, math.n_outcomes, math.n_feedback) == ("math", 3, 1, 2)
    assert math.latest.request.mode == "enforce"


def test_what_cannot_be_read_is_named(open_log: Open, database: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no such file"):
        list(read_episodes(tmp_path / "nothing.db"))
    (tmp_path / "empty.db").touch()
    with pytest.raises(StoreError, match="is empty"):
        list(read_episodes(tmp_path / "empty.db"))
    (tmp_path / "text.db").write_text("not a database, only a long enough text" * 50)
    with pytest.raises(StoreError, match="cannot be read"):
        list(read_episodes(tmp_path / "text.db"))
    log = open_log()
    log.append(seen("a"))
    log.append(ended("a"))
    log.close()
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("UPDATE events SET body = '{}' WHERE kind = 'outcome'")
    with pytest.raises(StoreError, match=r"row 2 \(outcome\)"):
        list(read_episodes(database))


def test_kinds_of_a_later_version_are_skipped(open_log: Open, database: Path) -> None:
    log = open_log()
    log.append(seen("a"))
    assert log.drain()
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("INSERT INTO events (kind, key, at_s, owner, body) "
                           "VALUES ('gossip', 'x', 0, 1, '{}')")
    log.append(ended("a"))
    assert log.drain()
    assert [stored.seq for stored in log.read()] == [1, 3]


def test_the_latest_runs_come_oldest_first(open_log: Open, database: Path) -> None:
    log = open_log()
    for name in "abcd":
        log.append(seen(name, route=f"route-{name}"))
    for name in "badc":
        log.append(ended(name))
    log.append(seen("running"))
    log.close()
    assert [e.request.episode_id for e in read_recent(database, 3)] == ["a", "d", "c"]
    assert [e.request.episode_id for e in read_recent(database, 9)] == ["b", "a", "d", "c"]
    assert list(read_recent(database, 0)) == []

"""Whole episodes come back with their labels, whatever the order in which the rows arrived."""

from __future__ import annotations

import json
import sqlite3
import tempfile
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suffice.errors import StoreError
from suffice.settings import Store
from suffice.store.database.location import LogLocation
from suffice.store.database.run_search import read_runs_before
from suffice.store.database.sqlite import SqliteConnection
from suffice.store.database.views import (
    EpisodeWithLabels,
    n_requests_of,
    newest_request,
    open_reader,
    read_episodes,
    read_events,
    read_recent,
)
from suffice.store.database.writer import LogWriter
from suffice.store.people.alerts import AlertLog, read_alert_log
from suffice.store.routes.rollups import RouteScorer, tallies_now
from suffice.store.rows.events import Event, FeedbackEvent, RequestCount
from suffice.types import (
    Alarm,
    ArmDraw,
    Feedback,
    Mode,
    Outcome,
    Overhead,
    Query,
    Request,
    StepRecord,
    UpstreamCall,
    Usage,
)
from tests.drawn import examples
from tests.records import plain_request

Open = Callable[..., LogWriter]


def seen(episode_id: str, route: str = "math", mode: Mode = "observe") -> Request:
    return plain_request(episode_id, route=route, mode=mode)


def ended(episode_id: str) -> Outcome:
    return Outcome(
        episode_id=episode_id, end_reason="done", status=200, answer="4", response_id=f"r-{episode_id}", usage=None
    )


def feedback(feedback_id: str, **fields: Any) -> FeedbackEvent:
    return FeedbackEvent(Feedback(feedback_id=feedback_id, **fields))


def read_after(events: Sequence[Event]) -> list[EpisodeWithLabels]:
    """What a reader finds when the events arrived in this order."""
    with tempfile.TemporaryDirectory() as folder:
        log = LogWriter(Store(url=f"sqlite:///{folder}/a.db", flush_ms=0), now=lambda: 0.0)
        for event in events:
            assert log.append(event)
        log.close()
        return list(read_episodes(log.path))


def plain(run: EpisodeWithLabels) -> tuple[Request, Outcome, list[str]]:
    """An episode without its places in the log."""
    labels = [label.feedback.feedback_id for label in run.labels]
    return run.episode.request, run.episode.outcome, labels


EPISODE: list[Event] = [seen("a"), ended("a"), seen("b"), ended("b")]
LABELS: list[Event] = [
    feedback("1", episode_id="a", correct=True),
    feedback("2", response_id="r-a", correct=False),
    feedback("3", episode_id="b", gold="4"),
    feedback("4", response_id="r-a", gold="5"),
    feedback("5", episode_id="a", thumbs="up"),
    feedback("6", episode_id="nobody", correct=True),
]


@given(order=st.permutations(range(len(EPISODE) + len(LABELS))))
@settings(max_examples=examples(40))
def test_labels_join_in_the_order_received_wherever_their_episode_arrived(order: list[int]) -> None:
    events = [(EPISODE + LABELS)[i] for i in order]
    runs = {episode.episode.request.episode_id: episode for episode in read_after(events)}
    assert sorted(runs) == ["a", "b"]
    for name, response in (("a", "r-a"), ("b", "r-b")):
        received = [
            event.feedback.feedback_id
            for event in events
            if isinstance(event, FeedbackEvent)
            and (event.feedback.episode_id == name or event.feedback.response_id == response)
        ]
        assert plain(runs[name]) == (seen(name), ended(name), received)
        places = [label.seq for label in runs[name].labels]
        assert places == sorted(places)


SLOTS = ["label"] * len(LABELS) + ["row"] * len(EPISODE)


@given(slots=st.permutations(SLOTS), rows=st.permutations(EPISODE))
@settings(max_examples=examples(30))
def test_the_same_labels_in_the_same_order_give_the_same_state(slots: list[str], rows: list[Event]) -> None:
    labels, others = iter(LABELS), iter(rows)
    events = [next(labels) if slot == "label" else next(others) for slot in slots]
    state = {run.episode.request.episode_id: plain(run) for run in read_after(events)}
    assert {name: ids for name, (_, _, ids) in state.items()} == {"a": ["1", "2", "4", "5"], "b": ["3"]}


@pytest.mark.sqlite_only
def test_a_route_can_be_read_alone_and_from_a_place_on(open_log: Open, database: LogLocation) -> None:
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
    with closing(SqliteConnection(str(database))) as connection:
        assert list(read_episodes(connection, "math")) == list(read_episodes(database, "math"))


def test_runs_of_a_tenant_are_read_alone(open_log: Open, database: LogLocation) -> None:
    log = open_log()
    for i, tenant in enumerate(("acme", "other", "", "acme", "o'ther")):
        log.append(replace(seen(f"e{i}"), tenant=tenant))
        log.append(ended(f"e{i}"))
    assert log.drain()

    def read(*tenants: str, route: str | None = None) -> list[str]:
        with open_reader(database) as reader:
            rows = read_runs_before(reader, 2**62, route, 10, tenants=tenants)
            return [json.loads(row[3])["request"]["tenant"] for row in rows]

    assert read("acme") == ["acme", "acme"]
    assert read("other", "") == ["", "other"]
    assert read("o'ther") == ["o'ther"]
    assert read("acme", route="elsewhere") == read("nobody") == read() == []
    with open_reader(database) as reader:
        assert len(read_runs_before(reader, 2**62, None, 10, tenants=None)) == 5


def test_an_episode_whose_request_came_last_is_not_passed_over(open_log: Open, database: LogLocation) -> None:
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


def test_requests_and_outcomes_are_counted_by_route(open_log: Open, database: LogLocation) -> None:
    log = open_log()
    for event in (
        seen("a"),
        ended("a"),
        seen("b"),
        seen("c", mode="enforce"),
        seen("d", route=""),
        feedback("1", episode_id="a"),
        feedback("2", response_id="r-a"),
        feedback("3", episode_id="b"),
    ):
        log.append(event)
    assert log.drain()
    with open_reader(database) as connection:
        tallies = tallies_now(connection, lambda _route: RouteScorer("", lambda answer, gold: answer == gold))
        assert newest_request(connection, "math") == seen("c", mode="enforce")
    assert {name: (one.n_begun, sum(one.ends.values())) for name, one in tallies.items()} == {
        "": (1, 0),
        "math": (3, 1),
    }


def test_requests_are_counted_as_far_as_anybody_asks_and_those_without_rows_with_them(
    open_log: Open, database: LogLocation
) -> None:
    log = open_log()
    for event in (seen("a"), seen("b"), seen("d", route="")):
        log.append(event)
    for number in range(2):
        log.append(RequestCount(count_id=f"c{number}", route="math", n_requests=5, n_governed=5, cells=()))
    assert log.drain()
    assert n_requests_of(database, ("math", "none"), most=100) == {"math": 12, "none": 0}
    assert n_requests_of(database, ("math",), most=7) == {"math": 7}
    assert n_requests_of(database, ("math",), most=1) == {"math": 1}


@pytest.mark.sqlite_only
def test_what_cannot_be_read_is_named(open_log: Open, database: LogLocation, tmp_path: Path) -> None:
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
    with closing(SqliteConnection(str(database))) as connection, connection:
        connection.execute("UPDATE events SET body = '{}' WHERE kind = 'outcome'")
    with pytest.raises(StoreError, match=r"row 2 \(outcome\)"):
        list(read_episodes(database))


@pytest.mark.sqlite_only
def test_kinds_of_a_later_version_are_skipped(open_log: Open, database: LogLocation) -> None:
    log = open_log()
    log.append(seen("a"))
    assert log.drain()
    with closing(SqliteConnection(str(database))) as connection, connection:
        connection.execute("INSERT INTO events (kind, key, at_s, owner, body) VALUES ('gossip', 'x', 0, 1, '{}')")
    log.append(ended("a"))
    assert log.drain()
    assert [stored.seq for stored in read_events(database)] == [1, 3]


def test_the_latest_runs_come_oldest_first(open_log: Open, database: LogLocation) -> None:
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


WHOLE = Feedback(
    feedback_id="f",
    episode_id="a",
    response_id="r-a",
    correct=True,
    gold="4",
    answer="5",
    rating=4,
    thumbs="up",
    comment="fine",
    source="user",
    reason="because",
    sender="k",
    request_reason="disagreement",
    metrics=(("helpful", True), ("speed", 2.5)),
    satisfaction=0.75,
    event="abandon",
    user="u",
    propensity=0.5,
    door="token",
)


WHOLE_REQUEST = Request(
    episode_id="a",
    route="math",
    kind="samples",
    mode="enforce",
    model="m-7",
    stream=True,
    n_samples=8,
    audit=True,
    propensity=0.25,
    policy_version="v@3",
    certified=True,
    question_key="q",
    ungoverned="tools",
    received_at_s=7.5,
    endpoint="/v1/completions",
    query=Query(query_class="sums", metadata=(("task", "add"),), n_chars=9),
    unit="u",
    setup="s",
    promise="budgeted",
    sender="k",
    keep_rate=0.5,
    kept_by="lot",
    arms=(ArmDraw(experiment="x", run=2, arm="b", propensity=0.5, others=(("a", 0.5),), unit="w"),),
    delivery=2,
    conversation="c",
    tenant="t",
    form="tools",
    seeded=True,
)
WHOLE_STEP = StepRecord(
    index=3,
    tokens=11,
    answer="4",
    answer_source="caller",
    confidence=0.5,
    entropy=0.25,
    probe_tokens=5,
    action="stop",
    reason="enough",
    logprobs=(-0.5, -0.25),
    hedges=2,
    ctx_tokens=40,
    late_tokens=7,
    logprob=-0.125,
    stated_confidence=0.75,
    reported_done=True,
    caller_action="search",
    draft_distance=0.0625,
    hedge_rate=1.5,
    loop_share=0.375,
    margin=0.625,
    mass=0.875,
    closed_entropy=0.03125,
    end_margin=1.75,
    known_words=0.625,
    pattern_code=-0.375,
    missing=True,
)
WHOLE_OUTCOME = Outcome(
    episode_id="a",
    end_reason="stopped",
    status=200,
    answer="4",
    response_id="r-a",
    usage=Usage(prompt_tokens=7, completion_tokens=30, reasoning_tokens=20, cached_tokens=3),
    overhead=Overhead(
        probe_tokens=6, extra_prompt_tokens=14, cached_prompt_tokens=5, discarded_tokens=8, n_extra_calls=2
    ),
    calls=(UpstreamCall(purpose="main", prompt_tokens=7, cached_tokens=3, completion_tokens=31, source="counted"),),
    stopped=True,
    stop_reason="suffices",
    stop_step=3,
    would_answer="5",
    decision="it is enough",
    finish_method="raw",
    handover_ms=12.5,
    tokens_saved_estimate=90,
    estimate_method="median",
    cost_usd=0.5,
    overhead_usd=0.25,
    would_cost_usd=0.375,
    saved_usd_estimate=0.125,
    degraded=("probe",),
    vote=(("4", 2), ("5", 1)),
    steps=(WHOLE_STEP,),
    unclosed=True,
    duration_s=1.5,
    ttft_s=0.5,
    model="m-7",
    system_fingerprint="fp",
    finish_step=2,
    finish_answer="6",
    pair_arm="full",
    pair_propensity=0.0625,
    pair_answer="9",
    pair_tokens=77,
    finished_unread=True,
    has_less_effort=True,
)
AT_FIRST = {"logprobs", "stopped", "decision", "unclosed", "duration_s", "calls", "degraded", "vote"}  # in every row
IN_BOTH = {"route", "status", "answer"}  # of every run
Row = dict[str, Any]
RUN = {"seq", "at_s", "route"}
# What a view shows beside the fields of its record, and the question that has them all.
COLUMNS: dict[str, tuple[set[str], str]] = {
    "feedback": (RUN | {"joined"}, "SELECT * FROM feedback ORDER BY seq"),
    "requests": (RUN - {"route"}, "SELECT * FROM requests ORDER BY seq"),
    "outcomes": (RUN, "SELECT * FROM outcomes JOIN costs USING (seq, at_s, episode_id, route, stopped) ORDER BY seq"),
    "steps": (RUN - {"at_s"} | {"episode_id"}, "SELECT * FROM steps ORDER BY seq"),
}


def report_of(record: Feedback | Request | Outcome | StepRecord) -> Row:
    """A record by the names that its view has: counts stand by themselves, and steps have a view of their own."""
    row = msgspec.to_builtins(record)
    if isinstance(record, StepRecord):
        row["step"] = row.pop("index")
    if isinstance(record, Request) and record.query is not None:
        row["query"] = {name: value for name, value in row["query"].items() if value is not None}
    if isinstance(record, Outcome):
        del row["steps"]
        usage = row.pop("usage")
        row |= dict.fromkeys(one.name for one in fields(Usage)) if usage is None else usage
        row |= row.pop("overhead")
    report: Row = json.loads(json.dumps(row))
    return report


def rows_of(database: LogLocation, view: str, record: Row) -> list[Row]:
    """What a view shows, with the JSON read where the record has a list or parts."""
    with closing(SqliteConnection(str(database))) as connection:
        connection.row_factory = sqlite3.Row
        return [
            {
                name: json.loads(value) if isinstance(record.get(name), list | dict) and value is not None else value
                for name, value in dict(row).items()
            }
            for row in connection.execute(COLUMNS[view][1])
        ]


def log_whole_and_bare(open_log: Open) -> dict[str, tuple[Row, Row]]:
    """Log a run that says everything and one that says nothing; of each view what its two rows have to show."""
    step = StepRecord(
        index=1,
        tokens=0,
        answer=None,
        answer_source=None,
        confidence=None,
        entropy=None,
        probe_tokens=0,
        action="continue",
        reason="",
    )
    request, outcome = seen("b"), replace(ended("b"), steps=(step,))
    plain = Feedback(feedback_id="g")
    log = open_log()
    for event in (
        WHOLE_REQUEST,
        request,
        WHOLE_OUTCOME,
        outcome,
        FeedbackEvent(WHOLE),
        FeedbackEvent(plain),
    ):
        assert log.append(event)
    assert log.drain()
    return {
        "feedback": (report_of(WHOLE), report_of(plain)),
        "requests": (report_of(WHOLE_REQUEST), report_of(request)),
        "outcomes": (report_of(WHOLE_OUTCOME), report_of(outcome)),
        "steps": (report_of(WHOLE_STEP), report_of(step)),
    }


@pytest.mark.sqlite_only
@pytest.mark.parametrize("view", sorted(COLUMNS))
def test_a_view_has_everything_that_its_record_can_say(open_log: Open, database: LogLocation, view: str) -> None:
    records = log_whole_and_bare(open_log)[view]
    beside, _ = COLUMNS[view]
    for record, row in zip(records, rows_of(database, view, records[0]), strict=True):
        assert set(row) == set(record) | beside
        assert {name: row[name] for name in record} == record
    whole, bare = records
    assert all(whole[name] != bare[name] for name in whole if name not in IN_BOTH), "each field says much"


@pytest.mark.sqlite_only
@pytest.mark.parametrize(("view", "kind"), [("requests", Request), ("outcomes", Outcome), ("steps", StepRecord)])
def test_a_row_that_is_older_than_a_field_shows_what_the_record_means_by_its_absence(
    open_log: Open, database: LogLocation, view: str, kind: type[Request | Outcome | StepRecord]
) -> None:
    _, bare = log_whole_and_bare(open_log)[view]
    later = {one.name for one in fields(kind) if one.default is not MISSING} - AT_FIRST
    with closing(SqliteConnection(str(database))) as connection, connection:
        for seq, text in connection.execute("SELECT seq, body FROM events WHERE key = 'b'").fetchall():
            body = json.loads(text)
            part = body.get("request" if kind is Request else "outcome", {})
            for record in part.get("steps", []) if kind is StepRecord else [part]:
                for name in later & set(record):
                    del record[name]
            connection.execute("UPDATE events SET body = ? WHERE seq = ?", (json.dumps(body), seq))
    row = rows_of(database, view, bare)[-1]
    assert {name: row[name] for name in bare} == bare


@pytest.mark.sqlite_only
def test_a_label_shows_the_route_of_its_run(open_log: Open, database: LogLocation) -> None:
    log_whole_and_bare(open_log)
    whole, bare = rows_of(database, "feedback", {})
    assert (whole["route"], whole["joined"], bare["joined"]) == ("math", 1, 0)


def test_alerts_are_read_on_from_where_they_were_read_last(open_log: Open, database: LogLocation) -> None:
    log, known = open_log(), AlertLog(repeat_s=3_600.0)
    for epoch in (1, 2):
        log.append(Alarm(route="math", epoch=epoch, at=10 * epoch, cause="change", reason="another model", author="w"))
        assert log.drain()
        with open_reader(database) as reader:
            known = read_alert_log(reader, known)
    with open_reader(database) as reader:
        assert known.raised[0].n_again == 1, "the second one repeats the first"
        assert known == read_alert_log(reader, AlertLog(repeat_s=3_600.0))

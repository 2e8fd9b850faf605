"""The job `rollup`: its sums are those of the log, however labels come, and can be thrown away."""

from __future__ import annotations

import random
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as profile
from hypothesis import strategies as st
from msgspec.structs import astuple, fields

from suffice.assurance.sampling import UnloggedRequests
from suffice.control.jobs import upkeep
from suffice.control.jobs.upkeep import MOST_CLASSES, OTHER, added_by
from suffice.settings import Settings, Store, parse_settings
from suffice.store.database.sqlite import SqliteConnection
from suffice.store.database.views import open_reader, read_episodes
from suffice.store.database.writer import LogWriter
from suffice.store.routes import rollups
from suffice.store.routes.period import read_total
from suffice.store.rows.events import Event, FeedbackEvent, RequestCount
from suffice.store.rows.sums import NO_SUMS, RollupKey, RollupSums
from suffice.types import Feedback, Outcome, Query, RecalledRun, Request, Usage
from suffice.wiring.worker import open_worker
from tests.control.made import run


def settings_for(folder: Path, **route: Any) -> Settings:
    return parse_settings(
        {
            "upstreams": {"up": {"url": "http://127.0.0.1:1"}},
            "routes": {"r": {"upstream": "up", "kind": "samples", "samples": 8, "scorer": "number", **route}},
            "store": {"url": f"sqlite:///{folder / 'log.db'}"},
        }
    )


def write(folder: Path, events: list[Event], *, at_s: float = 7_200.0) -> None:
    log = LogWriter(Store(url=f"sqlite:///{folder / 'log.db'}"), now=lambda: at_s)
    for event in events:
        assert log.append(event)
    assert log.drain(20)
    log.close()


def summed(folder: Path) -> RollupSums:
    """All sums together, after the job has run."""
    with open_worker(settings_for(folder), learning=False) as here:
        assert here.once("rollup") is not None
    with open_reader(folder / "log.db") as connection:
        return rollups.read_rollups(connection, ()).get((), NO_SUMS)


def straight(folder: Path) -> RollupSums:
    """The same, from every whole run of the log with all of its labels."""
    total = NO_SUMS
    match = lambda answer, gold: answer == gold
    for item in read_episodes(folder / "log.db"):
        total = total.plus(added_by(item, match))
    return total


def pair(number: int, **changes: Any) -> tuple[Request, Outcome]:
    request, outcome = run(number, random.Random(number), **changes)
    return request, outcome


def user_feedback(number: int, key: str, **what: Any) -> FeedbackEvent:
    by_response = what.pop("by_response", False)
    name: dict[str, Any] = {"response_id": f"r-ep_{number:05}"} if by_response else {"episode_id": f"ep_{number:05}"}
    return FeedbackEvent(Feedback(feedback_id=f"{key}-{number}", source="user", **name, **what))


@st.composite
def logs(draw: st.DrawFn) -> list[Event]:
    """Runs and labels in any order that a log may hold: a request before its outcome, labels anywhere."""
    n = draw(st.integers(1, 5))
    waiting: list[list[Event]] = [list(pair(number, stopped=draw(st.booleans()))) for number in range(n)]
    for number in range(n):
        for turn in range(draw(st.integers(0, 3))):
            what: dict[str, Any] = draw(
                st.sampled_from(
                    [{"correct": True}, {"correct": False}, {"gold": "3"}, {"rating": 4}, {"thumbs": "down"}]
                )
            )
            waiting.append([user_feedback(number, f"f{turn}", by_response=draw(st.booleans()), **what)])
    events: list[Event] = []
    while waiting:
        at = draw(st.integers(0, len(waiting) - 1))
        events.append(waiting[at].pop(0))
        if not waiting[at]:
            del waiting[at]
    return events


@pytest.mark.slow
@profile(max_examples=12)
@given(events=logs(), cuts=st.lists(st.integers(0, 20), max_size=2))
def test_the_sums_are_those_of_the_log_however_it_came_and_in_however_many_parts(
    tmp_path_factory: pytest.TempPathFactory, events: list[Event], cuts: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("log")
    begin, sums = 0, NO_SUMS
    for end in [*sorted(cuts), len(events)]:
        write(folder, events[begin:end])
        begin = max(begin, end)
        sums = summed(folder)
    assert astuple(sums) == pytest.approx(astuple(straight(folder)))
    with open_reader(folder / "log.db") as connection:  # by the day it is what it is by the hour
        for by in (("route",), ("query_class",), ("version",)):
            hours: dict[tuple[str | int, ...], RollupSums] = {}
            days = rollups.read_rollups(connection, by)
            for key, one in rollups.read_rollups(connection, (*by, "hour")).items():
                hours[key[0],] = hours.get((key[0],), NO_SUMS).plus(one)
            assert {key: astuple(one) for key, one in days.items()} == {
                key: pytest.approx(astuple(one)) for key, one in hours.items()
            }
    assert sums.n_requests == sum(isinstance(event, Outcome) for event in events)


@pytest.mark.parametrize("by_response", [False, True])
def test_a_stretch_takes_as_many_queries_however_many_runs_and_labels_it_has(tmp_path: Path, by_response: bool) -> None:
    counts = list[int]()
    for n in (4, 40):
        folder = tmp_path / str(n)
        folder.mkdir()
        for begin in (0, n):  # labels to runs of this stretch, and of the one before
            new = range(begin, begin + n)
            write(folder, [event for number in new for event in pair(number)])
            write(
                folder,
                [user_feedback(number, f"l{begin}", by_response=by_response, gold="3") for number in range(begin + n)],
            )
        with open_reader(folder / "log.db") as connection:
            queries = list[str]()
            assert isinstance(connection, SqliteConnection)
            connection.set_trace_callback(queries.append)
            stretch = rollups.read_stretch(connection, 3 * n, 1_000)
        relabelled = [one for one in stretch.changes if isinstance(one, rollups.RunChange) and one.before is not None]
        assert len(relabelled) == n
        counts.append(len(queries))
    assert counts[0] == counts[1]


def test_what_was_thrown_away_is_built_again(tmp_path: Path) -> None:
    write(
        tmp_path, [event for number in range(6) for event in (*pair(number), user_feedback(number, "g", correct=True))]
    )
    before = summed(tmp_path)
    with closing(SqliteConnection(tmp_path / "log.db")) as connection, connection:
        rollups.clear(connection)
    assert summed(tmp_path) == before
    with closing(SqliteConnection(tmp_path / "log.db")) as connection, connection:
        connection.execute("UPDATE rolled SET format = format - 1")  # of an earlier version
    assert summed(tmp_path) == before


def test_a_second_worker_adds_nothing_twice(tmp_path: Path) -> None:
    write(tmp_path, list(pair(1)))
    assert summed(tmp_path).n_requests == 1
    with closing(SqliteConnection(tmp_path / "log.db")) as connection, connection:
        place = RollupKey("r", "", "", 2)
        assert not rollups.add_rollups(connection, {place: RollupSums(n_requests=9)}, {}, since=0, seq=9, at_s=0.0)
    assert summed(tmp_path).n_requests == 1


def test_runs_are_booked_where_they_belong(tmp_path: Path) -> None:
    for day, (route, name) in enumerate([("r", "algebra"), ("r", "algebra"), ("other", "")]):
        request, outcome = run(day, random.Random(day))
        query = Query(query_class=name) if name else None
        made = replace(request, route=route, policy_version=f"v@{day}", query=query)
        write(tmp_path, [made, outcome], at_s=86_400.0 * day + 7_300.0)
    summed(tmp_path)
    with open_reader(tmp_path / "log.db") as connection:
        assert {
            key: one.n_requests for key, one in rollups.read_rollups(connection, ("route", "query_class")).items()
        } == {
            ("other", ""): 1,
            ("r", "algebra"): 2,
        }
        assert list(rollups.read_rollups(connection, ("day", "version"))) == [(0, "v@0"), (1, "v@1"), (2, "v@2")]
        assert rollups.read_rollups(connection, (), since_hour=24)[()].n_requests == 2
        assert list(rollups.read_rollups(connection, ("hour",), route="r")) == [(2,), (26,)]


def test_classes_that_callers_make_up_without_end_are_booked_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "MOST_CLASSES", 3)
    events: list[Event] = []
    for number in range(8):
        request, outcome = run(number, random.Random(number))
        events += [replace(request, query=Query(query_class=f"c{number}")), outcome]
    write(tmp_path, events)
    summed(tmp_path)
    with open_reader(tmp_path / "log.db") as connection:
        by_class = {
            str(key[0]): one.n_requests for key, one in rollups.read_rollups(connection, ("query_class",)).items()
        }
    assert by_class == {"c0": 1, "c1": 1, "c2": 1, OTHER: 5}
    assert MOST_CLASSES == 100


def test_an_ungoverned_request_counts_its_tokens_and_nothing_else() -> None:
    request, outcome = run(1, random.Random(1))
    item = next(iter([replace_item(request, outcome)]))
    sums = added_by(item, lambda _a, _g: True)
    assert (sums.n_requests, sums.n_governed, sums.n_full, sums.completion_tokens) == (1, 0, 0, 40)


def replace_item(request: Request, outcome: Outcome) -> Any:
    from suffice.store.database.views import EpisodeWithLabels
    from suffice.types import Episode

    usage = Usage(prompt_tokens=5, completion_tokens=40)
    return EpisodeWithLabels(
        seq=1,
        labels=(),
        episode=Episode(request=replace(request, ungoverned="off"), outcome=replace(outcome, usage=usage)),
    )


def test_the_table_has_a_column_for_every_sum_and_no_other(tmp_path: Path) -> None:
    write(tmp_path, [])
    with closing(SqliteConnection(tmp_path / "log.db")) as connection:
        columns = [row[1] for row in connection.execute("PRAGMA table_info(rollups)")]
    assert columns == ["grain", *RollupKey._fields, *(field.name for field in fields(RollupSums))]


# ---- labels of runs that the lottery left out ------------------------------------------------------


def recalled(number: int, *, stopped: bool = True, answer: str = "3") -> RecalledRun:
    return RecalledRun(
        episode_id=f"ep_{number:05}",
        response_id=f"r-ep_{number:05}",
        route="r",
        query_class="law",
        policy_version="v1",
        stopped=stopped,
        end_reason="stopped" if stopped else "done",
        answer=answer,
        ended_at_s=7_200.0,
    )


def about(given: FeedbackEvent, run: RecalledRun) -> FeedbackEvent:
    return replace(given, about=run)


@pytest.mark.parametrize("cut", range(5))
def test_what_is_said_of_a_run_that_was_only_counted_counts_once_and_the_last_word_stands(
    tmp_path: Path, cut: int
) -> None:
    events: list[Event] = [
        about(user_feedback(1, "a", by_response=True, correct=False), recalled(1)),
        about(user_feedback(1, "b", rating=5), recalled(1)),
        user_feedback(
            1, "c", gold="3"
        ),  # its gateway has forgotten the run, and the log knows by now which one is meant
        user_feedback(2, "d", correct=True),  # nobody knows whose this is
    ]
    write(tmp_path, events[:cut])
    if cut:
        summed(tmp_path)
    write(tmp_path, events[cut:])
    total = summed(tmp_path)
    assert (total.n_requests, total.n_governed, total.n_stopped) == (0, 0, 0), "the run itself is in the counts"
    assert (total.n_live_marked, total.n_live_right, total.n_stopped_marked, total.n_stopped_right) == (1, 1, 1, 1)
    assert total.stopped_marked_excess == 0


def test_labels_count_without_bias_whichever_runs_the_lottery_keeps(tmp_path: Path) -> None:
    """Of 1,200 labelled runs a tenth has rows; half of the labels find their run, the worse ones more often.

    What found its run is there entirely, and the rest is weighted by the odds of the rows: neither the lottery nor who
    is labelled in time may move the mean.
    """
    rng, events, truth = random.Random(5), list[Event](), list[bool]()
    for number in range(1_200):
        right = rng.random() < 0.7
        truth.append(right)
        given, kept = user_feedback(number, "f", correct=right), rng.random() < 0.1
        if kept:
            begun, ended = pair(number, audit=False, stopped=True, end_reason="stopped")
            request = replace(begun, mode="enforce", keep_rate=0.1, kept_by="lot", arms=())
            events += [request, ended]
        recalls = rng.random() < (0.4 if right else 0.8)
        events.append(about(given, recalled(number)) if recalls else given)
    write(tmp_path, events)
    total = summed(tmp_path)
    n_recalled = sum(isinstance(one, FeedbackEvent) and one.about is not None for one in events)
    n_others = len(truth) - n_recalled
    # Exact for those that found their run; the others are n/0.1 of a binomial: four standard deviations.
    assert abs(total.n_live_marked - len(truth)) <= 4 * (n_others * 0.1 * 0.9) ** 0.5 / 0.1
    assert total.n_live_right / total.n_live_marked == pytest.approx(sum(truth) / len(truth), abs=0.06)
    by_rows_alone = [one.feedback.correct for one in events if isinstance(one, FeedbackEvent) and one.about is not None]
    assert sum(map(bool, by_rows_alone)) / len(by_rows_alone) < 0.6, "labels that came in time alone would be biased"


# ---- sums of tenants


def of_tenant(number: int, tenant: str, **changes: Any) -> list[Event]:
    request, outcome = pair(number, **changes)
    return [replace(request, tenant=tenant), outcome]


def test_a_tenants_sums_are_those_of_its_requests_alone(tmp_path: Path) -> None:
    cell = UnloggedRequests(query_class="law", version="v", ungoverned="", n=5, ends=(("done", 5),), tenant="b")
    counted = RequestCount(
        count_id="c", route="r", n_requests=5, n_governed=5, cells=(cell,), senders=(), audit_share=None
    )
    owners = ["a", "b", "", "a", "b", "b"]
    events = [event for number, name in enumerate(owners) for event in of_tenant(number, name, stopped=number % 2 == 0)]
    label = about(user_feedback(90, "f", correct=True), replace(recalled(90), tenant="a"))
    write(tmp_path, [*events, counted, user_feedback(3, "f", correct=False), label])
    assert summed(tmp_path).n_requests == len(owners) + 5
    with open_reader(tmp_path / "log.db") as log:

        def of(*tenants: str, **more: Any) -> RollupSums:
            until = {"since_hour": 0, "until_hour": 24}
            return read_total(log, more.get("route"), tenants=tenants, **until).sums

        expected = dict.fromkeys(owners, NO_SUMS)
        for item in read_episodes(tmp_path / "log.db"):
            request = item.episode.request
            adds = added_by(item, lambda answer, gold: answer == gold)
            expected[request.tenant] = expected[request.tenant].plus(adds)
        assert of("a").n_requests == 2
        assert of("a").n_stopped_marked == expected["a"].n_stopped_marked + 1  # its run without rows has a label
        assert of("b").n_requests == 3 + 5
        assert of("b").completion_tokens == expected["b"].completion_tokens
        assert of("a", "b").n_requests == 10
        assert of() == of("c") == of("a", route="another") == of("law") == NO_SUMS
        for narrower in ({"query_class": "law"}, {"version": "v"}, {"since_hour": 1}):
            with pytest.raises(ValueError, match="whole days"):
                rollups.read_rollups(log, ("route",), tenant="a", **narrower)

"""The job `review` on real logs: what is asked, within the cap, and once."""

from __future__ import annotations

import math
import random
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest

from suffice.control.jobs.base import JobWriter
from suffice.control.jobs.review import Candidates, ReviewJob
from suffice.review.items import DAY_S, ReviewItem
from suffice.review.select import answers_of
from suffice.settings import Settings, parse_settings
from suffice.store.database.decisions import Decisions
from suffice.store.people.deciding import read_reviews
from suffice.store.rows.events import Event
from suffice.types import Epoch, LabelRequest, Query
from suffice.wiring.worker import open_worker
from tests.control.made import ROUTE, label, rows, run, traffic
from tests.control.test_worker import fill

NOON_S = 20_000 * DAY_S + DAY_S / 2


@dataclass
class Clock:
    now_s: float = NOON_S

    def __call__(self) -> float:
        return self.now_s


@dataclass
class Straight(JobWriter):
    """A desk without a lease."""

    writer: Decisions
    written: list[Event] = field(default_factory=list)
    is_shared: bool = False

    def write(self, events: Any, artefacts: Any = None) -> None:
        self.writer.write(None, list(events), artefacts)

    def keep(self, work: Any) -> Any:
        raise NotImplementedError

    def renew(self) -> None:
        pass

    @contextmanager
    def working_on(self, part: str) -> Iterator[None]:
        yield


def settings_for(folder: Path, **review: Any) -> Settings:
    route = {**msgspec.to_builtins(ROUTE), "review": review}
    return parse_settings(
        {
            "upstreams": {"up": {"url": "http://127.0.0.1:1"}},
            "routes": {"r": route},
            "store": {"url": f"sqlite:///{folder / 'log.db'}"},
        }
    )


def job(folder: Path, clock: Clock, **review: Any) -> tuple[ReviewJob, Decisions]:
    settings = settings_for(folder, **review)
    writer = Decisions(folder / "log.db", now=clock, monotonic_s=lambda: 0.0)
    made = ReviewJob(settings=settings, path=writer.path, author="w", secret="pepper", now=clock)
    return made, writer


def review_items(folder: Path) -> list[ReviewItem]:
    return [place.item for place in read_reviews(folder / "log.db").queue.places.values()]


def wanted(number: int, level: int = 2, deadline_s: float | None = None) -> LabelRequest:
    return LabelRequest(
        episode_id=f"ep_{number:05}",
        route="r",
        level=level,
        would_answer="7",
        answer="8",
        why="a stop at level 2 would have given a different answer",
        deadline_s=deadline_s,
    )


def ended(number: int, **changes: Any) -> list[Event]:
    request, outcome = run(number, random.Random(number), **changes)
    return [request, outcome]


@pytest.fixture(scope="module")
def flood(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log of 1,000 runs, each stopped although nothing had settled, every tenth of them with a label wanted."""
    folder = tmp_path_factory.mktemp("flood")
    events: list[Event] = []
    for number in range(1_000):
        stopped = {"end_reason": "stopped", "stopped": True, "stop_step": 3, "answer": "77", "audit": False}
        events += ended(number, **stopped)
        events += [wanted(number)] if number % 10 == 0 else []
    fill(folder, events)
    return folder


def test_a_flood_is_asked_about_within_the_cap_whatever_happens_to_the_worker(flood: Path, tmp_path: Path) -> None:
    shutil.copy(flood / "log.db", tmp_path / "log.db")
    clock = Clock(20_000 * DAY_S)
    for hour in range(4, 49, 4):
        clock.now_s = 20_000 * DAY_S + hour * 3_600.0 - 1.0
        review, writer = job(tmp_path, clock, per_day=30)  # a worker that starts anew every fourth hour
        review.run(Straight(writer))
        review.run(Straight(writer))
        writer.close()
    items = review_items(tmp_path)
    by_day = {day: [one for one in items if one.day == day] for day in (20_000, 20_001)}
    # The control share had nothing more to draw from, and nobody else takes its room.
    assert [len(of_day) for of_day in by_day.values()] == [25, 24]
    assert [sum(one.why == "control" for one in of_day) for of_day in by_day.values()] == [1, 0]
    chosen = [one for one in by_day[20_000] if one.why != "control"]
    assert {one.why for one in chosen} == {"disagreement"}, "the most urgent ones come first"


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log of 40 routes, each with runs that somebody should look at; the first has most of them."""
    folder = tmp_path_factory.mktemp("many")
    stopped: dict[str, Any] = {
        "end_reason": "stopped",
        "stopped": True,
        "stop_step": 3,
        "answer": "77",
        "audit": False,
    }
    events: list[Event] = []
    for number in range(600):
        name = "r0" if number % 2 else f"r{number // 2 % 40}"
        request, outcome = run(number, random.Random(number), **stopped)
        events += [replace(request, route=name), outcome]
    fill(folder, events)
    return folder


@pytest.mark.slow(keep=1)
@pytest.mark.parametrize("cap", [0, 1, 7, 40, 100, 400])
def test_a_deployment_of_many_routes_asks_for_no_more_than_its_own_cap_in_a_day(
    many: Path, tmp_path: Path, cap: int
) -> None:
    shutil.copy(many / "log.db", tmp_path / "log.db")
    clock, route = Clock(), {**msgspec.to_builtins(ROUTE), "review": {"per_day": 30}}
    settings = parse_settings(
        {
            "upstreams": {"up": {"url": "http://127.0.0.1:1"}},
            "review": {"per_day": cap},
            "routes": {f"r{number}": route for number in range(40)},
            "store": {"url": f"sqlite:///{tmp_path / 'log.db'}"},
        }
    )
    for hour in range(2, 49, 2):
        clock.now_s = 20_000 * DAY_S + hour * 3_600.0 - 1.0
        writer = Decisions(tmp_path / "log.db", now=clock, monotonic_s=lambda: 0.0)
        review = ReviewJob(settings=settings, path=writer.path, author="w", secret="pepper", now=clock)
        review.run(Straight(writer))
        review.run(Straight(writer))
        writer.close()
        so_far = [one for one in review_items(tmp_path) if one.day == 20_000]
        assert len(so_far) <= min(cap, math.ceil(cap * hour / 24)), "and it opens bit by bit"
    items = review_items(tmp_path)
    for day in (20_000, 20_001):
        of_day = [one for one in items if one.day == day]
        assert len(of_day) <= cap
        counts = Counter(one.route for one in of_day)
        assert max(counts.values(), default=0) <= 30, "a route's own cap holds, too"
    first = Counter(one.route for one in items if one.day == 20_000)
    if cap == 40:
        assert len(first) >= 38, "the busy route did not take the room of the others"
    drawings = read_reviews(tmp_path / "log.db").queue.drawings
    assert all(len(one.drawn) <= one.n_candidates for drawn in drawings.values() for one in drawn)


def test_the_control_share_is_drawn_from_each_stretch_with_known_odds(tmp_path: Path) -> None:
    clock, n = Clock(20_000 * DAY_S), 0
    fill(tmp_path, [])
    for hour in range(0, 24, 3):
        fill(tmp_path, traffic(20 + 10 * (hour % 3), first=n, seed=hour))
        n += 20 + 10 * (hour % 3)
        clock.now_s = 20_000 * DAY_S + hour * 3_600.0 + 1_800.0
        review, writer = job(tmp_path, clock, per_day=60, control_share=0.4)
        review.run(Straight(writer))
        writer.close()
    drawings = read_reviews(tmp_path / "log.db").queue.drawings["r"]
    assert sum(len(one.drawn) for one in drawings) <= 24
    assert sum(one.n_candidates for one in drawings) == n, "every run was in one urn, and in one alone"
    for before, after in pairwise(drawings):
        assert before.until_seq == after.since_seq
    for one in drawings:
        assert one.propensity == len(one.drawn) / one.n_candidates
    by_name = {one.episode_id: one for one in review_items(tmp_path)}
    assert all(by_name[name].propensity == one.propensity for one in drawings for name in one.drawn)


def test_two_workers_that_look_at_the_same_draw_the_same(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        fill(tmp_path / name, traffic(60))
        review, writer = job(tmp_path / name, Clock(), per_day=20)
        review.run(Straight(writer))
        writer.close()
    first, second = (read_reviews(tmp_path / name / "log.db").queue for name in ("one", "two"))
    assert first == second
    assert first.drawings["r"][0].drawn


def test_an_item_says_why_and_until_when_and_a_labelled_one_is_not_asked(tmp_path: Path) -> None:
    fill(
        tmp_path,
        [
            *traffic(3),
            wanted(0, deadline_s=99.0),
            wanted(1),
            wanted(2),
            label(1, gold="5"),
            label(2, thumbs="up"),
        ],
    )
    review, writer = job(tmp_path, Clock(), control_share=0.0, reviewers=2, lease_s=60.0)
    summaries = [one.summary for one in review.run(Straight(writer))]
    assert summaries == ["2 runs queued for review"]
    assert [one.summary for one in review.run(Straight(writer))] == [""]
    items = review_items(tmp_path)
    assert [(one.episode_id, one.deadline_s) for one in items] == [("ep_00000", 99.0), ("ep_00002", None)]
    (first, _) = items
    assert first.because == "a stop at level 2 would have given a different answer; without a label it counts as a loss"
    assert (first.shows, first.full_answer, first.early_answer) == ("both", "8", "7")
    assert (first.n_reviewers, first.lease_s, first.question_key, first.propensity) == (2, 60.0, "q0", None)
    writer.close()


def test_what_was_wanted_before_a_worker_began_is_found_in_the_log(tmp_path: Path) -> None:
    fill(tmp_path, [wanted(0), *traffic(2)])
    review, writer = job(tmp_path, Clock(), control_share=0.0)
    review.run(Straight(writer))
    review.forget()
    review.run(Straight(writer))
    assert [one.episode_id for one in review_items(tmp_path)] == ["ep_00000"]
    writer.close()


def test_a_route_that_asks_nobody_is_left_alone(tmp_path: Path) -> None:
    fill(tmp_path, [*traffic(5), wanted(0)])
    review, writer = job(tmp_path, Clock(), per_day=0)
    assert review.run(Straight(writer)) == ()
    assert review_items(tmp_path) == []
    writer.close()


def test_the_worker_has_the_job(tmp_path: Path) -> None:
    fill(tmp_path, traffic(30))
    with open_worker(settings_for(tmp_path, per_day=24)) as here:
        reports = here.once("review")
    assert reports is not None
    assert "drawn from 30" in reports[0].summary
    assert review_items(tmp_path)[0].because == "drawn at random from all runs"


def candidates(**changes: Any) -> Candidates:
    known: dict[str, Any] = {"name": "r", "most_drawn": 3, "since_seq": 0, "point": lambda _: 0.5, "queued": ()}
    return Candidates(**(known | changes))


def feed(made: Candidates, events: list[Event]) -> Candidates:
    for stored in rows(events):
        made.feed(stored)
    return made


def test_the_first_runs_of_a_new_world_and_of_harmed_classes_are_candidates() -> None:
    def began(number: int, burst: int) -> Epoch:
        return Epoch(route="r", number=number, at=0, since_seq=0, reason="another model", author="w", burst=burst)

    cold = feed(candidates(), [began(1, 100), *traffic(3)])
    promise = feed(candidates(), [began(2, 0), *traffic(3)])
    drift = feed(candidates(), [began(2, 100), *traffic(3)])
    assert [len(one.waiting) for one in (cold, promise, drift)] == [0, 0, 3]
    assert drift.waiting.choose(1)[0].because.endswith("since epoch 2 began: another model")
    harmed = feed(
        candidates(below={"choice": "it is harmed"}),
        [*ended(0, query=Query(query_class="choice")), *ended(1, query=Query(query_class="what"))],
    )
    assert [(one.why, one.query_class) for one in harmed.waiting.choose(9)] == [("class_below", "choice")]


def test_every_ended_run_is_in_the_urn_once_and_what_a_client_did_not_get_is_not() -> None:
    events = [
        *ended(0),
        *ended(1, end_reason="client_left"),
        *ended(2, ungoverned="off"),
        *ended(3, route="other"),
        *ended(4, end_reason="truncated"),
        *ended(5),
    ]
    made = feed(candidates(since_seq=2), events)
    assert made.urn.n == 2, "the first one ended before the stretch"
    assert feed(made, events).urn.n == 2, "rows that are read again change nothing"
    made.restart(made.seq)
    assert (made.urn.n, made.since_seq) == (0, made.seq)


@pytest.mark.parametrize(
    ("changes", "shows"),
    [
        ({}, ("full", "1", None)),
        ({"stop_step": 2, "would_answer": "1"}, ("full", "1", None)),
        ({"stop_step": 2, "would_answer": "2"}, ("both", "1", "2")),
        ({"stop_step": 2, "would_answer": "1", "stopped": True}, ("early", None, "1")),
    ],
)
def test_a_reviewer_sees_the_answers_that_there_are(changes: dict[str, Any], shows: Any) -> None:
    _, outcome = run(0, random.Random(0), **({"answer": "1"} | changes))
    assert answers_of(outcome) == shows

"""Never a flood, the most urgent first, and a random share whose odds are known."""

from __future__ import annotations

import math
import random
from functools import partial
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from suffice.review.agreement import em_of, estimate_em
from suffice.review.items import DAY_S, ControlDraw, ReviewReason
from suffice.review.queue import ItemState, Queue
from suffice.review.select import (
    MOST_WAITING,
    WEIGHTS,
    CandidateQueue,
    Demand,
    ReviewCandidate,
    Urn,
    count_due,
    drawing_window,
    n_control,
    n_drawings,
    open_now,
    share_out,
    uncertainty,
)
from suffice.settings import Review
from tests.review.made import after, item, says


def candidate(name: str, why: str = "uncertain", urgency: float = 0.0, **more: object) -> ReviewCandidate:
    known = {
        "episode_id": name,
        "route": "r",
        "why": why,
        "because": "x",
        "shows": "full",
        "full_answer": "1",
        "early_answer": None,
        "urgency": urgency,
    }
    return ReviewCandidate(**(known | more))  # type: ignore[arg-type]


@pytest.mark.no_cover
def test_of_a_flood_the_most_urgent_are_kept_and_asked_within_the_cap() -> None:
    rng, waiting = random.Random(0), CandidateQueue()
    urgencies = [rng.random() for _ in range(100_000)]
    for number, urgency in enumerate(urgencies):
        waiting.add(candidate(f"ep_{number}", urgency=urgency))
    waiting.add(candidate("ep_wanted", "disagreement"))
    assert len(waiting) <= 2 * MOST_WAITING
    chosen = waiting.choose(40)
    assert chosen[0].episode_id == "ep_wanted"
    assert [one.urgency for one in chosen[1:]] == sorted(urgencies, reverse=True)[:39]


def test_a_run_is_asked_about_once_for_its_most_urgent_reason() -> None:
    waiting = CandidateQueue()
    waiting.add(candidate("a", "disagreement"))
    waiting.add(candidate("a", "uncertain"))
    waiting.add(candidate("b", "uncertain", deadline_s=9.0))
    waiting.add(candidate("c", "uncertain", deadline_s=5.0))
    waiting.drop("nobody")
    assert [(one.episode_id, one.why) for one in waiting.choose(9)] == [
        ("a", "disagreement"),
        ("c", "uncertain"),
        ("b", "uncertain"),
    ]
    assert len(waiting) == 0


def test_every_reason_has_a_rank() -> None:
    assert set(WEIGHTS) == set(get_args(ReviewReason))
    assert len(set(WEIGHTS.values())) == len(WEIGHTS)


@given(most=st.integers(0, 200), used=st.integers(0, 250), now_s=st.floats(0, 1e10))
def test_a_day_opens_bit_by_bit_and_never_further_than_its_cap(most: int, used: int, now_s: float) -> None:
    n_open = open_now(most, used, now_s=now_s)
    assert 0 <= n_open <= max(0, most - used)
    later = open_now(most, used, now_s=(now_s // DAY_S) * DAY_S + DAY_S - 1)
    assert n_open <= later


@given(per_day=st.integers(0, 300), share=st.floats(0, 1))
def test_a_cap_is_shared_without_a_remainder(per_day: int, share: float) -> None:
    cap = Review(per_day=per_day, control_share=share)
    assert 0 <= n_control(cap) <= per_day
    assert n_drawings(cap) <= 24
    if per_day and share:
        assert n_control(cap) >= 1


def test_a_drawing_is_due_once_in_each_stretch_and_a_day_keeps_its_share() -> None:
    cap, drawn, last_at_s, n = Review(per_day=50, control_share=0.2), 0, None, 0
    for minute in range(1, 24 * 60):
        now_s = 1_000 * DAY_S + 60.0 * minute
        k = count_due(cap, drawn=drawn, last_at_s=last_at_s, now_s=now_s)
        if k:
            drawn, last_at_s, n = drawn + k, now_s, n + 1
    assert drawn == 10
    assert n == n_drawings(cap) == 10
    assert count_due(Review(per_day=0, control_share=0.2), drawn=0, last_at_s=None, now_s=1.0) == 0
    assert count_due(Review(per_day=9, control_share=0.0), drawn=0, last_at_s=None, now_s=1.0) == 0
    assert drawing_window(5.0, 0) == 0


def test_every_run_of_a_stretch_has_the_same_odds() -> None:
    """1,000 urns of 30 runs, 3 drawn of each: every place comes out as often, up to chance (5 sigma)."""
    rng, times = random.Random(2), [0] * 30
    for _ in range(1_000):
        urn = Urn(most=3)
        for number in range(30):
            urn.add(rng.random(), candidate(str(number)))
        assert urn.n == 30
        for one in urn.draw(3):
            times[int(one.episode_id)] += 1
        assert (urn.n, urn.draw(3)) == (0, [])
    sigma = math.sqrt(1_000 * 0.1 * 0.9)
    assert all(abs(n - 100) < 5 * sigma for n in times), times


@given(points=st.lists(st.floats(0, 1, exclude_max=True), max_size=40, unique=True), k=st.integers(1, 6))
def test_what_is_drawn_is_what_has_the_smallest_points(points: list[float], k: int) -> None:
    urn = Urn(most=k)
    for number, point in enumerate(points):
        urn.add(point, candidate(str(number)))
    drawn = [points[int(one.episode_id)] for one in urn.draw(k)]
    assert drawn == sorted(points)[:k]


def drawing(number: int, n: int, names: tuple[str, ...]) -> ControlDraw:
    return ControlDraw(
        route="r",
        number=number,
        day=1,
        since_seq=0,
        until_seq=1,
        n_candidates=n,
        drawn=names,
        drawn_at_s=0.0,
        author="w",
    )


@pytest.mark.no_cover
def test_a_flood_leaves_the_estimate_of_the_control_share_unbiased() -> None:
    """A day of busy and quiet hours, right where it is quiet and wrong where it is busy: at most 20 runs are drawn.

    The plain mean of what was drawn would be far off; the weighted one is right on average over 150 lotteries, and its
    interval misses no more often than it says.
    """
    rng, cap = random.Random(3), Review(per_day=50, control_share=0.4)
    sizes = [int(40 * 3 ** rng.random() * (8 if hour % 6 == 0 else 1)) for hour in range(23)] + [0]
    right = [[rng.random() < (0.3 if n >= 320 else 0.9) for _ in range(n)] for n in sizes]
    truth = sum(map(sum, right)) / sum(sizes)
    values, plain, missed = [], [], 0
    for _ in range(150):
        report = a_day(right, cap, rng)
        assert sum(len(known) for _, known in report) <= n_control(cap)
        estimate = estimate_em(report)
        assert estimate is not None
        assert estimate.low is not None
        assert estimate.high is not None
        values.append(estimate.value)
        plain.append(sum(bool(known[0]) for _, known in report) / len(report))
        missed += not estimate.low <= truth <= estimate.high
    mean = sum(values) / len(values)
    error = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1) / len(values))
    assert abs(mean - truth) < 4 * error
    assert abs(sum(plain) / len(plain) - truth) > 0.1, "the sizes matter in this test"
    assert missed <= 0.05 * 150


def a_day(right: list[list[bool]], cap: Review, rng: random.Random) -> list[tuple[ControlDraw, list[bool | None]]]:
    """What is drawn of a day's runs, hour by hour, as the job does it, and what is known of each run then."""
    report: list[tuple[ControlDraw, list[bool | None]]] = []
    urn, drawn, last_at_s = Urn(most=2 * math.ceil(n_control(cap) / n_drawings(cap))), 0, None
    for hour, answers in enumerate(right):
        for at, is_right in enumerate(answers):
            urn.add(rng.random(), candidate(f"{hour}-{at}", full_answer=str(is_right)))
        now_s = 1_000 * DAY_S + 3_600.0 * (hour + 1) - 1.0
        k, n = count_due(cap, drawn=drawn, last_at_s=last_at_s, now_s=now_s), urn.n
        if k and n:
            out = urn.draw(k)
            drawn, last_at_s = drawn + len(out), now_s
            names = tuple(one.episode_id for one in out)
            report.append((drawing(hour, n, names), [one.full_answer == "True" for one in out]))
    assert urn.n == 0, "the last stretch would go on into the next day"
    return report


def test_a_drawing_that_waits_for_a_reviewer_is_left_out_whole() -> None:
    estimate = estimate_em([(drawing(1, 10, ("a", "b")), [True, None]), (drawing(2, 10, ("c",)), [False])])
    assert estimate is not None
    assert (estimate.value, estimate.n) == (0.0, 1)
    assert estimate.note == "1 drawings wait for reviewers and are left out"
    assert estimate_em([(drawing(1, 0, ()), []), (drawing(2, 5, ("a",)), [None])]) is None


def test_the_estimate_reads_what_was_drawn_whatever_the_reason_it_was_asked_for() -> None:
    request = (item("a", shows="full", why="disagreement"), item("b", shows="early", why="control"), item("c"))
    known = Queue().after([*request, drawing(1, 50, ("a", "b"))])
    for name, word in (("a", "right"), ("b", "wrong"), ("c", "neither")):
        place: ItemState = known.places[name]
        submission = says(place, "ann", word)
        known = known.after([one for one in (submission.lease, submission.verdict) if one is not None])
        assert known.places[name] == after(place, submission)
    em = em_of(known, "r")
    assert em is not None
    assert (em.value, em.n) == (0.5, 2)
    assert em_of(known, "another") is None


@pytest.mark.parametrize(
    ("answers", "delivered", "share"), [((), "1", 0.0), (("1", "1"), "1", 0.0), (("1", None, "2", "1"), "1", 0.5)]
)
def test_uncertain_is_what_had_not_settled(answers: tuple[str | None, ...], delivered: str, share: float) -> None:
    assert uncertainty(answers, delivered) == share


DEMANDS = st.lists(
    st.builds(
        partial,
        st.just(Demand),
        n_chosen=st.integers(0, 20),
        n_drawn=st.integers(0, 20),
        drawable=st.integers(0, 8),
        priorities=st.lists(st.floats(1, 7), max_size=12).map(lambda drawn: sorted(drawn, reverse=True)),
        control_share=st.floats(0, 1),
    ),
    max_size=40,
).map(lambda makers: [make(route=f"r{number}") for number, make in enumerate(makers)])


@given(st.integers(0, 300), DEMANDS, st.integers(0, 5))
def test_all_routes_together_get_no_more_than_there_is_room_for_and_none_is_left_behind(
    room: int, demands: list[Demand], day: int
) -> None:
    granted = share_out(room, demands, day=day)
    wanted = {one.route: len(one.priorities) + one.drawable for one in demands}
    assert sum(map(sum, granted.values())) == min(room, sum(wanted.values())), "nothing over it, and no room is wasted"
    assert share_out(room, demands[::-1], day=day) == granted, "whatever the order of the settings"
    request = {}
    for one in demands:
        n_chosen, n_drawn = granted[one.route]
        assert 0 <= n_chosen <= len(one.priorities)
        assert 0 <= n_drawn <= one.drawable
        request[one.route] = one.n_chosen + one.n_drawn + n_chosen + n_drawn
    # Max-min: whoever still wants something was asked no less than one below anybody who was given something.
    hungry = [request[one.route] for one in demands if sum(granted[one.route]) < wanted[one.route]]
    given_to = [request[one.route] for one in demands if sum(granted[one.route])]
    assert not hungry or not given_to or min(hungry) >= max(given_to) - 1


def test_among_equals_what_is_worth_most_comes_first_and_names_take_turns_by_the_day() -> None:
    def one(route: str, *priorities: float) -> Demand:
        return Demand(route=route, n_chosen=0, n_drawn=0, drawable=0, priorities=priorities, control_share=0.2)

    assert share_out(1, [one("a", 1.5), one("b", 5.1)], day=0) == {"a": (0, 0), "b": (1, 0)}
    equals = [one(f"r{number}", 1.0) for number in range(10)]
    served = {next(name for name, n in share_out(1, equals, day=day).items() if sum(n)) for day in range(200)}
    assert len(served) == 10, "in 200 days each was first"


def test_a_cap_that_binds_takes_nothing_from_the_control_share() -> None:
    n_chosen = n_drawn = 0
    for _ in range(50):  # one run at a time, as a cap opens in the course of a day
        busy = Demand(
            route="r", n_chosen=n_chosen, n_drawn=n_drawn, drawable=3, priorities=[5.0] * 9, control_share=0.2
        )
        picked, drawn = share_out(1, [busy], day=0)["r"]
        n_chosen, n_drawn = n_chosen + picked, n_drawn + drawn
    assert (n_chosen, n_drawn) == (40, 10)

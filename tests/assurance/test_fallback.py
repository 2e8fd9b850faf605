"""When all must run in full: what is admitted fits the capacity, or all is admitted and nothing is called certified."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from suffice.assurance.load_level import RETRY_AFTER_S, Fallback, admission, even_loads, safer_level, shed_share
from suffice.settings import OnFallback
from tests.drawn import examples


def fallback(on_fallback: OnFallback, capacity: float | None = 2.0, *, level: int = 10, loads: int = 0) -> Fallback:
    """`loads` levels whose load falls evenly from 3 at level 0."""
    by_level = tuple(3.0 - 2.0 * at / loads for at in range(loads + 1)) if loads else ()
    return Fallback(level=level, on_fallback=on_fallback, capacity=capacity, loads=by_level)


ratios = st.floats(0.5, 50)
capacities = st.floats(0.2, 10)


@given(ratio=ratios, capacity=capacities)
@hypothesis_settings(max_examples=examples(60))
def test_what_remains_of_new_requests_in_full_fits_the_capacity_and_no_more_is_turned_away(
    ratio: float, capacity: float
) -> None:
    share = shed_share(ratio, capacity)
    assert 0 <= share < 1, "never everybody"
    if ratio > capacity:
        assert (1 - share) * ratio == pytest.approx(capacity)
    else:
        assert share == 0


@pytest.mark.parametrize(("ratio", "capacity"), [(3.0, 2.0), (3.0, 1.0), (1.8, 1.7), (9.0, 0.5)])
def test_lots_turn_away_the_share_and_spread_who_comes_again(ratio: float, capacity: float) -> None:
    rng, n = random.Random(3), 4_000
    route = fallback("quality_first", capacity)
    seen = [admission(route, ratio=ratio, queue=1.5, point=rng.random()) for _ in range(n)]
    shed = [one for one in seen if one.level is None]
    assert len(shed) / n == pytest.approx(1 - capacity / ratio, abs=0.03)
    assert all(one.level == 0 and one.certified for one in seen if one.level is not None), "those that stay run in full"
    waits = {one.retry_after_s for one in shed}
    first_s, last_s = RETRY_AFTER_S
    assert waits == set(range(first_s, last_s + 1))
    assert "capacity" in shed[0].reason


@given(
    ratio=ratios,
    capacity=st.none() | capacities,
    level=st.integers(0, 40),
    loads=st.integers(0, 40),
    queue=st.none() | st.floats(0, 5),
    point=st.floats(0, 1, exclude_max=True),
)
@hypothesis_settings(max_examples=examples(150))
def test_availability_turns_nobody_away_and_acts_only_on_a_safer_level_that_says_it_is_not_certified(
    ratio: float, capacity: float | None, level: int, loads: int, queue: float | None, point: float
) -> None:
    route = fallback("availability_first", capacity, level=level, loads=loads)
    got = admission(route, ratio=ratio, queue=queue, point=point)
    assert got.level is not None
    assert got.level < level or level == 0
    assert got.certified == (got.level == 0)
    same = admission(route, ratio=ratio, queue=0.0, point=0.0)
    assert got == same, "one window, one level: no lot takes part"


def test_availability_takes_the_safest_level_that_fits() -> None:
    def bears(capacity: float | None, *, level: int, loads: int = 0) -> int:
        return safer_level(fallback("availability_first", capacity, level=level, loads=loads), 3.0)

    assert bears(3.0, level=10, loads=20) == 0, "the full runs fit"
    assert bears(2.5, level=10, loads=20) == 5
    assert bears(1.1, level=10, loads=20) == 9, "nothing fits: the next safer one"
    assert bears(2.5, level=10) == 9, "nobody knows what levels take: likewise"
    assert bears(None, level=10, loads=20) == 9, "nobody said what the upstream bears: likewise"
    assert bears(1.1, level=1) == 0


def test_levels_that_are_cut_evenly_fall_evenly_and_take_more_when_more_is_asked_for() -> None:
    assert even_loads(3.0, 4) == pytest.approx((3.0, 2.5, 2.0, 1.5, 1.0))
    assert even_loads(None, 4) == even_loads(3.0, 0) == ()
    route = Fallback(level=4, on_fallback="availability_first", capacity=2.2, loads=even_loads(3.0, 4))
    assert [safer_level(route, ratio) for ratio in (2.0, 3.0, 4.0, 9.0)] == [0, 2, 3, 3]


def test_nobody_is_turned_away_while_slots_are_free_or_where_no_capacity_was_declared() -> None:
    for queue, capacity in [(0.99, 1.0), (5.0, None), (5.0, 3.0)]:
        got = admission(fallback("quality_first", capacity), ratio=3.0, queue=queue, point=0.0)
        assert (got.level, got.certified) == (0, True)
    assert admission(fallback("quality_first", 1.0), ratio=3.0, queue=None, point=0.0).level is None

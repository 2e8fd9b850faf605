"""A real fall of satisfaction is found, and stopping that changes nothing moves the level no oftener than it may."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from suffice.assurance.satisfaction import (
    SatisfactionTest,
    satisfaction_of,
)
from suffice.types import Feedback
from tests.assurance.reports import RatedRun, judge_satisfaction

SHARE = 0.1  # of audits
ANYTHING = 1.0  # a floor that nobody reaches, so that only the comparison decides


def ratings(seed: int, n: int, *, full: float, stopped: float, peace: int = 0, trend: float = 0.0) -> list[RatedRun]:
    """Stars of `n` runs by lot: the mean satisfaction of full and of stopped runs, the same before `peace` is over.

    trend  by how much both fall from the first run to the last
    """
    rng = np.random.default_rng(seed)
    audit = rng.random(n) < SHARE
    at = np.arange(n)
    mean = np.where(audit | (at < peace), full, stopped) - trend * at / n
    stars = rng.binomial(2, mean) + rng.binomial(2, mean)  # of 4, and correlated less than people are
    harsh = rng.random(n) < 0.3
    values = np.where(harsh, rng.random(n) < mean, stars / 4)  # some give only one star or five
    return [RatedRun(audit=bool(a), satisfaction=float(v)) for a, v in zip(audit, values, strict=True)]


def verdicts(n_seeds: int, n: int, *, floor: float, delta: float = 0.05, **world: float) -> list[SatisfactionTest]:
    return [
        judge_satisfaction(
            ratings(
                seed,
                n,
                peace=int(world.get("peace", 0)),
                full=world["full"],
                stopped=world["stopped"],
                trend=world.get("trend", 0.0),
            ),
            min_satisfaction=floor,
            delta=delta,
        )
        for seed in range(n_seeds)
    ]


def moved(found: list[SatisfactionTest]) -> float:
    return sum(v.step_down_reason is not None for v in found) / len(found)


# --------------------------------------------------------------------------- promises


@pytest.mark.slow
@pytest.mark.no_cover
def test_stopping_that_changes_nothing_moves_the_level_no_oftener_than_delta_whenever_one_looks() -> None:
    same = verdicts(150, 3_000, floor=ANYTHING, delta=0.2, full=0.8, stopped=0.8)
    assert 0.03 < moved(same) <= 0.2, "and is not idle"
    assert np.mean([v.n_pairs for v in same]) > 200
    assert moved(verdicts(60, 3_000, floor=ANYTHING, delta=0.2, full=0.85, stopped=0.85, trend=0.4)) <= 0.2


@pytest.mark.slow(keep=1)
@pytest.mark.no_cover
@pytest.mark.parametrize("peace", [0, 20_000])
def test_a_real_fall_is_found_also_after_a_long_peace(peace: int) -> None:
    found = verdicts(30, peace + 3_000, floor=0.8, full=0.85, stopped=0.70, peace=peace)
    assert moved(found) >= 0.95
    after = np.median([v.n_pairs for v in found]) - 0.9 * SHARE * peace
    assert after <= 120, "audits that were rated, from the fall on, at the median"
    assert all("worse than audits" in v.step_down_reason for v in found if v.step_down_reason)


def test_a_fall_that_leaves_people_above_the_floor_moves_nothing_and_is_told() -> None:
    found = verdicts(20, 3_000, floor=0.6, full=0.9, stopped=0.75)
    assert moved(found) == 0
    assert sum(v.e_value >= 1 / v.delta and v.step_down_reason is None for v in found) >= 19
    assert {0.12 < (v.drops.mean or 0) < 0.18 for v in found} == {True}


@pytest.mark.no_cover
def test_a_harder_week_for_everybody_is_no_reason_to_stop_less() -> None:
    assert moved(verdicts(60, 3_000, floor=0.8, full=0.6, stopped=0.6)) <= 0.05


@pytest.mark.no_cover
def test_stopped_runs_that_people_like_better_never_move_the_level() -> None:
    found = verdicts(60, 2_000, floor=ANYTHING, delta=0.2, full=0.7, stopped=0.85)
    assert moved(found) <= 1 / 60
    assert np.mean([v.drops.mean or 0 for v in found]) == pytest.approx(-0.15, abs=0.02)


@pytest.mark.no_cover
def test_a_larger_fall_takes_fewer_pairs() -> None:
    n_pairs = [
        float(np.median([v.n_pairs for v in verdicts(20, 4_000, floor=ANYTHING, full=0.9, stopped=stopped)]))
        for stopped in (0.8, 0.7, 0.5)
    ]
    assert all(smaller < larger for larger, smaller in pairwise(n_pairs)), n_pairs


@pytest.mark.slow
@pytest.mark.no_cover
def test_what_it_takes_to_prove_a_fall_in_thumbs() -> None:
    taken = {}
    for fall in (0.2, 0.1):
        n_pairs = []
        for seed in range(40):
            rng = np.random.default_rng(seed)
            audit = rng.random(8_000) < SHARE
            up = rng.random(8_000) < np.where(audit, 0.85, 0.85 - fall)
            rated = [RatedRun(audit=bool(a), satisfaction=float(u)) for a, u in zip(audit, up, strict=True)]
            found = judge_satisfaction(rated, min_satisfaction=ANYTHING, delta=0.05)
            assert found.step_down_reason
            n_pairs.append(found.n_pairs)
        taken[fall] = float(np.median(n_pairs))
    print(f"rated audits that prove a fall, at the median: {taken}")
    assert taken[0.2] < 80
    assert taken[0.1] < 260


# --------------------------------------------------------------------------- the words


def test_a_pair_needs_both_sides_and_takes_all_that_wait() -> None:
    audit, stopped = RatedRun(audit=True, satisfaction=1.0), RatedRun(audit=False, satisfaction=0.0)
    nothing = judge_satisfaction([audit] * 50, min_satisfaction=0.9, delta=0.05)
    assert (nothing.n_pairs, nothing.e_value, nothing.drops.mean, nothing.stopped) == (0, 1.0, None, None)
    one = judge_satisfaction(
        [audit, audit, stopped, RatedRun(audit=False, satisfaction=0.5), RatedRun(audit=True, satisfaction=0.25)],
        min_satisfaction=0.9,
        delta=0.05,
    )
    assert one.n_pairs == 1
    assert one.drops.mean == pytest.approx((1 + 1 + 0.25) / 3 - 0.25)
    assert one.stopped == pytest.approx(0.25)
    assert judge_satisfaction([stopped] * 50, min_satisfaction=0.9, delta=0.05).step_down_reason is None, (
        "no audit, no comparison"
    )


def test_the_latest_stopped_runs_are_compared_with_the_floor() -> None:
    good, bad, audit = (RatedRun(audit=a, satisfaction=s) for a, s in [(False, 1.0), (False, 0.0), (True, 1.0)])
    proven = [bad, audit] * 40 + [good] * 2_000
    assert judge_satisfaction(proven, min_satisfaction=0.9, delta=0.05).step_down_reason, "at the moment when both held"
    late = judge_satisfaction(
        [bad, audit, bad, audit] + [good] * 2_000 + [bad, audit] * 40, min_satisfaction=0.6, delta=0.05
    )
    assert late.stopped is not None
    assert late.stopped > 0.6
    assert late.step_down_reason is None


def test_stars_and_thumbs_become_fractions() -> None:
    stars = [satisfaction_of(Feedback(feedback_id="f", rating=n)) for n in (1, 2, 3, 4, 5)]
    assert stars == [0, 0.25, 0.5, 0.75, 1]
    assert satisfaction_of(Feedback(feedback_id="f", thumbs="up")) == 1
    assert satisfaction_of(Feedback(feedback_id="f", thumbs="down")) == 0
    assert satisfaction_of(Feedback(feedback_id="f", thumbs="down", rating=5)) == 1
    assert satisfaction_of(Feedback(feedback_id="f", correct=False)) is None
    floors = [SatisfactionTest(min_satisfaction=given, delta=0.1).floor for given in (0.8, 1.0, 4.2, 5.0)]
    assert floors == pytest.approx([0.8, 1.0, 0.8, 1.0])


@pytest.mark.parametrize("satisfaction", [1.5, float("nan")])
def test_what_has_no_meaning_is_refused(satisfaction: float) -> None:
    with pytest.raises(ValueError, match=r"satisfaction: got"):
        judge_satisfaction([RatedRun(audit=True, satisfaction=satisfaction)], min_satisfaction=0.8, delta=0.05)


# --------------------------------------------------------------------------- the level that meets the floor


def measured(full: float, stopped: float, floor: float, n: int = 400) -> SatisfactionTest:
    """A test after ratings of which exactly these shares are good."""
    test = SatisfactionTest(min_satisfaction=floor, delta=0.05)
    for at in range(n):
        test.add(float(7 * at % 20 < round(20 * stopped)), audit=False)
        test.add(float(7 * at % 20 < round(20 * full)), audit=True)
    return test


def test_the_level_that_meets_the_floor_is_where_the_lost_answers_put_it() -> None:
    test = measured(0.9, 0.6, 0.75)
    even, late = np.linspace(0, 1_000, 41), np.where(np.arange(41) < 30, 0.0, 1_000.0)
    half = test.satisfactory_level(even, served=40, most=40)
    assert half == pytest.approx(20, abs=1), "half of the answers lost, half of the fall"
    assert test.satisfactory_level(late, served=40, most=40) == 29
    assert test.satisfactory_level(np.zeros(41), served=40, most=40) == half, "nothing is known: a straight line"
    assert test.satisfactory_level(even, served=0, most=0) == 0


@pytest.mark.parametrize("floor", [0.05, 0.5, 0.7, 0.85, 0.95])
def test_a_higher_floor_never_means_a_higher_level_and_one_jump_never_ends_the_ratings(floor: float) -> None:
    lost = np.cumsum(np.random.default_rng(3).integers(0, 5, 41)).astype(np.float64)
    here, above = (
        measured(0.9, 0.6, one).satisfactory_level(lost, served=40, most=40) for one in (floor, floor + 0.04)
    )
    assert 1 <= above <= here <= 40
    assert measured(0.9, 0.6, 0.95).satisfactory_level(lost, served=1, most=1) == 0, "a second proof does"


def test_only_ratings_that_are_surely_above_the_floor_let_the_level_rise() -> None:
    assert measured(0.9, 0.9, 0.7).may_rise
    assert not measured(0.9, 0.7, 0.7).may_rise
    assert not measured(0.9, 0.6, 0.7).may_rise
    raised = measured(0.9, 0.85, 0.75).satisfactory_level(np.linspace(0, 100, 41), served=10, most=20)
    assert raised == 20, "a fall of 5 points at level 10 is one of 10 at level 20"

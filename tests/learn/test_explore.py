"""Lotteries: the odds are known before anything is drawn, bounded below and above, and they are the frequencies."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from suffice.learn.arm_values import pick_arm, weigh_by_inverse_gap, weigh_potentials

values = st.lists(st.floats(-1, 1), min_size=2, max_size=6)


@given(values=values, n_draws=st.floats(0, 1e6), floor=st.floats(0, 0.1), extra=st.floats(0, 0.4), data=st.data())
def test_live_odds_keep_the_floor_the_ceiling_and_the_rails(
    values: list[float], n_draws: float, floor: float, extra: float, data: st.DataObject
) -> None:
    arms = list(range(len(values)))
    eligible = sorted(data.draw(st.sets(st.sampled_from(arms), min_size=1)))
    incumbent = data.draw(st.sampled_from(eligible))
    ceiling = min(0.99, floor + extra)
    odds = weigh_by_inverse_gap(values, eligible, incumbent, n_draws=n_draws, floor=floor, ceiling=ceiling)
    others = [arm for arm in eligible if arm != incumbent]
    assert sum(odds) == pytest.approx(1)
    assert all(odds[arm] == 0 for arm in arms if arm not in eligible)
    assert sum(odds[arm] for arm in others) <= ceiling + 1e-9
    least = min(floor, ceiling / len(others)) if others else 0.0
    assert all(odds[arm] >= least - 1e-9 for arm in others)


def test_arms_that_look_better_are_explored_more_and_experience_sharpens_it() -> None:
    young = weigh_by_inverse_gap([0.0, -0.1, -0.4], [0, 1, 2], 0, n_draws=4, floor=0.01, ceiling=0.3)
    old = weigh_by_inverse_gap([0.0, -0.1, -0.4], [0, 1, 2], 0, n_draws=4_000, floor=0.01, ceiling=0.3)
    assert young[1] > young[2]
    assert old[1] < young[1]
    assert old[2] == pytest.approx(0.01, abs=0.005), "the floor stays for ever"


def test_without_sharpness_all_eligible_arms_are_explored_alike() -> None:
    odds = weigh_by_inverse_gap(
        [0.0, -0.1, -0.4, 9.0], [0, 1, 2], 0, n_draws=4_000, floor=0.0, ceiling=0.3, sharpness=0.0
    )
    assert odds == pytest.approx((0.8, 0.1, 0.1, 0.0))


def test_the_odds_are_the_frequencies() -> None:
    odds = weigh_by_inverse_gap([0.0, 0.02, -0.1, 0.3], [0, 1, 3], 1, n_draws=50, floor=0.02, ceiling=0.2)
    points = (np.arange(50_000) + 0.5) / 50_000
    drawn = np.bincount([pick_arm(odds, float(point)) for point in points], minlength=4) / 50_000
    assert drawn == pytest.approx(np.array(odds), abs=1e-4)


@given(potential=st.lists(st.just(0.0) | st.floats(1e-9, 1e6), min_size=1, max_size=8), floor=st.floats(0, 1))
def test_potential_shares_and_floors(potential: list[float], floor: float) -> None:
    if not sum(potential) > 0:
        with pytest.raises(ValueError, match="potential: got"):
            weigh_potentials(potential, floor=floor)
        return
    odds = weigh_potentials(potential, floor=floor)
    assert sum(odds) == pytest.approx(1)
    n = sum(size > 0 for size in potential)
    for size, share in zip(potential, odds, strict=True):
        assert (share == 0) == (size == 0)
        assert size == 0 or share >= min(floor, 1 / n) - 1e-9


def test_a_point_at_the_very_end_meets_an_arm_that_can_be_drawn() -> None:
    assert pick_arm((0.3, 0.7, 0.0), np.nextafter(1.0, 0.0)) == 1
    assert pick_arm((0.0, 1.0), 0.0) == 1
    with pytest.raises(ValueError, match="point: got"):
        pick_arm((1.0,), 1.0)


@pytest.mark.parametrize(("eligible", "floor", "ceiling"), [([1], 0.0, 0.1), ([0], 0.2, 0.1), ([0], 0.0, 1.0)])
def test_rails_that_contradict_themselves_are_refused(eligible: list[int], floor: float, ceiling: float) -> None:
    with pytest.raises(ValueError, match="need an eligible incumbent"):
        weigh_by_inverse_gap([0.0, 0.0], eligible, 0, n_draws=1, floor=floor, ceiling=ceiling)

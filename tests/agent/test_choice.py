"""Shares stay inside the allowed actions and the owner's cap, and exploration ends where it cannot pay."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from suffice.agent.choice import ChoiceBounds, choose, expected_improvement

PRICE = 0.1


@st.composite
def classes(draw: st.DrawFn) -> dict[str, object]:
    n = draw(st.integers(2, 12))
    finite = st.floats(-0.3, 0.0)
    error = np.array([0.0, *draw(st.lists(st.floats(1e-4, 0.05), min_size=n - 1, max_size=n - 1))])
    allowed = np.array([True, *draw(st.lists(st.booleans(), min_size=n - 1, max_size=n - 1))])
    return {
        "value": np.array(draw(st.lists(finite, min_size=n, max_size=n))),
        "error": error,
        "spread": error * draw(st.floats(1, 50)),
        "allowed": allowed,
        "hopes": np.zeros(n),
        "incumbent": draw(st.integers(0, n - 1)),
        "horizon": draw(st.floats(0, 1e5)),
    }


@given(given=classes(), explore=st.floats(0, 0.5), cost=st.floats(0, 0.1))
def test_shares_are_of_allowed_actions_and_cost_no_more_than_the_cap(
    given: dict[str, Any], explore: float, cost: float
) -> None:
    bounds = ChoiceBounds(explore_share=explore, explore_cost=cost)
    choice = choose(**given, token_price=PRICE, bounds=bounds)
    shares = np.array(choice.shares)
    assert shares.sum() == pytest.approx(1)
    assert (shares >= 0).all()
    assert not shares[~given["allowed"]].any()
    assert shares[choice.best] >= 1 - explore - 1e-9
    value = given["value"]
    lost = float(shares @ np.maximum(0, value[choice.best] - value))
    assert lost == pytest.approx(choice.regret, abs=1e-9)
    assert lost <= cost * PRICE + 1e-9


def test_what_is_known_is_not_explored_and_what_may_be_better_is() -> None:
    value, spread = np.array([-0.1, -0.06, -0.061, -0.09]), np.full(4, 0.04)
    known = choose(
        value,
        np.array([0.0, 1e-5, 1e-5, 1e-5]),
        spread,
        allowed=np.ones(4, bool),
        hopes=np.zeros(4),
        incumbent=1,
        token_price=PRICE,
        horizon=10_000,
        bounds=ChoiceBounds(),
    )
    assert known.shares == (0.0, 1.0, 0.0, 0.0)
    unclear = choose(
        value,
        np.array([0.0, 1e-4, 5e-3, 1e-5]),
        spread,
        allowed=np.ones(4, bool),
        hopes=np.zeros(4),
        incumbent=1,
        token_price=PRICE,
        horizon=10_000,
        bounds=ChoiceBounds(),
    )
    assert unclear.best == 1
    assert unclear.shares[2] > 0
    assert unclear.shares[3] == 0


def test_without_a_future_nothing_is_explored() -> None:
    choice = choose(
        np.array([-0.1, -0.06, -0.06]),
        np.array([0.0, 0.01, 0.01]),
        np.full(3, 0.04),
        allowed=np.ones(3, bool),
        hopes=np.zeros(3),
        incumbent=1,
        token_price=PRICE,
        horizon=0,
        bounds=ChoiceBounds(),
    )
    assert choice.shares == (0.0, 1.0, 0.0)


def test_a_small_improvement_does_not_change_the_best_action() -> None:
    def best(value: list[float], incumbent: int) -> int:
        return choose(
            np.array(value),
            np.zeros(3),
            np.zeros(3),
            allowed=np.ones(3, bool),
            hopes=np.zeros(3),
            incumbent=incumbent,
            token_price=PRICE,
            horizon=0,
            bounds=ChoiceBounds(least_gain=0.02),
        ).best

    assert best([-0.1, -0.050, -0.049], incumbent=1) == 1
    assert best([-0.1, -0.050, -0.047], incumbent=1) == 2


def test_nothing_is_better_than_an_action_that_may_cost_more_than_the_full_run() -> None:
    choice = choose(
        np.array([-0.1, -0.099]),
        np.array([0.0, 0.01]),
        np.array([0.0, 0.05]),
        allowed=np.ones(2, bool),
        hopes=np.zeros(2),
        incumbent=0,
        token_price=PRICE,
        horizon=0,
        bounds=ChoiceBounds(),
    )
    assert choice.best == 0


@pytest.mark.parametrize(("gap", "error"), [(0.0, 0.02), (0.01, 0.02), (0.05, 0.02)])
def test_the_expected_improvement_is_that_of_a_normal(gap: float, error: float) -> None:
    drawn = np.random.default_rng(3).normal(-gap, error, 400_000)
    assert expected_improvement(gap, error) == pytest.approx(np.maximum(0, drawn).mean(), abs=3e-4 * error / 0.02)
    assert expected_improvement(gap, 0.0) == 0.0


def test_what_stopped_paying_is_tried_again_at_little_cost() -> None:
    choice = choose(
        np.array([-0.1, -0.06, -0.3]),
        np.array([0.0, 1e-5, 1e-3]),
        np.full(3, 0.04),
        allowed=np.array([True, True, False]),
        hopes=np.array([0.0, 0.0, 0.02]),
        incumbent=1,
        token_price=PRICE,
        horizon=1e6,
        bounds=ChoiceBounds(),
    )
    assert choice.best == 1
    assert 0 < choice.shares[2] <= 0.01 * PRICE / 0.24 + 1e-9

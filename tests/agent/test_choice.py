"""Shares stay inside the allowed actions and the owner's cap, and exploration ends where it cannot pay."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from suffice.agent.agent import ChoiceBounds, ClassShares, choose, expected_improvement

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


def shares_of(
    value: list[float],
    error: list[float],
    *,
    spread: float = 0.04,
    allowed: list[bool] | None = None,
    hopes: list[float] | None = None,
    incumbent: int = 1,
    horizon: float = 10_000,
    bounds: ChoiceBounds | None = None,
) -> ClassShares:
    n = len(value)
    return choose(
        np.array(value),
        np.array(error),
        np.full(n, spread),
        allowed=np.array(allowed or [True] * n),
        hopes=np.array(hopes or [0.0] * n),
        incumbent=incumbent,
        token_price=PRICE,
        horizon=horizon,
        bounds=bounds or ChoiceBounds(),
    )


def test_what_is_known_is_not_explored_and_what_may_be_better_is() -> None:
    value = [-0.1, -0.06, -0.061, -0.09]
    known = shares_of(value, [0.0, 1e-5, 1e-5, 1e-5])
    assert known.shares == (0.0, 1.0, 0.0, 0.0)
    unclear = shares_of(value, [0.0, 1e-4, 5e-3, 1e-5])
    assert unclear.best == 1
    assert unclear.shares[2] > 0
    assert unclear.shares[3] == 0


def test_without_a_future_nothing_is_explored() -> None:
    assert shares_of([-0.1, -0.06, -0.06], [0.0, 0.01, 0.01], horizon=0).shares == (0.0, 1.0, 0.0)


def test_a_small_improvement_does_not_change_the_best_action() -> None:
    def best(value: list[float], incumbent: int) -> int:
        bounds = ChoiceBounds(least_gain=0.02)
        return shares_of(value, [0.0] * 3, spread=0.0, incumbent=incumbent, horizon=0, bounds=bounds).best

    assert best([-0.1, -0.050, -0.049], incumbent=1) == 1
    assert best([-0.1, -0.050, -0.047], incumbent=1) == 2


def test_nothing_is_better_than_an_action_that_may_cost_more_than_the_full_run() -> None:
    assert shares_of([-0.1, -0.099], [0.0, 0.01], spread=0.05, incumbent=0, horizon=0).best == 0


@pytest.mark.parametrize(("gap", "error"), [(0.0, 0.02), (0.01, 0.02), (0.05, 0.02)])
def test_the_expected_improvement_is_that_of_a_normal(gap: float, error: float) -> None:
    drawn = np.random.default_rng(3).normal(-gap, error, 400_000)
    assert expected_improvement(gap, error) == pytest.approx(np.maximum(0, drawn).mean(), abs=3e-4 * error / 0.02)
    assert expected_improvement(gap, 0.0) == 0.0


def test_what_stopped_paying_is_tried_again_at_little_cost() -> None:
    choice = shares_of(
        [-0.1, -0.06, -0.3], [0.0, 1e-5, 1e-3], allowed=[True, True, False], hopes=[0.0, 0.0, 0.02], horizon=1e6
    )
    assert choice.best == 1
    assert 0 < choice.shares[2] <= 0.01 * PRICE / 0.24 + 1e-9

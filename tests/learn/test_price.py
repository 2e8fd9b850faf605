"""The price of tokens: within its bounds whatever happens, and at rest where the drop is the budget."""

from __future__ import annotations

from math import log

import pytest
from hypothesis import given
from hypothesis import strategies as st

from suffice.learn.arm_values import STEP, PriceBounds, next_price

BOUNDS = PriceBounds(least=0.01, start=0.05, largest=0.3)
FREE = PriceBounds(least=1e-30, start=1.0, largest=1e30)
drops = st.lists(st.sampled_from([-1, 0, 1]), min_size=1, max_size=200)


@given(drops=drops, eps=st.floats(0.001, 0.5))
def test_no_history_takes_it_out_of_its_bounds(drops: list[int], eps: float) -> None:
    price = BOUNDS.start
    for z in drops:
        price = next_price(price, z, max_em_drop=eps, bounds=BOUNDS)
        assert BOUNDS.least <= price <= BOUNDS.largest


@given(drops=drops, eps=st.floats(0.001, 0.5))
def test_between_the_bounds_the_mean_drop_is_near_the_budget(drops: list[int], eps: float) -> None:
    price = FREE.start
    for z in drops:
        price = next_price(price, z, max_em_drop=eps, bounds=FREE)
    mean = sum(drops) / len(drops)
    assert mean == pytest.approx(eps + (log(FREE.start) - log(price)) / (STEP * len(drops)), abs=1e-9)


def test_without_losses_tokens_become_as_dear_as_the_owner_allows_and_losses_make_them_cheap() -> None:
    price = BOUNDS.start
    for _ in range(1_000):
        price = next_price(price, 0, max_em_drop=0.02, bounds=BOUNDS)
    assert price == BOUNDS.largest
    for _ in range(40):
        price = next_price(price, 1, max_em_drop=0.02, bounds=BOUNDS)
    assert price == BOUNDS.least


@pytest.mark.parametrize(("least", "start", "largest"), [(0.0, 0.1, 0.2), (0.2, 0.1, 0.3), (0.1, 0.4, 0.3)])
def test_bounds_that_cross_are_refused(least: float, start: float, largest: float) -> None:
    with pytest.raises(ValueError, match="price: got"):
        PriceBounds(least=least, start=start, largest=largest)


@pytest.mark.parametrize("eps", [0.0, 1.0])
def test_a_budget_out_of_range_is_refused(eps: float) -> None:
    with pytest.raises(ValueError, match="max_em_drop: got"):
        next_price(0.1, 0, max_em_drop=eps, bounds=BOUNDS)

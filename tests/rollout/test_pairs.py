"""Which second call an audit makes: what comes next, at odds that are written down, and nothing further out."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from suffice.rollout.effects import draw_pair, pair_odds


@given(n_arms=st.integers(2, 7), active=st.integers(0, 6), repeat=st.floats(0, 0.9), point=st.floats(0, 0.999))
def test_the_lot_asks_what_comes_next_and_nothing_further_out(
    n_arms: int, active: int, repeat: float, point: float
) -> None:
    active = min(active, n_arms - 1)
    odds = pair_odds(n_arms=n_arms, active=active, repeat_share=repeat)
    assert sum(odds) == pytest.approx(1)
    assert odds[0] == pytest.approx(repeat)
    assert all(share > 0 for share in odds[1 : min(active + 2, n_arms)])
    assert not any(odds[active + 2 :])
    draw = draw_pair(point, n_arms=n_arms, active=active, repeat_share=repeat)
    assert draw.propensity == odds[draw.arm] > 0


def test_the_propensity_is_the_frequency() -> None:
    n = 20_000
    drawn = Counter(draw_pair((i + 0.5) / n, n_arms=5, active=2) for i in range(n))
    assert {draw.arm for draw in drawn} == {0, 1, 2, 3}
    for draw, times in drawn.items():
        assert times / n == pytest.approx(draw.propensity, abs=1e-4)


@pytest.mark.parametrize(("n_arms", "active"), [(1, 0), (3, 3), (3, -1)])
def test_a_lot_without_arms_is_refused(n_arms: int, active: int) -> None:
    with pytest.raises(ValueError, match="need n_arms"):
        draw_pair(0.5, n_arms=n_arms, active=active)

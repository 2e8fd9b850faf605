"""What a forecast makes the loop do: only ever a lower level and more audits, and neither for good."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from suffice.assurance.forecast import (
    CALM_PART,
    CrossingForecast,
    Forecast,
    Stance,
    describe_change,
    first_disagreement,
    next_stance,
    relative_losses,
)

AT = 10_000
LINEAR = np.linspace(0.0, 1.0, 11)  # ten levels, each of which loses a tenth more


def forecast(
    *, alert: bool = True, latest: int | None = AT + 500, worst: float = 0.03, doubtful: bool = False
) -> Forecast:
    return Forecast(
        of="em_drop",
        limit=0.02,
        now=0.015,
        per_1000=0.003,
        ahead=0.024,
        ahead_low=0.02,
        ahead_high=0.03,
        crossing=CrossingForecast(earliest=AT, expected=AT + 100, latest=latest),
        alert=alert,
        doubtful=doubtful,
        reason="EM drop is about 1.50%",
        worst=worst,
    )


def after(before: Stance, found: Forecast | None, *, alerted: bool = True) -> Stance:
    return next_stance(before, found, at=AT, alerted=alerted, relative=lambda: LINEAR)


def test_the_cap_is_the_highest_level_that_stays_clearly_inside_the_budget() -> None:
    stance = after(Stance(), forecast())
    assert stance == Stance(5, in_doubt=True)  # 0.5 * 3 % is inside 0.9 * 2 %, 0.6 * 3 % is not below it
    assert after(Stance(), forecast(worst=9.0)).cap == 0, "where nothing else is inside, everything runs in full"


def test_one_look_raises_an_alert_and_the_second_caps() -> None:
    first = after(Stance(), forecast(), alerted=False)
    assert first == Stance(None, in_doubt=True)
    assert after(first, forecast()).cap == 5
    assert after(first, forecast(latest=None)).cap is None, "an alert that only stands caps nothing new"
    assert after(first, forecast(latest=AT + 3_001)).cap is None


def test_while_the_alert_stands_a_cap_only_sinks_and_it_is_lifted_with_the_alert() -> None:
    assert after(Stance(5), forecast(worst=0.04)).cap == 4
    assert after(Stance(4), forecast(worst=0.02)).cap == 4
    assert after(Stance(4), forecast(latest=None)).cap == 4
    assert after(Stance(4), forecast(alert=False, latest=None)) == Stance(None, in_doubt=False)
    assert after(Stance(4), None) == Stance(4), "what is unknown changes nothing"


def test_doubt_asks_for_audits_and_for_nothing_else() -> None:
    assert after(Stance(), forecast(alert=False, doubtful=True)) == Stance(None, in_doubt=True)
    assert after(Stance(in_doubt=True), forecast(alert=False, latest=None)) == Stance()


@given(
    counts=st.lists(st.lists(st.integers(1, 9), max_size=6), min_size=1, max_size=8),
    worst=st.floats(0.001, 1.0),
)
def test_a_cap_is_below_the_level_and_inside_the_budget_by_its_own_measure(
    counts: list[list[int]], worst: float
) -> None:
    relative = relative_losses([np.array(one, dtype=np.int64) for one in counts], 8)
    assert relative.shape == (9,)
    assert (relative[0], relative[-1]) == (0.0, 1.0)
    assert (np.diff(relative) >= 0).all()
    found = forecast(worst=worst)
    cap = next_stance(Stance(), found, at=AT, alerted=True, relative=lambda: relative).cap
    assert cap is not None
    assert 0 <= cap < 8
    assert cap == 0 or relative[cap] * worst < CALM_PART * found.limit


def test_the_first_disagreement_counts_up_to_the_deployed_level() -> None:
    disagrees = np.array([[0, 0, 1, 0, 1], [0, 0, 0, 0, 1], [0, 1, 1, 1, 1], [0, 0, 0, 0, 0]], dtype=bool)
    assert first_disagreement(disagrees, 3).tolist() == [2, 4, 1, 4]
    counted = relative_losses([np.array([2, 4, 1, 4])], 3)
    assert counted.tolist() == pytest.approx([0.0, 1.5 / 2.5, 1.0, 1.0])


def test_recent_disagreements_count_more() -> None:
    old, new = np.full(20, 1), np.full(20, 3)
    nothing = np.zeros(0, dtype=np.int64)
    before = relative_losses([old, *[nothing] * 120, new], 3)
    assert before[1] == pytest.approx(0.2, abs=0.05), "two half-lives ago: a quarter of the weight"


def test_a_change_is_one_sentence_that_names_the_forecast() -> None:
    reason = "(EM drop is about 1.50%)"
    assert describe_change(Stance(), Stance(5), forecast()) == f"level 5 at most {reason}"
    assert describe_change(Stance(5), Stance(), forecast()) == f"the forecast no longer asks for a cap {reason}"
    assert describe_change(Stance(), Stance(None, True), forecast()) == f"the forecast is in doubt {reason}"

"""A proposer that is rolled back again and again is held, and a person is not."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suffice.rollout.evidence import Rules
from suffice.rollout.stages import DAY_S, State, cool_down_left, cool_down_refusal, start_rollout
from tests.drawn import examples

PROPERTY = settings(max_examples=examples(100))
RULES = Rules()


def rollout(candidate: str, began_s: float, ended_s: float | None = None, *, rolled_back: bool = False) -> State:
    """A rollout of the past; without an end it is running."""
    state = start_rollout(
        "r1", route="r", candidate=candidate, active="pv-old", follows=0, at=0, now_s=began_s, rules=RULES
    )
    if ended_s is None:
        return state
    return replace(state, stage="rolled_back" if rolled_back else "full", since_s=ended_s)


def back(n: int, *, at_s: float = 0.0) -> list[State]:
    return [
        rollout(candidate=f"pv-{i}", began_s=at_s + i - 100.0 * (n - i), ended_s=at_s + i, rolled_back=True)
        for i in range(n)
    ]


def test_the_first_may_begin_and_a_hold_or_a_running_one_speaks_against_it() -> None:
    assert cool_down_refusal([], "pv-a", now_s=0.0, rules=RULES) is None
    assert "a person holds this route: launch day" in (
        cool_down_refusal([], "pv-a", now_s=0, rules=RULES, held="launch day") or ""
    )
    running = [rollout(candidate="pv-x", began_s=0.0)]
    for by_person in (False, True):
        assert "the rollout of pv-x is running" in (
            cool_down_refusal(running, "pv-a", now_s=1e9, rules=RULES, by_person=by_person) or ""
        )


def test_the_cool_down_doubles_with_every_rollback_in_a_row_and_a_success_ends_the_row() -> None:
    waits = [cool_down_left(back(n), now_s=n - 1.0, rules=RULES) for n in range(1, 8)]
    assert waits == [3_600.0, 7_200.0, 14_400.0, 28_800.0, 57_600.0, 86_400.0, 86_400.0]
    good = rollout(candidate="pv-good", began_s=10.0, ended_s=20.0)
    assert cool_down_left([*back(5), good], now_s=20.0, rules=RULES) == 0.0
    assert cool_down_left([], now_s=0.0, rules=RULES) == 0.0


@PROPERTY
@given(now_s=st.floats(-1e9, 1e9), n=st.integers(0, 70))
def test_no_clock_makes_a_cool_down_longer_than_it_is(now_s: float, n: int) -> None:
    assert 0 <= cool_down_left(back(n), now_s=now_s, rules=RULES) <= RULES.most_cool_down_s


def test_what_was_rolled_back_is_tried_again_by_a_person_alone() -> None:
    past = back(1)
    later_s = 10 * DAY_S
    assert "was rolled back before" in (cool_down_refusal(past, "pv-0", now_s=later_s, rules=RULES) or "")
    assert cool_down_refusal(past, "pv-0", now_s=later_s, rules=RULES, by_person=True) is None
    assert cool_down_refusal(past, "pv-new", now_s=later_s, rules=RULES) is None
    assert "cooling down" in (cool_down_refusal(past, "pv-new", now_s=1.0, rules=RULES) or "")
    assert cool_down_refusal(past, "pv-new", now_s=1.0, rules=RULES, by_person=True) is None


def test_at_most_so_many_begin_in_a_day() -> None:
    past = [rollout(candidate=f"pv-{i}", began_s=1_000.0 * i, ended_s=1_000.0 * i + 500) for i in range(4)]
    output = cool_down_refusal(past, "pv-new", now_s=10_000.0, rules=RULES)
    assert output == "4 rollouts began in the last 24 hours, at most 4: another 76,400 s"
    assert cool_down_refusal(past, "pv-new", now_s=DAY_S + 1.0, rules=RULES) is None
    assert cool_down_refusal(past, "pv-new", now_s=10_000.0, rules=RULES, by_person=True) is None


def test_a_proposer_that_flaps_gets_a_handful_of_tries_in_a_week() -> None:
    """It proposes something harmful every ten minutes, and each try is rolled back after an hour."""
    past: list[State] = []
    for minute in range(0, 7 * 24 * 60, 10):
        now_s = 60.0 * minute
        past = [
            one
            if one.over or one.began_s + 3_600 > now_s
            else rollout(candidate=one.candidate, began_s=one.began_s, ended_s=one.began_s + 3_600, rolled_back=True)
            for one in past
        ]
        if cool_down_refusal(past, f"pv-{minute}", now_s=now_s, rules=RULES) is None:
            past.append(rollout(candidate=f"pv-{minute}", began_s=now_s))
    assert 5 <= len(past) <= 12, f"{len(past)} rollouts in a week; unheld there would have been 168"


@pytest.mark.parametrize("n", [1, 3])
def test_the_limit_of_a_day_is_the_owners(n: int) -> None:
    past = [rollout(candidate=f"pv-{i}", began_s=float(i), ended_s=float(i)) for i in range(n)]
    assert cool_down_refusal(past, "pv-new", now_s=10.0, rules=Rules(most_a_day=n)) is not None
    assert cool_down_refusal(past, "pv-new", now_s=10.0, rules=Rules(most_a_day=n + 1)) is None

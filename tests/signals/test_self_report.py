from __future__ import annotations

import math

import pytest

from suffice.signals.folds.wording import PlanProgress, action_code
from suffice.signals.observe import Observer
from suffice.types import Query, Step
from tests.signals.steps import seen


def reported(
    stated: float | None = None, done: bool | None = None, action: str | None = None, logprob: float | None = None
) -> Step:
    return Step(
        index=1,
        tokens=1,
        answer=None,
        answer_source=None,
        stated_confidence=stated,
        reported_done=done,
        action=action,
        logprob=logprob,
    )


@pytest.mark.parametrize(("stated", "kept"), [(0.0, 0.0), (1.0, 1.0), (5.0, None), (-0.1, None), (math.nan, None)])
def test_a_stated_confidence_counts_if_it_is_a_probability(stated: float, kept: float | None) -> None:
    assert seen("said", [reported(stated)]) == [(kept, None, None)]


def test_the_flag_is_a_number_and_equal_actions_have_equal_codes() -> None:
    rows = seen(
        "said", [reported(done=True, action="tool"), reported(done=False, action="tool"), reported(action="propose")]
    )
    assert [row[1] for row in rows] == [1.0, 0.0, None]
    assert rows[0][2] == rows[1][2] == action_code("tool") != rows[2][2]
    assert action_code("tool") == 0.3781503086562097  # the same in every process, today and tomorrow
    assert 0.0 <= action_code("\ud800") < 1.0


@pytest.mark.parametrize(
    ("logprob", "kept"), [(-1.5, -1.5), (1e-4, 0.0), (0.5, None), (-math.inf, None), (math.nan, None), (None, None)]
)
def test_a_mean_log_probability_counts_if_it_can_be_one(logprob: float | None, kept: float | None) -> None:
    assert seen("wording", [reported(logprob=logprob)]) == [(kept,)]


@pytest.mark.parametrize(
    ("planned", "shares"),
    [(4, [0.25, 0.5]), (1, [1.0, 1.0]), (0, [None, None]), (-3, [None, None]), (None, [None, None])],
)
def test_the_plan_is_the_querys(planned: int | None, shares: list[float | None]) -> None:
    observer = Observer(["plan"], "rounds", query=Query(planned_steps=planned))
    steps = [Step(index=index, tokens=1, answer=None, answer_source=None) for index in (1, 2)]
    assert [observer.observe(step).step_share for step in steps] == shares


def test_before_the_first_step_nothing_is_behind_us() -> None:
    plan = PlanProgress()
    plan.begin(Query(planned_steps=3))
    assert plan.values() == {"step_share": None}

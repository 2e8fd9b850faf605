from __future__ import annotations

import numpy as np
import pytest

from suffice.errors import ConfigError
from suffice.signals.observe import observe_columns
from suffice.types import Query, Step


def run(*answers: str | None) -> list[Step]:
    return [Step(index=i, tokens=10, answer=a, answer_source="sample") for i, a in enumerate(answers, 1)]


def test_runs_stand_one_behind_the_other_each_from_its_own_first_step() -> None:
    runs = [(None, run("x", "y", "y")), (None, []), (Query(planned_steps=4), run(None, "y"))]
    columns = observe_columns(["votes", "plan", "query"], "samples", runs)
    assert columns.starts.tolist() == [0, 3, 3, 5]
    assert columns.values["tokens_used"].tolist() == [10, 20, 30, 10, 20]
    assert columns.values["n_votes"].tolist() == [1, 2, 3, 0, 1]
    np.testing.assert_array_equal(columns.values["step_share"], [np.nan, np.nan, np.nan, 0.25, 0.5])
    assert columns.answers == ("x", "y")
    np.testing.assert_array_equal(columns.answer, [0, 0, 1, np.nan, 1])
    assert "query" not in columns.values


def test_without_runs_the_columns_are_there_and_empty() -> None:
    columns = observe_columns(["stability"], "rounds", [])
    assert sorted(columns.values) == ["answer_streak", "n_distinct", "n_flips", "step", "tokens_used"]
    assert {column.shape for column in columns.values.values()} == {(0,)}
    assert columns.starts.tolist() == [0]


@pytest.mark.no_cover
def test_many_runs_fill_more_than_one_block_and_none_is_lost() -> None:
    n_runs = 60_000  # of 3 steps and 6 numbers a step: more than the million that wait at once
    columns = observe_columns(["stability"], "rounds", ((None, STEPS) for _ in range(n_runs)))
    assert columns.starts[-1] == len(columns.answer) == 3 * n_runs
    for name, expected in (("step", [1, 2, 3]), ("answer_streak", [1, 2, 1]), ("n_flips", [0, 0, 1])):
        assert np.array_equal(columns.values[name].reshape(n_runs, 3), np.tile(expected, (n_runs, 1)))
        assert columns.values[name].flags.c_contiguous


STEPS = run("x", "x", "y")


def test_what_an_observer_refuses_is_refused_even_without_a_run() -> None:
    with pytest.raises(ConfigError, match="unknown signal 'vote'; did you mean 'votes'"):
        observe_columns(["vote"], "samples", [])
    with pytest.raises(ValueError, match="step 1 came after step 1"):
        observe_columns([], "samples", [(None, [*run("x"), *run("x")])])

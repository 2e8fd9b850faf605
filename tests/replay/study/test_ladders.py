"""Ladders: the same grid for every replay, safe rungs first."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from suffice.errors import ConfigError
from suffice.learn.audits import find_first_passages
from suffice.policy.base import POLICIES, build_policy
from suffice.replay.study.policies import (
    GRID,
    build_given_ladder,
    build_ladders,
    halts_at,
    halts_of,
    levels_of,
)
from suffice.replay.study.sums import columns_of
from suffice.signals.base import reads_answers
from suffice.types import Kind
from tests.replay.made import KINDS, batch_of, rungs_of, runs_of, written


@pytest.mark.parametrize("kind", KINDS)
def test_every_rung_of_the_grid_is_a_policy_that_its_spec_builds_again(kind: Kind) -> None:
    ladders = build_ladders(kind, longest=100)
    assert len(ladders) >= 7
    assert len({ladder.name for ladder in ladders}) == len(ladders)
    for ladder in ladders:
        assert ladder.origin == "published"
        assert ladder.rungs
    for rung in rungs_of(ladders):
        assert build_policy(dict(rung.spec)) == rung.policy
        assert rung.spec["policy"] in POLICIES


@pytest.mark.parametrize("kind", KINDS)
def test_a_later_rung_never_stops_a_run_later(kind: Kind) -> None:
    """Safe first, run by run: otherwise the unbroken run of good rungs would mean nothing."""
    runs = runs_of(batch_of(kind, 90))
    for ladder in build_ladders(kind, longest=8):
        rows = np.array([halts_of(rung, runs).row for rung in rungs_of([ladder])])
        if ladder.name == "esc":  # windows are disjoint: a shorter one may just straddle what a longer one caught
            assert (np.diff(rows.mean(axis=1)) <= 0).all()
        else:
            assert (np.diff(rows, axis=0) <= 0).all(), ladder.name


def test_what_a_run_is_too_short_for_is_left_out() -> None:
    (rounds,) = (ladder for ladder in build_ladders("samples", longest=8) if ladder.name == "fixed-rounds")
    assert [rung.spec["max_steps"] for rung in rungs_of([rounds])] == [8, 7, 6, 5, 4, 3, 2, 1]


@pytest.mark.parametrize("kind", KINDS)
def test_a_ladder_stands_only_where_its_rule_makes_sense(kind: Kind) -> None:
    ladders = {ladder.name for ladder in build_ladders(kind, longest=100)}
    assert ladders == {row.name for row in GRID if kind in row.kinds}


def test_a_rule_that_reads_no_trial_answer_asks_for_none() -> None:
    asks = {
        rung.spec["policy"]: reads_answers(rung.policy.needs)
        for rung in rungs_of(build_ladders("reasoning", longest=8))
    }
    assert asks["fixed-rounds"] is asks["think-brake"] is asks["redundant"] is False
    assert asks["stable-answer"] is True
    assert asks["confidence-threshold"] is True


def test_a_given_policy_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="unknown"):
        build_given_ladder({"policy": "no-such-rule"}, "mine")


def test_levels_rise_are_closest_where_risk_is_low_and_need_something_known() -> None:
    risk = np.random.default_rng(0).random(20_000)
    levels = levels_of(np.concatenate([risk, np.full(500, np.nan)]), 41)
    assert (np.diff(levels) > 0).all()
    assert len(levels) == 41
    assert levels[0] == pytest.approx(3e-4, abs=1e-4)
    assert levels[-1] == pytest.approx(0.999, abs=1e-3)
    assert levels[1] - levels[0] < (levels[-1] - levels[-2]) / 100
    assert not len(levels_of(np.full(5, np.nan), 41))


def test_halts_of_levels_are_their_first_passages_and_say_why() -> None:
    runs = runs_of(batch_of("rounds"))
    rng = np.random.default_rng(2)
    risk, code = rng.random(len(runs.cost)), rng.integers(1, 3, len(runs.cost)).astype(np.int8)
    levels = np.array([0.05, 0.3, 0.8])
    halts = halts_at(risk, levels, runs, code)
    assert [halt.row.tolist() for halt in halts] == find_first_passages(risk, runs.starts, levels).tolist()
    for halt in halts:
        stopped = halt.row < runs.last
        assert halt.code[stopped].tolist() == code[halt.row[stopped]].tolist()
        assert not halt.code[~stopped].any()


def test_a_policy_says_which_rounds_answer_a_stopped_loop_returns(tmp_path: Path) -> None:
    """Two right answers, then a wrong one: the last loses, the most frequent does not."""
    runs = runs_of(written(tmp_path, "rounds", [("q", "a", [("a", 5), ("a", 5), ("b", 5), ("a", 5)])]))
    last = {"policy": "fixed-rounds", "max_steps": 3}
    most = {"policy": "guarded", "inner": last, "returns": "most-frequent"}
    lost, stopped_at = {}, {}
    for spec in (last, most):
        (rung,) = rungs_of([build_given_ladder(spec, "mine")])
        halts = halts_of(rung, runs)
        stopped_at[rung.spec["policy"]] = halts.row.tolist()
        lost[rung.spec["policy"]] = columns_of(runs, halts)[0].tolist()
    assert stopped_at == {"fixed-rounds": [2], "guarded": [2]}
    assert lost == {"fixed-rounds": [1.0], "guarded": [0.0]}

"""A version keeps its word: level 0 never stops, levels come in order, and no model judges what it learned from."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from suffice.arrays import Bools, Floats
from suffice.learn.audits import AuditRuns, find_first_passages
from suffice.learn.version import LEAST_AUDITS, N_FOLDS, FoldedModels, PGood, cut_levels, fit_served, level_risk
from tests.learn.runs_made import audits, believing, drawn

SEEDS = range(5)


def served_on(runs: AuditRuns, n_levels: int = 9) -> FoldedModels:
    served = fit_served(runs, believing, now=np.inf, n_levels=n_levels)
    assert served is not None
    return served


def walked(runs: AuditRuns, risk: Floats, threshold: float, run: int) -> int:
    """Row where a run stops, step by step."""
    for row in range(runs.starts[run], runs.starts[run + 1]):
        if runs.may_stop[row] and risk[row] <= threshold:
            return row
    return int(runs.last[run])


def saved(runs: AuditRuns, risk: Floats, threshold: float) -> float:
    rows = [walked(runs, risk, threshold, run) for run in range(len(runs))]
    return float((runs.full - runs.cost[rows]).sum())


@pytest.mark.parametrize("seed", SEEDS)
def test_level_0_never_stops_and_changes_nothing(seed: int) -> None:
    runs = drawn(200, np.random.default_rng(seed))
    served = served_on(runs)
    assert np.array_equal(served.rows(runs)[:, 0], runs.last)
    assert np.array_equal(served.rows_at(runs, 0), runs.last)
    certain = replace(runs, x=np.ones_like(runs.x))
    assert np.array_equal(served.rows(certain)[:, 0], runs.last), "however sure the model is"
    assert not runs.z[runs.last].any()


@pytest.mark.parametrize("seed", SEEDS)
def test_every_level_ends_every_run_where_a_walk_would_and_a_higher_one_never_later(seed: int) -> None:
    rng = np.random.default_rng(seed)
    runs = drawn(150, rng)
    runs = replace(runs, may_stop=rng.random(len(runs.x)) < 0.8)
    served = served_on(runs)
    rows = served.rows(runs)
    assert (np.diff(rows, axis=1) <= 0).all()
    assert (rows[:, -1] < runs.last).any()
    risk = served.risk(runs)
    for level in range(1, served.n_levels):
        expected = [walked(runs, risk, served.levels[runs.fold[run], level], run) for run in range(len(runs))]
        assert rows[:, level].tolist() == expected
        assert np.array_equal(served.rows_at(runs, level), rows[:, level])


@pytest.mark.parametrize("seed", SEEDS)
def test_first_passages_equal_a_walk_and_what_is_unknown_never_stops(seed: int) -> None:
    rng = np.random.default_rng(seed)
    runs = drawn(80, rng)
    risk = np.where(rng.random(len(runs.x)) < 0.3, np.nan, rng.random(len(runs.x)).round(1))
    levels = np.array([-np.inf, 0.0, 0.25, 0.5, 1.0])
    rows = find_first_passages(risk, runs.starts, levels)
    assert (np.diff(rows, axis=0) <= 0).all()
    for level, stops in zip(levels, rows, strict=True):
        assert stops.tolist() == [walked(runs, risk, level, run) for run in range(len(runs))]


@pytest.mark.parametrize("seed", SEEDS)
def test_levels_rise_from_never_in_even_steps_of_what_they_save(seed: int) -> None:
    runs = drawn(400, np.random.default_rng(seed))
    risk = level_risk(1 - runs.x[:, 0], runs, 0.5)
    levels = cut_levels(risk, runs, 11)
    assert levels[0] == -np.inf
    assert (np.diff(levels) >= 0).all()
    tokens = np.array([saved(runs, risk, level) for level in levels])
    assert tokens[0] == 0
    assert tokens[-1] > 0
    assert (tokens >= tokens[-1] * np.arange(11) / 10 - 1e-6).all(), "at least its step"
    assert (tokens <= tokens[-1] * (np.arange(11) / 10 + 0.05)).all(), "and hardly more"


def test_where_nothing_may_be_delivered_no_level_stops() -> None:
    runs = drawn(200, np.random.default_rng(0))
    mute = replace(runs, may_stop=np.zeros(len(runs.x), dtype=bool))
    assert np.array_equal(served_on(mute).rows(mute), np.repeat(runs.last[:, None], 9, axis=1))
    served = served_on(runs)
    assert np.array_equal(served.rows(mute), np.repeat(runs.last[:, None], 9, axis=1))


class Recording:
    """A learner that remembers whose rows it was given, and which runs each model was asked about."""

    def __init__(self) -> None:
        self.learned: list[set[int]] = []
        self.asked: list[set[int]] = []
        self.good: list[Bools] = []

    def __call__(self, x: Floats, good: Bools, weight: Floats) -> PGood:
        number = len(self.learned)
        self.learned.append(set(x[:, 1].astype(int).tolist()))
        self.asked.append(set())
        self.good.append(good)
        assert (weight > 0).all()

        def p_good(rows: Floats) -> Floats:
            self.asked[number] |= set(rows[:, 1].astype(int).tolist())
            return rows[:, 0]

        return p_good


def test_no_model_is_asked_about_a_run_of_those_it_learned_from() -> None:
    runs, learner = drawn(300, np.random.default_rng(1)), Recording()
    served = fit_served(runs, learner, now=np.inf)
    assert served is not None
    assert len(learner.learned) == N_FOLDS
    for judged in learner.asked:
        judged.clear()  # levels are cut on what was learned from, and on nothing else
    served.rows(runs)
    for learned, judged in zip(learner.learned, learner.asked, strict=True):
        assert judged
        assert not learned & judged
    assert set().union(*learner.asked) == set(range(300)), "every run is judged by one of them"


def test_levels_are_cut_on_the_runs_that_a_model_learned_from() -> None:
    runs, learner = drawn(300, np.random.default_rng(1)), Recording()
    fit_served(runs, learner, now=np.inf)
    for fold, judged in enumerate(learner.asked):
        assert not judged & set(range(fold, 300, N_FOLDS))


def test_split_in_half_one_model_learns_from_the_even_folds_alone() -> None:
    runs, learner = drawn(300, np.random.default_rng(2)), Recording()
    served = fit_served(runs, learner, now=np.inf, split="half")
    assert served is not None
    (learned,) = learner.learned
    assert learned
    assert all(number % N_FOLDS % 2 == 0 for number in learned)
    assert served.rows(runs).shape == (300, served.n_levels)


def test_a_label_that_has_not_come_is_not_read_and_a_full_run_teaches_nothing() -> None:
    rng = np.random.default_rng(3)
    runs = drawn(300, rng)
    late = replace(runs, label_at=np.where(np.arange(300) < 150, 0.0, 1_000.0))
    flipped = replace(late, z=np.where(late.run_of_row < 150, late.z, -late.z - 1).astype(np.int8))
    seen = []
    for one in (late, flipped):
        learner = Recording()
        fit_served(one, learner, now=999.0)
        seen.append(learner.good)
    assert all(np.array_equal(a, b) for a, b in zip(*seen, strict=True))
    learner = Recording()
    fit_served(flipped, learner, now=1_000.0)
    assert not all(np.array_equal(a, b) for a, b in zip(learner.good, seen[0], strict=True)), "once it is there it is"
    single = {run for run in range(300) if np.diff(runs.starts)[run] == 1}
    assert single
    assert not single & set().union(*learner.learned), "the last step of a run is no example"


def test_too_little_to_learn_from_is_no_version() -> None:
    few = audits([[0.5, 1.0]] * LEAST_AUDITS)
    assert fit_served(few, believing, now=np.inf) is None, "of which each model sees four fifths"
    enough = audits([[0.5, 1.0]] * (LEAST_AUDITS * 5 // 4))
    assert fit_served(enough, believing, now=np.inf) is not None


def test_what_a_stop_is_expected_to_lose_is_the_doubt_of_the_model_that_serves_the_run() -> None:
    runs = drawn(300, np.random.default_rng(1))
    doubts = [0.1 * (f + 1) for f in range(N_FOLDS)]
    models = tuple((lambda rows, p=1 - doubt: np.full(len(rows), p)) for doubt in doubts)
    served = replace(served_on(runs), models=models)
    stops = runs.starts[:-1]
    expected = served.expected(runs, stops)
    assert expected is not None
    one_step = stops == runs.last
    assert one_step.any()
    assert not expected[one_step].any(), "a stop at the end is none"
    assert expected[~one_step] == pytest.approx(np.array(doubts)[runs.fold[~one_step]])
    at_ends = served.expected(runs, runs.last)
    assert at_ends is not None
    assert not at_ends.any()
    assert replace(served, target="value").expected(runs, stops) is None, "which is no probability"

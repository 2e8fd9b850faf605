"""Levels by found class: from training questions alone, for large classes alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from suffice.learn.features import DENSE
from suffice.replay.study.policies import ScoreRung, build_ladders, halts_at
from suffice.replay.study.runs import Runs, select_runs
from suffice.replay.study.scores import Score
from suffice.replay.study.sets import BY_CLASS, OURS, replay_set
from suffice.replay.study.study import (
    MIN_QUESTIONS,
    ReplayOptions,
    Study,
    find_large_classes,
    number_classes,
    pick_by_class,
)
from suffice.replay.study.sums import N_FOLDS
from suffice.replay.traces.read import survey
from suffice.signals.features import Classes, FeatureSet, FeatureTest
from suffice_testing.traces import Synthetic
from tests.replay.made import batch_of, runs_of
from tests.replay.study.test_scores import turned_round

SCORES = (Score(name="as-good", target="as-good", parts="linear"), Score(name="value", target="value"))
ASKED = ReplayOptions(scores=SCORES, max_em_drop=0.03, classes=8)


def many(n_runs: int = 1_500, seed: int = 2) -> Runs:
    """Runs of three models, of which one is much weaker: a class worth finding."""
    batch = batch_of("samples", n_runs, seed, n_questions=150)
    return runs_of(batch, needs=FeatureSet(DENSE["samples"]).needs)


@pytest.fixture(scope="module")
def study() -> Study:
    return Study(many(), build_ladders("samples", longest=8)[:1], ASKED)


@pytest.mark.slow
def test_classes_and_levels_know_nothing_of_the_fold_that_they_are_judged_on(study: Study) -> None:
    turned = Study(turned_round(study.runs, 1), study.ladders, study.options)
    mine, other = (pick_by_class(one, 1, ASKED) for one in (study, turned))
    assert mine is not None
    assert other is not None
    assert mine[0].levels == other[0].levels
    assert mine[0].classes is not None
    assert other[0].classes is not None
    assert mine[0].classes.rules == other[0].classes.rules
    assert mine[1] == pytest.approx(other[1])
    anything = pick_by_class(turned, 0, ASKED)  # to the other folds its labels do matter
    assert anything is None or anything[0].levels != mine[0].levels


def test_what_is_picked_keeps_the_target_where_it_was_picked_and_saves_there_what_it_says(study: Study) -> None:
    for v in range(N_FOLDS):
        picked = pick_by_class(study, v, ASKED)
        assert picked is not None
        rung, saved = picked
        train = study.fold != v
        rows, runs = train[study.runs.run_of_row], select_runs(study.runs, train)
        risk, codes = study.risk(SCORES[0], v)
        halts = rung.halts(risk[rows], codes[rows], runs)
        assert (runs.full_ok.astype(int) - runs.ok[halts.row]).mean() <= ASKED.max_em_drop
        assert 1 - runs.cost[halts.row].sum() / runs.full_tokens.sum() == pytest.approx(saved)
        assert len(rung.levels) >= 2


def test_each_run_ends_at_the_level_of_its_class() -> None:
    runs = many(450)
    rules = Classes([(FeatureTest("model=model-0", above=True, value=0.5),), ()])
    levels = {rules.names[0]: 0.1}
    rung = ScoreRung(score="s", level=0.4, classes=rules, levels=levels, label="")
    risk = np.random.default_rng(0).random(len(runs.cost))
    codes = np.ones(len(risk), dtype=np.int8)
    low, high = halts_at(risk, np.array([0.1, 0.4]), runs, codes)
    weak = np.array([("model", "model-0") in query.metadata for query in runs.queries])
    assert 0 < weak.sum() < len(runs)
    found = rung.halts(risk, codes, runs)
    assert found.row.tolist() == np.where(weak, low.row, high.row).tolist()
    assert found.code.tolist() == np.where(weak, low.code, high.code).tolist()


def test_a_class_of_few_runs_or_few_questions_has_no_level_of_its_own() -> None:
    runs = many(900)
    rules = Classes([(FeatureTest("model=model-0", above=True, value=0.5),), ()])
    of_run, everything = [rules.of(query) for query in runs.queries], np.ones(len(runs), dtype=bool)
    assert find_large_classes(of_run, runs.question, everything) == (rules.names[0], "every query")
    weak = np.array([("model", "model-0") in query.metadata for query in runs.queries])
    few = ~weak | (np.cumsum(weak) < 200)
    assert find_large_classes(of_run, runs.question, few) == ("every query",)
    same = [f"q{i % (MIN_QUESTIONS - 1)}" for i in range(len(runs))]
    assert find_large_classes(of_run, same, everything) == ()
    nothing = number_classes(runs, everything, 0)
    assert nothing.names == ()
    assert nothing.classes is None
    assert np.isnan(nothing.number).all()


def test_found_classes_divide_the_runs_by_what_was_known_beforehand(study: Study) -> None:
    everything = np.ones(len(study.runs), dtype=bool)
    found = number_classes(study.runs, everything, 8)
    assert len(found.names) >= 2
    assert any("model" in name for name in found.names)
    assert found.classes is not None
    told = np.array([found.classes.of(query) for query in study.runs.queries])
    for number, name in enumerate(found.names):
        assert (found.number == number).sum() >= 200
        assert ((told == name) == (found.number == number)).all()


@pytest.mark.slow
def test_a_replay_shows_levels_by_class_beside_ours_and_says_what_they_are_worth(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    file = tmp_path_factory.mktemp("traces") / "made.parquet"
    Synthetic(kind="samples", n_runs=1_500, n_questions=150, seed=7).write(file)
    asked = ReplayOptions(max_em_drop=0.03, scores=SCORES[:1], families=("beta", "learned"), n_draws=200)
    (data,) = survey([file])
    plain, by_class = replay_set(data, asked), replay_set(data, replace(asked, classes=8))
    lines = {line.policy: line for line in by_class.lines}
    assert [line.policy for line in by_class.lines][1:3] == [OURS, BY_CLASS]
    assert lines[OURS] == next(line for line in plain.lines if line.policy == OURS)
    told = next(note for note in by_class.notes if note.startswith("levels by found class"))
    more = 100 * (lines[BY_CLASS].token_reduction - lines[OURS].token_reduction)
    assert f"saved {more:+.1f} points (" in told
    assert "model" in told.partition("Classes of the first")[2]

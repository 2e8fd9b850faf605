"""Classes found in the data: from what was known beforehand, and large ones alone."""

from __future__ import annotations

import numpy as np

from suffice.learn.features import DENSE
from suffice.replay.study.runs import Runs
from suffice.replay.study.study import MIN_QUESTIONS, find_large_classes, number_classes
from suffice.signals.features import Classes, FeatureSet, FeatureTest
from tests.replay.made import batch_of, runs_of


def many(n_runs: int = 1_500, seed: int = 2) -> Runs:
    """Runs of three models, of which one is much weaker: a class worth finding."""
    batch = batch_of("samples", n_runs, seed, n_questions=150)
    return runs_of(batch, needs=FeatureSet(DENSE["samples"]).needs)


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


def test_found_classes_divide_the_runs_by_what_was_known_beforehand() -> None:
    runs = many()
    result = number_classes(runs, np.ones(len(runs), dtype=bool), 8)
    assert len(result.names) >= 2
    assert any("model" in name for name in result.names)
    assert result.classes is not None
    report = np.array([result.classes.of(query) for query in runs.queries])
    for number, name in enumerate(result.names):
        assert (result.number == number).sum() >= 200
        assert ((report == name) == (result.number == number)).all()

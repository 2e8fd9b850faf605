"""Which features a stop model is given: all can be read of the kind's folds, and none depends on a label."""

from __future__ import annotations

import pytest

from suffice.errors import ConfigError
from suffice.learn.features import DENSE, MARKED, MAX_MARKS, MIN_RUNS, choose_features
from suffice.signals.features import FeatureSet
from suffice.signals.observe import Observer
from suffice.types import Kind, Query

KINDS: tuple[Kind, ...] = ("samples", "reasoning", "rounds")


def query(model: str, task: str = "sums", n_words: int | None = None) -> Query:
    return Query(query_class=task, metadata=(("model", model), ("task", task)), n_words=n_words)


def queries(**counts: int) -> list[Query]:
    return [query(model) for model, n in counts.items() for _ in range(n)]


@pytest.mark.parametrize("kind", KINDS)
def test_every_feature_can_be_observed_in_runs_of_its_kind(kind: Kind) -> None:
    chosen = choose_features(kind, queries(a=30, b=30))
    features = FeatureSet(chosen.names)
    Observer(features.needs, kind)  # raises for a fold that the kind does not have
    assert len(features) == len(chosen.names) == len(set(chosen.names))
    assert chosen.names[: len(chosen.dense)] == DENSE[kind]


def test_a_mark_that_few_runs_carry_is_left_out_and_so_is_one_that_all_do() -> None:
    chosen = choose_features("samples", queries(common=MIN_RUNS, rare=MIN_RUNS - 1))
    assert any("common" in mark for mark in chosen.marks)
    assert not any("rare" in mark for mark in chosen.marks)
    assert not any("sums" in mark for mark in chosen.marks)  # all have this task: it tells nothing


def test_marks_are_bounded_however_many_models_there_are() -> None:
    many = queries(**{f"m{i}": MIN_RUNS for i in range(MAX_MARKS + 50)})
    per_mark = 3  # the mark, and its products
    assert 0.9 * per_mark * MAX_MARKS < len(choose_features("samples", many).marks) <= per_mark * MAX_MARKS
    assert {"model", "task"} == set(MARKED)


def test_without_query_signals_nothing_of_the_question_is_read() -> None:
    queries = [query("a", n_words=12)] * 30 + [query("b", n_words=9)] * 30
    chosen = choose_features("reasoning", queries, query_signals=False)
    assert chosen.marks == ()
    assert "query" not in FeatureSet(chosen.names).needs
    assert "log1p(n_words)" in choose_features("reasoning", queries).marks


def test_a_class_that_was_found_is_marked_like_one_that_was_declared() -> None:
    queries = [Query(query_class=name) for name in ("x", "y") for _ in range(MIN_RUNS)]
    marks = choose_features("samples", queries).marks
    assert any("x" in mark for mark in marks)
    assert any("y" in mark for mark in marks)


def test_the_same_runs_give_the_same_features_in_the_same_order() -> None:
    runs = queries(a=20, b=20, c=20)
    assert choose_features("rounds", runs) == choose_features("rounds", runs)


def test_a_dense_feature_reads_no_mark() -> None:
    for names in DENSE.values():
        assert not any("=" in name for name in names)
    with pytest.raises(ConfigError):
        FeatureSet(("no_such_field",))

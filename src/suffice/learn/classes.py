"""Query classes found from the data: where, before the first token, early answers can be told to be risky.

A small decision tree over query signals alone, grown on whether the run's first answer was as good as the full
run. Its leaves are the classes. None is smaller than `min_runs`, so a threshold of its own has something to
stand on; a class that is smaller elsewhere takes the pooled one (`replay.study.classed`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from suffice.errors import ConfigError
from suffice.extras import how_to_install
from suffice.signals.classes import Classes, FeatureTest, Rule
from suffice.signals.features import FeatureSet, found, mark
from suffice.types import Query

MIN_RUNS = 200  # below it a class is "unknown" and pooled
MAX_CLASSES = 8
_NUMBERS = ("n_words", "n_numbers", "n_operators")


def find_classes(
    queries: Sequence[Query], good: NDArray[np.bool_], *, min_runs: int = MIN_RUNS, max_classes: int = MAX_CLASSES
) -> Classes:
    """Find classes in which an early answer is about equally safe.

    queries      one a run
    good         was the run's first answer as good as its full run, shape (runs,)
    min_runs     of a class, at least 1
    max_classes  at least 1

    Returns one class, "every query", when nothing known beforehand divides the runs. Raises ConfigError without
    scikit-learn, ValueError for unequal lengths.
    """
    if len(queries) != len(good):
        raise ValueError(f"find_classes: {len(queries)} queries and {len(good)} outcomes; one for each")
    names = _candidates(queries)
    if not names or len(queries) < 2 * min_runs or max_classes < 2:
        return Classes([Rule(())])
    x = FeatureSet(names).table({"step": np.zeros(len(queries))}, queries, np.arange(len(queries)))
    tree = _tree(max_classes, min_runs).fit(x, good).tree_
    return Classes([Rule(_merged(tests)) for tests in _leaves(tree, names)])


def _candidates(queries: Sequence[Query]) -> list[str]:
    """Features of the query that differ between enough runs to divide them."""
    marks: Counter[str] = Counter()
    for query in queries:
        marks.update(mark(key, value) for key, value in query.metadata if key in ("task", "model"))
        if query.question_type:
            marks[found("question_type", query.question_type)] += 1
        if query.script:
            marks[found("script", query.script)] += 1
    names = [name for name, n in marks.items() if 10 <= n <= len(queries) - 10]
    return [*names, *(name for name in _NUMBERS if sum(getattr(q, name) is not None for q in queries) > 10)]


def _tree(max_classes: int, min_runs: int) -> Any:  # scikit-learn brings no types
    try:
        from sklearn.tree import DecisionTreeClassifier
    except ImportError:
        raise ConfigError(f"learn: needs scikit-learn: {how_to_install('train')}") from None
    return DecisionTreeClassifier(max_leaf_nodes=max_classes, min_samples_leaf=min_runs, random_state=0)


def _leaves(tree: Any, names: Sequence[str]) -> list[tuple[FeatureTest, ...]]:
    """The tests on the way to each leaf, left to right."""
    leaves: list[tuple[FeatureTest, ...]] = []

    def walk(node: int, tests: tuple[FeatureTest, ...]) -> None:
        if tree.children_left[node] == tree.children_right[node]:
            leaves.append(tests)
            return
        name, value = names[tree.feature[node]], float(tree.threshold[node])
        walk(tree.children_left[node], (*tests, FeatureTest(name, above=False, value=value)))
        walk(tree.children_right[node], (*tests, FeatureTest(name, above=True, value=value)))

    walk(0, ())
    return leaves


def _merged(tests: tuple[FeatureTest, ...]) -> tuple[FeatureTest, ...]:
    """Of several tests of one feature in one direction, the narrowest."""
    kept: dict[tuple[str, bool], FeatureTest] = {}
    for test in tests:
        key = (test.feature, test.above)
        other = kept.get(key)
        if other is None or (test.value > other.value) == test.above:
            kept[key] = test
    return tuple(kept.values())

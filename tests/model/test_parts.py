"""The parts of a model: one row and a matrix agree, and what is no such part is refused with its place."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suffice.errors import ConfigError
from suffice.model.ensemble import LEAF, MOST_PARTS, Ensemble, Linear, Tree, Trees
from tests.drawn import examples
from tests.model.forest import rows, some_tree, some_trees

PROPERTY = settings(max_examples=examples(40))
SEEDS = st.integers(0, 2**32)


def by_the_book(tree: Tree, row: list[float]) -> float:
    """The value of the leaf that a row reaches, node by node."""
    at = 0
    while tree.feature[at] != LEAF:
        at = tree.left[at] if row[tree.feature[at]] <= tree.threshold[at] else tree.right[at]
    return tree.value[at]


@PROPERTY
@given(seed=SEEDS, n_trees=st.integers(0, 20), most_leaves=st.sampled_from([1, 2, 6, 8]))
def test_trees_reach_the_leaves_that_each_alone_does(seed: int, n_trees: int, most_leaves: int) -> None:
    rng = np.random.default_rng(seed)
    trees, matrix = some_trees(rng, n_trees, most_leaves), rows(rng, 60)
    expected = [trees.baseline + sum(by_the_book(tree, row) for tree in trees.trees) for row in matrix.tolist()]
    np.testing.assert_allclose([trees.raw(row) for row in matrix.tolist()], expected, atol=1e-9)
    np.testing.assert_allclose(trees.raws(matrix), expected, atol=1e-9)


def test_more_rows_than_are_taken_at_once_are_each_scored() -> None:
    rng = np.random.default_rng(3)
    trees, matrix = some_trees(rng, 5, 8), rows(rng, 20_000)
    np.testing.assert_allclose(trees.raws(matrix), np.concatenate([trees.raws(matrix[:7]), trees.raws(matrix[7:])]))


@PROPERTY
@given(seed=SEEDS)
def test_a_linear_part_is_a_weighted_sum(seed: int) -> None:
    rng = np.random.default_rng(seed)
    weights, matrix = rng.normal(size=5), rows(rng, 30)
    part = Linear(tuple(weights.tolist()), 0.25)
    np.testing.assert_allclose(part.raws(matrix), matrix @ weights + 0.25, atol=1e-12)
    np.testing.assert_allclose([part.raw(row) for row in matrix.tolist()], part.raws(matrix), atol=1e-12)


@PROPERTY
@given(seed=SEEDS)
def test_an_ensembles_scores_are_probabilities_and_the_same_one_by_one(seed: int) -> None:
    rng = np.random.default_rng(seed)
    parts = (some_trees(rng, 4, 6), Linear(tuple((rng.normal(size=5) * 100).tolist()), 0.0))
    ensemble, matrix = Ensemble(parts), rows(rng, 50)
    scores = ensemble.scores(matrix)
    assert ((scores >= 0) & (scores <= 1)).all()
    np.testing.assert_allclose([ensemble.score(row) for row in matrix.tolist()], scores, atol=1e-12)
    means = np.mean([np.clip(part.raws(matrix), -math.log(9_999), math.log(9_999)) for part in parts], axis=0)
    np.testing.assert_allclose(ensemble.raws(matrix), means, atol=1e-9)


STUMP: dict[str, Any] = {
    "feature": (0, LEAF, LEAF),
    "threshold": (0.5, 0.0, 0.0),
    "left": (1, 0, 0),
    "right": (2, 0, 0),
    "value": (0.0, 1.0, 2.0),
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"feature": ()}, "feature: got 0 nodes; 1 to 15"),
        ({"feature": (0,) * 17}, "feature: got 17 nodes"),
        ({"feature": (-2, LEAF, LEAF)}, r"feature\[0\]: got -2; a whole number from -1"),
        ({"feature": (0.0, LEAF, LEAF)}, r"feature\[0\]: got 0.0; a whole number"),
        ({"value": (0.0, 1.0)}, "value: got 2 for 3 nodes; one for each"),
        ({"value": (0.0, 1.0, math.nan)}, r"value\[2\]: got nan; a finite number"),
        ({"threshold": (math.inf, 0.0, 0.0)}, r"threshold\[0\]: got inf; a finite number"),
        ({"threshold": (10**400, 0.0, 0.0)}, r"threshold\[0\]: got a whole number of 1,329 bits; a finite number"),
        ({"threshold": ("0", 0.0, 0.0)}, r"threshold\[0\]: got a str; a finite number"),
        ({"threshold": (True, 0.0, 0.0)}, r"threshold\[0\]: got True; a finite number"),
        ({"left": (0, 0, 0)}, r"left\[0\]: got 0; a whole number from 1 to 2"),
        ({"left": (3, 0, 0)}, r"left\[0\]: got 3; a whole number from 1 to 2"),
        ({"left": (True, 0, 0)}, r"left\[0\]: got True"),
        ({"right": (1, 0, 0)}, r"right\[0\]: got 1, which has a parent; each node has one"),
        ({"right": (2, 1, 0)}, r"right\[1\]: got 1; a whole number from 0 to 0"),
        ({"feature": (LEAF, LEAF, LEAF), "left": (0, 0, 0), "right": (0, 0, 0)}, "left: 2 of 3 nodes have no parent"),
    ],
)
def test_what_is_no_tree_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}"):
        Tree(**{**STUMP, **change})


def test_what_is_no_part_is_refused() -> None:
    stump = Tree(**STUMP)
    refused: list[tuple[str, Any]] = [
        (r"weights\[1\]: got nan; a finite number", lambda: Linear((1.0, math.nan), 0.0)),
        ("intercept: got None; a finite number", lambda: Linear((1.0,), None)),  # type: ignore[arg-type]
        ("weights: got 2; one for each of 3 features", lambda: Linear((1.0, 2.0), 0.0).check(3)),
        ("trees: got 2,001; at most 2,000", lambda: Trees(0.0, (stump,) * 2_001)),
        (r"trees\[0\]\.feature: got 0; there are 0 features", lambda: Trees(0.0, (stump,)).check(0)),
        ("parts: got 0; 1 to 16", lambda: Ensemble(())),
        ("parts: got 17", lambda: Ensemble((Linear((), 0.0),) * (MOST_PARTS + 1))),
        (r"parts\[0\]\.weights: got 1", lambda: Ensemble((Linear((1.0,), 0.0),)).check(2)),
    ]
    for message, build in refused:
        with pytest.raises(ConfigError, match=f"^{message}"):
            build()


def test_a_single_leaf_is_a_tree() -> None:
    leaf = some_tree(np.random.default_rng(0), 1)
    assert Trees(0.5, (leaf,)).raw([1.0]) == 0.5 + leaf.value[0]

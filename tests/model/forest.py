"""Trees and rows drawn at random, with values that stand exactly at thresholds among them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from suffice.model.ensemble import LEAF, Tree, Trees

N_FEATURES = 5


def rows(rng: np.random.Generator, n_rows: int) -> NDArray[np.float64]:
    """Rows whose numbers often equal a threshold."""
    return np.round(rng.normal(size=(n_rows, N_FEATURES)), 1)


def some_tree(rng: np.random.Generator, n_leaves: int) -> Tree:
    """A tree of so many leaves, of any shape, its nodes in the order in which leaves were split."""
    feature, threshold, left, right = [LEAF], [0.0], [0], [0]
    value = [float(rng.normal())]
    for _ in range(n_leaves - 1):
        at = int(rng.choice([node for node, split_on in enumerate(feature) if split_on == LEAF]))
        feature[at], threshold[at] = int(rng.integers(N_FEATURES)), float(np.round(rng.normal(), 1))
        left[at], right[at], value[at] = len(feature), len(feature) + 1, 0.0
        for _ in range(2):
            feature.append(LEAF)
            threshold.append(0.0)
            left.append(0)
            right.append(0)
            value.append(float(rng.normal()))
    return Tree(tuple(feature), tuple(threshold), tuple(left), tuple(right), tuple(value))


def some_trees(rng: np.random.Generator, n_trees: int, most_leaves: int) -> Trees:
    """Trees of 1 to so many leaves."""
    sizes = rng.integers(1, most_leaves + 1, n_trees).tolist()
    return Trees(float(rng.normal()), tuple(some_tree(rng, size) for size in sizes))

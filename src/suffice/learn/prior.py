"""The prior of the Bayesian stop (`policy.sequential`), from the votes of recorded full runs.

Knows how often each answer of a run was given, and nothing of which answer was right: no label is needed.
Refuses to know policies, thresholds and where runs come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from suffice.errors import ConfigError

Floats: TypeAlias = NDArray[np.float64]

_UNSEEN = 0.5  # of a vote, given to each answer seen and to one that was not: Jeffreys' prior


def learn_prior(
    runs: Sequence[Sequence[int]], *, n_shapes: int = 25, n_answers: int = 12
) -> tuple[tuple[float, ...], ...]:
    """Shapes of answer distributions with their weights, as the policy `bayes` takes them.

    Each run's votes, sorted and smoothed by half a vote for every answer seen and for one more that was
    not, say how probable the most frequent answer is, the second, and so on. Runs are cut into groups of
    equal size by their leader's share, and each group by the runner-up's: a group's mean is a shape, its size
    the weight. Groups by the leader's share alone average near ties away, and such a prior promises too
    much. This is the uncertain prior of Huang, Ma, Zhou (2026, arXiv:2602.05395) with fewer candidates than
    training questions.

    runs       the votes of each answer of a run, in any order, each at least 1; one run a question is best
    n_shapes   at most this many shapes, from 1 to 64; fewer where there are fewer runs
    n_answers  answers kept in a shape, from 2 to 32; what lies behind them is left out

    Returns falling numbers; a shape's sum is its weight, and all sum to 1. Raises ConfigError for no runs, a run
    without votes, and numbers out of range.
    """
    if not runs or not 1 <= n_shapes <= 64 or not 2 <= n_answers <= 32:
        raise ConfigError(f"learn_prior: got {len(runs)} runs, {n_shapes=}, {n_answers=}; at least 1, 1 to 64, 2 to 32")
    each = np.array(sorted(_shape(at, votes, n_answers) for at, votes in enumerate(runs)))
    n_by_leader = isqrt(n_shapes)
    shapes = []
    for by_leader in _groups(each, n_by_leader):
        by_runner_up = by_leader[np.argsort(by_leader[:, 1], kind="stable")]
        shapes += [group.sum(axis=0) / len(runs) for group in _groups(by_runner_up, n_shapes // n_by_leader)]
    return tuple(tuple(float(p) for p in shape if p > 0) for shape in shapes)


def _groups(rows: Floats, n_groups: int) -> list[Floats]:
    """The rows in order, in so many groups of nearly equal size; fewer where there are fewer rows."""
    return np.array_split(rows, min(n_groups, len(rows)))


def _shape(at: int, votes: Sequence[int], n_answers: int) -> list[float]:
    """Probabilities of a run's answers, falling, filled up with zeros."""
    if not votes or any(type(count) is not int or count < 1 for count in votes):
        raise ConfigError(f"learn_prior: run {at}: votes must be whole numbers of at least 1, and at least one")
    smoothed = [count + _UNSEEN for count in sorted(votes, reverse=True)[: n_answers - 1]] + [_UNSEEN]
    whole = sum(smoothed)
    return [p / whole for p in smoothed] + [0.0] * (n_answers - len(smoothed))

"""Weights for labels that are missing at random: the inverse of the probability that such a run gets one.

Who labels is no sample of the runs. If a label depends on the answer only through what is known of the run (its class,
length, arm, whether it was stopped), weighted labels represent all runs again (Horvitz and Thompson 1952, JASA 47(260);
Rosenbaum and Rubin 1983, Biometrika 70(1)). No data can tell whether it does. The probability is a logistic regression
with a ridge, cross-fitted: that of a run comes from runs of other folds.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import Final

import numpy as np

from suffice.arrays import Bools, Floats, Ints

FOLDS: Final = 5
RIDGE: Final = 4.0  # in runs
LEAST_OF_BOTH: Final = 20  # labelled and unlabelled runs of a fold's complement; below, all have the mean rate
CLIPPED: Final = 0.02  # share of runs whose weights are cut to the weight of the least likely of the others
SURELY: Final = 4.5  # standard deviations at which a group's rate of labels differs from the expected one
MOST_CLASSES: Final = 8
_NEWTON_STEPS: Final = 12
_LARGEST: Final = 12.0  # logit


def covariates(classes: Sequence[str], numbers: Floats) -> Floats:
    """A design matrix: ones, the largest classes, and the numbers (n, d), each centred and scaled."""
    names, counts = np.unique(np.array(classes, dtype=np.str_), return_counts=True)
    largest = names[np.argsort(-counts, kind="stable")][:MOST_CLASSES]
    spread = numbers.std(axis=0)
    scaled = np.clip((numbers - numbers.mean(axis=0)) / np.where(spread > 0, spread, 1.0), -4, 4)
    dummies = np.array(classes, dtype=np.str_)[:, np.newaxis] == largest
    return np.concatenate([np.ones((len(numbers), 1)), dummies, scaled], axis=1)


def label_propensity(x: Floats, labelled: Bools) -> Floats:
    """Estimate P(label) of every run, shape (n,), each from the other folds; x has a first column of ones."""
    fold, propensity = np.arange(len(x)) % FOLDS, np.empty(len(x))
    for one in range(FOLDS):
        others = fold != one
        n_labelled = int(labelled[others].sum())
        if min(n_labelled, int(others.sum()) - n_labelled) < LEAST_OF_BOTH:
            propensity[~others] = (labelled.sum() + 0.5) / (len(x) + 1)
            continue
        propensity[~others] = _probability(x[~others] @ _fit(x[others], labelled[others]))
    return propensity


def label_weights(x: Floats, labelled: Bools, group: Ints) -> Floats:
    """Weights of all runs in proportion to 1 / P(label), in (0, 1], shape (n,); each group has a fit of its own."""
    propensity = np.empty(len(x))
    for one in np.unique(group).tolist():
        mine = group == one
        propensity[mine] = label_propensity(x[mine], labelled[mine])
    least = np.quantile(propensity, CLIPPED) if len(x) else 1.0
    return np.asarray(least / np.maximum(propensity, least))


def unexplained_group(x: Floats, labelled: Bools, group: Ints) -> int | None:
    """A group that is labelled more or less often than its covariates explain; None: none surely is."""
    expected = label_propensity(x, labelled)
    for one in np.unique(group).tolist():
        mine = group == one
        deviation = sqrt(float((expected[mine] * (1 - expected[mine])).sum()))
        if abs(float((labelled[mine] - expected[mine]).sum())) > SURELY * max(deviation, 1.0):
            return int(one)
    return None


def _fit(x: Floats, labelled: Bools) -> Floats:
    weights, penalty = np.zeros(x.shape[1]), np.full(x.shape[1], RIDGE)
    penalty[0] = 1e-6
    for _ in range(_NEWTON_STEPS):
        p = _probability(x @ weights)
        slope = np.maximum(p * (1 - p), 1e-6)
        gradient = x.T @ (labelled - p) - penalty * weights
        change = np.linalg.solve((x * slope[:, np.newaxis]).T @ x + np.diag(penalty), gradient)
        weights = weights + change
        if np.abs(change).max() < 1e-6:
            break
    return weights


def _probability(logits: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-np.clip(logits, -_LARGEST, _LARGEST))))

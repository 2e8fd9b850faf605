"""Picking an operating point, and telling how far such a pick may be trusted. Pure: sums in, numbers out.

A point is picked on a ladder from its safe end: the last rung of the unbroken run in which the EM drop plus
a margin stays within the target (fixed-sequence testing, as in certification). Of several ladders the
one that saves most is taken. Plain tuning, for comparison, takes the best of all rungs whose measured
drop is within the target: a fluke far out on one of many rungs is then taken for a find.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from suffice.assurance.bounds import Interval
from suffice.replay.study.runs import Bools, Floats
from suffice.replay.study.sums import QuestionSums

# Standard errors of the drop, clustered by question, that a frozen point keeps from its target:
# the one-standard-error rule (Breiman, Friedman, Olshen, Stone 1984, Classification and Regression Trees, 3.4.3).
MARGIN = 1.0
# Runs counted as lost, in the error alone: where no answer was lost among few, "no error at all" is no estimate.
PSEUDO_LOSSES = 1.0
N_SPLITS = 200
NONE = -1  # no rung is good enough: never stop

_ROUNDING = 1e-12


class PolicyPoints(NamedTuple):
    """What some sets of questions show of each policy, shape (R, C) each: R sets, C policies."""

    drop: Floats
    error: Floats  # standard error of the drop, clustered by question, with PSEUDO_LOSSES
    saved: Floats  # token reduction


def seen(sums: QuestionSums, weights: Floats) -> PolicyPoints:
    """Look at sets of questions: `weights` holds how often each set takes each question, shape (R, G).

    A set that takes no question, as half of one, shows NaN, which is within no target.
    """
    n, drop = sums.n, sums.drop
    total = weights @ n
    total[total == 0] = np.nan
    full_tokens = weights @ sums.full_tokens
    full_tokens[full_tokens == 0] = np.nan
    mean = (weights @ drop) / total[:, None]
    saved = 1 - (weights @ sums.of("tokens")) / full_tokens[:, None]
    squares = weights @ drop**2 - 2 * mean * (weights @ (drop * n[:, None])) + mean**2 * (weights @ n**2)[:, None]
    n_groups = np.maximum(weights.sum(axis=1), 2)[:, None]
    error = np.sqrt((np.maximum(squares, 0) + PSEUDO_LOSSES) * n_groups / (n_groups - 1)) / total[:, None]
    return PolicyPoints(mean, error, saved)


def pick_policies(at: PolicyPoints, ladders: Sequence[slice], target: float, margin: float) -> NDArray[np.int64]:
    """The policy picked on each set of questions, by the rule at the head of this file; NONE: none will do."""
    within = at.drop + margin * at.error <= target + _ROUNDING
    for rungs in ladders:
        within[:, rungs] = np.logical_and.accumulate(within[:, rungs], axis=1)
    return _most_saving(at, within)


def pick_plainly(at: PolicyPoints, target: float) -> NDArray[np.int64]:
    """Plain tuning: of all policies whose measured drop is within the target, the one that saves most."""
    return _most_saving(at, at.drop <= target + _ROUNDING)


def at_choice(values: Floats, choice: NDArray[np.int64]) -> Floats:
    """The value of each set's chosen policy, shape (R,); 0 where none was chosen."""
    if not values.shape[1]:
        return np.zeros(len(values))
    found: Floats = np.where(choice >= 0, values[np.arange(len(choice)), np.maximum(choice, 0)], 0.0)
    return found


def miss_share(
    sums: QuestionSums, ladders: Sequence[slice], target: float, rng: np.random.Generator, *, margin: float | None
) -> float:
    """Share of random halvings of the questions in which a point picked on one half misses its target on the other.

    margin  None: plain tuning
    """
    taken = halvings(len(sums.n), N_SPLITS, rng)
    here, there = seen(sums, taken), seen(sums, 1 - taken)
    choice = pick_plainly(here, target) if margin is None else pick_policies(here, ladders, target, margin)
    return float(np.mean(at_choice(there.drop, choice) > target + _ROUNDING))


def halvings(n_groups: int, n_splits: int, rng: np.random.Generator) -> Floats:
    """Random halves of the questions as weights 0 and 1, shape (n_splits, n_groups)."""
    weights = np.zeros((n_splits, n_groups))
    for row in weights:
        row[rng.permutation(n_groups)[: n_groups // 2]] = 1
    return weights


def bootstrap(sums: QuestionSums, n_draws: int, rng: np.random.Generator) -> tuple[list[Interval], list[Interval]]:
    """95 % intervals of EM drop and token reduction of each policy, resampling whole questions.

    Percentile intervals (Davison and Hinkley 1997, section 3.8); with fewer than about 20 questions a sketch.
    """
    n_groups = len(sums.n)
    weights = rng.multinomial(n_groups, np.full(n_groups, 1 / n_groups), size=n_draws).astype(np.float64)
    drawn = seen(sums, weights)
    return _percentiles(drawn.drop), _percentiles(drawn.saved)


def share_of(sums: QuestionSums, field: str) -> Floats:
    """A field's sum over the number of runs, shape (C,)."""
    share: Floats = sums.of(field).sum(axis=0) / sums.n.sum()
    return share


def _most_saving(at: PolicyPoints, within: Bools) -> NDArray[np.int64]:
    if not within.shape[1]:  # runs may be too short for every setting of a rule
        return np.full(len(within), NONE)
    saved = np.where(within, at.saved, 0.0)
    best = saved.argmax(axis=1)
    return np.where(saved.max(axis=1) > 0, best, NONE)


def _percentiles(drawn: Floats) -> list[Interval]:
    low, high = np.percentile(drawn, [2.5, 97.5], axis=0)
    return [Interval(float(a), float(b)) for a, b in zip(low, high, strict=True)]

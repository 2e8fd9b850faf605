"""What an arm pays in a context, guessed from what was seen: the part of doubly robust estimates that may be wrong.

One linear model over context x arm: what all arms share, and for each arm its own intercept and slopes, held back by a
ridge so that an arm with few draws stays near the others. Own few lines of numpy; tested against the closed forms.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]
ModelKind: TypeAlias = Literal["ridge", "logistic"]
Guess: TypeAlias = Callable[[Floats], Floats]  # (n, d) contexts → (n, K) guessed rewards in [0, 1]

RIDGE: Final = 4.0  # in rows: what an arm's own part must outweigh
_NEWTON_STEPS: Final = 12
_LARGEST_LOGIT: Final = 12.0


def fit_rewards(x: Floats, arm: Ints, reward: Floats, *, n_arms: int, kind: ModelKind, ridge: float = RIDGE) -> Guess:
    """Fit the mean reward of every arm as a function of the context.

    x       contexts, shape (n, d); an intercept is added
    arm     0 … n_arms - 1, shape (n,)
    reward  in [0, 1], shape (n,)
    kind    ridge: least squares, cut to [0, 1]; logistic: for rewards that are 0 or 1, or shares
    ridge   penalty on everything but the common intercept, above 0

    Without rows every guess is 1/2. Raises ValueError for shapes that do not fit and for rewards outside [0, 1].
    """
    if x.ndim != 2 or not len(x) == len(arm) == len(reward):
        raise ValueError(f"need one arm and one reward a row; got {x.shape=} {len(arm)=} {len(reward)=}")
    if ridge <= 0 or (reward < 0).any() or (reward > 1).any():
        raise ValueError(f"need ridge > 0 and rewards in [0, 1]; got {ridge=}")
    if not len(x):
        return lambda rows: np.full((len(rows), n_arms), 0.5)
    design = _design(x, arm, n_arms)
    penalty = np.full(design.shape[1], ridge)
    penalty[0] = 1e-6
    weights = (_least_squares if kind == "ridge" else _newton)(design, reward, penalty)

    def guess(rows: Floats) -> Floats:
        raw = np.column_stack([_design(rows, np.full(len(rows), a), n_arms) @ weights for a in range(n_arms)])
        return np.asarray(np.clip(raw, 0.0, 1.0) if kind == "ridge" else _sigmoid(raw))

    return guess


def _design(x: Floats, arm: Ints, n_arms: int) -> Floats:
    """Rows of: 1, context, then for each arm its own 1 and context, 0 where another arm was drawn."""
    shared = np.column_stack([np.ones(len(x)), x])
    own = np.zeros((len(x), n_arms, shared.shape[1]))
    own[np.arange(len(x)), arm] = shared
    return np.column_stack([shared, own.reshape(len(x), -1)])


def _least_squares(design: Floats, reward: Floats, penalty: Floats) -> Floats:
    return np.asarray(np.linalg.solve(design.T @ design + np.diag(penalty), design.T @ reward))


def _newton(design: Floats, reward: Floats, penalty: Floats) -> Floats:
    """Penalised logistic regression, by steps of weighted least squares."""
    weights = np.zeros(design.shape[1])
    for _ in range(_NEWTON_STEPS):
        p = _sigmoid(design @ weights)
        slope = np.maximum(p * (1 - p), 1e-6)
        gradient = design.T @ (reward - p) - penalty * weights
        weights = weights + np.linalg.solve((design * slope[:, np.newaxis]).T @ design + np.diag(penalty), gradient)
    return weights


def _sigmoid(logits: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-np.clip(logits, -_LARGEST_LOGIT, _LARGEST_LOGIT))))

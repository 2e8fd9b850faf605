"""The stop model: P(stopping now is as good as the full run), fitted on the checkpoints of full runs.

Knows rows of numbers with their targets, and how to fit; refuses to know policies, thresholds and files.
Nothing here is imported by a request: what is fitted leaves as plain data (`learn.export`).

    target     a row is good when …                           which side of the rule it learns
    as-good    the full run is wrong, or stopping is right    both: suffices, and hopeless (needs labels)
    suffices   stopping gives the full run's answer, or       the answer suffices; with `same` alone it
               a right one                                    needs no label
    hopeless   the full run is wrong                          the run will fail anyway
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from suffice.errors import ConfigError
from suffice.extras import how_to_install
from suffice.learn.features import FeatureSelection

Floats: TypeAlias = NDArray[np.float64]
Bools: TypeAlias = NDArray[np.bool_]
Target: TypeAlias = Literal["as-good", "suffices", "hopeless"]
Parts: TypeAlias = Literal["ensemble", "linear", "trees"]

# Inverse strength of the linear part's L2 penalty: enough for dozens of marks with a few hundred rows each.
LINEAR_C = 0.02
# Small trees, many rows a leaf: a few hundred questions do not carry more (ASSURANCE 4.1 found the same).
TREES: Mapping[str, float] = {
    "max_iter": 60,
    "learning_rate": 0.06,
    "max_leaf_nodes": 6,
    "min_samples_leaf": 100,
    "l2_regularization": 20.0,
}
MAX_ROWS = 40_000  # more rows are thinned evenly: they repeat questions, and fitting time is bounded
_CLIP = 1e-4  # of a part's probability, before logits are averaged


@dataclass(frozen=True, slots=True, kw_only=True)
class Examples:
    """Checkpoints of full runs, one row each; the last step of a run is none, for stopping there is the full run."""

    x: Floats  # (R, P): features, the dense ones first
    good: Mapping[Target, Bools]  # R each
    weight: Floats | None = None  # R, at least 0: how many rows each stands for; None: one

    def __len__(self) -> int:
        return len(self.x)


@dataclass(frozen=True, slots=True)
class FitResult:
    """A fitted model: its parts as the trainer left them, each from rows to probabilities of `good`."""

    parts: tuple[Callable[[Floats], Floats], ...]  # (R, P) → (R,)
    trained: tuple[object, ...]  # the trainer's own objects, for `learn.export`; () for a constant

    def scores(self, x: Floats) -> Floats:
        """P(good) of each row: the mean of the parts' logits, as a probability, shape (R,)."""
        with one_thread():
            logits = [np.log(p / (1 - p)) for p in (np.clip(part(x), _CLIP, 1 - _CLIP) for part in self.parts)]
        mean: Floats = 1 / (1 + np.exp(-np.mean(logits, axis=0)))
        return mean


def fit(
    examples: Examples, chosen: FeatureSelection, target: Target, *, parts: Parts = "ensemble", seed: int = 0
) -> FitResult:
    """Fit P(good).

    The default is a penalised logistic regression on all features beside small boosted trees on the dense
    ones, their logits averaged: the two err in different places.
    With fewer than 20 rows of either outcome the model is a constant, the share of good rows. Rows of weight 0
    are as if they were not there. Raises ConfigError when scikit-learn is not installed, ValueError for weights
    that are not finite, below 0, or not one a row.
    """
    x, y, weight = _rows(examples, target)
    if min(int(y.sum()), int((~y).sum())) < 20:
        share = _share(y, weight)
        return FitResult((lambda x: np.full(len(x), share),), ())
    thin = slice(None, None, -(-len(y) // MAX_ROWS))
    x, y, weight = x[thin], y[thin], None if weight is None else weight[thin]
    n_dense = len(chosen.dense)
    made: list[Callable[[Floats], Floats]] = []
    trained: list[object] = []
    with one_thread():
        if parts != "trees":
            # The scale only shapes the penalty; weighted, scikit-learn's own is not a number for what never moves.
            linear = _linear(weighted=weight is not None).fit(x, y, logisticregression__sample_weight=weight)
            made.append(lambda rows: np.asarray(linear.predict_proba(rows)[:, 1]))
            trained.append(linear)
        if parts != "linear":
            stand = _standing_for(weight, len(y))
            trees = _trees(seed).fit(x[stand, :n_dense], y[stand])
            made.append(lambda rows: np.asarray(trees.predict_proba(rows[:, :n_dense])[:, 1]))
            trained.append(trees)
    return FitResult(tuple(made), tuple(trained))


def _rows(examples: Examples, target: Target) -> tuple[Floats, Bools, Floats | None]:
    """Features, outcomes and weights of the rows that count."""
    y, weight = examples.good[target], examples.weight
    if weight is None:
        return examples.x, y, None
    if weight.shape != y.shape or not np.isfinite(weight).all() or (weight < 0).any():
        raise ValueError(f"weight: got shape {weight.shape} for {len(y)} rows; one a row, finite and at least 0")
    counts = weight > 0
    return examples.x[counts], y[counts], weight[counts]


def _share(y: Bools, weight: Floats | None) -> float:
    """The share of good rows, never 0 and never 1."""
    n, n_good = (len(y), y.sum()) if weight is None else (weight.sum(), weight @ y)
    return (float(n_good) + 1) / (float(n) + 2)


def _standing_for(weight: Floats | None, n_rows: int) -> NDArray[np.int64]:
    """As many rows as the weights sum to, each as often as its weight says, to less than one: a systematic sample.

    scikit-learn takes ten times as long to sort weighted rows into bins, and counts the rows of a leaf without weights.
    """
    if weight is None:
        return np.arange(n_rows)
    reached = np.cumsum(weight)
    places = np.arange(max(1, round(float(reached[-1])))) + 0.5
    return np.minimum(np.searchsorted(reached, places), n_rows - 1)


def one_thread() -> AbstractContextManager[object]:
    """Numerics on one thread: on small data more threads only wait for each other, and on a busy machine for long."""
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:
        return nullcontext()
    limits: AbstractContextManager[object] = threadpool_limits(1)
    return limits


def _linear(*, weighted: bool) -> Any:  # scikit-learn brings no types
    try:
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
    except ImportError:
        raise ConfigError(f"learn: needs scikit-learn: {how_to_install('train')}") from None
    # Seven times as fast and nearer to the optimum; what is fitted without weights stays what it was to the last bit.
    solver = "newton-cholesky" if weighted else "lbfgs"
    return make_pipeline(StandardScaler(), LogisticRegression(C=LINEAR_C, max_iter=300, solver=solver))


def _trees(seed: int) -> Any:  # as above
    try:
        from sklearn.ensemble import HistGradientBoostingClassifier
    except ImportError:
        raise ConfigError(f"learn: needs scikit-learn: {how_to_install('train')}") from None
    return HistGradientBoostingClassifier(**TREES, early_stopping=False, random_state=seed)

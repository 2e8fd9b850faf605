"""Fits the stop model and the value model on the checkpoints of full runs, as plain data, and the prior of `bayes`.

The stop model is P(stopping now is as good as the full run). Its targets:

    target     a row is good when …
    as-good    the full run is wrong, or stopping is right; needs labels
    suffices   stopping gives the full run's answer, or a right one; with agreement alone it needs no label
    hopeless   the full run is wrong

The value model is a finite-horizon decision process: stop, and earn EM minus the price of the tokens so far, or
continue. Q of both is fitted on full trajectories with forward-view Q(λ) targets (Stop-RAG, arXiv:2510.14337, which has
no price on tokens):

    stop      r_k = ok_k − price · tokens_k / mean full tokens
    continue  target_k = (1 − λ) · max(Q_stop, Q_continue)_{k+1} + λ · target_{k+1},  target_{n−1} = r_n

Full runs show every reward of any policy, so nothing is off-policy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from math import isqrt
from typing import Any, Literal, NamedTuple, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from suffice.arrays import Bools, Floats, Ints
from suffice.errors import ConfigError
from suffice.learn.features import FeatureSelection, sklearn
from suffice.model.artefact import StepCost, StopModel, TrainingRecord
from suffice.model.ensemble import LEAF, Ensemble, Linear, Tree, Trees

Target: TypeAlias = Literal["as-good", "suffices", "hopeless"]
Parts: TypeAlias = Literal["ensemble", "linear", "trees"]

# Inverse strength of the linear part's L2 penalty, for dozens of marks with a few hundred rows each.
LINEAR_C = 0.02
# Small trees with many rows per leaf: a few hundred questions support no more.
TREES: Mapping[str, float] = {
    "max_iter": 60,
    "learning_rate": 0.06,
    "max_leaf_nodes": 6,
    "min_samples_leaf": 100,
    "l2_regularization": 20.0,
}
MAX_ROWS = 40_000  # more rows are thinned evenly, to bound the fitting time
_CLIP = 1e-4  # of a part's probability, before logits are averaged


class Examples(NamedTuple):
    """Checkpoints of full runs, one row each, without the last step of a run: a stop there is the full run."""

    x: Floats  # (R, P): features, the dense ones first
    good: Bools  # R
    weight: Floats | None = None  # R, at least 0; None: 1 each


@dataclass(frozen=True, slots=True)
class FitResult:
    trained: tuple[Any, ...]  # the trainer's own objects, each fitted on the first columns; (): a constant
    constant: float  # P(good) without them: the share of good rows

    def scores(self, x: Floats) -> Floats:
        """P(good), from the mean of the parts' logits, shape (R,)."""
        with one_thread():
            parts = [part.predict_proba(x[:, : part.n_features_in_])[:, 1] for part in self.trained]
            p = np.clip(parts or [np.full(len(x), self.constant)], _CLIP, 1 - _CLIP)
        mean: Floats = 1 / (1 + np.exp(-np.mean(np.log(p / (1 - p)), axis=0)))
        return mean


def fit(examples: Examples, chosen: FeatureSelection, *, parts: Parts = "ensemble", seed: int = 0) -> FitResult:
    """Fit P(good): by default, mean logits of a penalised logistic regression and of boosted trees on dense features.

    With fewer than 20 rows of either outcome the model is a constant, the share of good rows. Raise ConfigError without
    scikit-learn, ValueError for weights that are not finite, below 0, or not one per row.
    """
    x, y, weight = examples
    if weight is not None:
        if weight.shape != y.shape or not np.isfinite(weight).all() or (weight < 0).any():
            raise ValueError(f"weight: got shape {weight.shape} for {len(y)} rows; one a row, finite and at least 0")
        counts = weight > 0
        x = x[counts]
        y = y[counts]
        weight = weight[counts]
    n, n_good = (len(y), y.sum()) if weight is None else (weight.sum(), weight @ y)
    share = (float(n_good) + 1) / (float(n) + 2)  # never 0 and never 1
    if min(int(y.sum()), int((~y).sum())) < 20:
        return FitResult((), share)
    thin = slice(None, None, -(-len(y) // MAX_ROWS))
    x = x[thin]
    y = y[thin]
    weight = None if weight is None else weight[thin]
    trained: list[object] = []
    with one_thread():
        if parts != "trees":
            # The scaler is unweighted: with weights, scikit-learn's is nan for constant features, and the scale only
            # shapes the penalty. newton-cholesky is seven times as fast; lbfgs keeps unweighted fits bit-identical.
            solver = "lbfgs" if weight is None else "newton-cholesky"
            regression = sklearn("linear_model").LogisticRegression(C=LINEAR_C, max_iter=300, solver=solver)
            linear = sklearn("pipeline").make_pipeline(sklearn("preprocessing").StandardScaler(), regression)
            trained.append(linear.fit(x, y, logisticregression__sample_weight=weight))
        if parts != "linear":
            rows = _systematic_sample(weight, len(y))
            boosting = sklearn("ensemble").HistGradientBoostingClassifier
            trees = boosting(**TREES, early_stopping=False, random_state=seed)
            trained.append(trees.fit(x[rows, : len(chosen.dense)], y[rows]))
    return FitResult(tuple(trained), share)


def _systematic_sample(weight: Floats | None, n_rows: int) -> Ints:
    """Repeat rows by weight: scikit-learn is ten times slower with weights, and ignores them in the rows of a leaf."""
    if weight is None:
        return np.arange(n_rows)
    reached = np.cumsum(weight)
    places = np.arange(max(1, round(float(reached[-1])))) + 0.5
    return np.minimum(np.searchsorted(reached, places), n_rows - 1)


def one_thread() -> AbstractContextManager[object]:
    """On small data more threads only wait for each other."""
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:
        return nullcontext()
    limits: AbstractContextManager[object] = threadpool_limits(1)
    return limits


# --------------------------------------------------------------------------- the value model

Bits = NDArray[np.uint64]

# EM that the tokens of one mean full run are worth.
PRICES: Floats = np.geomspace(0.01, 10.0, 61)
LAMBDA = 0.8  # near 1: recorded returns; near 0: one step, then the model's value
N_SWEEPS = 4  # of policy improvement; the targets hardly move after the third
MAX_VALUE_ROWS = 120_000  # bounds the memory: each row is held several times per price
RIDGE = 300.0  # in rows: with standardised features, about one question's worth


@dataclass(frozen=True, slots=True, kw_only=True)
class Trajectories:
    """Full runs as arrays: R rows, run after run; the last row of each is its end."""

    x: Floats  # (R, P): features
    starts: NDArray[np.int64]  # (runs + 1,)
    ok: Bools | Floats  # R: EM of the answer after the step, or its difference to the full run's
    tokens: Floats  # R: spent up to and including the step
    weight: Floats | None = None  # R, at least 0, the same in all rows of a run; None: 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Values:
    mean: Floats  # P
    scale: Floats  # P
    stop: Floats  # (P + 1, 1): EM if stopped; the last weight is the intercept
    go_on: Floats  # (P + 1, prices): EM minus the price of further tokens, if continued
    mean_tokens: float  # of a full run: the unit of prices
    prices: Floats

    def advantage(self, x: Floats) -> Floats:
        """Q(stop) − Q(continue), shape (R, prices): stop where it is at least 0."""
        z = _with_one((x - self.mean) / self.scale)
        with one_thread():
            gain: Floats = z @ self.stop - z @ self.go_on
        return gain

    def stopping_prices(self, x: Floats) -> Bits:
        """Return bits, shape (R,): bit j is set where the row would stop at price j, of at most 64."""
        stops = self.advantage(x) >= 0
        bits = np.zeros(len(x), dtype=np.uint64)
        for at in range(stops.shape[1]):
            bits |= stops[:, at].astype(np.uint64) << np.uint64(at)
        return bits


def fit_values(t: Trajectories, *, prices: Floats = PRICES, lam: float = LAMBDA, sweeps: int = N_SWEEPS) -> Values:
    """Fit Q(stop) and Q(continue) for each price, rebuilding the targets in `sweeps`.

    Raise ValueError without a run of two steps, for lam outside [0, 1], and for invalid weights.
    """
    if not 0 <= lam <= 1 or sweeps < 1:
        raise ValueError(f"need 0 <= lam <= 1 and sweeps >= 1; got {lam=} {sweeps=}")
    weight = t.weight
    if weight is not None and (weight.shape != t.ok.shape or not (weight >= 0).all() or np.isinf(weight).any()):
        raise ValueError(f"weight: got shape {weight.shape} for {len(t.ok)} rows; one a row, finite and at least 0")
    with one_thread():
        return _fit(t, prices, lam, sweeps)


def _fit(t: Trajectories, prices: Floats, lam: float, sweeps: int) -> Values:
    last = t.starts[1:] - 1
    weight = np.ones(len(t.x)) if t.weight is None else t.weight.copy()
    of_run = weight[last]
    weight[last] = 0.0  # no decision at the end of a run
    rows = np.flatnonzero(weight)
    if not len(rows):
        raise ValueError("value model: needs at least one run of two steps")
    mean_tokens = float(np.maximum(np.average(t.tokens[last], weights=of_run), 1.0))
    mean = np.average(t.x[rows], axis=0, weights=weight[rows])
    scale = np.sqrt(np.average((t.x[rows] - mean) ** 2, axis=0, weights=weight[rows]))
    scale = np.where(scale > 0, scale, 1.0)  # constant features
    z = _with_one((t.x - mean) / scale)
    solve = _solver(z[rows], weight[rows])
    spent = np.outer(t.tokens / mean_tokens, prices)  # (R, prices)
    reward = t.ok[:, None] - spent  # of stopping after the row
    stop = solve(t.ok[rows].astype(np.float64)[:, None])
    value = reward.copy()  # of being at each row
    go_on = np.zeros((z.shape[1], len(prices)))
    for sweep in range(sweeps):
        if sweep:
            value = np.maximum(z @ stop, z @ go_on) - spent
            value[last] = reward[last]
        target = _targets(value, reward, t.starts, 1.0 if sweep == 0 else lam)
        go_on = solve(target[rows] + spent[rows])
    return Values(mean=np.asarray(mean), scale=scale, stop=stop, go_on=go_on, mean_tokens=mean_tokens, prices=prices)


def _targets(value: Floats, reward: Floats, starts: NDArray[np.int64], lam: float) -> Floats:
    target = np.zeros_like(value)
    last = starts[1:] - 1
    later = reward[last]
    for back in range(1, int(np.diff(starts).max())):
        runs = np.flatnonzero(last - back >= starts[:-1])
        row = last[runs] - back
        following = value[row + 1] if back > 1 else reward[row + 1]
        later[runs] = (1 - lam) * following + lam * later[runs]
        target[row] = later[runs]
    return target


def _solver(z: Floats, weight: Floats) -> Callable[[Floats], Floats]:
    weighted = z * weight[:, None]
    gram = weighted.T @ z + RIDGE * np.eye(z.shape[1])
    gram[-1, -1] -= RIDGE  # the intercept is not shrunk
    inverse = np.linalg.inv(gram)
    return lambda y: np.asarray(inverse @ (weighted.T @ y))


def _with_one(z: Floats) -> Floats:
    return np.hstack([z, np.ones((len(z), 1))])


# --------------------------------------------------------------------------- the prior of `bayes`

_UNSEEN = 0.5  # of a vote, added to each answer and to one unseen answer: Jeffreys' prior


def learn_prior(
    runs: Sequence[Sequence[int]], *, n_shapes: int = 25, n_answers: int = 12
) -> tuple[tuple[float, ...], ...]:
    """Shapes of answer distributions for the policy `bayes`; the sum of a shape is its weight.

    Runs are grouped by the leader's share and then by the runner-up's, so that near ties stay; a group's mean of votes,
    smoothed by half a vote, is a shape. This is the uncertain prior of Huang, Ma, Zhou (2026, arXiv:2602.05395) with
    fewer candidates. Raise ConfigError for no runs, a run without votes, and numbers out of range.

    runs       the votes of each answer of a run, in any order, each at least 1; one run per question is best
    n_shapes   at most this many shapes, from 1 to 64
    n_answers  answers kept in a shape, from 2 to 32
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
    return np.array_split(rows, min(n_groups, len(rows)))


def _shape(at: int, votes: Sequence[int], n_answers: int) -> list[float]:
    if not votes or any(type(count) is not int or count < 1 for count in votes):
        raise ConfigError(f"learn_prior: run {at}: votes must be whole numbers of at least 1, and at least one")
    smoothed = [count + _UNSEEN for count in sorted(votes, reverse=True)[: n_answers - 1]] + [_UNSEEN]
    whole = sum(smoothed)
    return [p / whole for p in smoothed] + [0.0] * (n_answers - len(smoothed))


# ---- fitted objects as plain data; tested with scikit-learn 1.7 and later, to 1e-6

_LAST_DIGITS = 1e-10  # relative: above rounding errors, below the distance of values that a tree separates

# Any, throughout: scikit-learn has no types, and this module does not import it.


def export_stop_model(
    chosen: FeatureSelection,
    suffices: Ensemble,
    hopeless: FitResult | None = None,
    *,
    trained: TrainingRecord,
    cost: StepCost | None = None,
) -> StopModel:
    return StopModel(
        features=chosen.names,
        suffices=suffices,
        hopeless=None if hopeless is None else export_fit(hopeless, chosen),
        trained=msgspec.structs.replace(trained, versions=(*trained.versions, *_versions())),
        cost=cost or StepCost(),
    )


@cache  # reading them takes longer than the rest of an export
def _versions() -> tuple[tuple[str, str], ...]:
    versions = [(package, version(package)) for package in ("suffice", "numpy")]
    with suppress(PackageNotFoundError):
        versions.append(("scikit-learn", version("scikit-learn")))
    return tuple(versions)


def export_fit(fitted: FitResult, chosen: FeatureSelection) -> Ensemble:
    n_features = len(chosen.names)
    constant = float(fitted.scores(np.zeros((1, n_features)))[0])  # the constant probability of an untrained model
    return export_ensemble(fitted.trained, n_features=n_features, otherwise=constant)


def export_ensemble(trained: Sequence[Any], *, n_features: int, otherwise: float = 0.5) -> Ensemble:
    """The mean of the logits of models as `fit` makes them, each clipped; the probability `otherwise` without any."""
    if not trained:
        return Ensemble((Linear((0.0,) * n_features, math.log(otherwise / (1.0 - otherwise))),))
    return Ensemble(tuple(export_trees(one) if hasattr(one, "_predictors") else export_linear(one) for one in trained))


def export_advantage(values: Values, at: int) -> Ensemble:
    """Q(stop) - Q(continue) at the price number `at`, as a logit. Raise IndexError for a price out of range."""
    if not 0 <= at < len(values.prices):
        raise IndexError(f"price: got number {at}; 0 to {len(values.prices) - 1}")
    gain = values.stop[:, 0] - values.go_on[:, at]
    weights = gain[:-1] / values.scale
    return Ensemble((Linear(tuple(weights.tolist()), float(gain[-1] - weights @ values.mean)),))


def export_linear(fitted: Any) -> Linear:
    """A LogisticRegression in a Pipeline behind a StandardScaler."""
    scaler, regression = fitted[0], fitted[-1]
    weights = regression.coef_[0] / scaler.scale_
    return Linear(tuple(weights.tolist()), float(regression.intercept_[0]) - float(weights @ scaler.mean_))


def export_trees(fitted: Any) -> Trees:
    """A HistGradientBoostingClassifier of two classes and at most `MOST_LEAVES` leaves a tree, as logit."""
    # scikit-learn keeps these private; tests compare with its predictions and so notice a change.
    predictors = fitted._predictors  # noqa: SLF001
    baseline = float(np.array(fitted._baseline_prediction).reshape(-1)[0])  # noqa: SLF001
    return Trees(baseline, tuple(_tree(predictor.nodes) for (predictor,) in predictors))


def _tree(nodes: Any) -> Tree:
    is_leaf = nodes["is_leaf"].astype(bool)
    # A split for missing values has an infinite threshold; here nothing is missing and all rows go left. A threshold is
    # often a value of the training data, which may differ in its last digit when computed live.
    exact = nodes["num_threshold"]
    threshold = np.clip(exact + _LAST_DIGITS * np.maximum(1.0, np.abs(exact)), -1e300, 1e300)
    return Tree(
        feature=tuple(np.where(is_leaf, LEAF, nodes["feature_idx"]).tolist()),
        threshold=tuple(np.where(is_leaf, 0.0, threshold).tolist()),
        left=tuple(np.where(is_leaf, 0, nodes["left"]).astype(int).tolist()),
        right=tuple(np.where(is_leaf, 0, nodes["right"]).astype(int).tolist()),
        value=tuple(np.where(is_leaf, nodes["value"], 0.0).tolist()),
    )

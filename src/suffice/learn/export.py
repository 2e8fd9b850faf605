"""Exports fitted objects to plain data; tested with scikit-learn 1.7 and later, to 1e-6."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from suffice.learn.features import FeatureSelection
from suffice.learn.models import FitResult, Values
from suffice.model.artefact import StepCost, StopModel, TrainingRecord
from suffice.model.ensemble import LEAF, Ensemble, Isotonic, Linear, ModelPart, Tree, Trees

_LAST_DIGITS = 1e-10  # relative: above rounding errors, below the distance of values that a tree separates

# Any, throughout: scikit-learn has no types, and this module does not import it.


def export_stop_model(
    chosen: FeatureSelection,
    suffices: FitResult,
    hopeless: FitResult | None = None,
    *,
    trained: TrainingRecord,
    cost: StepCost,
) -> StopModel:
    return _model(chosen, _fitted(suffices, chosen), hopeless, trained, cost)


def export_value_model(
    chosen: FeatureSelection, values: Values, at: int, hopeless: FitResult | None = None, *, trained: TrainingRecord
) -> StopModel:
    return _model(chosen, Ensemble((export_advantage(values, at),)), hopeless, trained, StepCost())


def _model(
    chosen: FeatureSelection, suffices: Ensemble, hopeless: FitResult | None, trained: TrainingRecord, cost: StepCost
) -> StopModel:
    versions = [*trained.versions, *((package, version(package)) for package in ("suffice", "numpy"))]
    with suppress(PackageNotFoundError):
        versions.append(("scikit-learn", version("scikit-learn")))
    return StopModel(
        features=chosen.names,
        suffices=suffices,
        hopeless=None if hopeless is None else _fitted(hopeless, chosen),
        trained=replace(trained, versions=tuple(versions)),
        cost=cost,
    )


def _fitted(fitted: FitResult, chosen: FeatureSelection) -> Ensemble:
    n_features = len(chosen.names)
    constant = float(fitted.scores(np.zeros((1, n_features)))[0])  # the constant probability of an untrained model
    return export_ensemble(fitted.trained, n_features=n_features, otherwise=constant)


def export_ensemble(trained: Sequence[Any], *, n_features: int, otherwise: float = 0.5) -> Ensemble:
    """The mean of the logits of fitted models, each clipped to that of 0.0001 … 0.9999; `otherwise` without models.

    Each reads the first features of a row. Raise ValueError for a model of more features, or that cannot be exported.
    """
    if not trained:
        return Ensemble((Linear((0.0,) * n_features, math.log(otherwise / (1.0 - otherwise))),))
    return Ensemble(tuple(_part(fitted, n_features) for fitted in trained))


def _part(fitted: Any, n_features: int) -> ModelPart:
    if fitted.n_features_in_ > n_features:
        raise ValueError(f"{type(fitted).__name__}: fitted on {fitted.n_features_in_} features of {n_features}")
    if hasattr(fitted, "_predictors"):
        return export_trees(fitted)
    linear = export_linear(fitted)
    return Linear((*linear.weights, *(0.0,) * (n_features - len(linear.weights))), linear.intercept)


def export_advantage(values: Values, at: int) -> Linear:
    """Q(stop) - Q(continue) at the price number `at`, on raw features. Raise IndexError for a price out of range."""
    if not 0 <= at < len(values.prices):
        raise IndexError(f"price: got number {at}; 0 to {len(values.prices) - 1}")
    gain = values.stop[:, 0] - values.go_on[:, at]
    weights = gain[:-1] / values.scale
    return Linear(tuple(weights.tolist()), float(gain[-1] - weights @ values.mean))


def export_linear(fitted: Any) -> Linear:
    """Export a linear model, alone or in a Pipeline after StandardScalers. Raise ValueError for any other."""
    *scalers, (_, last) = getattr(fitted, "steps", [("", fitted)])
    _check_classes(last)
    weights = np.array(last.coef_, dtype=np.float64).reshape(-1)
    intercept = float(np.array(last.intercept_).reshape(-1)[0])
    for name, scaler in reversed(scalers):
        if type(scaler).__name__ != "StandardScaler":
            raise ValueError(f"step {name!r}: got {type(scaler).__name__}; StandardScaler before a linear model")
        if scaler.scale_ is not None:
            weights /= scaler.scale_
        if scaler.mean_ is not None and scaler.with_mean:
            intercept -= float(weights @ scaler.mean_)
    return Linear(tuple(weights.tolist()), intercept)


def export_trees(fitted: Any) -> Trees:
    """A HistGradientBoostingClassifier of two classes (as logit) or Regressor (as prediction).

    Raise ValueError for more classes, for splits on categories, and for a link other than logit or identity.
    """
    _check_classes(fitted)
    # scikit-learn keeps these private; tests compare with its predictions and so notice a change.
    loss, predictors = fitted._loss, fitted._predictors  # noqa: SLF001
    baseline = float(np.array(fitted._baseline_prediction).reshape(-1)[0])  # noqa: SLF001
    link = type(loss.link).__name__
    if link not in ("LogitLink", "IdentityLink"):
        raise ValueError(f"loss {fitted.loss!r}: its link is {link}; LogitLink or IdentityLink")
    return Trees(baseline, tuple(_tree(predictor.nodes) for (predictor,) in predictors))


def export_isotonic(fitted: Any) -> Isotonic:
    """Export rising predictions in [0, 1] with `out_of_bounds="clip"`. Raise ValueError for any other regression."""
    if not fitted.increasing_ or fitted.out_of_bounds != "clip":
        raise ValueError("IsotonicRegression: needs increasing=True and out_of_bounds='clip'")
    return Isotonic(tuple(fitted.X_thresholds_.tolist()), tuple(fitted.y_thresholds_.tolist()))


def _check_classes(fitted: Any) -> None:
    classes = getattr(fitted, "classes_", None)
    if classes is not None and (len(classes) != 2 or bool(classes[0]) or not bool(classes[1])):
        raise ValueError(f"classes: got {list(classes)[:5]}; two, 0 and 1 or False and True")


def _tree(nodes: Any) -> Tree:
    if nodes["is_categorical"].any():
        raise ValueError("HistGradientBoosting: splits on categories; features must be numbers")
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

"""What is exported says the same as its trainer, to 1e-6 and mostly to rounding."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from suffice.learn.features import FeatureSelection
from suffice.learn.models import (
    Examples,
    Parts,
    Trajectories,
    export_advantage,
    export_ensemble,
    export_fit,
    export_linear,
    export_stop_model,
    export_trees,
    fit,
    fit_values,
)
from suffice.model.artefact import StepCost, TrainingRecord, dump_model, load_model
from suffice.model.ensemble import Ensemble, ModelPart

Matrix = NDArray[np.float64]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with threadpool_limits(1):  # threads that wait for one another cost more than these small fits
        yield


def data(seed: int = 0, n_rows: int = 1_000) -> tuple[Matrix, NDArray[np.bool_], Matrix]:
    """Rows with columns of very different scale, some 0/1 and one constant; labels; and rows never trained on."""
    rng = np.random.default_rng(seed)

    def rows(n: int) -> Matrix:
        matrix = rng.normal(size=(n, 8)) * [1, 100, 1e-3, 1, 1, 1e6, 1, 1] + [0, 50, 0, 0, 0, 0, 0, 0]
        matrix[:, 3] = matrix[:, 3] > 0
        matrix[:, 4] = np.round(matrix[:, 4])
        matrix[:, 7] = 1.0
        return matrix

    matrix = rows(n_rows)
    logit = matrix[:, 0] + matrix[:, 3] * 2 + np.sin(matrix[:, 1] / 50) - 1
    return matrix, rng.random(n_rows) < 1 / (1 + np.exp(-logit)), rows(2_000)


def agree(part: ModelPart, expected: Matrix, seen: Matrix) -> None:
    np.testing.assert_allclose(part.raws(seen), expected, rtol=1e-6, atol=1e-6)
    alone = [part.raw(row) for row in seen[:500].tolist()]
    np.testing.assert_allclose(alone, expected[:500], rtol=1e-6, atol=1e-6)


def test_a_logistic_regression_with_its_scaler() -> None:
    matrix, label, seen = data()
    fitted: Any = make_pipeline(StandardScaler(), LogisticRegression(C=1.0)).fit(matrix, label)
    part = export_linear(fitted)
    agree(part, fitted.decision_function(seen), seen)
    np.testing.assert_allclose(Ensemble((part,)).scores(seen), fitted.predict_proba(seen)[:, 1], atol=1e-6)


@pytest.mark.parametrize(("leaves", "early"), [(6, False), (8, True)])
def test_boosted_trees_that_classify(leaves: int, early: bool) -> None:
    matrix, label, seen = data()
    grower = HistGradientBoostingClassifier(max_iter=20, max_leaf_nodes=leaves, early_stopping=early, random_state=0)
    fitted: Any = grower.fit(matrix, label)
    part = export_trees(fitted)
    agree(part, fitted.decision_function(seen), seen)
    agree(part, fitted.decision_function(matrix), matrix)  # values that stood at a threshold's edge in training
    np.testing.assert_allclose(Ensemble((part,)).scores(seen), fitted.predict_proba(seen)[:, 1], atol=1e-6)


def test_an_ensemble_is_the_mean_of_the_logits_of_parts_that_read_the_first_features() -> None:
    matrix, label, seen = data()
    linear: Any = make_pipeline(StandardScaler(), LogisticRegression()).fit(matrix, label)
    trees: Any = HistGradientBoostingClassifier(max_iter=10, max_leaf_nodes=6, random_state=0).fit(matrix[:, :3], label)
    both, small = (export_ensemble(trained, n_features=8) for trained in ([linear, trees], [trees]))
    logits = (linear.decision_function(seen) + trees.decision_function(seen[:, :3])) / 2
    np.testing.assert_allclose(both.scores(seen), 1 / (1 + np.exp(-logits)), atol=1e-6)
    np.testing.assert_allclose(small.scores(seen), trees.predict_proba(seen[:, :3])[:, 1], atol=1e-6)
    assert export_ensemble([], n_features=8, otherwise=0.25).score(seen[0].tolist()) == pytest.approx(0.25)


@pytest.mark.parametrize("parts", ["ensemble", "linear", "trees"])
def test_a_fitted_stop_model_says_as_an_artefact_what_it_said_to_its_trainer(parts: Parts) -> None:
    matrix, label, seen = data()
    chosen = FeatureSelection(
        ("step", "tokens_used", "confidence"), ("agreement", "n_votes", "lead", "model=a", "model=b")
    )
    good, hopeless = (
        fit(Examples(matrix, target), chosen, parts=parts) for target in (label, np.ones(len(label), bool))
    )
    facts = TrainingRecord(n_episodes=100, n_questions=50, digest="d", target="as-good", seed=0)
    model = export_stop_model(chosen, export_fit(good, chosen), hopeless, trained=facts, cost=StepCost(0.5))
    assert model.hopeless is not None
    assert model.features == chosen.names
    assert {"suffice", "numpy", "scikit-learn"} <= dict(model.trained.versions).keys()
    read = load_model(dump_model(model))
    assert read == model
    for ensemble, fitted in ((read.suffices, good), (read.hopeless, hopeless)):
        assert ensemble is not None
        np.testing.assert_allclose(ensemble.scores(seen), fitted.scores(seen), atol=1e-6)
        alone = [ensemble.score(row) for row in seen[:200].tolist()]
        np.testing.assert_allclose(alone, fitted.scores(seen[:200]), atol=1e-6)


def test_a_value_model_stops_where_stopping_is_worth_more() -> None:
    matrix, label, seen = data()
    starts, tokens = np.arange(0, len(matrix) + 1, 5), np.tile(np.arange(1.0, 6), len(matrix) // 5) * 100
    values = fit_values(Trajectories(x=matrix, starts=starts, ok=label, tokens=tokens))
    for at in (0, 30, len(values.prices) - 1):
        (part,) = (ensemble := export_advantage(values, at)).parts
        agree(part, values.advantage(seen)[:, at], seen)
        assert ((ensemble.scores(seen) >= 0.5) == (part.raws(seen) >= 0)).all()
    with pytest.raises(IndexError, match="price: got number 61; 0 to 60"):
        export_advantage(values, 61)


def test_no_part_is_surer_than_one_in_ten_thousand() -> None:
    sure = make_pipeline(StandardScaler(), LogisticRegression(C=1e6)).fit([[-1.0], [1.0]], [0, 1])
    ensemble = export_ensemble([sure], n_features=1)
    assert [ensemble.score([x]) for x in (-1e6, 1e6)] == pytest.approx([1e-4, 1 - 1e-4])
    assert ensemble.scores(np.array([[-1e6], [1e6]])) == pytest.approx([1e-4, 1 - 1e-4])

"""The stop model: where the chance of being as good is known, it is found; what cannot be learned is said plainly."""

from __future__ import annotations

import numpy as np
import pytest

from suffice.learn.features import FeatureSelection
from suffice.learn.models import MAX_ROWS, Examples, Parts, fit

CHOSEN = FeatureSelection(("agreement", "step_share"), ("found(class=a)",))


def drawn(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Rows with two dense features and a mark, and the true chance that a row is good."""
    rng = np.random.default_rng(seed)
    x = np.column_stack([rng.normal(size=n), rng.random(n), rng.random(n) < 0.3]).astype(np.float64)
    p = 1 / (1 + np.exp(-(0.5 + 1.5 * x[:, 0] + 1.0 * x[:, 2])))
    return x, p


def examples(n: int, seed: int = 0) -> Examples:
    x, p = drawn(n, seed)
    good = np.random.default_rng(seed + 1).random(n) < p
    return Examples(x, good)


@pytest.mark.parametrize(("parts", "error"), [("ensemble", 0.06), ("linear", 0.04), ("trees", 0.1)])
def test_known_chances_are_recovered_on_rows_that_it_has_not_seen(parts: Parts, error: float) -> None:
    model = fit(examples(8_000), CHOSEN, parts=parts)
    x, p = drawn(4_000, seed=9)
    scores = model.scores(x)
    assert np.sqrt(((scores - p) ** 2).mean()) < error
    for low in (0.2, 0.4, 0.6, 0.8):  # and in each part of the range: it is calibrated
        there = (scores >= low - 0.1) & (scores < low + 0.1)
        assert abs(scores[there].mean() - p[there].mean()) < 0.04


def test_trees_do_not_read_marks_and_the_linear_part_does() -> None:
    rows = np.array([[0.0, 0.5, 0.0], [0.0, 0.5, 1.0]])
    a, b = fit(examples(4_000), CHOSEN, parts="trees").scores(rows)
    assert a == b
    a, b = fit(examples(4_000), CHOSEN, parts="linear").scores(rows)
    assert b > a + 0.1


def test_the_ensemble_is_the_mean_of_its_parts_logits() -> None:
    given = examples(3_000)
    both, linear, trees = (fit(given, CHOSEN, parts=parts) for parts in ("ensemble", "linear", "trees"))
    logits = [np.log(p / (1 - p)) for p in (linear.scores(given.x), trees.scores(given.x))]
    assert both.scores(given.x) == pytest.approx(1 / (1 + np.exp(-np.mean(logits, axis=0))))


def test_hopeless_is_the_other_side() -> None:
    given = examples(4_000)
    good, hopeless = (
        fit(Examples(given.x, target), CHOSEN, parts="linear").scores(given.x) for target in (given.good, ~given.good)
    )
    assert good + hopeless == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("n_bad", [0, 19])
def test_with_too_few_rows_of_an_outcome_it_is_a_constant_that_is_never_certain(n_bad: int) -> None:
    x, _ = drawn(500)
    good = np.arange(500) >= n_bad
    model = fit(Examples(x=x, good=good), CHOSEN)
    scores = model.scores(x)
    assert set(scores.round(12)) == {round((500 - n_bad + 1) / 502, 12)}
    assert model.trained == ()
    assert 0 < scores[0] < 1


def test_the_same_rows_and_seed_give_the_same_model() -> None:
    given = examples(1_000)
    x, _ = drawn(200, seed=3)
    assert fit(given, CHOSEN).scores(x).tolist() == fit(given, CHOSEN).scores(x).tolist()


def test_many_rows_are_thinned_evenly_not_cut_off() -> None:
    """The second half of the rows says the opposite of the first; a model of the first half alone would be sure."""
    n = 2 * MAX_ROWS
    x = np.zeros((n, 3))
    x[:, 0] = np.random.default_rng(0).normal(size=n)
    good = (x[:, 0] > 0) ^ (np.arange(n) >= n // 2)
    scores = fit(Examples(x=x, good=good), CHOSEN, parts="linear").scores(x[:1000])
    assert np.abs(scores - 0.5).max() < 0.1


def test_scores_are_chances() -> None:
    given = examples(1_000)
    wild = np.array([[1e6, -1e6, 0.0], [-1e6, 1e6, 1.0], [0.0, 0.0, 0.0]])
    for parts in ("ensemble", "linear", "trees"):
        scores = fit(given, CHOSEN, parts=parts).scores(wild)
        assert ((scores > 0) & (scores < 1)).all()


@pytest.mark.parametrize(("parts", "apart"), [("linear", 1e-3), ("trees", 0.05)])
def test_a_weight_of_two_is_as_good_as_the_row_twice(parts: Parts, apart: float) -> None:
    """Nearly: the scale of features knows no weights, and trees count rows where they ask for enough in a leaf."""
    given = examples(3_000)
    doubled = np.repeat(np.arange(3_000), np.where(np.arange(3_000) % 2, 2, 1))
    weight = np.where(np.arange(3_000) % 2, 2.0, 1.0)
    good = given.good
    weighted = fit(Examples(x=given.x, good=good, weight=weight), CHOSEN, parts=parts)
    repeated = fit(Examples(x=given.x[doubled], good=good[doubled]), CHOSEN, parts=parts)
    x, _ = drawn(500, seed=5)
    assert np.abs(weighted.scores(x) - repeated.scores(x)).max() < apart


def test_a_feature_that_never_moves_is_no_trouble_to_weighted_rows() -> None:
    given = examples(2_000)
    still = np.column_stack([given.x[:, :2], np.full(2_000, 0.1)])
    weight = np.random.default_rng(0).random(2_000)
    model = fit(Examples(x=still, good=given.good, weight=weight), CHOSEN)
    assert np.isfinite(model.scores(still)).all()


def test_rows_of_weight_zero_are_not_there() -> None:
    given, contrary = examples(2_000), examples(2_000, seed=4)
    x = np.vstack([given.x, contrary.x])
    good = np.concatenate([given.good, ~contrary.good])
    weight = np.repeat([1.0, 0.0], 2_000)
    mixed = fit(Examples(x=x, good=good, weight=weight), CHOSEN)
    alone = fit(Examples(x=given.x, good=given.good, weight=np.ones(2_000)), CHOSEN)
    assert mixed.scores(given.x) == pytest.approx(alone.scores(given.x), abs=1e-9)


@pytest.mark.parametrize("weight", [np.ones(9), np.full(10, -1.0), np.full(10, np.nan)])
def test_weights_that_weigh_nothing_are_refused(weight: np.ndarray) -> None:
    with pytest.raises(ValueError, match="weight: "):
        fit(Examples(x=np.zeros((10, 3)), good=np.ones(10, bool), weight=weight), CHOSEN)

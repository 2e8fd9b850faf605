"""Guessed rewards: what the data say where there are many, what all arms share where there are few."""

from __future__ import annotations

import numpy as np
import pytest

from suffice.learn.ope import ModelKind, fit_rewards

RATES = np.array([[0.9, 0.7, 0.2], [0.3, 0.5, 0.8]])  # by context and arm


@pytest.mark.parametrize("kind", ["ridge", "logistic"])
def test_with_many_rows_the_guess_is_the_mean_of_each_context_and_arm(kind: ModelKind) -> None:
    rng = np.random.default_rng(1)
    context, arm = rng.integers(0, 2, 20_000), rng.integers(0, 3, 20_000)
    reward = (rng.random(20_000) < RATES[context, arm]).astype(np.float64)
    guess = fit_rewards(np.eye(2)[context], arm, reward, n_arms=3, kind=kind)
    assert guess(np.eye(2)) == pytest.approx(RATES, abs=0.03)


@pytest.mark.parametrize("kind", ["ridge", "logistic"])
def test_an_arm_without_rows_is_guessed_like_the_others(kind: ModelKind) -> None:
    reward = np.array([1.0] * 80 + [0.0] * 20)
    guess = fit_rewards(np.zeros((100, 1)), np.zeros(100, dtype=np.int64), reward, n_arms=2, kind=kind)
    assert guess(np.zeros((1, 1)))[0, 1] == pytest.approx(0.8, abs=0.02)


def test_least_squares_are_the_closed_form_of_one_number() -> None:
    """One arm, no context: intercept free, the arm's own part held back; together they meet the mean."""
    reward = np.array([1.0, 0, 0, 0] * 2)
    guess = fit_rewards(np.zeros((8, 0)), np.zeros(8, dtype=np.int64), reward, n_arms=1, kind="ridge")
    assert guess(np.zeros((1, 0)))[0, 0] == pytest.approx(0.25, abs=1e-6)


@pytest.mark.parametrize("kind", ["ridge", "logistic"])
def test_guesses_stay_between_0_and_1_far_away_from_the_data(kind: ModelKind) -> None:
    x = np.linspace(0, 1, 50)[:, np.newaxis]
    guess = fit_rewards(x, np.zeros(50, dtype=np.int64), x[:, 0], n_arms=1, kind=kind)
    far = guess(np.array([[-100.0], [100.0]]))
    assert ((far >= 0) & (far <= 1)).all()


def test_without_rows_nothing_is_known() -> None:
    guess = fit_rewards(np.zeros((0, 2)), np.zeros(0, dtype=np.int64), np.zeros(0), n_arms=2, kind="ridge")
    assert (guess(np.ones((3, 2))) == 0.5).all()


@pytest.mark.parametrize("reward", [np.array([1.1]), np.array([-0.1]), np.zeros(2)])
def test_what_cannot_be_fitted_is_refused(reward: np.ndarray[tuple[int], np.dtype[np.float64]]) -> None:
    with pytest.raises(ValueError, match="need"):
        fit_rewards(np.zeros((1, 1)), np.zeros(1, dtype=np.int64), reward, n_arms=1, kind="ridge")

"""The intervals for people cover at every look, under drift too, and are not idle: measured, seeded."""

from __future__ import annotations

import numpy as np
import pytest

from suffice.arrays import Floats
from suffice.assurance.bounds import (
    FIRST_GUESS,
    V_OPT,
    gamma_exponential_bound,
    mean_below,
    ratio_between,
    watch,
    watch_pairs,
)


def radii(deviation: Floats, n: Floats, alpha: float) -> Floats:
    """The radius at each look; between 600 points the bound is a line to five digits."""
    grid = np.geomspace(1e-3, deviation.max() + 1, 600)
    bound = [gamma_exponential_bound(float(v), alpha, v_opt=V_OPT) for v in grid]
    return np.asarray(np.interp(deviation, grid, bound) / n)


def ever_missed(x: Floats, truth: Floats, alpha: float, scale: float = 1.0) -> tuple[float, float]:
    """Share of streams whose upper, and whose lower bound misses the running mean at least once, looked at always.

    x      values in [0, 1], shape (streams, n)
    truth  conditional means, shape (n,)
    """
    n = np.arange(1, x.shape[1] + 1, dtype=np.float64)
    means = np.cumsum(x, axis=1) / n
    guesses = np.concatenate([np.full((len(x), 1), FIRST_GUESS), means[:, :-1]], axis=1)
    radius = scale * radii(np.cumsum((x - guesses) ** 2, axis=1), n, alpha)
    running = np.cumsum(truth) / n
    above, below = (means + radius < running).any(axis=1), (means - radius > running).any(axis=1)
    return float(above.mean()), float(below.mean())


def test_the_simulation_uses_the_function_that_ships() -> None:
    x = (np.random.default_rng(40).random(300) < 0.1).astype(np.float64)
    guesses = np.concatenate([[FIRST_GUESS], np.cumsum(x)[:-1] / np.arange(1, 300)])
    radius = radii(np.cumsum((x - guesses) ** 2), np.arange(1.0, 301.0), 0.05)[-1]
    assert abs(mean_below(watch(x), 0.05) - (x.mean() + radius)) < 1e-5


@pytest.mark.slow
def test_the_interval_for_a_drop_covers_at_every_look_also_while_the_drop_drifts() -> None:
    rng = np.random.default_rng(41)
    constant, drifting = np.full(1_500, 0.02), np.where(np.arange(1_500) < 700, 0.003, 0.06)
    for name, lost in (("constant", constant), ("drifting", drifting)):
        u = rng.random((2_000, 1_500))
        z = np.where(u < lost, 1.0, np.where(u > 1 - 0.01, -1.0, 0.0))
        above, below = ever_missed((z + 1) / 2, (lost - 0.01 + 1) / 2, 0.05)
        print(f"{name}: upper bound missed in {above:.2%}, lower bound in {below:.2%} of streams")
        assert above <= 0.05
        assert below <= 0.05


def test_it_is_not_idle_and_a_radius_too_small_is_found_out() -> None:
    fair = (np.random.default_rng(42).random((2_000, 1_500)) < 0.5).astype(np.float64)
    above, below = ever_missed(fair, np.full(1_500, 0.5), 0.1)
    print(f"fair coins at 10 %: upper bound missed in {above:.2%}, lower bound in {below:.2%}")
    assert 0.01 < above <= 0.1
    assert 0.01 < below <= 0.1
    assert min(ever_missed(fair, np.full(1_500, 0.5), 0.1, scale=0.6)) > 0.1


def test_the_interval_for_a_saving_covers_at_looks_on_the_way() -> None:
    rng = np.random.default_rng(43)
    n_missed = 0
    for _ in range(40):
        full = np.minimum(rng.lognormal(6, 0.6, 600), 4_000)
        part = full * (rng.random(600) < 0.5)  # stops at once or not at all: as noisy as savings come
        looks = [ratio_between(watch_pairs(part[:n], full[:n], cap=4_000), 0.8) for n in (50, 150, 300, 600)]
        n_missed += any(not interval.low <= 0.5 <= interval.high for interval in looks)
        assert looks[-1].high - looks[-1].low < 0.35
    print(f"saving: {n_missed} of 40 streams ever missed; 8 may")
    assert n_missed <= 8

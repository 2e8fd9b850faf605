"""Experiments in simulation, with fewer seeds than `python -m bench.claims.experiments`, whose functions these are.

`python -m pytest -q -s tests/claims/test_experiments.py` prints the figures.
"""

from __future__ import annotations

from math import sqrt

import numpy as np
import pytest
from bench.claims.experiments import aa, cuped, ever_off, fallen, priced, radius, ramp, simpson, split, units

from suffice.assurance.bounds import exact_binomial
from suffice.rollout.effects import compare_arms, guesses, latest_comparison
from suffice.rollout.results import SATISFACTION


def surely_above(share: float, n: int, limit: float) -> bool:
    """Is a rate above a limit, by more than chance could do once in 40 such tests?"""
    return exact_binomial(round(share * n), n, 0.95).low > limit


def test_the_simulation_uses_the_functions_that_ship() -> None:
    rng = np.random.default_rng(0)
    one = units(rng.random((1, 900)), rng.integers(0, 2, (1, 900)))
    running = compare_arms(one, guesses(one), 1, 0)
    result = latest_comparison(running, 800)
    assert result is not None
    between = result.between(0.05)
    half = radius(running, 0.05, np.array([799]))[0, 0]
    assert between.high - result.effect == pytest.approx(half, rel=1e-4)


@pytest.mark.slow
def test_peeking_at_experiments_without_a_difference_calls_hardly_any() -> None:
    """F39: looked at again and again, at most 5 % may ever be called; a z-test calls four in ten."""
    result = aa(250, 1_600, 800, 1)
    print(
        f"A/A: {result.n} experiments, 800 looks each: a false verdict in {result.any_metric:.1%}, {result.by_metric}"
    )
    print(f"a z-test on tokens at each look: {result.z_test:.1%}")
    assert not surely_above(result.any_metric, result.n, 0.05)
    assert result.z_test > 0.3


@pytest.mark.slow
def test_the_interval_is_not_idle_and_one_too_narrow_is_found_out() -> None:
    rng = np.random.default_rng(3)
    shape, at = (300, 6_000), np.arange(9, 5_900, 10)
    one = units((rng.random(shape) < 0.5).astype(np.float64), rng.integers(0, 2, shape))
    running = compare_arms(one, guesses(one), 1, 0)
    off = float(ever_off(running, 0.2, at).mean())
    narrow = float((np.abs(running.effect[:, at]) > 0.6 * radius(running, 0.2, at)).any(axis=1).mean())
    print(f"fair coins at an error of 20 %: off in {off:.1%}; at three fifths of the width in {narrow:.1%}")
    assert 0.01 < off <= 0.2
    assert narrow > 0.2


def test_three_points_of_satisfaction_are_found_and_priced() -> None:
    result = [priced(40_000, seed) for seed in range(10)]
    n_matches, n_priced = sum(one.found for one in result), sum(one.price is not None for one in result)
    print(f"3 points: found in {n_matches} of 10, after {sorted(one.found_at or 0 for one in result)[5]:,} units")
    print(f"priced in {n_priced} of 10: {[one.price for one in result[:3]]}")
    assert n_matches >= 9
    assert sum(one.covered for one in result) >= 9
    assert n_priced >= 7
    true = fallen(0.03) / 0.015
    covered = sum(one.price.low <= true <= one.price.high for one in result if one.price is not None)
    assert covered >= n_priced - 1


@pytest.mark.slow
def test_simpson_is_seen_through_and_a_broken_split_is_withheld() -> None:
    for seed in range(3):
        displayed = simpson(20_000, seed, broken=False).arms[0].of(SATISFACTION)
        assert displayed.plain is not None
        assert displayed.effect is not None
        assert displayed.plain > 0 > displayed.effect
        assert simpson(20_000, seed, broken=True).withheld is not None


@pytest.mark.slow
def test_a_split_of_53_to_47_is_withheld_and_a_right_one_is_not() -> None:
    withheld = sum(split(10_000, seed, 0.53) for seed in range(20))
    false = sum(split(10_000, seed, 0.50) for seed in range(40))
    print(f"53/47: withheld in {withheld} of 20 at 10,000 units; 50/50: in {false} of 40")
    assert withheld >= 16
    assert false == 0


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.8])
def test_a_covariate_narrows_the_interval_by_what_theory_says(rho: float) -> None:
    result = cuped(rho, 12_000, 12, 5)
    print(f"correlation {rho}: {result}; theory {1 - rho * rho:.3f} and {sqrt(1 - rho * rho):.3f}")
    assert result.variance == pytest.approx(1 - rho * rho, rel=0.03)
    # A bound for values of a range has a part that goes with the range, and that no covariate takes away.
    assert result.width == pytest.approx(sqrt(1 - rho * rho), rel=0.08)
    assert result.covered >= 11 / 12


def test_the_interval_holds_while_the_weights_and_the_effect_change() -> None:
    missed = ramp(3_000, 300, 6)
    print(f"ramp from 5 % to 50 %, effect from +8 to -2 points: missed at some look in {missed:.1%}")
    assert not surely_above(missed, 300, 0.05)

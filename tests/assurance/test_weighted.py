"""Bounds for importance-weighted terms: safe at every look, under drift too, and refused outside their domain."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest
from numpy.typing import NDArray

from suffice.assurance.paired import lower_bound

Floats = NDArray[np.float64]
ALPHA = 0.1
LOOKS = np.arange(5, 501, 5)  # numbers of terms at which the bound is read


def lower_bounds(terms: Floats) -> Floats:
    return np.array([lower_bound(terms[:n], floor=0.0, alpha=ALPHA) for n in LOOKS])


def weighted(rng: np.random.Generator, n: int, p_arm: float, rate: float | Floats) -> Floats:
    """IPS terms of an arm that is drawn with p_arm and pays 1 at a rate."""
    return np.asarray((rng.random(n) < p_arm) / p_arm * (rng.random(n) < rate))


@pytest.mark.slow(keep=2)
@pytest.mark.no_cover
@pytest.mark.parametrize(("p_arm", "rate"), [(1.0, 0.5), (0.2, 0.9), (0.05, 0.5)])
def test_the_chance_of_ever_being_too_high_stays_within_alpha(p_arm: float, rate: float) -> None:
    rng = np.random.default_rng(1)
    missed = [(lower_bounds(weighted(rng, 600, p_arm, rate)) > rate).any() for _ in range(120)]
    assert np.mean(missed) <= ALPHA


def test_a_bound_made_for_one_look_fails_at_a_thousand_so_the_test_can_tell() -> None:
    rng, z = np.random.default_rng(1), NormalDist().inv_cdf(1 - ALPHA)
    n = np.arange(1, 1_001)
    missed = 0
    for _ in range(200):
        means = np.cumsum(weighted(rng, 1_000, 1.0, 0.5)) / n
        missed += bool((means - z * 0.5 / np.sqrt(n) > 0.5)[30:].any())
    assert missed / 200 > 2 * ALPHA


def test_it_covers_the_running_mean_of_a_world_that_drifts() -> None:
    rng = np.random.default_rng(2)
    rates = np.linspace(0.9, 0.1, 500)
    running = np.cumsum(rates) / np.arange(1, 501)
    missed = [(lower_bounds(weighted(rng, 500, 0.5, rates)) > running[LOOKS - 1]).any() for _ in range(80)]
    assert np.mean(missed) <= ALPHA


def test_it_is_not_idle() -> None:
    rng = np.random.default_rng(3)
    plain = weighted(rng, 4_000, 0.2, 0.8)
    drawn, miss = rng.random(4_000) < 0.2, (rng.random(4_000) < 0.8) - 0.8
    corrected = 0.8 + drawn / 0.2 * miss  # a good guess, and its misses
    assert lower_bound(plain, floor=0.0, alpha=ALPHA) > 0.65
    assert lower_bound(corrected, floor=4.0, alpha=ALPHA) > 0.72, "what varies less is bounded closer"


def test_nothing_is_known_without_terms() -> None:
    assert lower_bound(np.zeros(0), floor=1.0, alpha=0.05) == 0.0


@pytest.mark.parametrize("terms", [np.array([-0.2]), np.array([np.nan]), np.array([np.inf])])
def test_what_breaks_the_assumption_is_refused(terms: Floats) -> None:
    with pytest.raises(ValueError, match="terms: got"):
        lower_bound(terms, floor=0.1, alpha=0.05)


@pytest.mark.parametrize(("floor", "alpha"), [(-1.0, 0.05), (0.0, 0.0), (0.0, 1.0)])
def test_numbers_out_of_range_are_refused(floor: float, alpha: float) -> None:
    with pytest.raises(ValueError, match="need floor >= 0"):
        lower_bound(np.ones(3), floor=floor, alpha=alpha)

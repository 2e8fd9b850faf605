"""What an experiment can find: said before the start, and true of the experiments that follow."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from bench.claims.experiments import TWO, radius, units

from suffice.rollout.analysis import FOR_WHOLE, alphas
from suffice.rollout.effects import compare_arms, guesses
from suffice.rollout.power import RecentRuns, power_of
from suffice.rollout.results import TOKENS

PLANNED = replace(TWO, planned_units=3_000, slots=((0, 500),))


def recent(n: int, *, per_value: int = 1) -> RecentRuns:
    values = np.random.default_rng(1).normal(1_000, 200, n)
    return RecentRuns(n_runs=n * per_value, n_units=n * per_value, days=2.0, values=tuple(values.tolist()))


def test_the_difference_that_it_names_is_found_in_about_four_of_five_experiments() -> None:
    power = power_of(PLANNED, recent(1_000))
    assert power.difference is not None
    rng, shape = np.random.default_rng(2), (200, 3_000)
    arm = rng.integers(0, 2, shape)
    value = rng.normal(1_000, 200, shape) - power.difference * arm
    one = units(value, arm, high=2_000, planned=3_000)
    running = compare_arms(one, guesses(one), 1, 0)
    at = np.array([2_899])
    result = (-running.effect[:, at] > radius(running, alphas(PLANNED)[TOKENS] * FOR_WHOLE, at)).mean()
    print(f"a difference of {power.difference:.0f} tokens was found in {result:.0%} of 200 experiments")
    assert 0.65 <= result <= 0.9


def test_it_says_when_the_plan_is_complete() -> None:
    power = power_of(PLANNED, recent(1_000))
    assert power.days == pytest.approx(3_000 / (500 * 0.5))
    assert power.sentence.startswith("with 3,000 units it finds a difference of ")
    assert "tokens (3%) with 80% power, in about 12.0 days at the present rate; known" in power.sentence


def test_rare_values_and_few_units_find_less() -> None:
    often, rarely = (power_of(PLANNED, recent(500, per_value=n)).difference for n in (1, 4))
    assert often is not None
    assert rarely is not None
    assert rarely == pytest.approx(2 * often, rel=0.01)


def test_without_values_it_names_no_difference() -> None:
    power = power_of(PLANNED, RecentRuns(n_runs=0, n_units=0, days=0.0, values=()))
    assert (power.difference, power.days) == (None, None)
    assert "is unknown, because recent runs have fewer than 20 values of it" in power.sentence

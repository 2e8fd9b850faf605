"""What the agent earns in ten environments whose truth is known; `bench/agent.py` has the table over many seeds."""

from __future__ import annotations

import numpy as np
import pytest

from tests.simulators.agent_environments import (
    ENVIRONMENTS,
    MAX_EM_DROP,
    TOKEN_PRICE,
    Environment,
    best_fixed,
    dear_stops,
    run_agent,
    run_fixed,
)


@pytest.mark.slow(keep=1)
@pytest.mark.parametrize("env", ENVIRONMENTS, ids=lambda env: env.name)
def test_it_earns_what_the_best_fixed_action_earns_and_keeps_the_budget(env: Environment) -> None:
    _, fixed = best_fixed(env)
    nothing = run_fixed(env, 0)
    lives = [run_agent(env, seed) for seed in range(2)]
    assert np.mean([life.reward.mean() for life in lives]) >= 0.98 * fixed.reward.mean()
    for life in lives:
        assert life.drop.mean() <= MAX_EM_DROP
        assert life.reward.mean() >= nothing.reward.mean() - 0.02 * TOKEN_PRICE


def test_stops_that_become_dear_end_at_once_and_come_back() -> None:
    env = Environment(name="dear stops", at=dear_stops, drifts=True)
    life = run_agent(env, seed=0)
    begin, end = int(0.4 * env.n), int(0.6 * env.n)
    assert life.tokens[begin - 500 : begin].mean() < 0.75
    assert life.tokens[begin + 500 : end].mean() < 1.02
    assert life.tokens[end + 2_000 : end + 4_000].mean() < 0.75


def test_the_comparison_is_honest() -> None:
    """The fixed action is the best of all that keep the budget, and it pays for no audit."""
    for env in ENVIRONMENTS:
        action, fixed = best_fixed(env)
        assert fixed.drop.mean() <= MAX_EM_DROP
        assert fixed.reward.mean() >= run_fixed(env, 0).reward.mean()
        assert fixed.tokens.mean() == pytest.approx(run_fixed(env, action).tokens.mean())

"""Arms of one route are watched one by one: where one stops paying, the next that is proved and pays is used."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from suffice.agent.agent import Agent, AgentBounds, AgentChoice
from suffice.arrays import Floats

FULL, MEDIUM, LOW = 1_000.0, 500.0, 250.0  # tokens
HORIZON = (5_000.0, 5_000.0)


def made(n_classes: int = 1) -> Agent:
    return Agent(n_classes, 1, 3, AgentBounds(max_em_drop=0.05, token_price=0.1), n_arms=2)


def feed_audits(agent: Agent, costs: Floats, n: int = 120, *, c: int = 0, seed: int = 0) -> None:
    """Pairs: each shows the full run, and one arm."""
    rng = np.random.default_rng(seed)
    for _ in range(n):
        arm = int(rng.integers(1, 3))
        known = np.arange(3) == arm
        tokens = np.where(known, costs * rng.lognormal(-0.02, 0.2), np.nan)
        tokens[0] = FULL
        agent.add_audit(c, 0, full_tokens=FULL, tokens=tokens)
        agent.add_losses(c, np.where(known, 0.0, [0.0, np.nan, np.nan]))


def level(agent: Agent, most: int = 2) -> int:
    """Where a class with one proved level for all stands; 0: in full."""
    choice = agent.look([most], horizon=HORIZON[:1])
    return served(choice)[0]


def served(choice: AgentChoice) -> list[int]:
    return [one.levels[0] if one.best else 0 for one in choice.classes]


def feed_runs(agent: Agent, level: int, tokens: float, n: int, *, seed: int = 1) -> int | None:
    """Served runs until the arm goes out of use; their number."""
    rng = np.random.default_rng(seed)
    for i in range(n):
        agent.add_run(0, 0, level, tokens=tokens * rng.lognormal(-0.02, 0.2))
        if agent.guard.inactive[0, level - 1]:
            return i + 1
    return None


@pytest.mark.parametrize("seed", range(5))
def test_an_arm_that_stops_paying_makes_room_for_the_next_one_that_pays(seed: int) -> None:
    agent = made()
    feed_audits(agent, np.array([FULL, MEDIUM, LOW]), seed=seed)
    assert level(agent) == 2
    gone = feed_runs(agent, 2, 1.3 * FULL, 100, seed=seed)
    assert gone is not None
    assert gone <= 60
    assert agent.guard.inactive[0].tolist() == [False, True]
    assert level(agent) == 1, "not full runs: the other arm saves half"
    feed_audits(agent, np.array([FULL, MEDIUM, 1.3 * FULL]), seed=seed)
    assert level(agent) == 1


def test_audits_alone_show_that_an_unused_arm_pays_again() -> None:
    agent = made()
    feed_audits(agent, np.array([FULL, MEDIUM, LOW]))
    assert level(agent) == 2
    assert feed_runs(agent, 2, 1.3 * FULL, 100)
    assert level(agent) == 1
    feed_audits(agent, np.array([FULL, MEDIUM, LOW]), n=60)
    assert level(agent) == 2


def test_full_runs_serve_where_no_arm_pays() -> None:
    agent = made()
    feed_audits(agent, np.array([FULL, MEDIUM, LOW]))
    assert level(agent) == 2
    assert feed_runs(agent, 2, 1.3 * FULL, 100)
    assert level(agent) == 1
    assert feed_runs(agent, 1, 1.3 * FULL, 200)
    assert level(agent) == 0


def test_an_arm_that_is_not_proved_is_no_way_out() -> None:
    agent = made()
    feed_audits(agent, np.array([FULL, 1.2 * FULL, LOW]))
    assert level(agent, most=1) == 0


APART = np.array([FULL, MEDIUM, 1.1 * FULL])


@pytest.mark.parametrize(("admits", "levels"), [(True, [2, 1]), (False, [2, 0])])
def test_where_a_mixture_is_not_admitted_the_best_single_arm_serves_with_full_runs(
    admits: bool, levels: list[int]
) -> None:
    agent, seen = made(2), list[Sequence[int]]()
    feed_audits(agent, np.array([FULL, 0.8 * FULL, LOW]), c=0)
    feed_audits(agent, APART, c=1)

    def admit(requested: Sequence[int]) -> bool:
        seen.append(tuple(requested))
        return admits or len({one for one in requested if one}) < 2

    assert served(agent.look([2, 2], horizon=HORIZON, admits=admit)) == levels
    assert seen[0] == (2, 1), "what is best for each class is asked for first"


def test_the_single_arm_is_the_one_that_earns_most_and_not_the_boldest() -> None:
    agent = made(2)
    feed_audits(agent, np.array([FULL, MEDIUM, 0.4 * FULL]), c=0)
    feed_audits(agent, APART, c=1)
    choice = agent.look([2, 2], horizon=HORIZON, admits=lambda requested: len({one for one in requested if one}) < 2)
    assert served(choice) == [1, 1]


@pytest.mark.parametrize("after", [0.45, 0.75])
def test_costs_that_change_within_what_was_promised_are_known_after_a_few_runs(after: float) -> None:
    agent, rng = made(), np.random.default_rng(5)
    feed_audits(agent, np.array([FULL, MEDIUM, LOW]))
    assert level(agent) == 2
    for cost in [*[LOW] * 1_000, *[after * FULL] * 30]:
        agent.add_run(0, 0, 2, tokens=cost * rng.lognormal(-0.02, 0.2))
    assert agent.values.cost[0, 0, 2] == pytest.approx(after, abs=0.12)


def test_costs_that_stay_are_not_forgotten() -> None:
    agent, rng = made(), np.random.default_rng(6)
    feed_audits(agent, np.array([FULL, MEDIUM, LOW]))
    errors = list[float]()
    for _ in range(4_000):
        agent.add_run(0, 0, 2, tokens=LOW * rng.lognormal(-0.08, 0.4))
        errors.append(float(agent.values.cost_error()[0, 0, 2]))
    assert np.mean(np.array(errors[500:]) < 0.01) >= 0.97

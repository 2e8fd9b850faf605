"""What the agent earns in ten environments, against the best fixed action in hindsight and against doing nothing.

    python bench/agent.py [--seeds N] [--only WORD]

The fixed action is chosen with knowledge of the truth among those that keep the EM budget on average, and pays for no
audit; the agent audits a request in ten. Rewards are expectations: EM minus 0.1 for a mean full run's tokens.
*Possible* is what an agent that knows the truth earns with the same audits and certificates, of the best fixed action.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.simulators.agent_environments import (
    ENVIRONMENTS,
    MAX_EM_DROP,
    TOKEN_PRICE,
    Clairvoyant,
    best_fixed,
    run_agent,
    run_fixed,
)

from suffice.executor import build_executor


def one(task: tuple[int, int]) -> tuple[int, float, float, float, float]:
    """Environment, mean reward, mean EM drop and tokens of one life, and the most that an agent could have earned."""
    at, seed = task
    env = ENVIRONMENTS[at]
    life, possible = run_agent(env, seed), run_agent(env, seed, Clairvoyant(env))
    means = [float(each.mean()) for each in (life.reward, life.drop, life.tokens, possible.reward)]
    return at, means[0], means[1], means[2], means[3]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--only", default="")
    given = parser.parse_args()
    wanted = [at for at, env in enumerate(ENVIRONMENTS) if given.only in env.name]
    lives = list(build_executor().map(one, [(at, seed) for at in wanted for seed in range(given.seeds)]))
    print(f"{given.seeds} seeds of each environment\n")
    columns = (
        "environment, nothing, best fixed, agent, of best fixed, possible, worst life, budget kept, tokens fixed,"
        " tokens agent"
    )
    print(f"| {columns.replace(',', ' |')} |")
    print("| --- " * 10 + "|")
    for at in wanted:
        env = ENVIRONMENTS[at]
        rows = np.array([row[1:] for row in lives if row[0] == at])
        _, fixed = best_fixed(env)
        nothing = run_fixed(env, 0).reward.mean()
        worst = (rows[:, 0].min() - nothing) / TOKEN_PRICE
        print(
            f"| {env.name} | {nothing:.4f} | {fixed.reward.mean():.4f} | {rows[:, 0].mean():.4f}"
            f" | {rows[:, 0].mean() / fixed.reward.mean():.2%} | {rows[:, 3].mean() / fixed.reward.mean():.2%}"
            f" | {worst:+.1%}"
            f" | {(rows[:, 1] <= MAX_EM_DROP).mean():.1%} | {fixed.tokens.mean():.1%} | {rows[:, 2].mean():.1%} |"
        )


if __name__ == "__main__":
    main()

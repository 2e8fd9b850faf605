"""What the agent earns in ten environments, against the best fixed action in hindsight and against doing nothing.

    python bench/agent.py [--seeds N] [--only WORD]

The fixed action is chosen with knowledge of the truth among those that keep the EM budget on average, and pays for no
audit; the agent audits a request in ten. Rewards are expectations: EM minus 0.1 for a mean full run's tokens.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.simulators.agent_environments import ENVIRONMENTS, MAX_EM_DROP, TOKEN_PRICE, best_fixed, run_agent, run_fixed

from suffice.executor import build_executor


def one(task: tuple[int, int]) -> tuple[int, float, float, float]:
    """Environment, mean reward, mean EM drop and tokens of one life."""
    at, seed = task
    life = run_agent(ENVIRONMENTS[at], seed)
    return at, float(life.reward.mean()), float(life.drop.mean()), float(life.tokens.mean())


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
        "environment, nothing, best fixed, agent, of best fixed, worst life, budget kept, tokens fixed, tokens agent"
    )
    print(f"| {columns.replace(',', ' |')} |")
    print("| --- " * 9 + "|")
    for at in wanted:
        env = ENVIRONMENTS[at]
        rows = np.array([row[1:] for row in lives if row[0] == at])
        _, fixed = best_fixed(env)
        nothing = run_fixed(env, 0).reward.mean()
        worst = (rows[:, 0].min() - nothing) / TOKEN_PRICE
        print(
            f"| {env.name} | {nothing:.4f} | {fixed.reward.mean():.4f} | {rows[:, 0].mean():.4f}"
            f" | {rows[:, 0].mean() / fixed.reward.mean():.2%} | {worst:+.1%}"
            f" | {(rows[:, 1] <= MAX_EM_DROP).mean():.1%} | {fixed.tokens.mean():.1%} | {rows[:, 2].mean():.1%} |"
        )


if __name__ == "__main__":
    main()

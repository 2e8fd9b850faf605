"""What tuning is worth in worlds whose truth is known: ours, the best fixed arm in hindsight, an even lot, and greed.

    python bench/tuner.py [--seeds 5] [--requests 200000] [--only drifting] [--lengths | --exploring]

Seven stories (`tests.simulators.arm_worlds`): nothing changes; the world changes twice; a route with a twentieth of the
requests; labels after 20,000 seconds; labels that come for losses above all; labels of which two fifths are lies; arms
whose answers are draws of their own. A reward is the expected EM over the full run's, less 0.1 for the tokens of a mean
full run, second calls of audits counted. `--lengths` asks instead how many requests it takes, `--exploring` what
exploring costs. Prints Markdown; the CPU time is that of one life.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.simulators.arm_worlds import (
    ARMS,
    SCENARIOS,
    LearnerHistory,
    Story,
    best_fixed,
    hindsight,
    run_fixed,
    run_greedy,
    run_tuner,
    story,
    tuning_of,
)

MAX_EM_DROP = 0.02


def row(name: str, learner: str, told: Story, lives: Sequence[LearnerHistory]) -> str:
    """One line: mean reward with its standard error over seeds, regret, worst drop, how often over budget, audits."""
    rewards = np.array([lived.reward.mean() for lived in lives])
    worst = np.array([lived.drops(told).max() for lived in lives])
    error = f" ± {1000 * rewards.std(ddof=1) / len(rewards) ** 0.5:.2f}" if len(lives) > 1 else ""
    over = int((worst > MAX_EM_DROP).sum())
    cells = [
        name,
        learner,
        f"{1000 * rewards.mean():.1f}{error}",
        f"{1000 * (hindsight(told) - rewards.mean()):.1f}",
        f"{100 * worst.mean():.2f}",
        f"{over} of {len(lives)}",
        f"{np.mean([lived.n_audits for lived in lives]):,.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def compare(names: Sequence[str], n_seeds: int, n_requests: int) -> None:
    print("| story | learner | reward, thousandths | regret | worst EM drop, points | over budget | audits |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    better: list[str] = []
    for name in names:
        told = story(name, n_requests)
        began = time.process_time()
        ours = [run_tuner(told, seed) for seed in range(n_seeds)]
        cpu_s = (time.process_time() - began) / n_seeds
        arm, kept = best_fixed(told, in_each_world=True)
        loose_arm, loose = best_fixed(told, in_each_world=False)
        print(row(name, "ours", told, ours))
        print(row("", f"best fixed arm that keeps the budget: {ARMS[arm].name}", told, [kept]))
        if loose_arm != arm:
            print(row("", f"best fixed arm that keeps it on average: {ARMS[loose_arm].name}", told, [loose]))
        print(row("", "full runs", told, [run_fixed(told, np.eye(len(ARMS))[0])]))
        print(row("", "even lot", told, [run_fixed(told, np.full(len(ARMS), 1 / len(ARMS)))]))
        print(row("", "greedy", told, [run_greedy(told, seed) for seed in range(n_seeds)]), flush=True)
        wins = sum(lived.reward.mean() > kept.reward.mean() for lived in ours)
        proposals = np.mean([len(lived.proposals) for lived in ours])
        better.append(
            f"{name}: better than the fixed arm in {wins} of {n_seeds} lives, {proposals:.1f} proposals,"
            f" {cpu_s:.1f} s CPU"
        )
    print("\n" + "\n".join(better))


def lengths(n_seeds: int) -> None:
    print("| requests | ours | full runs | best fixed arm in hindsight | better than full runs | than the fixed arm |")
    print("| --- | --- | --- | --- | --- | --- |")
    for n_requests in (10_000, 20_000, 30_000, 60_000, 100_000, 200_000):
        told = story("steady", n_requests)
        ours = np.array([run_tuner(told, seed).reward.mean() for seed in range(n_seeds)])
        full = run_fixed(told, np.eye(len(ARMS))[0]).reward.mean()
        fixed = best_fixed(told, in_each_world=True)[1].reward.mean()
        cells = [
            f"{n_requests:,}",
            *(f"{1000 * number:.1f}" for number in (ours.mean(), full, fixed)),
            *(f"{int((ours > other).sum())} of {n_seeds}" for other in (full, fixed)),
        ]
        print(f"| {' | '.join(cells)} |", flush=True)


def exploring(n_seeds: int, n_requests: int) -> None:
    print("| share that explores | steady, by worth | steady, alike | drifting, by worth | drifting, alike |")
    print("| --- | --- | --- | --- | --- |")
    for ceiling in (0.05, 0.15, 0.3):
        cells = []
        for name in ("steady", "drifting"):
            told = story(name, n_requests)
            for sharpness in (4.0, 0.0):
                tuning = replace(tuning_of(told), explore_ceiling=ceiling, explore_sharpness=sharpness)
                lives = [run_tuner(told, seed, tuning) for seed in range(n_seeds)]
                cells.append(f"{1000 * np.mean([lived.reward.mean() for lived in lives]):.1f}")
        print(f"| {100 * ceiling:.0f} % | {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=200_000)
    parser.add_argument("--only", choices=SCENARIOS, default=None)
    parser.add_argument("--lengths", action="store_true")
    parser.add_argument("--exploring", action="store_true")
    chosen = parser.parse_args()
    if chosen.lengths:
        lengths(chosen.seeds)
    elif chosen.exploring:
        exploring(chosen.seeds, chosen.requests)
    else:
        compare([chosen.only] if chosen.only else SCENARIOS, chosen.seeds, chosen.requests)


if __name__ == "__main__":
    main()

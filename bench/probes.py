"""What do probes cost behind a cheap proposer? `python bench/probes.py [--halvings N]`, on the traces in the box.

Each of the 300 chains was probed at every checkpoint, so which probes would have been sent can be replayed. *Today*:
every checkpoint is probed. Behind a proposer, a checkpoint that is not proposed is joined with the next one. On both
sides the same rules confirm: `confidence-threshold` with 12 thresholds and a patience of 1 to 3, `stable-answer` with
2 to 6 steps. Of 200 random halvings of the questions, on one half today's rule is picked that saves most tokens
(probes left out) at a drop of at most a point; then the proposer's rule that saves at least as much, at no larger a
drop, with the fewest probe tokens. The figures are those of the other half. `none`: halvings without such a rule.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from suffice.episode.checkpoints import Proposer
from suffice.policy.base import build_policy
from suffice.replay.study.policies import PolicyRung, halts_of
from suffice.replay.study.runs import read_runs
from suffice.replay.study.sums import columns_of
from suffice.replay.traces.read import own_traces, survey

SURE: Final = (0.999, 0.995, 0.99, 0.98, 0.97, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5)
RULES: Final[tuple[dict[str, Any], ...]] = (
    *({"policy": "confidence-threshold", "threshold": t, "patience": n} for n in (1, 2, 3) for t in SURE),
    *({"policy": "stable-answer", "streak": n} for n in range(2, 7)),
)
ANSWER: Final = {"policy": "text-rule", "pattern": "answer"}
CONCLUSION: Final = {"policy": "text-rule", "pattern": r"\b(?:answer|so|hence|therefore|thus|right|correct)\b"}
REPEATS: Final = {"policy": "redundant", "threshold": 0.5}
PROPOSERS: Final[Mapping[str, tuple[dict[str, Any], int] | None]] = {
    "today: every checkpoint": None,
    "every 2nd checkpoint": ({}, 2),
    "every 3rd checkpoint": ({}, 3),
    "repetition": (REPEATS, 0),
    'the word "answer"': (ANSWER, 0),
    "words of conclusion": (CONCLUSION, 0),
    "words of conclusion, or repetition": ({"policy": "any-of", "policies": [CONCLUSION, REPEATS]}, 0),
}
TARGET: Final = 0.01
Table = NDArray[np.float64]  # (rules, runs)


def measured(proposed: tuple[dict[str, Any], int] | None) -> tuple[Table, Table, Table, tuple[str, ...], Table]:
    """Net loss of EM, tokens without probes and probe tokens of each rule on each run; questions; full tokens."""
    build = None if proposed is None else partial(Proposer, build_policy(proposed[0]), every=proposed[1])
    (data,) = survey([own_traces("reasoning")], proposer=build)
    policies = [build_policy(rule) for rule in RULES]
    needs = tuple(dict.fromkeys(need for policy in policies for need in policy.needs))
    runs = read_runs(data, needs, probe_tokens=None, longest=data.longest)
    ends = [
        columns_of(runs, halts_of(PolicyRung(policy=p, spec=r, label=""), runs))
        for p, r in zip(policies, RULES, strict=True)
    ]
    lost, gained, spent, probes = (np.array([end[at] for end in ends]) for at in (0, 1, 2, 3))
    return lost - gained, spent - probes, probes, runs.question, runs.full_tokens


def picked(drop: Table, saved: Table, probes: Table, floor: float | None) -> int | None:
    """The rule with the fewest probe tokens among those that save `floor`; without one, the rule that saves most."""
    allowed = drop <= TARGET
    if floor is None:
        return int(np.argmax(np.where(allowed, saved, -np.inf))) if allowed.any() else None
    allowed &= saved >= floor
    return int(np.argmin(np.where(allowed, probes, np.inf))) if allowed.any() else None


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Probe tokens at equal saving, behind cheap proposers.")
    parser.add_argument("--halvings", type=int, default=200, metavar="N")
    n_halvings = parser.parse_args(arguments).halvings
    tables = {name: measured(proposed) for name, proposed in PROPOSERS.items()}
    base, full = tables["today: every checkpoint"], tables["today: every checkpoint"][4]
    names, group = np.unique(base[3], return_inverse=True)
    rng = np.random.default_rng(0)
    halves = [np.isin(group, rng.permutation(len(names))[: len(names) // 2]) for _ in range(n_halvings)]
    print("| probes are sent at | saved, probes left out | drop, points | probe tokens a run | of today's | none |")
    print("| --- | --- | --- | --- | --- | --- |")
    cost = {}
    for name, (drop, spent, probes, _, _) in tables.items():
        rows, n_none = [], 0
        for half in halves:
            saved = 1 - base[1][:, half].sum(axis=1) / full[half].sum()
            floor = picked(base[0][:, half].mean(axis=1), saved, base[2][:, half].mean(axis=1), None)
            assert floor is not None, "the largest patience loses less than a point"
            own = 1 - spent[:, half].sum(axis=1) / full[half].sum()
            best = picked(drop[:, half].mean(axis=1), own, probes[:, half].mean(axis=1), float(saved[floor]))
            if best is None:
                n_none += 1
                continue
            other = ~half
            rows.append(
                (1 - spent[best, other].sum() / full[other].sum(), drop[best, other].mean(), probes[best, other].mean())
            )
        means = np.mean(rows, axis=0) if rows else np.full(3, np.nan)
        cost[name] = means[2]
        share = means[2] / cost["today: every checkpoint"]
        print(
            f"| {name} | {100 * means[0]:.1f} % | {100 * means[1]:+.2f} | {means[2]:.1f} |"
            f" {100 * share:.0f} % | {n_none} of {n_halvings} |"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The shipped traces in figures, and an estimate from half of them against what came on the other half.

`python bench/own_estimate.py` needs nothing but the package. The first half of the questions with samples
is written as an OpenAI-style log, without references, and read as `suffice estimate` reads it; then the policy
`beta` is replayed on the second half at the same levels.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from suffice.replay.estimate import (
    LevelOutcomes,
    LogRun,
    LogRuns,
    QuantityInterval,
    estimate_levels,
    replay_ladder,
    runs_of_calls,
    runs_of_traces,
    traffic_of,
)
from suffice.replay.logs import read_logs
from suffice.replay.traces.read import FILES, own_traces, read_traces
from suffice.scoring.base import build_scorer

SCORER = build_scorer("number")
MINUTE_S = 60.0
N_HALVINGS = 200


def figures() -> None:
    head = f"{'kind':<10} {'task':<8} {'runs':>5} {'EM':>6} {'one step':>9} {'steps':>6} {'tokens':>7} {'probes':>7}"
    print(f"{head} {'unclosed':>9}")
    for kind in FILES:
        for batch in read_traces([own_traces(kind)]):
            rows = defaultdict(list)
            for i, task in enumerate(batch.task):
                rows[task].append(i)
            for task, runs in rows.items():
                at = [range(int(batch.offset[i]), int(batch.offset[i + 1])) for i in runs]
                first = np.mean([batch.correct[steps[0]] > 0 for steps in at])
                probes = np.mean([batch.probe_tokens[list(steps)].sum() for steps in at])
                unclosed = sum(bool(json.loads(batch.meta[i] or "{}").get("unclosed")) for i in runs)
                print(
                    f"{kind:<10} {task:<8} {len(runs):>5} {batch.full_em[runs].mean():>6.3f} {first:>9.3f}"
                    f" {np.mean([len(s) for s in at]):>6.1f} {batch.full_tokens[runs].mean():>7.1f} {probes:>7.1f}"
                    f" {unclosed:>9}"
                )


def in_first_half(question: str) -> bool:
    """A lot that no answer can know of."""
    return hashlib.blake2b(question.encode()).digest()[0] % 2 == 0


def as_log(runs: list[LogRun], file: Path) -> None:
    """One request a minute with all its choices, as a proxy would have logged it."""
    with file.open("w", encoding="utf-8") as out:
        for place, run in enumerate(runs):
            choices = [{"message": {"role": "assistant", "content": s.answer or ""}} for s in run.steps]
            usage = {"prompt_tokens": 200, "completion_tokens": run.full_tokens}
            request = {"messages": [{"role": "user", "content": run.question}], "n": len(choices)}
            response = {"object": "chat.completion", "choices": choices, "usage": usage}
            line = {"timestamp": 1.7e9 + MINUTE_S * place, "request": request, "response": response}
            out.write(json.dumps(line) + "\n")


def compare() -> None:
    runs = runs_of_traces(read_traces([own_traces("samples")])).runs
    first = [r for r in runs if in_first_half(r.question)]
    second = [r for r in runs if not in_first_half(r.question)]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "log.jsonl"
        as_log(first, file)
        log = read_logs([file])
    found = runs_of_calls(log.calls, SCORER)
    rng = np.random.default_rng(0)
    said = estimate_levels(
        replay_ladder(found, SCORER),
        traffic_of(log.calls, len(found.runs), rng),
        rng=rng,
        max_em_drop=0.05,
        confidence=0.95,
        audit_share=0.1,
        most_audits=800,
    )
    came = replay_ladder(LogRuns(runs=second, kind="samples"), SCORER)
    assert came.drop is not None
    print(f"\nestimated from a log of {len(first)} requests, then replayed on {len(second)} other questions")
    print(f"{'level':<12} {'saving, estimated':>22} {'came':>7} {'differs, estimated':>22} {'came':>7} {'EM drop':>8}")
    for j, level in enumerate(said.levels):
        saving = 1 - came.tokens[:, j].sum() / came.full_tokens.sum()
        print(
            f"{level.name:<12} {span(level.saving):>22} {saving:>7.1%} {span(level.disagreement):>22}"
            f" {came.differs[:, j].mean():>7.1%} {came.drop[:, j].mean():>8.1%}"
        )


def halve() -> None:
    """How often an estimate from any half holds what comes on the other."""
    runs = runs_of_traces(read_traces([own_traces("samples")])).runs
    everything = replay_ladder(LogRuns(runs=runs, kind="samples"), SCORER)
    rng = np.random.default_rng(1)
    held = np.zeros(len(everything.levels))
    for _ in range(N_HALVINGS):
        order = rng.permutation(len(runs))
        here, there = (part_of(everything, half) for half in np.array_split(order, 2))
        said = estimate_levels(
            here,
            traffic_of([], len(here.question), rng),
            rng=rng,
            max_em_drop=0.05,
            confidence=0.95,
            audit_share=0.1,
            most_audits=800,
        )
        came = 1 - there.tokens.sum(axis=0) / there.full_tokens.sum()
        intervals = [level.saving for level in said.levels]
        held += [at.low <= saving <= at.high for at, saving in zip(intervals, came, strict=True)]
    print(f"\n{N_HALVINGS} random halvings: how often the saving on the other half lies in the interval from the first")
    print("(an exact interval of 90 % for the saving of all traffic holds that of an equal half, which varies as much")
    print("itself, in 75 %)")
    print(", ".join(f"{name} {share:.0%}" for name, share in zip(everything.levels, held / N_HALVINGS, strict=True)))


def part_of(evidence: LevelOutcomes, keep: NDArray[np.int64]) -> LevelOutcomes:
    assert evidence.drop is not None
    return replace(
        evidence,
        question=tuple(evidence.question[i] for i in keep),
        drop=evidence.drop[keep],
        full_tokens=evidence.full_tokens[keep],
        tokens=evidence.tokens[keep],
        differs=evidence.differs[keep],
        stopped=evidence.stopped[keep],
        probe_tokens=evidence.probe_tokens[keep],
    )


def span(value: QuantityInterval) -> str:
    return f"{value.middle:.1%} [{value.low:.1%}, {value.high:.1%}]"


if __name__ == "__main__":
    figures()
    compare()
    halve()

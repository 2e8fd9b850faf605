"""Runs for the tests of the replay: made up from a seed, or written down step by step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from suffice.arrays import Ints
from suffice.replay.study.policies import Ladder, PolicyRung, build_ladders, list_ladder_folds
from suffice.replay.study.runs import Halts, Runs, make_runs
from suffice.replay.traces.columns import Batch
from suffice.replay.traces.read import read_traces
from suffice.replay.traces.rows import RunRow, StepRow
from suffice.types import Kind
from suffice_testing.traces import Synthetic

KINDS: tuple[Kind, ...] = ("samples", "reasoning", "rounds")
SETTING: dict[Kind, str] = {"samples": "samples", "reasoning": "reasoning", "rounds": "agent"}


def batch_of(kind: Kind, n_runs: int = 60, seed: int = 1, **more: Any) -> Batch:
    """Made-up runs in one batch."""
    made = Synthetic(kind=kind, n_runs=n_runs, seed=seed, **{"n_questions": max(2, n_runs // 3), **more})
    (batch,) = made.batches(batch_rows=n_runs)
    return batch


def longest_of(batch: Batch) -> int:
    return int((batch.offset[1:] - batch.offset[:-1]).max())


def runs_of(
    batch: Batch, *, needs: Sequence[str] = (), probe_tokens: int | None = None, planned_steps: int | None = None
) -> Runs:
    """The batch as `suffice replay` makes it ready for every published rule, and for more folds."""
    longest = planned_steps or longest_of(batch)
    request = tuple(dict.fromkeys([*list_ladder_folds(build_ladders(batch.kind, longest=longest)), *needs]))
    return make_runs(batch, request, probe_tokens=probe_tokens, planned_steps=longest)


def halts_at_rows(row: Ints, code: NDArray[np.int8], *, asks: bool = True) -> Halts:
    """Runs that end at these rows and return the answers there."""
    return Halts(row, code, row, np.full(len(row), asks))


def rungs_of(ladders: Sequence[Ladder]) -> list[PolicyRung]:
    return [rung for ladder in ladders for rung in ladder.rungs]


def written(
    folder: Path, kind: Kind, rows: Sequence[tuple[str, str, Sequence[tuple[str | None, int]]]], **of_step: Any
) -> Batch:
    """Runs written down: for each its question, the right answer, and its steps as (trial answer, tokens).

    of_step  further fields of every step
    """
    result = []
    for number, (question, gold, steps) in enumerate(rows):
        answers = [answer for answer, _ in steps]
        votes = [answer for answer in answers if answer is not None]
        voted = max(votes, key=lambda answer: (votes.count(answer), -votes.index(answer))) if votes else None
        full = voted if kind == "samples" else answers[-1]
        made = [
            StepRow(tokens=tokens, answer=answer, correct=None if answer is None else answer == gold, **of_step)
            for answer, tokens in steps
        ]
        result.append(
            RunRow(
                dataset="made",
                setting=SETTING[kind],
                task="sums",
                model="m",
                run=str(number),
                question_id=question,
                gold=gold,
                aggregation="majority_vote" if kind == "samples" else "last",
                full_answer=full,
                full_em=full == gold,
                n_steps=len(steps),
                steps=made,
                full_tokens=sum(step.tokens + (step.ctx_tokens or 0) for step in made),
            )
        )
    file = folder / "made.jsonl"
    file.write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in result))
    (batch,) = read_traces([file])
    return batch

"""Synthetic recorded runs with a known truth, for tests, benchmarks and experiments.

Questions differ in difficulty and models in skill, so that a rule can be right on one and wrong on the other.
Everything follows from the seed, and any number of runs takes bounded memory.

>>> from suffice_testing.traces import Synthetic
>>> batch = next(Synthetic(kind="samples", n_runs=100, n_questions=20, seed=1).batches())
>>> len(batch), batch.kind, batch.vote, len(set(batch.question_id))
(100, 'samples', True, 20)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from suffice.replay.traces.columns import (
    LAST,
    MAJORITY_VOTE,
    STATED,
    Batch,
    TextColumn,
    TraceColumns,
    as_batches,
    check_columns,
    vote_winners,
)
from suffice.types import Kind
from suffice_testing.trace_files import write_traces_parquet

N_CHOICES: Final = 6  # answers of a question: A to F
_SETTING: Final[dict[Kind, str]] = {"samples": "self_consistency", "reasoning": "cot_checkpoint", "rounds": STATED}
_TASKS: Final = ("arithmetic", "reading")


@dataclass(frozen=True, slots=True)
class _Steps:
    answer: NDArray[np.int32]  # index of a choice, -1: none
    tokens: NDArray[np.int64]
    ctx_tokens: NDArray[np.int64]
    confidence: NDArray[np.float64]  # NaN: unknown
    stop_flag: NDArray[np.int8]


@dataclass(frozen=True, slots=True, kw_only=True)
class Synthetic:
    """A set of generated runs.

    samples    each is right with a probability that depends on question and model; wrong ones prefer one wrong choice,
               so that some votes are lost with every further sample
    reasoning  guesses until the chain settles, then one answer to the end; `confidence` is the probability that the
               answer is right, raised to 1 / (1 + overconfidence)
    rounds     each repairs a wrong answer or spoils a right one; the model always reports that it is nearly sure
    """

    kind: Kind
    n_runs: int
    seed: int
    n_questions: int = 200
    n_models: int = 3
    n_steps: int = 8  # of every run for samples and rounds, the maximum for reasoning
    overconfidence: float = 0.0  # at least 0; 0: the confidence is calibrated
    p_no_answer: float = 0.02  # of a single step
    name: str = "synthetic"  # of the set

    def batches(self, *, batch_rows: int = 20_000) -> Iterator[Batch]:
        for first in range(0, self.n_runs, batch_rows):
            columns = self._columns(np.arange(first, min(first + batch_rows, self.n_runs)))
            check_columns(columns)
            yield from as_batches(columns, self.name)

    def write(self, path: str | Path, *, batch_rows: int = 20_000) -> None:
        write_traces_parquet(path, self.batches(batch_rows=batch_rows))

    def _columns(self, number: NDArray[np.int64]) -> TraceColumns:
        question = number % self.n_questions
        model = number // self.n_questions % self.n_models
        again = number // (self.n_questions * self.n_models)
        rng = np.random.default_rng([self.seed, int(number[0])])
        hardness, gold = self._questions()
        skill = np.linspace(-0.5, 1.5, self.n_models)[model]
        p_right = 1 / (1 + np.exp(1.5 * (hardness[question] - skill)))
        lengths = self._lengths(rng, len(number))
        made = self._steps(rng, p_right, gold[question], lengths, np.exp(0.3 * hardness[question]))
        there = np.arange(self.n_steps) < lengths[:, None]
        offset = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        answer, tokens, ctx_tokens = made.answer[there], made.tokens[there], made.ctx_tokens[there]
        vote = self.kind == "samples"
        full = vote_winners(answer, offset) if vote else answer[offset[1:] - 1]
        choices = tuple("ABCDEF")
        return TraceColumns(
            file=self.name,
            row=number + 1,
            offset=offset,
            texts={
                "dataset": _same(self.name, number),
                "setting": _same(_SETTING[self.kind], number),
                "task": TextColumn((question % len(_TASKS)).astype(np.int32), _TASKS),
                "model": _named("model-", model),
                "run": _named("run-", again),
                "question_id": _named("q-", question),
                "gold": TextColumn(gold[question], choices),
                "aggregation": _same(MAJORITY_VOTE if vote else LAST, number),
                "token_source": _same("synthetic", number),
                "full_answer": TextColumn(full, choices),
            },
            numbers={
                "n_steps": lengths,
                "full_em": (full == gold[question]).astype(np.int8),
                "full_tokens": np.add.reduceat(tokens + ctx_tokens, offset[:-1]),
            },
            step_texts={"answer": TextColumn(answer, choices)},
            step_numbers={
                "tokens": tokens,
                "ctx_tokens": np.where(ctx_tokens > 0, ctx_tokens, -1),
                "correct": (answer == np.repeat(gold[question], lengths)).astype(np.int8),
                "confidence": made.confidence[there],
                "stop_flag": made.stop_flag[there],
            },
        )

    def _questions(self) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
        rng = np.random.default_rng([self.seed, 2**32 - 1])
        return rng.normal(size=self.n_questions), rng.integers(0, N_CHOICES, self.n_questions, dtype=np.int32)

    def _lengths(self, rng: np.random.Generator, n_runs: int) -> NDArray[np.int64]:
        if self.kind != "reasoning":
            return np.full(n_runs, self.n_steps)
        return rng.integers(1, self.n_steps, n_runs, endpoint=True)

    def _steps(
        self,
        rng: np.random.Generator,
        p_right: NDArray[np.float64],
        gold: NDArray[np.int32],
        lengths: NDArray[np.int64],
        size: NDArray[np.float64],
    ) -> _Steps:
        shape = (len(gold), self.n_steps)
        confidence = np.full(shape, np.nan)
        stop_flag = np.full(shape, -1, dtype=np.int8)
        ctx_tokens = np.zeros(shape, dtype=np.int64)
        if self.kind == "samples":
            right = rng.random(shape) < p_right[:, None]
        elif self.kind == "reasoning":
            right, confidence = _chain(rng, p_right, lengths, self.n_steps)
            confidence **= 1 / (1 + self.overconfidence)
        else:
            right = _revisions(rng, p_right, self.n_steps)
            confidence = rng.uniform(0.8, 1.0, shape)
            stop_flag = (rng.random(shape) < 0.5).astype(np.int8)
            ctx_tokens = rng.integers(50, 100, shape) * np.arange(1, self.n_steps + 1)
        answer = np.where(right, gold[:, None], _wrong(rng, gold, shape, steady=self.kind != "samples"))
        silent = rng.random(shape) < self.p_no_answer
        tokens = rng.gamma(4.0, 50.0, shape) * size[:, None]
        return _Steps(
            np.where(silent, -1, answer).astype(np.int32), tokens.astype(np.int64), ctx_tokens, confidence, stop_flag
        )


def _chain(
    rng: np.random.Generator, p_right: NDArray[np.float64], lengths: NDArray[np.int64], n_steps: int
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    settles = rng.integers(0, lengths)[:, None] <= np.arange(n_steps)
    guess = rng.uniform(0.1, 0.6, (len(p_right), n_steps))
    right = np.where(settles, rng.random(len(p_right))[:, None] < p_right[:, None], rng.random(guess.shape) < guess)
    return right, np.where(settles, p_right[:, None], guess)


def _revisions(rng: np.random.Generator, p_right: NDArray[np.float64], n_steps: int) -> NDArray[np.bool_]:
    """Return whether the answer is right after each round. Repairs are rarer for harder questions, spoiling is not."""
    right = np.empty((len(p_right), n_steps), dtype=bool)
    right[:, 0] = rng.random(len(p_right)) < p_right
    for k in range(1, n_steps):
        repaired, spoilt = rng.random(len(p_right)) < 0.2 * p_right, rng.random(len(p_right)) < 0.03
        right[:, k] = np.where(right[:, k - 1], ~spoilt, repaired)
    return right


def _wrong(
    rng: np.random.Generator, gold: NDArray[np.int32], shape: tuple[int, int], *, steady: bool
) -> NDArray[np.int32]:
    behind = rng.geometric(0.6, (shape[0], 1) if steady else shape)
    return ((gold[:, None] + np.minimum(behind, N_CHOICES - 1)) % N_CHOICES).astype(np.int32)


def _same(word: str, number: NDArray[np.int64]) -> TextColumn:
    return TextColumn(np.zeros(len(number), dtype=np.int32), (word,))


def _named(prefix: str, numbers: NDArray[np.int64]) -> TextColumn:
    distinct, codes = np.unique(numbers, return_inverse=True)
    return TextColumn(codes.astype(np.int32), tuple(f"{prefix}{number}" for number in distinct))

"""Recorded runs prepared for replay: signals as columns, and the cost and result of a stop at each step.

Policies may read only `columns` and `queries`, which the live observer computes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from suffice.arrays import Bools, Floats, Ints
from suffice.episode.vote import deciding_sample
from suffice.learn.audits import RaggedRuns
from suffice.policy.columns import BUDGET, CONTINUE, QueryColumns
from suffice.replay.traces.columns import Batch
from suffice.replay.traces.read import Survey
from suffice.signals.observe import SignalColumns, observe_columns
from suffice.types import Kind, Query

PROBE_TOKENS: Final[Mapping[Kind, int]] = {"reasoning": 15, "samples": 0, "rounds": 0}  # if the file records none
RowScores = NDArray[Any]  # per row: float64, a risk or a probability; uint64, bits of the settings that stop
_BY_ROW = ("cost", "probes", "resent", "ok", "same")
_BY_RUN = ("full_ok", "full_tokens", "finish")


@dataclass(frozen=True, slots=True, kw_only=True)
class Runs(RaggedRuns):
    """Some recorded runs of one set: E runs, T steps in all; run i has the rows starts[i] … starts[i + 1] - 1.

    The last row of a run is its end; for a vote, the sample that decides it.
    """

    set: str
    kind: Kind
    columns: SignalColumns  # T rows
    queries: tuple[Query, ...]  # E: as known before the first token
    question: tuple[str, ...]  # E
    starts: Ints  # E + 1
    cost: Floats  # T: cumulative tokens of the run, including context read again
    probes: Floats  # T: cumulative tokens of probes, if every checkpoint is probed
    resent: Floats  # T: prefix tokens that those probes resend
    ok: Bools  # T: the answer delivered after the step is correct
    same: Bools  # T: it equals the full run's answer
    full_ok: Bools  # E
    full_tokens: Floats  # E: of all recorded steps, including those after the deciding sample
    finish: Floats  # E: tokens of the answer that a stopped run still generates, if recorded

    def __len__(self) -> int:
        return len(self.queries)

    @property
    def per_step(self) -> Floats:
        """Mean tokens per step of the run so far, at least 1, shape (T,)."""
        return np.maximum(self.columns.values["tokens_used"] / self.columns.values["step"], 1.0)

    def readable(self) -> QueryColumns:
        columns = {**self.columns.values, "answer": self.columns.answer}
        return QueryColumns(columns, queries=self.queries, run=self.run_of_row)


class Halts(NamedTuple):
    """Where one policy ends each run, shape (E,) each."""

    row: Ints  # the last executed row
    code: NDArray[np.int8]  # the reason, as in `policy.columns`; CONTINUE: ran in full
    returned: Ints  # the row whose answer a stopped run returns
    asks: Bools  # the policy reads trial answers, so every checkpoint is probed

    @classmethod
    def at(cls, row: Ints, codes: NDArray[np.int8], runs: Runs, *, asks: bool) -> Halts:
        """The halts at these rows, given the code of every row; at a run's last row nothing is stopped."""
        code = np.where(row == runs.last, CONTINUE, codes[row]).astype(np.int8)
        return cls(row, code, row, np.full(len(runs), asks))


def make_runs(batch: Batch, needs: Sequence[str], *, probe_tokens: int | None, planned_steps: int | None) -> Runs:
    """Observe the runs of a batch.

    needs          folds that any policy will read, see `signals.observe`
    probe_tokens   per probe; None: as recorded, else 15 for `reasoning`, else 0
    planned_steps  the cap on steps that a live route of loops or chains would declare
    """
    known = map(batch.query, range(len(batch)))
    queries = tuple(q if q.planned_steps is not None else replace(q, planned_steps=planned_steps) for q in known)
    columns = observe_columns(needs, batch.kind, ((query, batch.steps(i)) for i, query in enumerate(queries)))
    n_steps = np.diff(batch.offset)
    run, last = np.repeat(np.arange(len(batch)), n_steps), _last_rows(batch)
    known_probes = np.where(batch.probe_tokens >= 0, batch.probe_tokens, PROBE_TOKENS[batch.kind])
    probed = known_probes if probe_tokens is None else np.full(len(run), probe_tokens)
    probed[last] = 0  # no probe at the end
    cost = _sum_within(batch.tokens + batch.ctx_tokens, batch.offset)
    answer = _answer_codes(batch, columns)
    ok = _is_right(batch, run, answer)
    ok[last] = batch.full_em  # the last step is the full run
    whole = Runs(
        set=batch.set,
        kind=batch.kind,
        columns=columns,
        queries=queries,
        question=tuple(batch.question_id),
        starts=batch.offset,
        cost=cost,
        probes=_sum_within(probed, batch.offset),
        resent=_sum_within(np.where(probed > 0, cost, 0.0), batch.offset),
        ok=ok,
        same=(answer >= 0) & (answer == batch.full_code[run]),
        full_ok=batch.full_em,
        full_tokens=batch.full_tokens.astype(np.float64),
        finish=np.array([answer_tokens(meta) if batch.kind == "reasoning" else 0.0 for meta in batch.meta]),
    )
    return _select_rows(whole, np.arange(len(run)) <= last[run], last - batch.offset[:-1] + 1)


def stream_runs(
    data: Survey, needs: Sequence[str], *, probe_tokens: int | None, longest: int, share: float
) -> Iterator[Runs]:
    for batch in data.batches(share=share):
        yield make_runs(batch, needs, probe_tokens=probe_tokens, planned_steps=longest)


def read_runs(data: Survey, needs: Sequence[str], *, probe_tokens: int | None, longest: int) -> Runs:
    """As many runs of a set as memory holds. Raise TraceError as reading does."""
    return concatenate(list(stream_runs(data, needs, probe_tokens=probe_tokens, longest=longest, share=data.share)))


def concatenate(parts: Sequence[Runs]) -> Runs:
    """Join several parts of one set. Raise ValueError without parts."""
    if not parts:
        raise ValueError("runs: needs at least one batch")
    if len(parts) == 1:
        return parts[0]
    shift = np.cumsum([0, *(p.starts[-1] for p in parts)])
    starts = np.concatenate([p.starts[:-1] + at for p, at in zip(parts, shift, strict=False)] + [shift[-1:]])
    columns = SignalColumns(
        values={name: np.concatenate([p.columns.values[name] for p in parts]) for name in parts[0].columns.values},
        answer=np.concatenate([p.columns.answer for p in parts]),
        answers=(),  # the codes differ between parts; only their presence is read
        starts=starts,
    )
    return Runs(
        set=parts[0].set,
        kind=parts[0].kind,
        columns=columns,
        queries=tuple(query for p in parts for query in p.queries),
        question=tuple(question for p in parts for question in p.question),
        starts=starts,
        **{name: np.concatenate([getattr(p, name) for p in parts]) for name in (*_BY_ROW, *_BY_RUN)},
    )


def select_runs(runs: Runs, keep: Bools) -> Runs:
    which = np.flatnonzero(keep).tolist()
    return replace(
        _select_rows(runs, keep[runs.run_of_row], runs.n_steps[keep]),
        queries=tuple(runs.queries[i] for i in which),
        question=tuple(runs.question[i] for i in which),
        **{name: getattr(runs, name)[keep] for name in _BY_RUN},
    )


def _select_rows(runs: Runs, rows: Bools, n_steps: Ints) -> Runs:
    starts = np.concatenate([[0], np.cumsum(n_steps)])
    values = {name: column[rows] for name, column in runs.columns.values.items()}
    columns = replace(runs.columns, values=values, answer=runs.columns.answer[rows], starts=starts)
    return replace(runs, columns=columns, starts=starts, **{name: getattr(runs, name)[rows] for name in _BY_ROW})


def never_halt(runs: Runs) -> Halts:
    return Halts.at(runs.last, np.zeros(len(runs.cost), dtype=np.int8), runs, asks=False)


def find_first_stops(codes: NDArray[np.int8], runs: Runs, *, asks: bool = False) -> Halts:
    """The first row of each run with a stop code, given the code of every row, shape (T,); its end: a full run."""
    row, stops = runs.last, np.flatnonzero(codes)
    run, first = np.unique(runs.run_of_row[stops], return_index=True)
    row[run] = stops[first]
    return Halts.at(row, codes, runs, asks=asks)


def find_first_bits(bits: NDArray[np.uint64], runs: Runs, places: Ints) -> Ints:
    """The row where each run first has each bit set, else its last row, shape (places, E). Settings need no order.

    bits  of each row, shape (T,): bit j is set where setting j would stop
    """
    n_steps, n_runs = runs.n_steps, len(runs)
    padded = np.zeros((int(n_steps.max()), n_runs), dtype=np.uint64)  # (steps, E)
    step = np.arange(len(bits)) - np.repeat(runs.starts[:-1], n_steps)
    padded[step, runs.run_of_row] = bits
    so_far = np.bitwise_or.accumulate(padded, axis=0)
    passed = np.empty((len(places), n_runs), dtype=np.int64)
    for at, place in enumerate(places):
        np.sum(so_far & (np.uint64(1) << np.uint64(place)) == 0, axis=0, out=passed[at])
    return runs.starts[:-1] + np.minimum(passed, n_steps - 1)


def stop_at_first(runs: Runs, reached: Bools) -> Halts:
    """An oracle: end each run at its first row where `reached` holds, else at its end."""
    return find_first_stops(np.where(reached, np.int8(BUDGET), np.int8(CONTINUE)), runs)


def _last_rows(batch: Batch) -> Ints:
    """The last row of each run, shape (E,); a vote ends where it is decided, unless another rule made its answer."""
    last = batch.offset[1:] - 1
    if batch.kind != "samples" or not batch.vote:
        return last
    for i in np.flatnonzero(~batch.differs).tolist():
        start, end = int(batch.offset[i]), int(batch.offset[i + 1])
        last[i] = start + (deciding_sample(batch.answer[start:end], end - start) or end - start) - 1
    return last


def _sum_within(values: NDArray[np.generic], offset: Ints) -> Floats:
    total = np.cumsum(values, dtype=np.float64)
    before = np.concatenate([[0.0], total])[offset[:-1]]
    within: Floats = total - np.repeat(before, np.diff(offset))
    return within


def answer_tokens(meta: str | None) -> float:
    """Tokens of the answer after the reasoning, which a stopped run generates too, from `meta`; 0: not recorded."""
    if meta is None or '"answer_tokens"' not in meta:
        return 0.0
    try:
        noted = json.loads(meta).get("answer_tokens")
    except (ValueError, AttributeError):
        return 0.0
    return float(noted) if isinstance(noted, int) and not isinstance(noted, bool) and noted > 0 else 0.0


def _answer_codes(batch: Batch, columns: SignalColumns) -> Ints:
    place = {answer: code for code, answer in enumerate(batch.answers)}
    codes = np.array([*(place[answer] for answer in columns.answers), -1], dtype=np.int64)
    return codes[np.where(np.isnan(columns.answer), -1, columns.answer).astype(np.int64)]


def _is_right(batch: Batch, run: Ints, answer: Ints) -> Bools:
    n_answers = len(batch.answers) + 1
    gave = run * n_answers + batch.answer_code
    right = np.unique(gave[(batch.correct == 1) & (batch.answer_code >= 0)])
    known = np.unique(gave[(batch.correct >= 0) & (batch.answer_code >= 0)])
    key = run * n_answers + answer
    by_full = (answer == batch.full_code[run]) & batch.full_em[run]
    is_right: Bools = np.where(np.isin(key, known), np.isin(key, right), by_full) & (answer >= 0)
    return is_right

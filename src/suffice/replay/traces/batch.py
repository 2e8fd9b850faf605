"""Some recorded runs of one set as columns: whole columns for the replay, single steps for a policy.

`Batch.steps` and `Batch.query` are all that a policy may be shown of a run: no label, no reference, nothing of the
full run's end.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from suffice.errors import TraceError
from suffice.replay.traces.columns import (
    KIND_OF_SETTING,
    LAST,
    MAJORITY_VOTE,
    NO_ANSWER,
    RUN_COLUMNS,
    STATED,
    STEP_COLUMNS,
    TextColumn,
    TraceColumns,
    vote_winners,
)
from suffice.signals.query import query_signals
from suffice.types import AnswerSource, Kind, Query, Step

_SOURCE: Final[Mapping[Kind, AnswerSource]] = {"reasoning": "probe", "samples": "sample", "rounds": "caller"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Some recorded runs of one set and one kind, as columns: E runs, T steps in all.

    Run i has the steps offset[i] … offset[i + 1] - 1. Unknown is None, NaN, or -1 in whole numbers
    and flags.
    """

    set: str
    kind: Kind
    file: str
    row: NDArray[np.int64]  # E: number of the run's row in its file, 1 is the first
    vote: bool  # the answer is the steps' vote; otherwise it is the last step's
    stated: bool  # `confidence` is what the model said of itself
    dataset: list[str]
    setting: list[str]
    task: list[str]
    model: list[str]
    run: list[str]
    question_id: list[str]
    question: list[str | None]
    gold: list[str | None]
    token_source: list[str | None]
    meta: list[str | None]
    offset: NDArray[np.int64]  # E + 1
    full_answer: list[str | None]
    full_code: NDArray[np.int32]  # E: place in `answers`; -1: no answer, -2: one that no step gave
    full_em: NDArray[np.bool_]  # E
    full_tokens: NDArray[np.int64]  # E: sum of tokens and ctx_tokens
    differs: NDArray[np.bool_]  # E: the steps' vote, or the last step's answer, is not `full_answer`
    tokens: NDArray[np.int64]  # T: generated in the step
    ctx_tokens: NDArray[np.int64]  # T: 0 where null
    answers: tuple[str, ...]  # each different trial answer of the batch, once
    answer_code: NDArray[np.int32]  # T: place in `answers`; -1: none
    answer: list[str | None]  # T
    correct: NDArray[np.int8]  # T
    confidence: NDArray[np.float64]  # T
    mass: NDArray[np.float64]  # T
    logprob: NDArray[np.float64]  # T
    entropy: NDArray[np.float64]  # T
    stop_flag: NDArray[np.int8]  # T
    action: list[str | None]  # T
    probe_tokens: NDArray[np.int64]  # T: as recorded; -1: the file does not say
    logprobs: Sequence[tuple[float, ...]] | None  # T: of the trial answer's tokens; None: the file has none
    margin: NDArray[np.float64]  # T
    closed_entropy: NDArray[np.float64]  # T
    hedges: NDArray[np.int64]  # T
    text: list[str | None] | None  # T: None: the file has none

    def __len__(self) -> int:
        return len(self.row)

    @property
    def first_row(self) -> int:
        """Number of the first run's row in its file; 0 without runs."""
        return int(self.row[0]) if len(self.row) else 0

    def steps(self, i: int) -> list[Step]:
        """The steps of run i as a live policy would have seen them."""
        start, end = int(self.offset[i]), int(self.offset[i + 1])
        source, confidence = _SOURCE[self.kind], _known(self.confidence[start:end])
        unknown: list[float | None] = [None] * (end - start)
        answers = self.answer[start:end]
        columns: dict[str, Iterable[Any]] = {  # by field of a step
            "index": range(1, end - start + 1),
            "tokens": self.tokens[start:end].tolist(),
            "answer": answers,
            "answer_source": [None if answer is None else source for answer in answers],
            "logprobs": self.logprobs[start:end] if self.logprobs is not None else [()] * (end - start),
            "entropy": _known(self.entropy[start:end]),
            "text": [text or "" for text in (self.text[start:end] if self.text is not None else unknown)],
            "probe_tokens": np.maximum(self.probe_tokens[start:end], 0).tolist(),
            "ctx_tokens": self.ctx_tokens[start:end].tolist(),
            "confidence": unknown if self.stated else confidence,
            "mass": _known(self.mass[start:end]),
            "margin": _known(self.margin[start:end]),
            "closed_entropy": _known(self.closed_entropy[start:end]),
            "logprob": _known(self.logprob[start:end]),
            "stated_confidence": confidence if self.stated else unknown,
            "said_done": [None if flag < 0 else flag > 0 for flag in self.stop_flag[start:end].tolist()],
            "action": self.action[start:end],
        }
        rows = zip(*columns.values(), strict=True)
        return [Step(**dict(zip(columns, row, strict=True))) for row in rows]

    def query(self, i: int) -> Query:
        """What was known of run i before its first token.

        Steps of a full run are known beforehand for a vote alone: for a chain or a loop their number
        tells where it will end.
        """
        planned = int(self.offset[i + 1] - self.offset[i]) if self.kind == "samples" else None
        metadata = (("dataset", self.dataset[i]), ("model", self.model[i]), ("task", self.task[i]))
        known = _read_off(self.question[i])
        return replace(known, query_class=self.task[i], metadata=metadata, planned_steps=planned)

    def by_column(self) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        made: dict[str, Any] = {  # lists of text and arrays alike; the writers know each column's type
            "aggregation": [MAJORITY_VOTE if self.vote else LAST] * len(self),
            "n_steps": np.diff(self.offset),
            "full_em": self.full_em.astype(np.int8),
            "logprobs": [()] * len(self.tokens) if self.logprobs is None else self.logprobs,
            "text": [None] * len(self.tokens) if self.text is None else self.text,
        }
        runs = {name: made[name] if name in made else getattr(self, name) for name in RUN_COLUMNS}
        steps = {name: made[name] if name in made else getattr(self, name) for name in STEP_COLUMNS}
        return runs, steps


def as_batches(columns: TraceColumns, name: str) -> Iterator[Batch]:
    """One batch of the set `name` for each setting and aggregation among checked runs.

    Raises TraceError for a setting or an aggregation that the form does not know.
    """
    settings, aggregations = columns.texts["setting"], columns.texts["aggregation"]
    key = settings.codes.astype(np.int64) * (len(aggregations.words) + 1) + aggregations.codes
    groups = list(dict.fromkeys(key.tolist()))
    for group in groups:
        rows = np.flatnonzero(key == group)
        yield _batch(columns if len(groups) == 1 else columns.take(rows), name)


def _batch(columns: TraceColumns, name: str) -> Batch:
    setting = _one_of(columns, "setting", tuple(KIND_OF_SETTING))
    vote = _one_of(columns, "aggregation", (MAJORITY_VOTE, LAST)) == MAJORITY_VOTE
    answers, answer_code = _without_no_answer(columns.step_texts["answer"])
    full_answer, full_code = _full_answers(columns.texts["full_answer"], answers)
    given = vote_winners(answer_code, columns.offset) if vote else answer_code[columns.offset[1:] - 1]
    action, text = columns.step_texts.get("action"), columns.step_texts.get("text")
    return Batch(
        set=name,
        kind=KIND_OF_SETTING[setting],
        file=columns.file,
        row=columns.row,
        vote=vote,
        stated=setting == STATED,
        dataset=columns.names("dataset"),
        setting=columns.names("setting"),
        task=columns.names("task"),
        model=columns.names("model"),
        run=columns.names("run"),
        question_id=columns.names("question_id"),
        question=columns.text("question"),
        gold=columns.text("gold"),
        token_source=columns.text("token_source"),
        meta=columns.text("meta"),
        offset=columns.offset,
        full_answer=full_answer,
        full_code=full_code,
        full_em=columns.numbers["full_em"] > 0,
        full_tokens=columns.numbers["full_tokens"],
        differs=given != full_code,
        tokens=columns.whole("tokens"),
        ctx_tokens=np.maximum(columns.whole("ctx_tokens"), 0),
        answers=answers,
        answer_code=answer_code,
        answer=TextColumn(answer_code, answers).texts(),
        correct=columns.flag("correct"),
        confidence=columns.number("confidence"),
        mass=columns.number("mass"),
        logprob=columns.number("logprob"),
        entropy=columns.number("entropy"),
        stop_flag=columns.flag("stop_flag"),
        action=[None] * columns.n_steps if action is None else action.texts(),
        probe_tokens=columns.whole("probe_tokens"),
        logprobs=columns.logprobs,
        margin=columns.number("margin"),
        closed_entropy=columns.number("closed_entropy"),
        hedges=columns.whole("hedges"),
        text=None if text is None or not text.words else text.texts(),
    )


def _one_of(columns: TraceColumns, name: str, allowed: tuple[str, ...]) -> str:
    """The one value that a column has in these runs. Raises TraceError when it is not allowed."""
    column = columns.texts[name]
    value = column.words[int(column.codes[0])]
    if value not in allowed:
        problem = f"is {value!r:.100}; allowed: {', '.join(allowed)}"
        raise TraceError(problem, file=columns.file, row=int(columns.row[0]), column=name)
    return value


def _without_no_answer(column: TextColumn) -> tuple[tuple[str, ...], NDArray[np.int32]]:
    if NO_ANSWER not in column.words:
        return column.words, column.codes
    none = column.words.index(NO_ANSWER)
    return column.words, np.where(column.codes == none, -1, column.codes).astype(np.int32)


def _full_answers(column: TextColumn, answers: tuple[str, ...]) -> tuple[list[str | None], NDArray[np.int32]]:
    place = {answer: code for code, answer in enumerate(answers)}
    by_code = [-1 if word == NO_ANSWER else place.get(word, -2) for word in column.words]
    codes = np.array([*by_code, -1], dtype=np.int32)[column.codes]
    return [None if text == NO_ANSWER else text for text in column.texts()], codes


@lru_cache(maxsize=4_096)
def _read_off(question: str | None) -> Query:
    """What the words of a question tell, remembered, because many runs ask the same one."""
    return query_signals(question, metadata={})


def _known(values: NDArray[np.float64]) -> list[float | None]:
    """Numbers as a policy sees them: None for what is unknown."""
    return [None if value != value else value for value in values.tolist()]  # noqa: PLR0124 (only NaN differs from itself)

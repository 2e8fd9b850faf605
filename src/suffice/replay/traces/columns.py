"""Recorded runs as columns: part of a file, its validation, and batches.

Invalid data raises an error with file, row and column; nothing is repaired or dropped silently. A policy may see only
`Batch.steps` and `Batch.query`, which contain no labels, references or data from the run's end.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from hashlib import blake2b
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from suffice.arrays import Bools, Floats, Ints, Small
from suffice.errors import TraceError
from suffice.replay.traces.rows import STEP_COLUMNS
from suffice.signals.query import query_signals
from suffice.types import AnswerSource, Kind, Query, Step

NO_ANSWER: Final = "?"  # written by some sources for no answer
MAJORITY_VOTE: Final = "majority_vote"
LAST: Final = "last"
STATED: Final = "self_revision"  # the setting whose `confidence` is stated by the model

KIND_OF_SETTING: Final[Mapping[str, Kind]] = {
    "self_consistency": "samples",
    "samples": "samples",
    "cot_checkpoint": "reasoning",
    "reasoning": "reasoning",
    "self_revision": "rounds",
    "iterative_rag": "rounds",
    "agent": "rounds",
    "rounds": "rounds",
}


Numbers: TypeAlias = NDArray[Any]  # int64, float64 or int8, by the type of the column


@dataclass(frozen=True, slots=True)
class TextColumn:
    """A dictionary-encoded text column."""

    codes: NDArray[np.int32]  # -1: null
    words: tuple[str, ...]

    @classmethod
    def of(cls, texts: Sequence[str | None]) -> TextColumn:
        index: dict[str, int] = {}
        codes = [-1 if text is None else index.setdefault(text, len(index)) for text in texts]
        return cls(np.array(codes, dtype=np.int32), tuple(index))

    def texts(self) -> list[str | None]:
        by_code = np.empty(len(self.words) + 1, dtype=object)
        by_code[:-1] = self.words
        by_code[-1] = None  # code -1
        texts: list[str | None] = by_code[self.codes].tolist()
        return texts


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceColumns:
    """Consecutive runs: E runs, T steps in all. A column that the file lacks is absent.

    Integers are int64 and flags int8 with -1 for null, floats float64 with NaN.
    """

    file: str
    row: Ints  # E: row number in the file, from 1
    offset: Ints  # E + 1: steps of run i are offset[i] … offset[i + 1] - 1
    texts: Mapping[str, TextColumn]  # of runs
    numbers: Mapping[str, Numbers]  # of runs: integers and flags
    step_texts: Mapping[str, TextColumn]
    step_numbers: Mapping[str, Numbers]
    logprobs: Sequence[tuple[float, ...]] | None = None  # T

    def __len__(self) -> int:
        return len(self.row)

    def text(self, name: str) -> list[str | None]:
        """A text column of the runs; all None if the file lacks it."""
        column = self.texts.get(name)
        return [None] * len(self) if column is None else column.texts()

    def names(self, name: str) -> list[str]:
        return [text for text in self.text(name) if text is not None]

    def step_text(self, name: str) -> list[str | None]:
        """A text column of the steps; all None if the file lacks it."""
        column = self.step_texts.get(name)
        return [None] * self.n_steps if column is None else column.texts()

    def step_column(self, name: str) -> Numbers:
        """A column of the steps; NaN, or -1 for integers and flags, where it is null or the file lacks it."""
        if name in self.step_numbers:
            return self.step_numbers[name]
        kind = STEP_COLUMNS[name].type
        dtype = {"number": np.float64, "integer": np.int64, "flag": np.int8}[kind]
        return np.full(self.n_steps, np.nan if kind == "number" else -1, dtype=dtype)

    @property
    def n_steps(self) -> int:
        return int(self.offset[-1])

    def select(self, keep: Bools) -> TraceColumns:
        return self if keep.all() else self.take(np.flatnonzero(keep))

    def take(self, runs: Ints) -> TraceColumns:
        lengths = np.diff(self.offset)[runs]
        offset = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        steps = np.repeat(self.offset[:-1][runs] - offset[:-1], lengths) + np.arange(offset[-1])
        return replace(
            self,
            row=self.row[runs],
            offset=offset,
            texts={name: TextColumn(column.codes[runs], column.words) for name, column in self.texts.items()},
            numbers={name: column[runs] for name, column in self.numbers.items()},
            step_texts={name: TextColumn(c.codes[steps], c.words) for name, c in self.step_texts.items()},
            step_numbers={name: column[steps] for name, column in self.step_numbers.items()},
            logprobs=None if self.logprobs is None else [self.logprobs[i] for i in steps],
        )

    def error(self, run: int, column: str, problem: str) -> TraceError:
        return TraceError(problem, file=self.file, row=int(self.row[run]), column=column)


# ---- checks


def check_columns(columns: TraceColumns) -> None:
    """Check what the columns say of each other; readers have checked each value."""
    lengths = np.diff(columns.offset)
    if (lengths == 0).any():
        raise columns.error(int(np.argmax(lengths == 0)), "steps", "is empty or null; needs at least one step")
    declared = columns.numbers.get("n_steps")
    if declared is not None and (declared != lengths).any():
        run = int(np.argmax(declared != lengths))
        raise columns.error(run, "n_steps", f"is {int(declared[run])}, but there are {int(lengths[run])} steps")
    cost = columns.step_numbers["tokens"] + np.maximum(columns.step_column("ctx_tokens"), 0)
    sums = np.add.reduceat(cost, columns.offset[:-1]) if len(columns) else cost
    stated = columns.numbers["full_tokens"]
    if (sums != stated).any():
        run = int(np.argmax(sums != stated))
        problem = f"is {int(stated[run])}; tokens and ctx_tokens of the steps sum to {sums[run]}"
        raise columns.error(run, "full_tokens", problem)


Hashes: TypeAlias = NDArray[np.uint64]

ID: Final = ("dataset", "model", "run", "question_id")
_ODD: Final = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio: mixes all bits


def check_unique(columns: TraceColumns, known: Hashes) -> Hashes:
    """Sorted hashes of the known runs and of these ones. Raise TraceError at the first duplicate."""
    hashes = _hashes(columns)
    order = np.argsort(hashes, kind="stable")
    fresh = hashes[order]
    repeated = np.zeros(len(fresh), dtype=bool)
    repeated[order[1:]] = fresh[1:] == fresh[:-1]
    if len(known):
        repeated |= known[np.minimum(np.searchsorted(known, hashes), len(known) - 1)] == hashes
    if repeated.any():
        bad = int(np.argmax(repeated))
        names = ((name, columns.texts[name]) for name in ID)
        identity = ", ".join(f"{name} {column.words[column.codes[bad]]!r:.60}" for name, column in names)
        problem = f"repeats the run of an earlier row ({identity}); these four values together must be unique"
        raise TraceError(problem, file=columns.file, row=int(columns.row[bad]))
    return np.sort(np.concatenate([known, fresh]), kind="stable")


def _hashes(columns: TraceColumns) -> Hashes:
    """Shape (E,): equal in every process, unlike Python's own."""
    total = np.zeros(len(columns), dtype=np.uint64)
    for name in ID:
        column = columns.texts[name]
        digests = (blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest() for word in column.words)
        total = (total ^ np.frombuffer(b"".join(digests), dtype=np.uint64)[column.codes]) * _ODD
        total ^= total >> np.uint64(29)
    return total


# ---- batches


def vote_winners(answer_code: NDArray[np.int32], offset: Ints) -> NDArray[np.int32]:
    """Winner of each run's vote: most votes, ties to the answer seen first; -1: no votes (all codes -1)."""
    n_runs = len(offset) - 1
    winners = np.full(n_runs, -1, dtype=np.int32)
    run = np.repeat(np.arange(n_runs), np.diff(offset))
    voted = np.flatnonzero(answer_code >= 0)
    if not len(voted):
        return winners
    n_answers = int(answer_code.max()) + 1
    ballots = run[voted] * n_answers + answer_code[voted]
    choices, first, votes = np.unique(ballots, return_index=True, return_counts=True)
    runs, codes = np.divmod(choices, n_answers)
    order = np.lexsort((first, -votes, runs))
    ranked, leads = np.unique(runs[order], return_index=True)
    winners[ranked] = codes[order][leads]
    return winners


_NUMBERS: Final = [name for name, column in STEP_COLUMNS.items() if column.type == "number"]
_SOURCE: Final[Mapping[Kind, AnswerSource]] = {"reasoning": "probe", "samples": "sample", "rounds": "caller"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Some recorded runs of one set and one kind, as columns: E runs, T steps in all.

    Run i has the steps offset[i] … offset[i + 1] - 1. Unknown is None, NaN, or -1 in integers and flags.
    """

    set: str
    kind: Kind
    file: str
    row: Ints  # E: row number in the file, from 1
    vote: bool  # the answer is the vote of the steps, not that of the last step
    stated: bool  # `confidence` is stated by the model
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
    offset: Ints  # E + 1
    full_answer: list[str | None]
    full_code: NDArray[np.int32]  # E: index into `answers`; -1: no answer, -2: given by no step
    full_em: Bools  # E
    full_tokens: Ints  # E: sum of tokens and ctx_tokens
    differs: Bools  # E: the vote, or the last step's answer, differs from `full_answer`
    tokens: Ints  # T: generated
    ctx_tokens: Ints  # T: 0 where null
    answers: tuple[str, ...]  # the distinct trial answers of the batch
    answer_code: NDArray[np.int32]  # T: index into `answers`; -1: none
    answer: list[str | None]  # T
    correct: Small  # T
    confidence: Floats  # T
    mass: Floats  # T
    logprob: Floats  # T
    entropy: Floats  # T
    stop_flag: Small  # T
    action: list[str | None]  # T
    probe_tokens: Ints  # T: as recorded; -1: unknown
    logprobs: Sequence[tuple[float, ...]]  # T: of the trial answer's tokens; (): unknown
    margin: Floats  # T
    closed_entropy: Floats  # T
    stated_confidence: Floats  # T
    end_margin: Floats  # T
    hedges: Ints  # T
    text: list[str | None]  # T

    def __len__(self) -> int:
        return len(self.row)

    def steps(self, i: int) -> list[Step]:
        start, end = int(self.offset[i]), int(self.offset[i + 1])
        source, answers = _SOURCE[self.kind], self.answer[start:end]
        numbers = {name: _known(getattr(self, name)[start:end]) for name in _NUMBERS}
        if self.stated:
            numbers |= {"stated_confidence": numbers["confidence"], "confidence": [None] * (end - start)}
        columns: dict[str, Iterable[Any]] = {  # by field of a step
            "index": range(1, end - start + 1),
            "tokens": self.tokens[start:end].tolist(),
            "answer": answers,
            "answer_source": [None if answer is None else source for answer in answers],
            "logprobs": self.logprobs[start:end],
            "text": [text or "" for text in self.text[start:end]],
            "probe_tokens": np.maximum(self.probe_tokens[start:end], 0).tolist(),
            "ctx_tokens": self.ctx_tokens[start:end].tolist(),
            "reported_done": [None if flag < 0 else flag > 0 for flag in self.stop_flag[start:end].tolist()],
            "action": self.action[start:end],
            **numbers,
        }
        rows = zip(*columns.values(), strict=True)
        return [Step(**dict(zip(columns, row, strict=True))) for row in rows]

    def query(self, i: int) -> Query:
        """The query of run i, with its number of steps only for a vote: otherwise it would reveal the end."""
        planned = int(self.offset[i + 1] - self.offset[i]) if self.kind == "samples" else None
        metadata = (("dataset", self.dataset[i]), ("model", self.model[i]), ("task", self.task[i]))
        known = _query_of(self.question[i])
        return replace(known, query_class=self.task[i], metadata=metadata, planned_steps=planned)


def as_batches(columns: TraceColumns, name: str) -> Iterator[Batch]:
    """One batch per setting and aggregation among checked runs. Raise TraceError for an unknown one."""
    settings, aggregations = columns.texts["setting"], columns.texts["aggregation"]
    key = settings.codes.astype(np.int64) * (len(aggregations.words) + 1) + aggregations.codes
    groups = list(dict.fromkeys(key.tolist()))
    for group in groups:
        rows = np.flatnonzero(key == group)
        yield _batch(columns if len(groups) == 1 else columns.take(rows), name)


def _batch(columns: TraceColumns, name: str) -> Batch:
    setting = _one_of(columns, "setting", tuple(KIND_OF_SETTING))
    vote = _one_of(columns, "aggregation", (MAJORITY_VOTE, LAST)) == MAJORITY_VOTE
    trial, full = columns.step_texts["answer"], columns.texts["full_answer"]
    answers, answer_code = trial.words, trial.codes
    if NO_ANSWER in answers:
        answer_code = np.where(answer_code == answers.index(NO_ANSWER), -1, answer_code).astype(np.int32)
    place = {answer: code for code, answer in enumerate(answers)}
    full_words = [-1 if word == NO_ANSWER else place.get(word, -2) for word in full.words]
    full_code = np.array([*full_words, -1], dtype=np.int32)[full.codes]
    given = vote_winners(answer_code, columns.offset) if vote else answer_code[columns.offset[1:] - 1]
    of_run: dict[str, Any] = {name: columns.names(name) for name in ("dataset", "setting", "task", "model", "run")}
    of_run |= {name: columns.text(name) for name in ("question", "gold", "token_source", "meta")}
    of_step: dict[str, Any] = {
        name: columns.step_column(name) for name, form in STEP_COLUMNS.items() if form.type not in ("text", "numbers")
    }
    of_step["ctx_tokens"] = np.maximum(of_step["ctx_tokens"], 0)
    return Batch(
        set=name,
        kind=KIND_OF_SETTING[setting],
        file=columns.file,
        row=columns.row,
        vote=vote,
        stated=setting == STATED,
        question_id=columns.names("question_id"),
        offset=columns.offset,
        full_answer=[None if text == NO_ANSWER else text for text in full.texts()],
        full_code=full_code,
        full_em=columns.numbers["full_em"] > 0,
        full_tokens=columns.numbers["full_tokens"],
        differs=given != full_code,
        answers=answers,
        answer_code=answer_code,
        answer=TextColumn(answer_code, answers).texts(),
        action=columns.step_text("action"),
        logprobs=columns.logprobs or [()] * columns.n_steps,
        text=columns.step_text("text"),
        **of_run,
        **of_step,
    )


def _one_of(columns: TraceColumns, name: str, allowed: tuple[str, ...]) -> str:
    column = columns.texts[name]
    value = column.words[int(column.codes[0])]
    if value not in allowed:
        problem = f"is {value!r:.100}; allowed: {', '.join(allowed)}"
        raise TraceError(problem, file=columns.file, row=int(columns.row[0]), column=name)
    return value


@lru_cache(maxsize=4_096)
def _query_of(question: str | None) -> Query:
    return query_signals(question, metadata={})


def _known(values: Floats) -> list[float | None]:
    return [None if value != value else value for value in values.tolist()]  # noqa: PLR0124 (NaN)

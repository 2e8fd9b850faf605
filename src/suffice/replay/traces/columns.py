"""One stretch of a file of recorded runs as columns, and the checks that make it believable.

It knows the common form and refuses to know file formats and policies. What is wrong is an error
with file, row and column; nothing is mended or left out silently.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from suffice.errors import TraceError
from suffice.replay.traces.form import NULL, RUN_COLUMNS, STEP_COLUMNS, Column

MOST: Final = 10**12  # of any whole number in a trace, so that sums stay exact

Numbers: TypeAlias = NDArray[Any]  # int64, float64 or int8, as the column's type in the form says


@dataclass(frozen=True, slots=True)
class TextColumn:
    """A column of text: each different text once, and for each place its number."""

    codes: NDArray[np.int32]  # -1: null
    words: tuple[str, ...]

    @classmethod
    def of(cls, texts: Sequence[str | None]) -> TextColumn:
        """Number the texts in the order in which they first appear."""
        index: dict[str, int] = {}
        codes = [-1 if text is None else index.setdefault(text, len(index)) for text in texts]
        return cls(np.array(codes, dtype=np.int32), tuple(index))

    def texts(self) -> list[str | None]:
        """The column as a list; equal texts are one object."""
        by_code = np.empty(len(self.words) + 1, dtype=object)
        by_code[:-1] = self.words
        by_code[-1] = None  # code -1
        texts: list[str | None] = by_code[self.codes].tolist()
        return texts


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceColumns:
    """Some runs in a row: E of them, with T steps in all. A column that the file lacks is absent.

    Whole numbers are int64 with NULL for null, numbers float64 with NaN, flags int8 with -1.
    """

    file: str
    row: NDArray[np.int64]  # E: number of the row in its file, 1 is the first
    offset: NDArray[np.int64]  # E + 1: steps of run i are offset[i] … offset[i + 1] - 1
    texts: Mapping[str, TextColumn]  # of runs
    numbers: Mapping[str, Numbers]  # of runs: whole numbers and flags
    step_texts: Mapping[str, TextColumn]
    step_numbers: Mapping[str, Numbers]
    logprobs: Sequence[tuple[float, ...]] | None = None  # T

    def __len__(self) -> int:
        return len(self.row)

    def text(self, name: str) -> list[str | None]:
        """A text column of the runs; None everywhere if the file lacks it."""
        column = self.texts.get(name)
        return [None] * len(self) if column is None else column.texts()

    def names(self, name: str) -> list[str]:
        """A text column of the runs that is never null, as `check_columns` has seen to."""
        return [text for text in self.text(name) if text is not None]

    def whole(self, name: str) -> NDArray[np.int64]:
        """A column of whole numbers of the steps; -1 for null, and everywhere if the file lacks it."""
        column = self.step_numbers.get(name)
        values = np.full(self.n_steps, -1) if column is None else np.where(column == NULL, -1, column)
        return values.astype(np.int64)

    def number(self, name: str) -> NDArray[np.float64]:
        """A column of numbers of the steps; NaN everywhere if the file lacks it."""
        return self.step_numbers.get(name, np.full(self.n_steps, np.nan))

    def flag(self, name: str) -> NDArray[np.int8]:
        """A column of flags of the steps; -1 everywhere if the file lacks it."""
        return self.step_numbers.get(name, np.full(self.n_steps, -1, dtype=np.int8))

    @property
    def n_steps(self) -> int:
        """Steps of all runs together."""
        return int(self.offset[-1])

    def take(self, runs: NDArray[np.int64]) -> TraceColumns:
        """These runs only, in the order given."""
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


def check_columns(columns: TraceColumns) -> None:
    """Raise TraceError at the first thing that the common form does not allow."""
    for name, form in RUN_COLUMNS.items():
        values = columns.texts[name].codes if name in columns.texts else columns.numbers.get(name)
        bad = _first_bad(values, form)
        if bad is not None:
            raise _error(columns, bad, name, values, form)
    _check_lengths(columns)
    for name, form in STEP_COLUMNS.items():
        values = columns.step_texts[name].codes if name in columns.step_texts else columns.step_numbers.get(name)
        bad = _first_bad(values, form)
        if bad is not None:
            run = int(np.searchsorted(columns.offset, bad, side="right")) - 1
            raise _error(columns, run, f"steps.{name}", values, form, step=bad)
    _check_sums(columns)


def vote_winners(answer_code: NDArray[np.int32], offset: NDArray[np.int64]) -> NDArray[np.int32]:
    """Winner of each run's vote: most votes, ties to the answer seen first; -1: nobody voted.

    answer_code  T: number of the step's answer, -1: none
    offset       E + 1: run i has the steps offset[i] … offset[i + 1] - 1
    """
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


def _first_bad(values: Numbers | None, form: Column) -> int | None:
    """Place of the first null or too small or too large value; None: there is none."""
    if values is None:
        return None
    wrong = np.zeros(len(values), dtype=bool)
    if form.type == "integer":
        low = 0 if form.least is None else form.least
        wrong = (values < low) | (values > MOST)
        if not form.never_null:
            wrong &= values != NULL
    elif form.never_null:
        wrong = values < 0
    return int(np.argmax(wrong)) if wrong.any() else None


def _error(
    columns: TraceColumns, run: int, name: str, values: Numbers | None, form: Column, step: int | None = None
) -> TraceError:
    value = None if values is None or form.type in ("text", "flag") else int(values[run if step is None else step])
    got = "null" if value is None or value == NULL else f"{value}"
    where = "" if step is None else f" in step {step - int(columns.offset[run]) + 1}"
    allowed = f"a whole number from {form.least or 0} to {MOST:,}" if form.type == "integer" else "a value"
    return _at(columns, run, name, f"is {got}{where}; needs {allowed}")


def _check_lengths(columns: TraceColumns) -> None:
    lengths = np.diff(columns.offset)
    if (lengths == 0).any():
        raise _at(columns, int(np.argmax(lengths == 0)), "steps", "is empty or null; needs at least one step")
    declared = columns.numbers.get("n_steps")
    if declared is not None and (declared != lengths).any():
        run = int(np.argmax(declared != lengths))
        raise _at(columns, run, "n_steps", f"is {int(declared[run])}, and there are {int(lengths[run])} steps")


def _check_sums(columns: TraceColumns) -> None:
    cost = columns.step_numbers["tokens"].astype(np.int64)
    context = columns.step_numbers.get("ctx_tokens")
    if context is not None:
        cost += np.where(context == NULL, 0, context).astype(np.int64)
    sums = np.add.reduceat(cost, columns.offset[:-1]) if len(columns) else cost
    stated = columns.numbers["full_tokens"]
    if (sums != stated).any():
        run = int(np.argmax(sums != stated))
        raise _at(
            columns, run, "full_tokens", f"is {int(stated[run])}; tokens and ctx_tokens of the steps sum to {sums[run]}"
        )


def _at(columns: TraceColumns, run: int, column: str, problem: str) -> TraceError:
    return TraceError(problem, file=columns.file, row=int(columns.row[run]), column=column)

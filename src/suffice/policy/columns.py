"""Policies over many steps at once: columns of signals in, one stop code per step out.

A column is a float64 array named after its field of Signals, with one row per step. NaN and a missing column mean
*unknown*. `answer` holds one code per distinct answer, NaN for none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from math import isnan, prod
from typing import Final, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from suffice.policy.protocol import Policy
from suffice.signals.base import FIELDS
from suffice.types import Query, Signals, StopReason

Columns: TypeAlias = Mapping[str, NDArray[np.float64]]
Stops: TypeAlias = NDArray[np.int8]
Mask: TypeAlias = NDArray[np.bool_]

CONTINUE: Final = 0
SUFFICES: Final = 1
HOPELESS: Final = 2
BUDGET: Final = 3
CODES: Final[Mapping[StopReason | None, int]] = {
    None: CONTINUE,
    "suffices": SUFFICES,
    "hopeless": HOPELESS,
    "budget": BUDGET,
}


class QueryColumns(dict[str, NDArray[np.float64]]):
    """Columns with the query of each run; `run` is the index into `queries` of each row, shape (n rows,)."""

    def __init__(self, columns: Columns, *, queries: Sequence[Query | None], run: NDArray[np.int64]) -> None:
        super().__init__(columns)
        self.queries, self.run = queries, run


@runtime_checkable
class ForMany(Protocol):
    """A policy that decides for many steps at once, with the same results as `decide`."""

    def stops(self, columns: Columns) -> Stops:
        """One code for each row: 0 continue, 1 suffices, 2 hopeless, 3 budget. Does not modify `columns`."""
        ...


def stops_of(policy: Policy, columns: Columns) -> Stops:
    return policy.stops(columns) if isinstance(policy, ForMany) else decide_rows(policy, columns)


def decide_rows(policy: Policy, columns: Columns) -> Stops:
    """Call `decide` on each row, at some microseconds per row: for plug-ins, and to test `stops`."""
    return np.fromiter((CODES[policy.decide(seen).stop_reason] for seen in to_signals(columns)), np.int8)


def to_signals(columns: Columns) -> Iterator[Signals]:
    """Each row as Signals. Raise KeyError if `step` or `tokens_used` is missing."""
    names = [name for name in columns if name not in ("step", "tokens_used", "answer")]
    whole = {name for name in names if name in FIELDS and FIELDS[name].whole}
    answers = columns.get("answer")
    queries, run = queries_of(columns)
    for at, (step, tokens_used) in enumerate(zip(columns["step"], columns["tokens_used"], strict=True)):
        row = ((name, float(columns[name][at])) for name in names)
        yield Signals.of(
            {name: int(value) if name in whole else value for name, value in row if not isnan(value)},
            step=int(step),
            tokens_used=int(tokens_used),
            answer=None if answers is None or isnan(answers[at]) else f"{answers[at]:g}",
            query=queries[run[at]],
        )


def known_column(columns: Columns, field: str) -> NDArray[np.float64]:
    """The column of a field, or all NaN if it is missing."""
    column = columns.get(field)
    return np.full(len(columns["step"]), np.nan) if column is None else column


def queries_of(columns: Columns) -> tuple[Sequence[Query | None], NDArray[np.int64]]:
    """The query of each run, and the run of each row; one run without a query if none is known."""
    if isinstance(columns, QueryColumns):
        return columns.queries, columns.run
    return [None], np.zeros(len(columns["step"]), np.int64)


def answered(columns: Columns) -> Mask:
    return ~np.isnan(known_column(columns, "answer"))


def where(mask: Mask, code: int) -> Stops:
    return mask.astype(np.int8) * np.int8(code)


def by_counts(
    mask: Mask, counts: tuple[NDArray[np.float64], ...], function: Callable[..., float]
) -> NDArray[np.float64]:
    """Apply `function` to whole numbers from 0, once per distinct row; NaN outside the mask."""
    values = np.full(len(mask), np.nan)
    if mask.any():
        rows = np.stack([column[mask] for column in counts]).astype(np.int64)
        sizes = tuple(int(row.max()) + 1 for row in rows)
        # Encode each row as one integer where it fits: sorting integers is ten times faster than sorting rows.
        if prod(sizes) < 2**62:
            keys, which = np.unique(np.ravel_multi_index(tuple(rows), sizes), return_inverse=True)
            different = np.stack(np.unravel_index(keys, sizes), axis=1)
        else:
            different, which = np.unique(rows.T, axis=0, return_inverse=True)
        values[mask] = np.array([function(*row) for row in different.tolist()])[which]
    return values

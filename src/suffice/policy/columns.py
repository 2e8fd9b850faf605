"""The same rule for many steps at once: columns of signals in, one stop code a step out.

A column is a float64 array named like the field of Signals that it holds (or of a fold of another
package), one row a step of any run; NaN is *unknown*, and so is a column that is not there. `answer` holds
a code for each answer, NaN for none.
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


class AskedColumns(dict[str, NDArray[np.float64]]):
    """Columns that know which run each row is of and what was asked in it, for the rules that read queries.

    queries  what was known before the first token, one for each run
    run      which of `queries` belongs to a row, shape (n rows,)
    """

    def __init__(self, columns: Columns, *, queries: Sequence[Query | None], run: NDArray[np.int64]) -> None:
        super().__init__(columns)
        self.queries, self.run = queries, run


@runtime_checkable
class ForMany(Protocol):
    """A policy that decides for many steps at once, each as `decide` would."""

    def stops(self, columns: Columns) -> Stops:
        """One code for each row: 0 continue, 1 suffices, 2 hopeless, 3 budget. Nothing is written to."""
        ...


def stops_of(policy: Policy, columns: Columns) -> Stops:
    return policy.stops(columns) if isinstance(policy, ForMany) else decide_rows(policy, columns)


def decide_rows(policy: Policy, columns: Columns) -> Stops:
    """What `decide` says of each row. Some microseconds a row: for plug-ins, and to test `stops` against."""
    return np.fromiter((CODES[policy.decide(seen).stop_reason] for seen in to_signals(columns)), np.int8)


def to_signals(columns: Columns) -> Iterator[Signals]:
    """Each row as Signals. Raises KeyError where `step` or `tokens_used` is missing."""
    names = [name for name in columns if name not in ("step", "tokens_used", "answer")]
    whole = {name for name in names if name in FIELDS and FIELDS[name].whole}
    answers = columns.get("answer")
    asked = asked_of(columns)
    for at, (step, tokens_used) in enumerate(zip(columns["step"], columns["tokens_used"], strict=True)):
        row = ((name, float(columns[name][at])) for name in names)
        yield Signals(
            step=int(step),
            tokens_used=int(tokens_used),
            answer=None if answers is None or isnan(answers[at]) else f"{answers[at]:g}",
            query=None if asked is None else asked.queries[asked.run[at]],
            **{name: int(value) if name in whole else value for name, value in row if not isnan(value)},
        )


def known_column(columns: Columns, field: str) -> NDArray[np.float64]:
    """The column of a field; unknown in every row where nobody filled it."""
    column = columns.get(field)
    return np.full(len(columns["step"]), np.nan) if column is None else column


def asked_of(columns: Columns) -> AskedColumns | None:
    """The columns with their queries; None: nobody knows what was asked."""
    return columns if isinstance(columns, AskedColumns) else None


def answered(columns: Columns) -> Mask:
    return ~np.isnan(known_column(columns, "answer"))


def where(mask: Mask, code: int) -> Stops:
    return mask.astype(np.int8) * np.int8(code)


def by_counts(
    mask: Mask, counts: tuple[NDArray[np.float64], ...], function: Callable[..., float]
) -> NDArray[np.float64]:
    """The function of the whole numbers in some columns, asked once for each different row; NaN outside the mask.

    The numbers are at least 0.
    """
    values = np.full(len(mask), np.nan)
    if mask.any():
        rows = np.stack([column[mask] for column in counts]).astype(np.int64)
        sizes = tuple(int(row.max()) + 1 for row in rows)
        # One number for each row where it fits: sorting numbers is ten times faster than sorting rows.
        if prod(sizes) < 2**62:
            keys, which = np.unique(np.ravel_multi_index(tuple(rows), sizes), return_inverse=True)
            different = np.stack(np.unravel_index(keys, sizes), axis=1)
        else:
            different, which = np.unique(rows.T, axis=0, return_inverse=True)
        values[mask] = np.array([function(*row) for row in different.tolist()])[which]
    return values

"""The signals of many runs as columns of numbers: what replay and learning read.

Knows the Observer, whose values it writes down row by row, and nothing else that could compute a
signal: what stands here is what a live policy would have seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from suffice.signals.base import order_all
from suffice.signals.fold import Known
from suffice.signals.observe import Observer
from suffice.types import Kind, Query, Step

_CHUNK = 1 << 20  # numbers that wait as Python objects before they become an array


@dataclass(frozen=True, slots=True, kw_only=True)
class SignalColumns:
    """The signals of some runs, one row a step, run after run, as a live observer would have given them.

    values   for each numeric field of Signals that was asked for, and for each further field of another
             package's fold, its numbers, shape (n rows,); not a number: unknown
    answer   which of `answers` would be delivered after the step, shape (n rows,); not a number: none
    answers  the different answers, in the order in which they first led
    starts   the row where each run begins, and behind them the number of rows, shape (n runs + 1,)
    """

    values: Mapping[str, NDArray[np.float64]]
    answer: NDArray[np.float64]
    answers: tuple[str, ...]
    starts: NDArray[np.int64]


def observe_columns(
    needs: Sequence[str], kind: Kind, runs: Iterable[tuple[Query | None, Sequence[Step]]]
) -> SignalColumns:
    """Observe each run from its first step on and keep every number.

    Raises ConfigError as Observer does, and ValueError for steps out of order.
    """
    orders = order_all(tuple(needs))
    Observer(needs, kind)  # what cannot be observed must fail here, also when there is no run
    numeric = [at for at, ordered in enumerate(orders) if ordered.fields != ("query",)]
    names = ("answer", "step", "tokens_used", *(field for at in numeric for field in orders[at].fields))
    codes: dict[str, float] = {}
    starts, blocks = [0], list[NDArray[np.float64]]()
    rows: list[Known] = []
    n_rows = 0
    for query, steps in runs:
        _write(Observer(needs, kind, query=query), numeric, steps, rows, codes)
        n_rows += len(steps)
        starts.append(n_rows)
        if len(rows) >= _CHUNK:
            blocks.append(_block(rows, len(names)))
            rows = []
    blocks.append(_block(rows, len(names)))
    table = dict(zip(names, np.concatenate(blocks, axis=1), strict=True))
    return SignalColumns(
        answer=table.pop("answer"), values=table, answers=tuple(codes), starts=np.array(starts, dtype=np.int64)
    )


def _write(
    observer: Observer, numeric: Sequence[int], steps: Sequence[Step], rows: list[Known], codes: dict[str, float]
) -> None:
    """Append one run's numbers to `rows`, step after step, each in the order of the names."""
    take, readers = observer.take, observer.readers
    kept = [readers[at] for at in numeric]
    for step in steps:
        answer = take(step)
        code = None if answer is None else codes.setdefault(answer, float(len(codes)))
        rows += (code, step.index, observer.tokens_used)
        for values in kept:
            rows += values().values()


def _block(rows: list[Known], n_names: int) -> NDArray[np.float64]:
    """The rows as one contiguous column for each name, shape (n names, n rows); None becomes not a number."""
    return np.ascontiguousarray(np.array(rows, dtype=np.float64).reshape(-1, n_names).T)

"""Runs of unequal length in flat columns, and where each of them first passes a level.

Knows lengths and places alone; what stands in the rows is for whoever keeps them.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]


class RaggedRuns:
    """N runs in T rows: run i has the rows starts[i] … starts[i + 1] - 1. A record that has `starts` may be one."""

    __slots__ = ()
    starts: Ints  # (N + 1,)

    @property
    def n_steps(self) -> Ints:
        """Rows of each run, shape (N,)."""
        return np.diff(self.starts)

    @property
    def last(self) -> Ints:
        """Each run's last row, shape (N,)."""
        return self.starts[1:] - 1

    @property
    def run_of_row(self) -> Ints:
        """The run that each row belongs to, shape (T,)."""
        return np.repeat(np.arange(len(self.starts) - 1), self.n_steps)

    def rows_of(self, which: Ints) -> tuple[Ints, Ints]:
        """Where some runs begin when they stand alone, shape (n + 1,), and the rows that are theirs here.

        which  their numbers in any order; one may come several times, shape (n,)
        """
        sizes = self.n_steps[which]
        starts = np.concatenate([[0], np.cumsum(sizes)])
        return starts, np.repeat(self.starts[which] - starts[:-1], sizes) + np.arange(starts[-1])


def first_passages(risk: Floats, starts: Ints, levels: Floats) -> Ints:
    """Row where each run's risk first is at or below each level, else its last, shape (M, N).

    risk    of stopping after the row, shape (T,); not a number: unknown, which never stops
    starts  shape (N + 1,)
    levels  shape (M,)

    The lowest risk so far falls from row to row, so a level's first passage is the number of rows whose lowest
    so far is above it: one comparison for each row and level, no loop over runs.
    """
    sizes, n_runs = np.diff(starts), len(starts) - 1
    padded = np.full((int(sizes.max(initial=1)), n_runs), np.inf)  # (steps, N)
    step = np.arange(len(risk)) - np.repeat(starts[:-1], sizes)
    padded[step, np.repeat(np.arange(n_runs), sizes)] = np.where(np.isnan(risk), np.inf, risk)
    lowest = np.minimum.accumulate(padded, axis=0)
    passed = np.empty((len(levels), n_runs), dtype=np.int64)
    for at, level in enumerate(levels):
        np.sum(lowest > level, axis=0, out=passed[at])
    return np.asarray(starts[:-1] + np.minimum(passed, sizes - 1))

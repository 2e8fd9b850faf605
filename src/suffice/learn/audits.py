"""Full runs as evidence: every checkpoint of every run, with what a stop there would have cost and lost.

    log, traces or simulation ──▶ AuditRuns ──▶ FoldedModels (fit) ──▶ Certifier (certify, brake)

Live audits, recorded traces and simulations share one columnar record, so the same code judges all three.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]
Bools: TypeAlias = NDArray[np.bool_]
Small: TypeAlias = NDArray[np.int8]


class RaggedRuns:
    """N runs in T rows: run i has the rows starts[i] … starts[i + 1] - 1. A record that has `starts` may be one."""

    __slots__ = ()
    starts: Ints  # (N + 1,)

    @property
    def n_steps(self) -> Ints:
        return np.diff(self.starts)

    @property
    def last(self) -> Ints:
        return self.starts[1:] - 1

    @property
    def run_of_row(self) -> Ints:
        return np.repeat(np.arange(len(self.starts) - 1), self.n_steps)

    @property
    def inner(self) -> Bools:
        """Rows that are no last row of their run, shape (T,): only there is something to decide."""
        inner = np.ones(int(self.starts[-1]), dtype=bool)
        inner[self.last] = False
        return inner

    def rows_of(self, which: Ints) -> tuple[Ints, Ints]:
        """Where runs begin when they stand alone, shape (n + 1,), and their rows here; a run may come several times."""
        sizes = self.n_steps[which]
        starts = np.concatenate([[0], np.cumsum(sizes)])
        return starts, np.repeat(self.starts[which] - starts[:-1], sizes) + np.arange(starts[-1])


def find_first_passages(risk: Floats, starts: Ints, levels: Floats) -> Ints:
    """Row where each run's risk, shape (T,), first is at or below each level, else its last, shape (M, N).

    A risk that is not a number is unknown and never stops. The lowest risk so far falls from row to row, so a level's
    first passage is the number of rows whose lowest so far is above it: one comparison for each row and level.
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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AuditRuns(RaggedRuns):
    """N full runs with T checkpoints in all; run i has the rows starts[i] … starts[i + 1] - 1, its last is its end."""

    x: Floats  # (T, P): features, see `signals.features`
    starts: Ints  # (N + 1,)
    z: Small  # (T,): EM drop if the run were stopped after the row, -1, 0 or +1; trusted once labelled
    d: Bools  # (T,): the answer after the row is not the full run's; a missing checkpoint disagrees
    may_stop: Bools  # (T,): there is something to deliver
    cost: Floats  # (T,): tokens if stopped after the row, its probes and the written answer among them
    per_step: Floats  # (T,): tokens that a step of this run costs so far, at least 1
    full: Floats  # (N,): tokens of the full run alone
    fold: Small  # (N,): 0 … N_FOLDS - 1 by hash of the unit: which model serves and judges the run
    at: Floats  # (N,): when it began: number of the request, or seconds; runs are in the order of their ends
    share: Floats  # (N,): P(audit) when it was drawn, in (0, 1]
    label_at: Floats  # (N,): when its label came, same unit; infinite: none yet
    query_class: Ints  # (N,): number of its class
    abandoned: Bools  # (N,): broken off or timed out, which counts as a loss at every level

    def __len__(self) -> int:
        return len(self.full)

    def take(self, which: Ints) -> AuditRuns:
        """The runs of these numbers, in the given order."""
        starts, rows = self.rows_of(which)
        return AuditRuns(
            starts=starts,
            **{name: getattr(self, name)[rows] for name in _BY_ROW},
            **{name: getattr(self, name)[which] for name in _BY_RUN},
        )


_BY_ROW = ("x", "z", "d", "may_stop", "cost", "per_step")
_BY_RUN = ("full", "fold", "at", "share", "label_at", "query_class", "abandoned")


def concatenate_audits(parts: Sequence[AuditRuns]) -> AuditRuns:
    """Several batches as one, in order. Raises ValueError without batches."""
    if not parts:
        raise ValueError("audits: needs at least one batch")
    if len(parts) == 1:
        return parts[0]
    shift = np.cumsum([0, *(part.starts[-1] for part in parts)])
    starts = np.concatenate([part.starts[:-1] + at for part, at in zip(parts, shift, strict=False)] + [shift[-1:]])
    return AuditRuns(
        starts=starts,
        **{name: np.concatenate([getattr(part, name) for part in parts]) for name in (*_BY_ROW, *_BY_RUN)},
    )

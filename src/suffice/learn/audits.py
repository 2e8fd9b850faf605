"""Full runs as evidence: every checkpoint of every run, with what a stop there would have cost and lost.

    log, traces or simulation ──▶ AuditRuns ──▶ Served (fit) ──▶ Keeper (certify, brake)

One columnar record for live audits, recorded traces and simulations, so that all three are judged by the same
code. Knows rows; refuses to know where they come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from suffice.learn.ragged import RaggedRuns

Floats: TypeAlias = NDArray[np.float64]
Bools: TypeAlias = NDArray[np.bool_]
Ints: TypeAlias = NDArray[np.int64]
Small: TypeAlias = NDArray[np.int8]


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
    at: Floats  # (N,): when it began: number of the request, or seconds; runs stand in the order of their ends
    share: Floats  # (N,): P(audit) when it was drawn, in (0, 1]
    label_at: Floats  # (N,): when its label came, same unit; infinite: none yet
    query_class: Ints  # (N,): number of its class
    abandoned: Bools  # (N,): broken off or timed out, which counts as a loss at every level

    def __len__(self) -> int:
        return len(self.full)

    def take(self, which: Ints) -> AuditRuns:
        """Some of the runs, in the given order.

        which  their numbers, shape (n,)
        """
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

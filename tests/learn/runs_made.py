"""Audited runs written down by hand or drawn from a seed, and a model that believes the first feature."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from suffice.arrays import Bools, Floats
from suffice.assurance.clusters import own_clusters
from suffice.learn.audits import AuditRuns
from suffice.learn.version import N_FOLDS, FoldedModels, Learner, PGood, fit_served

TOKENS = 100.0  # of a step


def believing(_x: Floats, _good: Bools, _weight: Floats) -> PGood:
    """A learner that learns nothing: P(stopping is as good) is the first feature."""
    return lambda rows: rows[:, 0]


def fit_learned(runs: AuditRuns, learner: Learner, **options: Any) -> FoldedModels | None:
    """As a certifier fits, by the learner alone: the value of stopping is not tried."""
    return fit_served(runs, learner, **(options | {"max_em_drop": None}))


def audits(
    scores: Sequence[Sequence[float]],
    *,
    z: Sequence[Sequence[int]] | None = None,
    d: Sequence[Sequence[bool]] | None = None,
    first: int = 0,
    label_at: float | None = None,
) -> AuditRuns:
    """Runs of TOKENS a step: features are the score and the run's number, the last step is the full run.

    z, d      of each step; missing: nothing is lost, and z = 0 agrees
    first     number of the first run, which is also when it came
    label_at  when all labels came; None: with the run
    """
    sizes = [len(run) for run in scores]
    starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    number = np.arange(first, first + len(scores))
    lost = np.concatenate([np.array(run, np.int8) for run in z]) if z else np.zeros(starts[-1], np.int8)
    step = np.concatenate([np.arange(1.0, size + 1) for size in sizes])
    return AuditRuns(
        x=np.column_stack([np.concatenate([np.array(run, float) for run in scores]), np.repeat(number, sizes)]),
        starts=starts,
        z=lost,
        d=np.concatenate([np.array(run, bool) for run in d]) if d else lost != 0,
        may_stop=np.ones(starts[-1], dtype=bool),
        cost=TOKENS * step,
        per_step=np.full(starts[-1], TOKENS),
        full=TOKENS * np.array(sizes, float),
        fold=(number % N_FOLDS).astype(np.int8),
        at=number.astype(float),
        share=np.ones(len(scores)),
        label_at=np.full(len(scores), label_at) if label_at is not None else number.astype(float),
        query_class=np.zeros(len(scores), np.int64),
        clusters=own_clusters(len(scores)),
        abandoned=np.zeros(len(scores), dtype=bool),
    )


def drawn(n: int, rng: np.random.Generator, *, longest: int = 6) -> AuditRuns:
    """Runs of random length, scores and outcomes; a stop loses with a chance that falls with its score."""
    sizes = rng.integers(1, longest + 1, n)
    scores = [rng.random(size).round(2) for size in sizes]
    z = [np.append((rng.random(len(run) - 1) > run[:-1]).astype(int), 0) for run in scores]
    return audits([run.tolist() for run in scores], z=[run.tolist() for run in z])

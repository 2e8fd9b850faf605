"""Rows and weights of a dataset for each model.

    as-good, suffices   full runs                   1 / p_full
    hopeless            full runs with a label      1 / p_full, 1 / labelled share of its group
    Q(stop), Q(go on)   full runs with a label      as hopeless

Labels are requested where audits disagree, so each labelled run represents runs with the same kind of disagreement. No
weight corrects for labels given because an answer was wrong. Weights fade with age and are shared by repeats of a
prompt.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from suffice.learn.audits import AuditRuns, Bools, Floats, Small
from suffice.learn.dataset import Dataset
from suffice.learn.groups import weigh_repeats
from suffice.learn.models import Examples, Target, Trajectories
from suffice.learn.version import HALF_LIFE

LEAST_LABELS: Final = 20  # of a group of runs, to represent the unlabelled ones
_RARE: Final = 0.01  # of all full runs: a smaller group needs no labels


def weigh_full_runs(data: Dataset) -> Floats:
    """How many runs each one represents, at least 1, shape (N,)."""
    return np.asarray(1.0 / data.p_full)


def weigh_labels(data: Dataset) -> Floats | None:
    """How many full runs each labelled one represents, shape (N,); None: a group of `_disagreement` has too few labels.

    Within a group, labelling must be independent of the outcome.
    """
    full = data.full
    if not full.any():
        return None
    group, labelled = _disagreement(data), data.labelled
    weight = np.zeros(len(data))
    for number in np.unique(group[full]):
        members = full & (group == number)
        n_labelled = int((members & labelled).sum())
        if n_labelled < min(LEAST_LABELS, int(members.sum())):
            if members.sum() > _RARE * full.sum():
                return None
            continue
        weight[members & labelled] = members.sum() / n_labelled
    return weight


def build_examples(data: Dataset, runs: Bools, target: Target, *, half_life: float = HALF_LIFE) -> Examples | None:
    """Checkpoints of the selected runs, shape (N,); None: too few labels. Weights halve in `half_life` audits."""
    runs_each = weigh_full_runs(data) * data.full * runs
    if target == "hopeless":
        labels = weigh_labels(data)
        if labels is None:
            return None
        runs_each = runs_each * labels
    weight = _scaled(runs_each, _fading(data, half_life))
    run = data.run_of_row
    rows = np.flatnonzero(data.inner & (weight > 0)[run])
    return Examples(data.own[rows], good_rows_of_run(data, target)[rows], weight[run][rows])


def good_rows_of_run(data: Dataset, target: Target) -> Bools:
    """Whether each row of a full run is good, shape (T,): by its label, else by agreement; False where hidden."""
    full_right, right = data.full_right[data.run_of_row], data.right == 1
    full = data.full[data.run_of_row]
    if target == "hopeless":
        return np.asarray(full & (full_right == 0))
    if target == "suffices":
        return np.asarray(full & (data.same | right))
    return np.asarray(full & (data.same | right | (full_right == 0)))


def build_trajectories(data: Dataset, runs: Bools, *, half_life: float = HALF_LIFE) -> Trajectories | None:
    """The selected runs for the value model; None: too few labels. An answer of unknown correctness counts as wrong."""
    labels = weigh_labels(data)
    if labels is None:
        return None
    run, fading = data.run_of_row, _fading(data, half_life)
    runs_each = weigh_full_runs(data) * labels
    go_on = _scaled(runs_each * runs, fading)[run]
    stop = _scaled(runs_each[run] * runs[run] * data.inner, fading[run])
    rows = np.flatnonzero((labels > 0)[run] & runs[run])
    starts = np.concatenate([np.flatnonzero(np.diff(run[rows], prepend=-1)), [len(rows)]])
    return Trajectories(
        x=data.own[rows],
        starts=starts.astype(np.int64),
        ok=data.right[rows] == 1,
        tokens=data.cost[rows],
        stop_weight=stop[rows],
        go_on_weight=go_on[rows],
    )


def audit_runs(data: Dataset) -> AuditRuns:
    """The runs as evidence, with their labels now; only those `by_design` are a random sample."""
    full_right = data.full_right[data.run_of_row]
    z = np.where(full_right < 0, ~data.same, full_right == 1).astype(np.int8)
    z -= ((full_right >= 0) & (data.right == 1)).astype(np.int8)
    names = sorted(set(data.query_class))
    return AuditRuns(
        x=data.own,
        starts=data.starts,
        z=z,
        d=~data.same,
        may_stop=data.may_stop,
        cost=data.cost,
        per_step=data.per_step,
        full=data.full_tokens,
        fold=data.fold,
        at=data.seq.astype(np.float64),
        share=np.ones(len(data)),
        label_at=np.where(data.full_right >= 0, data.seq.astype(np.float64), np.inf),
        query_class=np.array([names.index(name) for name in data.query_class], dtype=np.int64),
        abandoned=data.abandoned,
    )


def _scaled(runs_each: Floats, fading: Floats) -> Floats:
    weight = runs_each * fading
    total = weight.sum()
    return weight * (fading[runs_each > 0].sum() / total) if total > 0 else weight


def _fading(data: Dataset, half_life: float) -> Floats:
    return np.asarray(0.5 ** (data.age / half_life) * weigh_repeats(data.key))


def _disagreement(data: Dataset) -> Small:
    """For each run, shape (N,): 2 the answer at its stop differs, 1 that of another row does, 0 none does."""
    other = ~data.same & data.may_stop
    anywhere = np.logical_or.reduceat(other, data.starts[:-1])
    at_stop = (data.stop >= 0) & ~data.same[np.maximum(data.stop, 0)]
    return np.where(at_stop, 2, np.where(anywhere, 1, 0)).astype(np.int8)

"""Learned scores over recorded runs: no row is scored by a model that has seen its question."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest

from suffice.learn.features import DENSE
from suffice.learn.models import MAX_VALUE_ROWS, Parts, Target
from suffice.policy.columns import HOPELESS, SUFFICES
from suffice.replay.study.runs import Runs, concatenate
from suffice.replay.study.scores import (
    CrossFit,
    Key,
    Score,
    good_rows,
    risk_and_codes,
    score_rows,
    thin_runs,
)
from suffice.replay.study.sums import N_FOLDS, folds_of
from suffice.signals.features import FeatureSet
from suffice.types import Kind
from tests.replay.made import KINDS, batch_of, longest_of, runs_of
from tests.replay.study.test_runs import other_ends

AS_GOOD: Key = ("as-good", "linear")
VALUE: Key = ("value", "linear")


def learnable(kind: Kind = "samples", n_runs: int = 240, seed: int = 2) -> Runs:
    return runs_of(batch_of(kind, n_runs, seed, n_questions=80), needs=FeatureSet(DENSE[kind]).needs)


def turned_round(runs: Runs, v: int) -> Runs:
    """The same runs with every label of fold v wrong."""
    mine = folds_of(runs) == v
    rows = mine[runs.run_of_row]
    return replace(
        runs,
        ok=np.where(rows, ~runs.ok, runs.ok),
        same=np.where(rows, ~runs.same, runs.same),
        full_ok=np.where(mine, ~runs.full_ok, runs.full_ok),
    )


def cross_fit(runs: Runs) -> CrossFit:
    return CrossFit(runs, seed=0)


@pytest.mark.slow(keep=2)
@pytest.mark.parametrize("key", [AS_GOOD, ("as-good", "trees"), ("hopeless", "linear"), VALUE])
def test_no_row_is_scored_by_a_model_that_has_seen_its_question(key: Key) -> None:
    """Its own fold's labels change nothing of its score; those of others do."""
    v = 3
    runs = learnable()
    first, second = cross_fit(runs), cross_fit(turned_round(runs, v))
    own = (folds_of(runs) == v)[runs.run_of_row]
    for a, b in (
        (first.scores(key, None), second.scores(key, None)),
        (first.scores(key, v), second.scores(key, v)),
    ):
        assert np.array_equal(a[own], b[own], equal_nan=True)
    assert not np.array_equal(first.scores(key, None)[~own], second.scores(key, None)[~own], equal_nan=True)


@pytest.mark.parametrize("key", [AS_GOOD, VALUE])
def test_what_an_outer_fold_may_know_holds_nothing_of_its_labels(key: Key) -> None:
    """Every row, not only its own: otherwise a point picked on the others would have seen them through the models."""
    v = 1
    runs = learnable()
    a, b = cross_fit(runs).scores(key, v), cross_fit(turned_round(runs, v)).scores(key, v)
    assert np.array_equal(a, b, equal_nan=True)


def test_a_model_is_fitted_once_for_each_pair_of_folds() -> None:
    ticks: list[int] = []
    runs = learnable()
    fits = CrossFit(runs, seed=0, tick=lambda: ticks.append(1))
    for _ in range(2):
        for v in range(N_FOLDS):
            fits.scores(AS_GOOD, v)
        fits.scores(AS_GOOD, None)
    assert len(ticks) == N_FOLDS + N_FOLDS * (N_FOLDS - 1) // 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_score_reads_no_later_step(kind: Kind) -> None:
    """A fitted model gives every row up to step k the same score, whatever comes behind it."""
    k = 3
    batch = batch_of(kind, 240, 2, n_questions=80)
    needs, longest = FeatureSet(DENSE[kind]).needs, longest_of(batch)
    runs = runs_of(batch, needs=needs, planned_steps=longest)
    other = runs_of(other_ends(batch, k), needs=needs, planned_steps=longest)
    fits = cross_fit(runs)
    model = fits.model(AS_GOOD, (0,))
    early, other_early = (one.columns.values["step"] <= k for one in (runs, other))
    a, b = (score_rows(model, FeatureSet(fits.chosen.names).matrix(r.columns, r.queries)) for r in (runs, other))
    assert np.array_equal(a[early], b[other_early])
    assert not np.array_equal(a[~early], b[~other_early])


def test_the_last_step_of_a_run_teaches_nothing() -> None:
    runs = learnable()
    table = CrossFit(runs, seed=0, query_signals=False)
    assert not set(table.example.tolist()) & set(runs.last.tolist())
    assert len(table.example) == len(runs.cost) - len(runs)


def test_what_makes_a_row_good() -> None:
    runs = learnable(n_runs=60)
    good = {target: good_rows(runs, target) for target in get_args(Target)}
    for row in range(len(runs.cost)):
        full_ok = runs.full_ok[runs.run_of_row[row]]
        assert good["as-good"][row] == (not full_ok or runs.ok[row])
        assert good["suffices"][row] == (runs.ok[row] or runs.same[row])
        assert good["hopeless"][row] == (not full_ok)
    lost = runs.full_ok[runs.run_of_row] & ~runs.ok
    assert (good["as-good"] == ~lost).all()  # as good as the full run is: no answer is lost


def test_risk_is_unknown_without_an_answer_unless_the_run_will_fail_anyway() -> None:
    runs, score = runs_of(batch_of("rounds", p_no_answer=0.3)), Score(name="s", target="as-good")
    p = np.full(len(runs.cost), 0.9)
    none = np.isnan(runs.columns.answer)
    assert none.any()
    risk, codes = risk_and_codes(score, p, np.full(len(p), 0.49), runs)
    assert np.isnan(risk[none]).all()
    assert not np.isnan(risk[~none]).any()
    assert (codes == SUFFICES).all()
    risk, codes = risk_and_codes(score, p, np.full(len(p), 0.5), runs)
    assert risk == pytest.approx(0.1)
    assert (codes == HOPELESS).all()


def test_the_risk_of_a_costly_run_is_divided_by_a_power_of_its_steps() -> None:
    runs = runs_of(batch_of("samples", p_no_answer=0.0))
    p = np.full(len(runs.cost), 0.9)
    risk, _ = risk_and_codes(Score(name="s", target="as-good", cost=0.5), p, np.zeros(len(p)), runs)
    per_step = runs.columns.values["tokens_used"] / runs.columns.values["step"]
    assert risk * np.sqrt(per_step) == pytest.approx(0.1)


@pytest.mark.parametrize("parts", ["ensemble", "linear", "trees"])
def test_a_score_tells_good_rows_from_bad_ones_of_unseen_questions(parts: Parts) -> None:
    runs = learnable(n_runs=600)
    table = cross_fit(runs)
    scores = table.model(("as-good", parts), (0,))
    rows = table.example[table.row_fold[table.example] == 0]
    p, good = score_rows(scores, table.x[rows]), good_rows(runs, "as-good")[rows]
    above = (p[good][:, None] > p[~good][None, :]).mean() + 0.5 * (p[good][:, None] == p[~good][None, :]).mean()
    assert above > 0.7  # area under the curve


def test_the_value_model_takes_whole_runs_evenly_and_no_more_than_it_may() -> None:
    few = runs_of(batch_of("rounds", 20, n_steps=8))
    runs = concatenate([few] * 1_000)
    everything = np.ones(len(runs), dtype=bool)
    kept = thin_runs(everything, runs)
    assert 0.5 * MAX_VALUE_ROWS < runs.n_steps[kept].sum() <= MAX_VALUE_ROWS
    assert abs(np.flatnonzero(kept).mean() / len(runs) - 0.5) < 0.01
    some = np.arange(len(runs)) % 4 == 0
    assert (thin_runs(some, runs) == some).all()  # these fit as they are

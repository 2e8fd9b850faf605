"""A study: what is frozen was picked without the questions that it is judged on, models and all."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from bench.nested import NestedRungs, nest, share_of, without_probes

from suffice.assurance.bounds import Interval
from suffice.learn.features import DENSE
from suffice.policy.columns import HOPELESS
from suffice.replay.study.policies import PolicyRung, ScoreRung, build_ladders
from suffice.replay.study.runs import Runs, select_runs
from suffice.replay.study.scores import Score, risk_and_codes
from suffice.replay.study.sets import pools_of
from suffice.replay.study.study import LadderPool, ReplayOptions, Study
from suffice.replay.study.sums import FIELDS, N_FOLDS, SumsFold, columns_of, compare_nested
from suffice.signals.features import FeatureSet
from suffice.types import Kind
from tests.replay.made import batch_of, runs_of
from tests.replay.study.test_scores import turned_round

SCORES = (
    Score(name="as-good", target="as-good", parts="linear"),
    Score(name="suffices", target="suffices", parts="linear", cost=0.5),
    Score(name="value", target="value"),
)


def runs_for(kind: Kind, n_runs: int = 240, seed: int = 2) -> Runs:
    return runs_of(batch_of(kind, n_runs, seed, n_questions=80), needs=FeatureSet(DENSE[kind]).needs)


def study_of(runs: Runs, target: float = 0.03) -> Study:
    return Study(runs, build_ladders(runs.kind, longest=8)[:6], ReplayOptions(max_em_drop=target, scores=SCORES))


def pools(study: Study) -> tuple[LadderPool, ...]:
    """One for each ladder alone, beside those of a replay: so that learned scores are picked from, too."""
    alone = tuple(LadderPool(name=f"only {score.name}", ladders=(score.name,)) for score in SCORES)
    return (*pools_of(study.ladders, SCORES), *alone)


@pytest.mark.slow(keep=1)
@pytest.mark.parametrize("kind", ["samples", "reasoning"])
def test_a_frozen_point_and_its_models_hold_nothing_of_their_own_folds_labels(kind: Kind) -> None:
    v = 2
    runs = runs_for(kind)
    first, second = study_of(runs), study_of(turned_round(runs, v))
    a, b = first.freeze(pools(first), v), second.freeze(pools(second), v)
    assert {name: rung and rung.label for name, rung in a.rungs.items()} == {
        name: rung and rung.label for name, rung in b.rungs.items()
    }
    assert any(isinstance(rung, ScoreRung) for rung in a.rungs.values())
    mine = select_runs(runs, first.fold == v)
    for (name, halt), other in zip(
        first.applied.halts(a, mine).items(), second.applied.halts(b, mine).values(), strict=True
    ):
        assert halt.row.tolist() == other.row.tolist(), name
        assert halt.code.tolist() == other.code.tolist(), name
    others = [name for name in a.rungs if first.freeze(pools(first), 0).rungs[name] != a.rungs[name]]
    assert others  # and yet another fold settles on something else


@pytest.mark.slow
def test_frozen_points_end_unseen_runs_as_the_nested_layings_say() -> None:
    """Two ways to the same figures: models kept and asked again, and sums by question."""
    runs = runs_for("reasoning")
    study = study_of(runs)
    nested = nest(study)
    frozen = [study.freeze(pools(study), v) for v in range(N_FOLDS)]
    for pool in pools(study):
        summing = SumsFold(1)
        for v in range(N_FOLDS):
            mine = select_runs(runs, study.fold == v)
            summing.add(mine, [study.applied.halts(frozen[v], mine)[pool.name]])
        expected = summing.sums().values.sum(axis=(0, 1))
        result = nested.frozen(pool, study.options.max_em_drop).values.sum(axis=(0, 1))
        np.testing.assert_allclose(result, expected, rtol=1e-9)


def test_a_point_that_nobody_dares_is_the_full_run() -> None:
    runs = runs_for("rounds", 60)
    study = Study(runs, build_ladders("rounds", longest=8)[:2], ReplayOptions(max_em_drop=0.0, margin=9.0, scores=()))
    frozen = study.freeze(pools_of(study.ladders, ()), 0)
    assert set(frozen.rungs.values()) == {None}
    for halt in study.applied.halts(frozen, runs).values():
        assert halt.row.tolist() == runs.last.tolist()
        assert not halt.code.any()


def test_every_ladder_has_its_place_and_learned_ones_rise() -> None:
    study = study_of(runs_for("samples"))
    laid = study.sum_rungs(None)
    assert sum(part.stop - part.start for part in laid.slices.values()) == len(laid.rungs)
    assert laid.sums.values.shape[1] == len(laid.rungs)
    for ladder in study.ladders:
        assert laid.rungs[laid.slices[ladder.name]] == ladder.rungs
    for score in SCORES:
        rungs = laid.rungs[laid.slices[score.name]]
        levels = [rung.level for rung in rungs if isinstance(rung, ScoreRung)]
        assert levels == sorted(levels)
        tokens = laid.sums.of("tokens")[:, laid.slices[score.name]].sum(axis=0)
        if score.target == "value":  # its prices are models of their own
            assert tokens[-1] < tokens[0]
        else:
            assert (np.diff(tokens) <= 0).all()
    some, rungs, slices = laid.of(["value", study.ladders[0].name])
    assert isinstance(rungs[-1], PolicyRung)
    assert slices[1].stop == len(rungs) == some.values.shape[1]


def test_scores_that_teach_what_suffices_never_call_a_run_hopeless() -> None:
    runs = runs_for("rounds", 60)
    p, p_hopeless = np.full(len(runs.cost), 0.8), np.full(len(runs.cost), 0.9)
    none = np.isnan(runs.columns.answer)
    assert none.any()
    for score in SCORES:
        says = np.full(len(p), 7, dtype=np.uint64) if score.target == "value" else p
        risk, codes = risk_and_codes(score, says, p_hopeless, runs)
        assert (codes == HOPELESS).all() == (score.target != "suffices")
        stops = risk > 0 if score.target == "value" else ~np.isnan(risk)
        assert stops[~none].all()
        assert stops[none].any() == (score.target != "suffices")
    bits, _ = risk_and_codes(SCORES[-1], np.full(len(p), 7, dtype=np.uint64), np.zeros(len(p)), runs)
    assert not bits[none].any()


@pytest.fixture(scope="module")
def nested() -> NestedRungs:
    return nest(study_of(runs_for("reasoning")))


@pytest.mark.slow
def test_what_probes_cost_can_be_left_out(nested: NestedRungs) -> None:
    sums = nested.all.sums
    free = without_probes(sums)
    assert (free.of("tokens") == sums.of("tokens") - sums.of("probes")).all()
    assert not free.of("probes").any()
    assert sums.of("probes").any()
    assert (free.drop == sums.drop).all()


def test_hindsight_saves_at_least_what_any_rung_within_the_target_does(nested: NestedRungs) -> None:
    pool = LadderPool(name="all", ladders=tuple(nested.all.slices))
    _, best = nested.hindsight(pool, 0.02)
    sums = nested.all.sums
    within = sums.drop.sum(axis=0) / sums.n.sum() <= 0.02
    assert best.of("tokens").sum() == sums.of("tokens").sum(axis=0)[within].min()
    name, none = nested.hindsight(LadderPool(name="none", ladders=()), 0.02)
    assert name == "never"
    assert none.of("tokens").sum() == sums.full_tokens.sum()


@pytest.mark.slow
def test_a_difference_is_paired_by_question(nested: NestedRungs) -> None:
    sums, rng = nested.all.sums, np.random.default_rng(0)
    some = sums.columns([40])
    full = replace(some, values=np.zeros_like(some.values))
    full.values[:, 0, FIELDS.index("tokens")] = sums.full_tokens
    nothing = compare_nested(some, some, n_draws=50, rng=rng)
    assert (nothing.saved, nothing.drop) == (0, 0)
    assert nothing.saved_interval == nothing.drop_interval == Interval(0, 0)
    result = compare_nested(full, some, n_draws=400, rng=rng)
    assert result.saved == pytest.approx(1 - some.of("tokens").sum() / some.full_tokens.sum())
    assert result.drop == pytest.approx(float(share_of(some, "lost")[0] - share_of(some, "gained")[0]))
    assert result.saved_interval.low < result.saved < result.saved_interval.high
    back = compare_nested(some, full, n_draws=400, rng=np.random.default_rng(1))
    assert back.saved == pytest.approx(-result.saved)
    with pytest.raises(ValueError, match="same questions"):
        compare_nested(some, nest(study_of(runs_for("reasoning", seed=5))).all.sums.columns([0]), n_draws=5, rng=rng)


def test_sums_of_a_point_are_what_its_halts_cost(nested: NestedRungs) -> None:
    """The rung's own columns, added up run by run."""
    runs = runs_for("reasoning")
    study = study_of(runs)
    rung = study.ladders[1].rungs[-1]
    frozen = study.freeze((), None)
    (halt,) = study.applied.halts(type(frozen)(rungs={"one": rung}), runs).values()
    at = nested.all.slices[study.ladders[1].name].stop - 1
    by_hand = np.stack(columns_of(runs, halt), axis=1).sum(axis=0)
    np.testing.assert_allclose(nested.all.sums.values[:, at].sum(axis=0), by_hand)

"""Tuning: what it may try, that it keeps its hands off unseen questions, and that it tells its own optimism."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from suffice.errors import ConfigError, TraceError
from suffice.policy.base import POLICIES, build_policy, version_of
from suffice.policy.columns import stops_of
from suffice.policy.parameters import parameters_of
from suffice.replay.study.policies import (
    LEARNED,
    LEFT_OUT,
    SHAPES,
    SPACE,
    Size,
    draw_spec,
    list_first_tries,
    list_policies,
    list_searched_folds,
)
from suffice.replay.study.runs import Runs, find_first_stops
from suffice.replay.study.scores import (
    SCORES,
    Score,
    ScoreTable,
    build_proposal,
    build_scored,
    features_of,
    find_learned,
    find_model_name,
    n_parts,
    names_of,
    score_rows,
    title_of,
)
from suffice.replay.study.search import (
    Bench,
    TunedSet,
    TuneOptions,
    make_bench,
    search,
    tune_runs,
    winner_of,
)
from suffice.replay.study.sums import N_FOLDS, folds_of
from suffice.replay.traces.read import survey
from suffice.signals.base import resolve_needs
from suffice.types import Kind
from suffice_testing.traces import Synthetic

KINDS: tuple[Kind, ...] = ("reasoning", "samples", "rounds")
LINEAR = (Score(name="as-good", target="as-good", parts="linear"),)
WITHOUT_LEARNING = TuneOptions(trials=40, max_em_drop=0.02, scores=(), n_draws=200)


def never() -> float:
    raise AssertionError("no time limit, no question for the time")


def bench_of(
    folder: Path, requested: TuneOptions, *, kind: Kind = "samples", n_runs: int = 1_500, seed: int = 0
) -> Bench:
    file = folder / f"{kind}-{seed}.parquet"
    Synthetic(kind=kind, n_runs=n_runs, n_questions=n_runs // 3, seed=seed).write(file)
    return make_bench(survey([file])[0], requested)


class Dice:
    """Draws at random, as a trial does, and keeps no count of what was good."""

    def __init__(self, seed: int, fixed: dict[str, Any] | None = None) -> None:
        self._rng, self._fixed = np.random.default_rng(seed), fixed or {}

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        drawn = choices[int(self._rng.integers(len(choices)))]
        result = self._fixed.get(name, drawn)
        assert result in choices
        return result

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        assert 0 < low < high if log else low < high
        ends = np.log([low, high]) if log else np.array([low, high])
        drawn = float(self._rng.uniform(*ends))
        result = float(self._fixed[name]) if name in self._fixed else float(np.exp(drawn) if log else drawn)
        assert low <= result * (1 + 1e-9)
        assert result <= high * (1 + 1e-9)
        return result

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        assert low <= high
        assert low > 0 or not log
        result = int(self._fixed.get(name, self._rng.integers(low, high + 1)))
        assert low <= result <= high
        return result


# ---- what is tried --------------------------------------------------------------------------------


# Parameters that keep their default. A parameter of a signal would need its own columns.
FIXED = {
    "stable-answer": {"min_tokens": "guarded draws it", "min_steps": "guarded draws it"},
    "eat": {"alpha": "of the signal"},
    "cusum": {"reference": "of the signal"},
    "cisc": {"temperature": "of the signal"},
    "code-stop": {"give_up": "of the signal", "delta": "of the signal"},
    "momentum": {"dial": "of the signal"},
    "tasr": {"calibration": "a curve of its own, fitted elsewhere"},
    "semantic-distance": {"epsilon": "of the signal"},
    "guarded": {"returns": "tuned rounds return their last answer", "inner": "", "max_steps": "any-of draws it"},
    "learned": {"min_steps": "guarded draws it"},
}


def test_every_policy_and_every_parameter_is_tried_or_left_out_with_a_reason() -> None:
    composed = {*SHAPES} - {"one"}
    assert {*SPACE, *LEFT_OUT, *composed, LEARNED} == set(POLICIES)
    assert not set(SPACE) & set(LEFT_OUT)
    for name, family in SPACE.items():
        parameters = {parameter.name for parameter in parameters_of(POLICIES[name])}
        assert parameters == {*family.draws, *FIXED.get(name, {})}, name
        assert all(FIXED.get(name, {"": "why"}).values()), name
    assert all(LEFT_OUT.values())


CLASSES = ("n_words > 20", "every query")


def size_of(kind: Kind, longest: int, classes: tuple[str, ...] = ()) -> Size:
    return Size(
        kind=kind,
        longest=longest,
        few_tokens=40,
        many_tokens=900,
        models=tuple(names_of(SCORES)),
        level=lambda _, share, name: share if name is None else 2 * share,
        classes=classes,
    )


@pytest.mark.slow(keep=6)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("longest", [1, 2, 12])
def test_whatever_is_drawn_can_be_built_and_reads_what_is_there(kind: Kind, longest: int) -> None:
    size, names = size_of(kind, longest), names_of(SCORES)
    drawn = [draw_spec(Dice(seed), size) for seed in range(150)]
    drawn += [draw_spec(Dice(7, tried), size) for tried in list_first_tries(size, list_policies(size))]
    columns = list_searched_folds(list_policies(size))
    resolve_needs(columns)  # no two of them want the same signal with other parameters
    refused = 0
    for spec in drawn:
        try:
            policy = build_scored(spec, names)
        except ConfigError:
            refused += 1
            continue
        assert set(policy.needs) <= set(columns)
        assert version_of(build_policy(spec)) if find_model_name(spec) is None else "learned" in title_of(spec)
    assert refused < len(drawn) / 20
    alone = {spec["policy"] for spec in drawn if spec["policy"] not in SHAPES}
    assert alone >= {name for name in list_policies(size) if name != LEARNED}


def test_a_learned_policy_may_have_a_level_for_each_found_class_and_only_where_there_are_some() -> None:
    size, names = size_of("samples", 12, CLASSES), names_of(SCORES)
    specs = [draw_spec(Dice(seed), size) for seed in range(300)]
    specs += [draw_spec(Dice(7, tried), size) for tried in list_first_tries(size, list_policies(size))]
    by_class = [spec for spec in specs if "classes" in find_learned(spec)]
    assert 30 < len(by_class) < len(specs) / 2
    for spec in by_class:
        learned = find_learned(spec)
        assert list(learned["classes"]) == list(CLASSES)
        assert "at price" not in learned["model"]
        assert n_parts(spec) == n_parts(spec | {"policy": spec["policy"]}) >= 2
        assert "by class" in title_of(spec)
    assert not any("classes" in find_learned(draw_spec(Dice(seed), size_of("samples", 12))) for seed in range(300))
    spec = {"policy": LEARNED, "model": "as-good", "threshold": 0.1, "classes": {"every query": 0.4, "gone": 0.9}}
    policy = build_scored(spec, names, CLASSES)
    assert getattr(policy, "classes", None) == (0.1, 0.4)  # a class of another search has no level here


# ---- what is found --------------------------------------------------------------------------------


@pytest.mark.slow(keep=1)
@pytest.mark.parametrize("kind", KINDS)
def test_the_search_saves_tokens_and_keeps_its_target_on_questions_that_it_has_not_seen(
    kind: Kind, tmp_path: Path
) -> None:
    requested = replace(WITHOUT_LEARNING, probe_tokens=0, margin=2.0)
    bench = bench_of(tmp_path, requested, kind=kind)
    tuned = tune_runs(bench, clock=never)
    result = tuned.optimism
    assert result.token_reduction_unseen.value > 0.1
    assert result.em_drop_unseen.value <= tuned.max_em_drop
    assert result.em_drop_unseen.interval.low <= result.em_drop_unseen.value <= result.em_drop_unseen.interval.high
    assert tuned.proposal is not None
    assert tuned.proposal_in_search.em_drop + 2 * tuned.proposal_in_search.error <= tuned.max_em_drop
    assert sum(tuned.winners.values()) == len(tuned.folds) == N_FOLDS
    assert sum(fold.n_questions for fold in tuned.folds) == tuned.n_questions == 500
    assert tuned.n_trials_in_all == 40 * (N_FOLDS + 1)
    for fold in tuned.folds:  # what a fold's search found is looked at again on all questions
        again = bench.figures(fold.spec, None)
        if again.em_drop + 2 * again.error <= tuned.max_em_drop:
            assert tuned.proposal_in_search.token_reduction >= again.token_reduction - 0.001


def test_of_policies_that_save_as_much_the_one_with_fewer_parts_wins() -> None:
    beta, fixed = {"policy": "beta", "threshold": 0.9}, {"policy": "fixed-rounds", "max_steps": 5}
    both = {"policy": "any-of", "policies": [beta, fixed]}
    assert winner_of([(0.5, both), (0.4995, beta), (0.4999, fixed)]) == fixed
    assert winner_of([(0.5, beta), (0.52, both)]) == both
    assert winner_of([(0.0, beta), (-0.1, fixed)]) is None
    assert winner_of([]) is None
    assert winner_of([(0.26, beta)], least=0.26) is None
    assert winner_of([(0.27, beta)], least=0.26) == beta


def noise(bench: Bench, seed: int) -> Bench:
    """The same runs with right and wrong drawn by lot for each step: nothing that is read says anything of it."""
    rng = np.random.default_rng(seed)
    runs = replace(
        bench.runs,
        ok=rng.random(len(bench.runs.ok)) < 0.5,
        full_ok=rng.random(len(bench.runs)) < 0.5,
    )
    return Bench(runs, bench.options, bench.scores, bench.names)


@pytest.mark.slow
def test_on_pure_noise_the_search_promises_more_than_unseen_questions_keep(tmp_path: Path) -> None:
    requested = TuneOptions(trials=60, max_em_drop=0.0, margin=0.0, scores=(), n_draws=50)
    bench = bench_of(tmp_path, requested, n_runs=120)
    drops = []
    for seed in range(4):
        tuned = tune_runs(noise(bench, seed), clock=never)
        assert tuned.optimism.em_drop_in_search.value <= 0.0
        drops.append(tuned.optimism.em_drop.value)
    print(f"optimism of the EM drop on noise: {np.round(drops, 3)}")
    assert np.mean(drops) > 0.01


@pytest.mark.slow
def test_nothing_of_an_unseen_question_reaches_the_search_that_must_not_see_it(tmp_path: Path) -> None:
    requested = TuneOptions(
        trials=40, max_em_drop=0.02, scores=LINEAR, n_draws=50, policies=("learned", "beta", "fixed-rounds")
    )
    bench = bench_of(tmp_path, requested, n_runs=600)
    fold = folds_of(bench.runs)
    other = with_scores(spoilt(bench.runs, fold == 1), requested, bench.names)
    honest, blind = (search(one, 1, until=None, clock=never, tick=lambda: None) for one in (bench, other))
    assert honest.spec == blind.spec
    assert honest.spec is not None
    everything, spoilt_too = (search(one, None, until=None, clock=never, tick=lambda: None) for one in (bench, other))
    assert everything.spec != spoilt_too.spec


def spoilt(runs: Runs, where: Any) -> Runs:
    """The runs with all labels of some turned round."""
    rows = where[runs.run_of_row]
    return replace(runs, ok=runs.ok ^ rows, full_ok=runs.full_ok ^ where)


def with_scores(runs: Runs, requested: TuneOptions, names: tuple[str, ...]) -> Bench:
    return Bench(runs, requested, ScoreTable(runs, requested.scores, seed=requested.seed), names)


@pytest.mark.slow
def test_the_same_seed_finds_the_same_and_learned_scores_are_among_what_is_tried(tmp_path: Path) -> None:
    requested = TuneOptions(trials=30, max_em_drop=0.02, scores=LINEAR, n_draws=50)
    first, second = (with_scores_again(tmp_path, requested) for _ in range(2))
    assert first == second
    assert any("learned" in title for title in first.winners)
    quick = replace(WITHOUT_LEARNING, trials=20)
    bench = bench_of(tmp_path, quick, n_runs=300)
    other = replace(bench, options=replace(quick, seed=1))
    assert tune_runs(bench, clock=never).folds != tune_runs(other, clock=never).folds


@pytest.mark.slow
def test_levels_by_class_are_tried_told_with_an_interval_and_carried_into_the_model(tmp_path: Path) -> None:
    score = Score(name="suffices", target="suffices", parts="linear")
    requested = TuneOptions(trials=45, max_em_drop=0.02, scores=(score,), n_draws=100, policies=(LEARNED,), classes=8)
    bench = bench_of(tmp_path, requested, n_runs=1_500)
    tuned = tune_runs(bench, clock=never)
    assert any("by class" in title for title in tuned.winners) == (tuned.by_class is not None)
    result = bench.classes(None)
    assert result.classes is not None
    levels = {name: 0.05 * (at + 1) for at, name in enumerate(result.names)}
    assert len(levels) >= 2
    spec = {"policy": LEARNED, "model": score.name, "threshold": 0.1, "classes": levels}
    proposal = build_proposal(
        {"policy": "guarded", "inner": spec, "min_steps": 2}, bench.scores, classes=result.classes
    )
    assert proposal.model is not None
    assert dict(proposal.model.classes) == levels
    assert "classes" not in str(proposal.spec)
    policy, columns = proposal.policy(), bench.runs.readable()
    live = find_first_stops(stops_of(policy, columns), bench.runs)
    assert bench.scores is not None
    model = bench.scores.model(("suffices", "linear"))
    risk = 1 - score_rows(model, features_of(bench.runs, bench.scores.chosen))
    level = np.array([levels.get(result.classes.of(query), 0.1) for query in bench.runs.queries])
    passed = risk <= level[bench.runs.run_of_row] * (1 + 1e-9)
    late = passed & (bench.runs.columns.values["step"] >= 2) & ~np.isnan(bench.runs.columns.answer)
    assert live.row.tolist() == find_first_stops(late.astype(np.int8), bench.runs).row.tolist()


def with_scores_again(folder: Path, requested: TuneOptions) -> TunedSet:
    return tune_runs(bench_of(folder, requested, kind="reasoning", n_runs=300), clock=never)


def test_a_time_limit_ends_every_search_after_at_least_one_trial(tmp_path: Path) -> None:
    def ticking() -> Iterator[float]:
        yield from map(float, count())

    clock = ticking()
    bench = bench_of(tmp_path, replace(WITHOUT_LEARNING, trials=10_000, time_limit_s=60.0), n_runs=300)
    tuned = tune_runs(bench, clock=lambda: next(clock))
    assert all(1 <= fold.n_trials <= 30 for fold in tuned.folds)
    assert 12 <= tuned.n_trials_in_all <= 120
    bench = replace(bench, options=replace(bench.options, time_limit_s=1e-9))
    assert tune_runs(bench, clock=lambda: next(clock)).n_trials_in_all == N_FOLDS + 1


def test_where_nothing_keeps_the_target_nothing_is_proposed(tmp_path: Path) -> None:
    bench = bench_of(tmp_path, replace(WITHOUT_LEARNING, trials=20, margin=10.0), n_runs=150)
    tuned = tune_runs(bench, clock=never)
    assert tuned.proposal is None
    assert tuned.winners == {"never": N_FOLDS}
    assert tuned.optimism.em_drop.value == 0.0
    assert tuned.optimism.token_reduction.value == pytest.approx(0.0, abs=0.01)  # decided votes, on unequal folds


def test_what_cannot_be_tuned_is_said_before_anything_is_searched(tmp_path: Path) -> None:
    file = tmp_path / "one.parquet"
    Synthetic(kind="samples", n_runs=3, n_questions=1, seed=0).write(file)
    with pytest.raises(TraceError, match="one: contains 1 questions, too few"):
        tune_runs(make_bench(survey([file])[0], WITHOUT_LEARNING), clock=never)
    with pytest.raises(ConfigError, match="policies: got 'deer'; for samples: fixed-budget, "):
        make_bench(survey([file])[0], replace(WITHOUT_LEARNING, policies=("beta", "deer")))


def test_a_set_too_long_for_memory_is_searched_on_part_of_its_questions_and_says_so(tmp_path: Path) -> None:
    file = tmp_path / "long.parquet"
    Synthetic(kind="samples", n_runs=300, n_questions=300, seed=0).write(file)
    requested = replace(WITHOUT_LEARNING, trials=3, n_draws=20)
    part = tune_runs(make_bench(survey([file], most_steps=800)[0], requested), clock=never)
    whole = tune_runs(make_bench(survey([file])[0], requested), clock=never)
    assert (whole.share, whole.n_questions) == (1.0, 300)
    assert part.share == pytest.approx(800 / (300 * 8))
    assert 60 < part.n_questions < 140


@pytest.mark.parametrize("kind", ["samples", "reasoning"])
def test_what_never_stops_costs_a_full_run_and_a_vote_only_until_it_is_decided(tmp_path: Path, kind: Kind) -> None:
    bench = bench_of(tmp_path, TuneOptions(scores=()), kind=kind, n_runs=60)
    runs, sums = bench.runs, bench.judge(None, None)
    assert sums.of("tokens").sum() == pytest.approx(runs.cost[runs.last].sum())
    assert (sums.of("tokens").sum() < sums.full_tokens.sum()) == (kind == "samples")
    assert not sums.drop.any()

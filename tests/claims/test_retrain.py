"""What a stop hides is not learned: models of naive data sets are biased, ours is not, on logs with known truth.

A policy in force stops six runs in ten; one request in ten is an audit. Four data sets are made of the same log:

    ours          full runs, each standing for those that the lot has hidden
    naive         … unweighted, and every stop is a good one
    right stops   … unweighted, and those stops are good that a label calls right
    unweighted    full runs as they come: most of them were not stopped, and those are the hard ones

The truth is what the same world does when nothing is stopped.
"""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest

from suffice.learn.audits import find_first_passages
from suffice.learn.dataset import Dataset, build_dataset
from suffice.learn.models import Examples, FitResult, fit
from suffice.learn.retrain import FitRecipe, fit_version, retrain
from suffice.learn.rows import audit_runs, good_rows_of_run, weigh_runs
from suffice.learn.version import as_served, fold_version
from suffice.policy.folded_version import FoldedVersion
from suffice.store.database.views import EpisodeWithLabels
from tests.learn.made import Simulation, episodes, match

SEEDS = (0, 1, 2)
N_REQUESTS = 5_000
Bias = dict[str, tuple[float, float]]  # data set → too sure at the stops of the policy in force, and on all rows


@pytest.fixture(scope="module")
def truth() -> Dataset:
    return build_dataset(
        episodes(5_000, seed=99, simulation=Simulation(mode="observe")), match=match, most_audits=5_000
    )


@pytest.fixture(scope="module")
def biases(truth: Dataset) -> list[Bias]:
    return [bias(seed, truth) for seed in SEEDS]


def bias(seed: int, truth: Dataset) -> Bias:
    """How much too sure each data set's model is, on the true runs."""
    inner = np.ones(len(truth.x), dtype=bool)
    inner[truth.last] = False
    stops = truth.stop[truth.stop >= 0]
    good = good_rows_of_run(truth, "as-good")
    result = {}
    for name, model in models(seed).items():
        p = model.scores(truth.own)
        result[name] = (float(p[stops].mean() - good[stops].mean()), float(p[inner].mean() - good[inner].mean()))
    return result


def as_if_ended(item: EpisodeWithLabels) -> EpisodeWithLabels:
    """A stopped run, as if it had come to its own end where it was stopped."""
    outcome = replace(item.episode.outcome, stopped=False, end_reason="done", stop_step=None)
    return replace(item, episode=replace(item.episode, outcome=outcome))


def models(seed: int) -> dict[str, FitResult]:
    """One model for each way to make a data set of the log."""
    log = episodes(N_REQUESTS, seed)
    data = build_dataset(log, match=match)
    stopped = build_dataset(
        [as_if_ended(item) for item in log if item.episode.outcome.stopped],
        match=match,
        chosen=data.chosen,
        most_live=N_REQUESTS,
    )
    whole, stops = np.flatnonzero(data.full[data.run_of_row] & data.inner), stopped.last
    right = stops[stopped.right[stops] == 1]
    good = good_rows_of_run(data, "as-good")
    made = {"ours": Examples(data.own[whole], good[whole], weigh_runs(data)[data.run_of_row[whole]])}
    for name, taken in (("naive", stops), ("right stops", right), ("unweighted", stops[:0])):
        made[name] = Examples(
            x=np.concatenate([data.own[whole], stopped.own[taken]]),
            good=np.concatenate([good[whole], np.ones(len(taken), dtype=bool)]),
        )
    return {name: fit(rows, data.chosen) for name, rows in made.items()}


def mean_bias(biases: list[Bias], name: str, at: int) -> float:
    return float(np.mean([one[name][at] for one in biases]))


@pytest.mark.slow
def test_a_model_that_takes_stops_for_good_ones_is_too_sure_where_it_matters_and_ours_is_not(
    biases: list[Bias],
) -> None:
    """At the stops of the policy in force, in probability; the standard error over three seeds is below 0.01."""
    table = {name: [round(mean_bias(biases, name, at), 3) for at in (0, 1)] for name in biases[0]}
    print(f"too sure (at stops, on all rows): {table}")
    assert abs(mean_bias(biases, "ours", 0)) < 0.03
    assert mean_bias(biases, "naive", 0) > 0.08
    assert mean_bias(biases, "right stops", 0) > 0.05
    for one in biases:  # and in every seed the order is the same
        assert one["naive"][0] > one["right stops"][0] > abs(one["ours"][0])


@pytest.mark.slow
def test_a_model_of_full_runs_as_they_come_holds_all_runs_for_hard_ones_and_ours_does_not(biases: list[Bias]) -> None:
    """On all rows; the share of good ones differs by 0.01 from one draw of the world to the next."""
    assert abs(mean_bias(biases, "ours", 1)) < 0.035
    assert mean_bias(biases, "unweighted", 1) < -0.045
    for one in biases:
        assert one["unweighted"][1] < one["ours"][1] - 0.02


@pytest.mark.slow
def test_who_believes_a_naive_model_loses_more_than_it_said_and_who_believes_ours_does_not(truth: Dataset) -> None:
    """Stop as boldly as the model itself says costs at most five answers in a hundred: how many does it cost?"""
    lost = {name: lost_when_believed(model, truth, 0.05) for name, model in models(3).items()}
    print(f"lost where the model says at most 5 %: {lost}")
    assert lost["ours"] < 0.05
    assert lost["naive"] > 0.07
    assert lost["naive"] > lost["right stops"] > 1.3 * lost["ours"]


def lost_when_believed(model: FitResult, truth: Dataset, budget: float) -> float:
    """Share of true runs that end worse than in full, at the boldest threshold whose risks add up to the budget."""
    risk = np.where(truth.may_stop, 1.0 - model.scores(truth.own), np.nan)
    thresholds = np.geomspace(1e-3, 0.5, 60)
    rows = find_first_passages(risk, truth.starts, thresholds)
    stops = rows != truth.last
    output = np.where(stops, risk[rows], 0.0).mean(axis=1)
    at = int(np.flatnonzero(output <= budget)[-1])
    return float((stops[at] & ~good_rows_of_run(truth, "as-good")[rows[at]]).mean())


@pytest.mark.slow
def test_scheduled_refits_win_back_what_a_drift_has_cost() -> None:
    """Confidence turns round halfway. The old version has nothing left to save; one refit later the new one has."""
    simulation = Simulation(mode="observe")
    before = retrain(
        build_dataset(episodes(900, seed=61, simulation=simulation), match=match), max_em_drop=0.02, recipe=QUICK
    ).version
    assert before is not None
    names = before.models[0].features
    turned = build_dataset(turned_round(episodes(900, seed=62, simulation=simulation)), match=match, also=names)
    refit = retrain(turned, before, max_em_drop=0.02, reason="drift", recipe=QUICK)
    assert refit.version is not None
    fresh = build_dataset(turned_round(episodes(2_000, seed=63, simulation=simulation)), match=match, also=names)
    (none_saved, none_lost), (saved, lost) = (at_target(one, turned, fresh) for one in (before, refit.version))
    print(f"after the drift: saved {none_saved:.3f}, lost {none_lost:.4f}; with a refit {saved:.3f}, {lost:.4f}")
    assert refit.verdict == "better"
    assert lost < 0.02 + 0.01
    assert saved > none_saved + 0.1


@pytest.mark.slow
def test_a_refit_on_three_thousand_audits_takes_less_than_two_seconds() -> None:
    """Of CPU, as wall time sees what else the machine does. One of three tries: a full cache costs CPU, too."""
    data = build_dataset(episodes(3_000, seed=7, simulation=Simulation(mode="observe")), match=match)
    taken_s = list[float]()
    while not taken_s or (taken_s[-1] >= 2.0 and len(taken_s) < 3):
        began_s = time.process_time()
        assert fit_version(data, FitRecipe(), max_em_drop=0.02, digest="") is not None
        taken_s.append(time.process_time() - began_s)
    print(f"refit on {len(data):,} audits with {len(data.x):,} checkpoints: {taken_s[-1]:.2f} s of CPU")
    assert taken_s[-1] < 2.0


QUICK = FitRecipe(parts="linear", n_levels=21)


def at_target(version: FoldedVersion, picked_on: Dataset, judged_on: Dataset) -> tuple[float, float]:
    """Saving and drop on fresh runs at the level that keeps the target on others."""
    from suffice.learn.rows import pick_level

    rows = {}
    for name, data in (("pick", picked_on), ("judge", judged_on)):
        runs = audit_runs(data)
        runs = as_served(replace(runs, x=data.columns(version.models[0].features)), version)
        rows[name] = (runs, fold_version(version).rows(runs))
    runs, row = rows["pick"]
    level = pick_level(runs.z[row].astype(np.float64), np.ones(len(runs)), 0.02)
    runs, row = rows["judge"]
    return float(1 - runs.cost[row[:, level]].sum() / runs.full.sum()), float(runs.z[row[:, level]].mean())


def turned_round(items: list) -> list:  # type: ignore[type-arg]
    """The same runs in a world where the model is sure when it is led astray, and unsure when it knows."""
    result = []
    for item in items:
        outcome = item.episode.outcome
        steps = tuple(replace(step, confidence=1.0 - (step.confidence or 0.0)) for step in outcome.steps)
        result.append(replace(item, episode=replace(item.episode, outcome=replace(outcome, steps=steps))))
    return result

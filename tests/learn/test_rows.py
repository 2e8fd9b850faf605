"""Weights stand for what the lot has hidden: weighted means over what is seen are means over all that happened."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from suffice.learn.dataset import Dataset, build_dataset, fate, p_full
from suffice.learn.rows import (
    audit_runs,
    failing_examples,
    weigh_full_runs,
    weigh_labels,
    weigh_runs,
)
from suffice.store.database.views import EpisodeWithLabels
from tests.learn.made import Simulation, episodes, match

N = 3_000


@cache
def seen() -> list[EpisodeWithLabels]:
    return episodes(N, seed=11)


@cache
def in_full() -> Dataset:
    """The same runs, each seen in full."""
    return build_dataset(episodes(N, seed=11, simulation=Simulation(mode="observe")), match=match)


def everyone(data: Dataset) -> np.ndarray:
    return np.ones(len(data), dtype=bool)


def test_full_runs_stand_for_all_traffic_and_unweighted_ones_for_the_hard_runs() -> None:
    """The share that the policy would stop, and the tokens of a full run: here every run was made in full, too."""
    data = build_dataset(seen(), match=match)
    weight = weigh_full_runs(data)
    would_stop, tokens = data.stop >= 0, data.full_tokens
    true_share, true_tokens = (in_full().stop >= 0).mean(), in_full().full_tokens.mean()
    assert weight.sum() == pytest.approx(N, rel=0.1)
    assert np.average(would_stop, weights=weight) == pytest.approx(true_share, abs=0.05)
    assert np.average(tokens, weights=weight) == pytest.approx(true_tokens, rel=0.01)
    assert would_stop.mean() < true_share - 0.3


def test_the_odds_follow_the_way_that_a_run_went() -> None:
    audits = [item.episode for item in seen() if item.episode.request.audit]
    stops = {p_full(e.request, e.outcome) for e in audits if e.outcome.stop_step is not None}
    others = {p_full(e.request, e.outcome) for e in audits if e.outcome.stop_step is None}
    assert (stops, others) == ({0.1}, {1.0})
    assert {p_full(e.request, e.outcome, live_share=0.0) for e in audits} == {0.1}
    halved = {p_full(e.request, e.outcome, live_share=0.5) for e in audits if e.outcome.stop_step is None}
    assert halved == {0.1 + 0.9 * 0.5}


def test_of_very_many_live_runs_a_part_is_drawn_that_stands_for_all() -> None:
    data = build_dataset(seen(), match=match, most_live=300)
    n_live = int((~data.by_design).sum())
    assert 240 < n_live < 360
    assert data.left_out["live, not stopped, enough others are there"] > 500
    weight = weigh_full_runs(data)
    assert weight.sum() == pytest.approx(N, rel=0.12)
    assert np.average(data.full_tokens, weights=weight) == pytest.approx(in_full().full_tokens.mean(), rel=0.02)


def test_a_live_run_that_should_have_been_stopped_and_was_not_stands_for_nobody() -> None:
    stopped = next(item.episode for item in seen() if item.episode.outcome.stopped)
    went_on = replace(stopped.outcome, stopped=False, end_reason="done")
    assert fate(stopped.request, stopped.outcome) == "stopped"
    assert fate(stopped.request, went_on) == "by failure"
    assert fate(replace(stopped.request, audit=True), went_on) == "full"
    assert fate(replace(stopped.request, ungoverned="tools"), went_on) == "ungoverned"
    assert fate(stopped.request, replace(stopped.outcome, end_reason="client_left")) == "broken"


def test_labels_for_disagreements_alone_still_tell_how_often_the_full_run_fails_or_say_that_they_cannot() -> None:
    """Disagreeing runs fail less often than agreeing ones here, so the plain mean of the labelled is off by far."""
    observed = build_dataset(
        episodes(N, seed=11, simulation=Simulation(mode="observe", labels="disagreements")), match=match
    )
    assert weigh_labels(observed) is None  # runs that agree have no label at all
    rng = np.random.default_rng(0)
    all_runs = in_full()
    dropped = rng.random(N) < np.where((all_runs.same | (all_runs.right == 1))[np.maximum(all_runs.stop, 0)], 0.9, 0.1)
    some = replace(all_runs, full_right=np.where(dropped, -1, all_runs.full_right).astype(np.int8))
    weight = weigh_labels(some)
    assert weight is not None
    truth = (in_full().full_right == 0).mean()
    labelled = some.labelled
    assert weight.sum() == pytest.approx(N)
    assert np.average(some.full_right[labelled] == 0, weights=weight[labelled]) == pytest.approx(truth, abs=0.02)


def test_weights_fade_with_age_and_sum_to_no_more_evidence_than_there_is() -> None:
    data = build_dataset(seen(), match=match)
    weight = weigh_runs(data, half_life=50.0)
    assert (weight[~data.full] == 0).all()
    assert weight.sum() == pytest.approx((0.5 ** (data.age[data.full] / 50.0)).sum())
    like = data.full & (data.p_full == data.p_full[data.full].max())
    ratio = weight[like] / 0.5 ** (data.age[like] / 50.0)
    assert ratio == pytest.approx(ratio[0])


def test_what_stopping_loses_is_weighed_without_bias_from_the_full_runs() -> None:
    """The mean drop of a stop at the first step, over all traffic; there the truth is a plain mean."""
    data = build_dataset(seen(), match=match)
    weight, lost = weigh_runs(data, half_life=np.inf), audit_runs(data).z[data.starts[:-1]]
    truth = audit_runs(in_full()).z[in_full().starts[:-1]].mean()
    assert np.average(lost, weights=weight) == pytest.approx(truth, abs=0.04)
    assert abs(lost[data.full].mean() - truth) > 0.04, "unweighted, the hard runs that went on dominate"


def test_evidence_is_the_same_as_the_log_says_of_the_policy_in_force() -> None:
    """Z and D of the shadow stop, from the rows, are those of the outcome's own `would_answer`."""
    data = build_dataset(seen(), match=match)
    runs = audit_runs(data)
    by_seq = {item.seq: item.episode.outcome for item in seen()}
    outcomes = [by_seq[int(seq)] for seq in data.seq]
    row = np.where(data.stop < 0, data.last, data.stop)
    d = [o.stop_step is not None and o.would_answer != o.answer for o in outcomes]
    z = [int(o.answer == "42") - int((o.answer if o.stop_step is None else o.would_answer) == "42") for o in outcomes]
    assert runs.d[row].tolist() == d
    assert runs.z[row].tolist() == z
    assert any(z)


def test_without_labels_every_disagreement_counts_as_a_loss() -> None:
    data = build_dataset(episodes(200, seed=3, simulation=Simulation(mode="observe", labels="none")), match=match)
    runs = audit_runs(data)
    assert runs.z.tolist() == runs.d.astype(int).tolist()
    assert np.isinf(runs.label_at).all()
    assert failing_examples(data, everyone(data)) is None

"""A recorded run as a request: what each stop would have cost and lost, as a person would add it up."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from suffice.learn.features import DENSE
from suffice.replay.online.drift import parse_drift, relabel
from suffice.replay.online.stream import RecordedTraffic, make_traffic, read_traffic
from suffice.replay.study.runs import make_runs, read_runs
from suffice.replay.study.sums import question_fold
from suffice.replay.traces.read import own_traces, read_traces, survey
from suffice.signals.features import FeatureSet
from suffice.types import Kind
from tests.replay.made import batch_of, written

CHAINS: list[tuple[str, str, list[tuple[str | None, int]]]] = [
    ("q1", "7", [("3", 100), ("7", 50), ("7", 60), ("9", 40)]),  # right in the middle, lost at the end
    ("q2", "7", [("7", 100), (None, 50), ("7", 30)]),  # right from the start, once without an answer
    ("q1", "7", [("1", 20), ("1", 20)]),  # wrong all along
]


@pytest.fixture
def chains(tmp_path: Path) -> RecordedTraffic:
    batch = written(tmp_path, "reasoning", CHAINS)
    needs = FeatureSet(DENSE["reasoning"]).needs
    return make_traffic(make_runs(batch, needs, probe_tokens=10, planned_steps=4))


def test_drop_disagreement_and_cost_of_every_stop(chains: RecordedTraffic) -> None:
    runs = chains.runs
    assert runs.starts.tolist() == [0, 4, 7, 9]
    assert runs.z.tolist() == [0, -1, -1, 0, 0, 1, 0, 0, 0]
    assert runs.d.tolist() == [True, True, True, False, False, True, False, False, False]
    assert np.flatnonzero(~runs.may_stop).tolist() == [5], "where there is no answer nothing can be delivered"
    assert chains.probes.tolist() == [10, 20, 30, 30, 10, 20, 20, 10, 10], "behind the last step nothing is asked"
    assert runs.cost.tolist() == [110, 170, 240, 280, 110, 170, 200, 30, 50]
    assert runs.full.tolist() == [250, 180, 40]
    assert chains.full_ok == (False, True, False)


def test_a_votes_drop_is_that_of_the_vote(tmp_path: Path) -> None:
    batch = written(tmp_path, "samples", [("q", "A", [("B", 10), ("A", 20), ("A", 30), ("B", 40), ("A", 50)])])
    traffic = make_traffic(make_runs(batch, FeatureSet(DENSE["samples"]).needs, probe_tokens=None, planned_steps=5))
    assert traffic.runs.z.tolist() == [1, 1, 0, 1, 0], "a tie is won by the answer that came first"
    assert traffic.runs.d.tolist() == [True, True, False, True, False]
    assert traffic.runs.cost.tolist() == [10, 30, 60, 100, 150]


@pytest.mark.parametrize("kind", ["samples", "reasoning", "rounds"])
def test_the_full_run_loses_nothing_and_no_drop_is_without_a_disagreement(kind: Kind) -> None:
    batch = batch_of(kind, 200)
    needs = FeatureSet(DENSE[batch.kind]).needs
    traffic = make_traffic(make_runs(batch, needs, probe_tokens=None, planned_steps=8))
    runs = traffic.runs
    assert not runs.z[runs.last].any()
    assert not runs.d[runs.last].any()
    assert (np.abs(runs.z) <= runs.d).all(), "F1: the drop is at most the disagreement"
    assert (runs.z != 0).any()
    spent = runs.cost[runs.last] - traffic.probes[runs.last]
    assert (spent <= runs.full).all()
    assert np.array_equal(spent, runs.full) == (kind != "samples"), "a decided vote ends before its last sample"
    assert np.isfinite(runs.x).all()


def test_repeats_of_a_question_are_served_by_the_same_model(chains: RecordedTraffic) -> None:
    assert chains.runs.fold.tolist() == [question_fold("q1"), question_fold("q2"), question_fold("q1")]


def test_an_order_moves_everything_with_its_request(chains: RecordedTraffic) -> None:
    which = np.array([2, 0, 2])
    taken = chains.take(which)
    assert taken.question == ("q1", "q1", "q1")
    assert taken.full_ok == (False, False, False)
    assert taken.runs.starts.tolist() == [0, 2, 6, 8]
    assert taken.runs.full.tolist() == [40, 250, 40]
    assert taken.probes.tolist() == [10, 10, 10, 20, 30, 30, 10, 10]
    assert np.array_equal(taken.runs.x[2:6], chains.runs.x[:4])
    assert np.array_equal(taken.early, chains.early[which])
    assert taken.runs.at.tolist() == [0, 1, 2]
    late = replace(chains, runs=replace(chains.runs, label_at=chains.runs.at + 50))
    assert late.take(which).runs.label_at.tolist() == [50, 51, 52], "a delay is kept"


def test_early_signals_are_those_of_the_first_step_alone() -> None:
    needs = FeatureSet(DENSE["reasoning"]).needs
    traffic = make_traffic(make_runs(batch_of("reasoning", 100), needs, probe_tokens=0, planned_steps=8))
    first = traffic.runs.x[traffic.runs.starts[:-1], : len(traffic.chosen.dense)]
    for column in traffic.early.T:
        assert any(np.array_equal(column, other) for other in first.T)
        assert column.std() > 0


def test_a_stopped_run_still_writes_its_answer_and_the_full_run_has_written_it() -> None:
    (batch,) = read_traces([own_traces("reasoning")])
    runs = make_runs(batch, FeatureSet(DENSE["reasoning"]).needs, probe_tokens=None, planned_steps=None)
    assert (runs.finish > 0).any()
    traffic = make_traffic(runs)
    last = runs.last
    assert np.array_equal(traffic.runs.cost[last], runs.full_tokens + traffic.probes[last])
    early = np.setdiff1d(np.arange(len(runs.cost)), last)
    written_out = traffic.runs.cost[early] - runs.cost[early] - traffic.probes[early]
    assert written_out == pytest.approx(runs.finish[runs.run_of_row[early]])


# ---- orders of samples


def orders_of(kind: Kind) -> RecordedTraffic:
    (data,) = survey([own_traces(kind)])
    traffic, n = read_traffic([data], FeatureSet(DENSE[kind]).needs, probe_tokens=None, longest=data.longest)
    assert n == len(traffic)
    return traffic


def test_recorded_votes_come_in_other_orders_of_the_same_samples() -> None:
    (data,) = survey([own_traces("samples")])
    plain = make_traffic(read_runs(data, FeatureSet(DENSE["samples"]).needs, probe_tokens=None, longest=data.longest))
    runs = orders_of("samples").runs
    for name in ("x", "starts", "z", "d", "cost", "full"):
        assert np.array_equal(getattr(runs, name), getattr(plain.runs, name)), name
    assert runs.orders is not None
    other, n_orders = runs.orders.runs, np.diff(runs.orders.starts)
    of = np.repeat(np.arange(len(runs)), n_orders)
    assert 0 < (n_orders == 0).sum() < len(runs), "only where samples disagree"
    assert np.array_equal(other.n_steps, runs.n_steps[of]), "each is decided at its last sample"
    assert np.array_equal(other.cost[other.last], runs.cost[runs.last][of])
    assert not other.z[other.last].any()
    assert not np.array_equal(other.x[other.starts[:-1]], runs.x[runs.starts[of]]), "and signals follow the order"


def test_chains_have_one_order() -> None:
    assert orders_of("reasoning").runs.orders is None


def test_what_a_drift_makes_lose_loses_in_no_other_order_less() -> None:
    """A drift says what stops lose in the recorded order, so other orders would water it down."""
    traffic = orders_of("samples")
    assert relabel(traffic, parse_drift("silent=0.5@0.5"), 1).runs.orders is None
    assert relabel(traffic, parse_drift("relabel=0.5@0.5"), 1).runs.orders is None

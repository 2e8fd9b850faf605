"""Recorded runs as traffic: what the figures mean, and that the same seed gives the same of them."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from suffice.certification.certifier import Certifier
from suffice.certification.plan import Plan
from suffice.errors import ConfigError
from suffice.executor import Executor, PoolExecutor, RayExecutor
from suffice.learn.features import DENSE
from suffice.replay.online.drift import parse_drift
from suffice.replay.online.protocol import OnlineOptions, OnlineReport, replay_online
from suffice.replay.online.stream import RecordedTraffic, learner_of, make_traffic, run_stream
from suffice.replay.study.runs import read_runs
from suffice.replay.traces.read import own_traces, survey
from suffice.signals.features import FeatureSet

KEYS = {
    "set",
    "max_em_drop",
    "confidence",
    "seeds",
    "token_reduction",
    "token_reduction_second_half",
    "em_drop_second_half",
    "violations",
}
ASKED = OnlineOptions(max_em_drop=0.2, n_seeds=2, warm_up=30)


@pytest.fixture(scope="module")
def traffic() -> RecordedTraffic:
    (data,) = survey([own_traces("samples")])
    needs = FeatureSet(DENSE[data.kind]).needs
    return make_traffic(read_runs(data, needs, probe_tokens=ASKED.probe_tokens, longest=data.longest))


def replayed(executor: Executor | None = None, **changes: object) -> OnlineReport:
    (data,) = survey([own_traces("samples")])
    options = replace(ASKED, **changes)  # type: ignore[arg-type]  # fields of the question
    return replay_online(data, options, executor=executor)


def test_the_object_of_a_set_has_the_keys_of_the_contract_and_a_small_set_is_called_small() -> None:
    plain = replayed().plain()
    assert set(plain) >= KEYS
    assert plain["too_small"] is True
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain


@pytest.mark.slow
@pytest.mark.parametrize("executor", [PoolExecutor(2), RayExecutor(2)], ids=str)
def test_the_same_seed_gives_the_same_in_this_process_in_two_and_on_ray(executor: Executor) -> None:
    assert replayed().seeds == replayed(executor).seeds


def test_while_everything_runs_in_full_only_decided_votes_save_and_nothing_is_lost(traffic: RecordedTraffic) -> None:
    plan = Plan(warm_up=10_000)
    stream = run_stream(traffic, Certifier(plan, learner_of(traffic.chosen)), np.random.default_rng(0))
    assert stream.audit.all()
    assert not stream.z.any()
    runs = traffic.runs
    saved = 1 - runs.cost[runs.last].sum() / runs.full.sum()
    assert 0 < saved < 0.5, "recorded votes are decided before their last sample, and never before their half"
    assert stream.reduction(slice(None), probes=False) == pytest.approx(saved)


@pytest.mark.slow
def test_audits_cost_their_run_up_to_the_sample_that_decides_it_and_lose_nothing(traffic: RecordedTraffic) -> None:
    plan = Plan(max_em_drop=0.3, warm_up=60, refit_every=20)
    rng = np.random.default_rng(1)
    keeper = Certifier(plan, learner_of(traffic.chosen))
    shuffled = traffic.take(rng.permutation(len(traffic)))
    stream = run_stream(shuffled, keeper, rng, period=10)
    assert not stream.z[stream.audit].any()
    until_decided = shuffled.runs.cost[shuffled.runs.last]
    assert stream.tokens[stream.audit] == pytest.approx(until_decided[stream.audit])
    assert (stream.tokens <= until_decided).all(), "no level pays for a sample behind the decision"
    assert (stream.level > 0).any(), "a budget of thirty points is certified on a hundred runs"
    assert stream.reduction(slice(None)) > 0


@pytest.mark.slow
def test_labels_that_have_not_come_certify_nothing_that_disagrees(traffic: RecordedTraffic) -> None:
    plan = Plan(max_em_drop=0.3, warm_up=60, refit_every=20, label_free=True)
    late = replace(traffic, runs=replace(traffic.runs, label_at=np.full(len(traffic), np.inf)))
    unlabelled = replace(plan, label_free=False)
    streams = [
        run_stream(late, Certifier(one, learner_of(traffic.chosen)), np.random.default_rng(2), period=10)
        for one in (plan, unlabelled)
    ]
    assert (streams[0].level == streams[1].level).all(), "no label is the same as none asked for"


def test_a_drift_tells_when_the_level_kept_the_budget_again() -> None:
    report = replayed(drift=parse_drift("relabel=1.0@0.5"))
    assert report.drift_at is not None
    assert set(report.plain()) >= {"recovery_requests", "drift", "alarmed"}


@pytest.mark.parametrize("text", ["em=0.5", "em=2@0.5", "model=a@0.5", "class=hard@0.5", "weather=bad@0.5", "em=0.5@1"])
def test_a_drift_that_cannot_be_read_is_answered_with_what_is_allowed(text: str) -> None:
    with pytest.raises(ConfigError, match="allowed: em="):
        parse_drift(text)


@pytest.mark.parametrize("other", [{"warm_up": 30}, {"warm_up": None, "promise": "budgeted"}])
def test_a_start_by_share_has_no_full_runs_first_and_a_certificate(other: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="--by-share: "):
        replayed(ramps=True, **other)  # type: ignore[arg-type]


def test_a_start_by_share_stops_requests_of_a_stream_that_a_burst_serves_in_full() -> None:
    by_share, burst = (replayed(warm_up=None, n_seeds=1, ramps=ramps) for ramps in (True, False))
    assert burst.warm_up == 120
    assert by_share.warm_up == 0
    assert by_share.mean("audits") < burst.mean("audits")

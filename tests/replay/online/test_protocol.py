"""Seeds, halves and what they come to: the figures of the contract, and what each harder question really asks."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from suffice.certification.plan import Plan
from suffice.control.evidence.cold_start import burst_of, burst_requests, live_plan
from suffice.errors import ConfigError
from suffice.executor import PoolExecutor
from suffice.learn.version import FoldedModels
from suffice.replay.online.drift import draw_order, parse_drift
from suffice.replay.online.protocol import (
    OnlineOptions,
    OnlineReport,
    Seed,
    TrueDrop,
    replay_online,
    run_seed,
    stream_plan,
)
from suffice.replay.online.stream import RecordedTraffic
from suffice.settings import Control, Route
from suffice.types import Epoch
from tests.learn.runs_made import TOKENS, audits
from tests.replay.online.made import surveyed, traffic_of

ASKED = OnlineOptions(max_em_drop=0.2, n_seeds=2, warm_up=100, period=50)


def uneven(n_questions: int = 60) -> RecordedTraffic:
    """Question i has 1 to 20 requests of two steps, none of which loses anything."""
    question = [f"q{i}" for i in range(n_questions) for _ in range(1 + (7 * i) % 20)]
    runs = audits([[0.9, 0.9]] * len(question))
    return replace(traffic_of(runs, question=tuple(question)), runs=runs, probes=np.zeros(len(runs.x)))


def seed_of(traffic: RecordedTraffic, number: int = 0, **asked: Any) -> Seed:
    return run_seed(replace(ASKED, **asked), traffic, number)


def plan_of(traffic: RecordedTraffic, **asked: Any) -> Plan:
    return stream_plan(replace(ASKED, **asked), traffic)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes_with_one_process_and_with_two(tmp_path: Path) -> None:
    data = surveyed(tmp_path, n_runs=250, n_questions=50)
    asked = replace(ASKED, max_em_drop=0.3)
    found = [json.dumps(replay_online(data, asked, executor=PoolExecutor(n)).plain()) for n in (1, 2)]
    assert found[0] == found[1]
    plain = json.loads(found[0])
    assert plain["token_reduction_second_half"] > 0.1, "something was stopped in it"
    other = replay_online(data, replace(ASKED, max_em_drop=0.3, seed=7)).plain()
    assert other["token_reduction"] != plain["token_reduction"]


def test_each_row_comes_once_in_an_order_of_the_seed() -> None:
    traffic = uneven()
    orders = [draw_order(traffic, np.random.default_rng(seed)) for seed in (0, 0, 1)]
    for which, at, learns in orders:
        assert sorted(which.tolist()) == list(range(len(traffic)))
        assert at is None
        assert learns is None
    assert np.array_equal(orders[0][0], orders[1][0])
    assert not np.array_equal(orders[0][0], orders[2][0])


@pytest.mark.slow(keep=2)
@pytest.mark.parametrize("seed", range(5))
def test_disjoint_takes_evidence_from_half_of_the_questions_and_figures_from_the_other(seed: int) -> None:
    """Each stop of the other half loses, and saves half of a run: the one is twice the other if all are counted."""
    traffic = uneven()
    which, _, learns = draw_order(traffic, np.random.default_rng(seed), disjoint=True)
    assert learns is not None
    n_first = int(learns.sum())
    assert learns[:n_first].all(), "first in the stream"
    first = {traffic.question[i] for i in which[:n_first]}
    second = {traffic.question[i] for i in which[n_first:]}
    assert not first & second
    assert len(first) == len(second) == 30
    assert n_first != len(which) // 2, "by questions, not by requests"

    rows = np.isin(np.array(traffic.question), sorted(second))[traffic.runs.run_of_row]
    ends = np.isin(np.arange(len(rows)), traffic.runs.last)
    z = np.where(rows & ~ends, 1, 0).astype(np.int8)
    late = replace(traffic, runs=replace(traffic.runs, z=z, d=z != 0, full=np.full(len(traffic), 2 * TOKENS)))
    found = seed_of(late, seed, disjoint=True)
    assert found.drop_late > 0.5, "what the second half loses is no evidence"
    assert found.alarms == 0
    assert found.reduction_late == pytest.approx(found.drop_late / 2)


@pytest.mark.slow
def test_disjoint_stops_looking_for_evidence_where_none_comes() -> None:
    traffic = uneven(300)
    found = seed_of(traffic, disjoint=True, max_em_drop=0.005, warm_up=500)
    assert found.course.audits[-1] < 0.2, "the thin share, not half of the requests to the end"


@pytest.mark.parametrize("n", [100, 1_000, 5_000])
def test_resample_draws_whole_questions(n: int) -> None:
    traffic = uneven()
    which, _, _ = draw_order(traffic, np.random.default_rng(n), resample=n)
    assert len(which) == n
    times = Counter(which.tolist())
    size = Counter(traffic.question)
    uneven_questions = 0
    for question in {traffic.question[i] for i in times}:
        each = [times[i] for i in range(len(traffic)) if traffic.question[i] == question]
        assert len(each) == size[question]
        uneven_questions += len(set(each)) > 1
    assert uneven_questions <= 1 + n // 100, "the last one drawn may be cut, and its rows are scattered"


def test_resampled_and_disjoint_are_marked(tmp_path: Path) -> None:
    data = surveyed(tmp_path, n_runs=120, n_questions=40)
    assert replay_online(data, replace(ASKED, n_seeds=1, resample=150)).plain()["resampled"] is True
    plain = replay_online(data, replace(ASKED, n_seeds=1, disjoint=True)).plain()
    assert (plain["disjoint"], plain["resampled"]) == (True, False)


def test_the_numbers_are_those_of_the_live_loop() -> None:
    control = Control()
    for max_em_drop in (0.01, 0.02, 0.05):
        route = Route(upstream="up", kind="samples", samples=8, mode="enforce", max_em_drop=max_em_drop)
        epoch = Epoch(
            route="r",
            number=1,
            at=0,
            since_seq=0,
            reason="",
            author="",
            kept=(),
            burst=burst_of(route, control),
            max_em_drop=max_em_drop,
            confidence=0.95,
            promise="certified",
        )
        assert plan_of(uneven(), max_em_drop=max_em_drop, warm_up=None) == live_plan(route, control, epoch)


@pytest.mark.parametrize(("max_em_drop", "n"), [(0.01, 2_400), (0.02, 1_200), (0.05, 480), (0.001, 8_000)])
def test_the_warm_up_is_the_burst_that_serve_begins_with_unless_given(max_em_drop: float, n: int) -> None:
    plan = plan_of(uneven(), max_em_drop=max_em_drop, warm_up=None)
    assert (plan.warm_up, plan.burst) == (n, n) == (burst_requests(Control(), max_em_drop),) * 2
    assert plan_of(uneven(), warm_up=7).warm_up == 7


def test_where_full_runs_pay_for_probes_they_are_not_all_audits() -> None:
    assert plan_of(uneven()).free_audits
    probed = traffic_of(audits([[0.9, 0.9]] * 60))
    assert not plan_of(probed).free_audits


def test_a_label_delay_is_a_time_out_too() -> None:
    assert plan_of(uneven(), label_delay=(200, 300)).label_timeout == 300


def test_a_drift_is_met_with_the_same_numbers_as_no_drift() -> None:
    plans = [plan_of(uneven(), max_em_drop=0.02, drift=spec) for spec in (None, parse_drift("relabel=0.5@0.5"))]
    assert plans[0] == plans[1]
    assert plans[0].window == 800


def test_labels_that_come_after_the_end_certify_nothing_that_disagrees() -> None:
    traffic = uneven()
    ends = np.isin(np.arange(len(traffic.runs.x)), traffic.runs.last)
    right = replace(traffic, runs=replace(traffic.runs, d=~ends))
    soon = seed_of(right)
    late = seed_of(right, label_delay=(10_000, 10_000))
    assert soon.reduction > 0.1
    assert late.reduction == 0.0


def test_a_drift_to_another_kind_of_run_is_refused(tmp_path: Path) -> None:
    data = surveyed(tmp_path, n_runs=60)
    later = surveyed(tmp_path, kind="reasoning", n_runs=60, name="chains.parquet")
    with pytest.raises(ConfigError, match="chains contains reasoning, made contains samples"):
        replay_online(data, replace(ASKED, drift=parse_drift("set=chains.parquet@0.5")), later=later)


class _Level:
    """A keeper as the judge of a drift sees it."""

    def __init__(self, now: float, served: FoldedModels | None, version: int, level: int) -> None:
        self.now, self.served, self.version, self.level = now, served, version, level


def test_recovery_counts_from_the_drift_to_the_last_time_that_the_budget_was_broken() -> None:
    runs = audits([[0.9, 0.9]] * 400, z=[[0, 0]] * 200 + [[1, 0]] * 200)
    served = FoldedModels(models=(lambda x: x[:, 0],) * 5, levels=np.tile([-np.inf, 1.0], (5, 1)), cost_exponent=0.0)

    def recovery(*looks: tuple[float, int], at: int = 200) -> int | None:
        truth = TrueDrop(traffic_of(runs), parse_drift("em=0.5@0.5"), at)
        for version, (now, level) in enumerate(looks):
            truth.observe(_Level(now, served, version, level))  # type: ignore[arg-type]  # what it reads of a certifier
        return truth.recovery(0.02)

    assert recovery((100, 1), (200, 0), (300, 0)) == 0
    assert recovery((100, 1), (200, 1), (300, 0), (400, 0)) == 100
    assert recovery((100, 1), (200, 1), (300, 0), (350, 1), (400, 0)) == 200
    assert recovery((100, 1), (200, 1), (300, 1), (400, 1)) is None
    assert recovery((100, 1), (300, 0), (400, 0), at=210) == 90, "between two looks the level of the first is in force"
    assert recovery((100, 0), (300, 0), (400, 0), at=210) == 0


def report(*recoveries: int | None, drop: float = 0.0) -> OnlineReport:
    seed = replace(seed_of(uneven(10), warm_up=10_000), drift_at=10, false_alarms=0, loss_above_budget=0.0)
    seeds: tuple[Seed, ...] = tuple(replace(seed, recovery=one, drop_late=drop) for one in recoveries)
    options = OnlineOptions(max_em_drop=0.02, drift=parse_drift("em=0.5@0.5"))
    return OnlineReport(set="made", options=options, n_rows=2_000, n_questions=60, seeds=seeds)


def test_seeds_that_never_come_back_are_not_left_out_of_the_median() -> None:
    assert report(100, 300, 500).plain()["recovery_requests"] == 300
    assert report(0, 100, None).plain()["recovery_requests"] == 100
    mostly = report(0, None, None).plain()
    assert mostly["recovery_requests"] is None
    assert mostly["recovered"] == pytest.approx(1 / 3)


def test_violations_are_seeds_over_the_budget_and_a_drop_of_just_the_budget_is_none() -> None:
    assert report(0, 0, drop=0.02).plain()["violations"] == 0
    over = replace(report(0, 0, 0, 0), seeds=(*report(0, drop=0.021).seeds, *report(0, 0, 0).seeds)).plain()
    assert over["violations"] == 0.25
    assert over["violations_interval"] == pytest.approx([0.00631, 0.80588], abs=1e-4), "Clopper-Pearson of 1 in 4"


@pytest.mark.parametrize(
    ("rows", "questions", "small"),
    [
        (999, 60, True),
        (1_000, 49, True),
        (1_000, 50, False),
        (50_000, 49, True),
    ],
)
def test_too_small_begins_below_1000_rows_or_50_questions(rows: int, questions: int, *, small: bool) -> None:
    assert replace(report(0), n_rows=rows, n_questions=questions).too_small is small

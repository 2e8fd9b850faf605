"""Runs that take time and labels that come late: when they come, and what the loop makes of them until then."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from suffice.arrays import Floats
from suffice.certification.certifier import Certifier
from suffice.certification.evidence import CertifierDecision, Change, Evidence
from suffice.certification.plan import Plan
from suffice.learn.audits import AuditRuns
from suffice.learn.version import FoldedModels
from suffice.replay.online.protocol import OnlineOptions, run_seed, stream_plan
from suffice.replay.online.stream import RecordedTraffic, add_times, run_stream
from tests.learn.runs_made import believing
from tests.replay.online.made import made_up

PLAN = Plan(max_em_drop=0.05, warm_up=200, burst=200, refit_every=200, window=320, n_levels=9, watches_signals=False)


def timed(
    traffic: RecordedTraffic, run_time: float, label_delay: tuple[int, int] = (0, 0), seed: int = 0
) -> RecordedTraffic:
    return add_times(traffic, run_time=run_time, label_delay=label_delay, rng=np.random.default_rng(seed))


def test_a_run_takes_time_in_proportion_to_its_tokens() -> None:
    traffic = made_up(500, 0)
    duration = timed(traffic, 120).duration
    tokens = traffic.runs.cost[traffic.runs.last]
    assert duration.mean() == pytest.approx(120)
    assert duration / tokens == pytest.approx(120 / tokens.mean())
    assert len(set(duration.tolist())) > 2
    assert not timed(traffic, 0).duration.any()


def test_a_label_comes_that_many_requests_after_its_run() -> None:
    traffic = made_up(4_000, 1)
    delay = timed(traffic, 0, (500, 500)).runs.label_at - traffic.runs.at
    assert set(delay.tolist()) == {500.0}
    slow = timed(traffic, 100, (3, 7))
    delay = slow.runs.label_at - traffic.runs.at - slow.duration
    counts = np.unique(np.round(delay, 6), return_counts=True)
    assert counts[0].tolist() == [3, 4, 5, 6, 7]
    assert counts[1].min() > 700
    assert np.array_equal(slow.runs.label_at, timed(traffic, 100, (3, 7)).runs.label_at)
    assert not np.array_equal(slow.runs.label_at, timed(traffic, 100, (3, 7), seed=1).runs.label_at)


def test_a_fixed_delay_leaves_the_lots_as_they_were() -> None:
    rng, other = np.random.default_rng(0), np.random.default_rng(0)
    add_times(made_up(50, 0), run_time=30.0, label_delay=(9, 9), rng=rng)
    assert rng.random() == other.random()


def test_an_audit_counts_by_the_longest_delay() -> None:
    for delay in ((200, 800), (200, 200)):
        plan = stream_plan(OnlineOptions(label_delay=delay), made_up(100, 0))
        assert plan.label_timeout == delay[1]


def one_in_ten(*, loses: bool) -> tuple[RecordedTraffic, Floats]:
    """Every tenth request, which no model can tell from the others, and how long each run takes: it the longest."""
    traffic = made_up(2_000, 2)
    runs, marked = traffic.runs, np.arange(2_000) % 10 == 0
    ends = np.isin(np.arange(len(runs.x)), runs.last)
    z = (marked[runs.run_of_row] & ~ends & loses).astype(np.int8)
    x = runs.x.copy()
    x[:, 0] = 0.9
    return replace(traffic, runs=replace(runs, x=x, z=z, d=z != 0)), np.where(marked, 300.0, 1.0)


def served(traffic: RecordedTraffic) -> list[tuple[float, int, int]]:
    """Request, level and audits that count as lost because they have not returned, at each look."""
    looks: list[tuple[float, int, int]] = []

    def watch(keeper: Certifier) -> None:
        lost = 0 if keeper.epoch.certificate is None else keeper.epoch.certificate.n_pending
        looks.append((keeper.now, keeper.level, lost))

    run_stream(traffic, Certifier(PLAN, believing), np.random.default_rng(0), period=50, watch=watch)
    return looks


def test_a_slow_run_counts_as_lost_until_it_is_back() -> None:
    harmless, slow = one_in_ten(loses=False)
    at_once, late = served(harmless), served(replace(harmless, duration=slow))
    first, first_late = (next(now for now, level, _ in looks if level) for looks in (at_once, late))
    assert first == 200, "instant returns are certified behind the burst"
    assert first_late > 300, "a tenth is not back at first: it counts as lost, and 10 % are over the budget"
    assert all(lost == 0 for _, _, lost in at_once)
    assert late[-1][1] == at_once[-1][1] > 0, "once they are back the level is that of instant returns"


def test_a_slow_loser_is_never_forgotten() -> None:
    losing, slow = one_in_ten(loses=True)
    for traffic in (losing, replace(losing, duration=slow)):
        assert not any(level for _, level, _ in served(traffic)), "whatever has returned, a tenth loses"


class OneAlarm:
    """Audits everything, and begins a new epoch at request 300."""

    def __init__(self) -> None:
        self.now, self.level, self.share, self.in_burst = 0.0, 0, 1.0, True
        self.served: FoldedModels | None = None
        self.taken: list[float] = []

    def add_audits(self, runs: AuditRuns) -> None:
        self.taken += runs.at.tolist()

    def look(self, evidence: Evidence) -> CertifierDecision:
        self.now = evidence.at
        ended = Change(kind="epoch", at=self.now, level=0, reason="a new epoch")
        return CertifierDecision(self.level, (ended,) if self.now == 300 else ())


def test_whoever_was_asked_in_another_epoch_says_nothing_in_this_one() -> None:
    design = OneAlarm()
    traffic = replace(made_up(600, 3), duration=np.full(600, 120.0))
    run_stream(traffic, design, np.random.default_rng(0), period=50)
    assert design.taken == [*range(180), *range(300, 480)]


@pytest.mark.slow
def test_a_replay_with_run_times_serves_later_and_no_more() -> None:
    traffic, _ = one_in_ten(loses=False)
    asked = OnlineOptions(max_em_drop=0.1, warm_up=200, period=50)
    at_once, late = (run_seed(replace(asked, run_time=time), traffic, 0) for time in (0, 400))
    assert at_once.reduction > 0.1
    assert late.reduction < at_once.reduction
    assert next(i for i, level in enumerate(late.course.level) if level) > next(
        i for i, level in enumerate(at_once.course.level) if level
    )

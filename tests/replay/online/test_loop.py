"""One stream, step by step: what is paid and lost is what a plain loop over the requests would say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from suffice.arrays import Bools, Floats
from suffice.certification.certifier import Certifier
from suffice.certification.evidence import CertifierDecision, Change, Evidence
from suffice.certification.plan import Plan
from suffice.learn.audits import AuditRuns
from suffice.learn.version import FoldedModels
from suffice.replay.online.stream import RecordedTraffic, Stream, run_stream
from tests.learn.runs_made import believing
from tests.replay.online.made import made_up

PLAN = Plan(max_em_drop=0.2, warm_up=200, burst=200, refit_every=200, window=100, n_levels=9, watches_signals=False)
PERIOD = 50


def streamed(
    traffic: RecordedTraffic, plan: Plan = PLAN, *, seed: int = 0, learns: Bools | None = None
) -> tuple[Stream, list[tuple[FoldedModels | None, int]]]:
    """The stream, and what was in force in each period: the versions and the level."""
    in_force: list[tuple[FoldedModels | None, int]] = [(None, 0)]

    def watch(keeper: Certifier) -> None:
        in_force.append((keeper.served, keeper.level))

    rng = np.random.default_rng(seed)
    return run_stream(traffic, Certifier(plan, believing), rng, period=PERIOD, learns=learns, watch=watch), in_force


def walked(traffic: RecordedTraffic, request: int, served: FoldedModels, level: int) -> int:
    """The row where a request is stopped, by the words of the definition."""
    runs = traffic.runs
    threshold = served.levels[runs.fold[request], level]
    for row in range(runs.starts[request], runs.starts[request + 1]):
        risk = (1 - served.models[runs.fold[request]](runs.x[[row]])[0]) / runs.per_step[row] ** served.cost_exponent
        if runs.may_stop[row] and risk <= threshold:
            return row
    return int(runs.starts[request + 1]) - 1


@pytest.mark.parametrize("seed", range(4))
def test_tokens_probes_and_drops_are_those_of_a_plain_loop(seed: int) -> None:
    traffic = made_up(800, seed)
    stream, in_force = streamed(traffic, seed=seed)
    runs = traffic.runs
    stopped = 0
    for request in range(800):
        served, level = in_force[request // PERIOD]
        assert stream.level[request] == level
        row = int(runs.starts[request + 1]) - 1
        if not stream.audit[request] and served is not None:
            row = walked(traffic, request, served, level)
            stopped += row < runs.starts[request + 1] - 1
        assert stream.z[request] == runs.z[row]
        probes = traffic.probes[row] if stream.audit[request] or level else 0.0
        assert stream.tokens[request] == pytest.approx(runs.cost[row] - traffic.probes[row] + probes)
        assert stream.probes[request] == probes
    assert stopped > 50, "there is something to check"
    assert stream.z.any()
    part = slice(300, 700)
    assert stream.reduction(part) == pytest.approx(1 - sum(stream.tokens[300:700]) / sum(runs.full[300:700]))
    without = sum(stream.tokens[300:700] - stream.probes[300:700])
    assert stream.reduction(part, probes=False) == pytest.approx(1 - without / sum(runs.full[300:700]))
    assert stream.drop(part) == pytest.approx(sum(stream.z[300:700].tolist()) / 400)


def test_audits_cost_their_full_run_with_its_probes_and_lose_nothing() -> None:
    traffic = made_up(800, 1)
    stream, _ = streamed(traffic)
    late = np.arange(800) >= 400
    assert 0 < stream.audit[late].mean() < 1
    audits = stream.audit & late
    last = traffic.runs.last[audits]
    assert np.array_equal(stream.tokens[audits], traffic.runs.full[audits] + traffic.probes[last])
    assert not stream.z[audits].any()


def test_at_level_0_nothing_is_lost_and_only_audits_pay_for_probes() -> None:
    traffic = made_up(600, 2)
    hopeless = replace(traffic, runs=replace(traffic.runs, z=np.abs(traffic.runs.z), d=traffic.runs.z != 0))
    stream, _ = streamed(hopeless, replace(PLAN, max_em_drop=0.001, free_audits=False))
    assert not stream.level.any()
    assert not stream.audit.all(), "some were neither audited nor stopped"
    assert not stream.z.any()
    assert stream.reduction(slice(None), probes=False) == pytest.approx(0.0)
    assert stream.reduction(slice(None)) < 0
    assert not stream.probes[~stream.audit].any(), "without a stop in reach, an answer is not asked for"


def test_the_lots_are_drawn_before_and_do_not_depend_on_what_is_in_a_request() -> None:
    traffic = made_up(800, 3)
    runs = traffic.runs
    other_runs = replace(runs, x=1 - runs.x, z=-runs.z, cost=3 * runs.cost, full=3 * runs.full)
    scrambled = replace(traffic, runs=other_runs)
    plain = replace(PLAN, free_audits=False, watches_outcomes=False)  # the share is the same whatever is found
    (one, _), (other, _) = streamed(traffic, plain), streamed(scrambled, plain)
    assert not np.array_equal(one.level, other.level), "the two are served in different ways"
    assert np.array_equal(one.audit, other.audit)


def test_audits_are_a_fair_sample_of_easy_and_hard_requests() -> None:
    hard: list[float] = []
    for seed in range(6):
        traffic = made_up(800, seed)
        stream, _ = streamed(traffic, seed=seed)
        late = np.flatnonzero(~stream.burst)
        score = traffic.runs.x[traffic.runs.starts[late], 0]
        lots = stream.audit[late]
        spread = float(score.std()) * float(np.sqrt(1 / lots.sum() + 1 / (~lots).sum()))
        hard.append(float(score[lots].mean() - score[~lots].mean()) / spread)
    assert max(map(abs, hard)) < 3


def test_labels_that_come_after_the_stream_change_nothing_in_it() -> None:
    traffic = made_up(800, 4)
    late = replace(traffic, runs=replace(traffic.runs, label_at=np.full(800, 10_000.0)))
    other = replace(late, runs=replace(late.runs, z=np.where(late.runs.d, np.int8(-1), late.runs.z)))
    (one, _), (two, _) = streamed(late), streamed(other)
    assert np.array_equal(one.level, two.level)
    assert np.array_equal(one.tokens, two.tokens)


def test_a_delay_puts_off_what_labels_prove() -> None:
    """Every stop disagrees and is right: without labels nothing can be certified."""
    first: list[int] = []
    for delay in (0, 300):
        traffic = made_up(1_000, 5)
        runs = traffic.runs
        ends = np.isin(np.arange(len(runs.x)), runs.last)
        traffic = replace(
            traffic, runs=replace(runs, z=np.zeros_like(runs.z), d=~ends, label_at=runs.at + float(delay))
        )
        stream, _ = streamed(traffic, replace(PLAN, label_timeout=float(delay), max_em_drop=0.05))
        assert stream.level.any()
        first.append(int(np.flatnonzero(stream.level)[0]))
    assert first[0] == 200, "the warm-up alone suffices"
    # 89 audits prove 5 points, and the label of the 89th comes at request 389.
    assert first[1] == 400


def test_runs_that_take_long_count_as_lost_until_they_are_back() -> None:
    """Every 20th run takes 300 requests: those that began last are not back, and the easy ones alone prove nothing."""
    first: list[int] = []
    for slow in (0.0, 300.0):
        traffic = made_up(1_000, 5)
        traffic = replace(
            traffic,
            duration=np.where(np.arange(1_000) % 20 == 0, slow, 1.0 if slow else 0.0),
            runs=replace(traffic.runs, z=np.zeros_like(traffic.runs.z), d=np.zeros_like(traffic.runs.d)),
        )
        stream, _ = streamed(traffic, replace(PLAN, max_em_drop=0.05))
        first.append(int(np.flatnonzero(stream.level)[0]))
    assert first[0] == 200
    assert 350 < first[1] <= 500, "15 of the last 300 are 5 % of them: nothing passes before the first are back"


def test_hard_runs_that_are_slow_are_heard_before_their_level_is_served() -> None:
    """Every tenth stop loses, and its run takes 400 requests: at no look does what has returned pass for all of it."""
    traffic = made_up(2_000, 6)
    runs = traffic.runs
    hard = np.arange(2_000) % 10 == 0
    ends = np.isin(np.arange(len(runs.x)), runs.last)
    lost = (hard[runs.run_of_row] & ~ends).astype(np.int8)
    x = runs.x.copy()
    x[:, 0] = 0.9  # no model can tell
    slow = replace(traffic, duration=np.where(hard, 400.0, 1.0), runs=replace(runs, x=x, z=lost, d=lost != 0))
    stream, _ = streamed(slow, replace(PLAN, max_em_drop=0.05))
    assert not stream.level.any()
    assert not stream.z.any()


def test_audits_that_are_begun_are_pending_until_they_return_with_the_share_they_were_drawn_at() -> None:
    traffic = replace(made_up(400, 8), duration=np.full(400, 120.0))
    seen: list[tuple[float, int, int]] = []

    def watch(keeper: Certifier) -> None:
        assert (keeper.latest.pending.share == 1.0).all(), "the burst"
        seen.append((keeper.now, len(keeper.latest.pending.at), keeper.epoch.n_audits))

    keeper = Certifier(replace(PLAN, warm_up=500), believing)
    run_stream(traffic, keeper, np.random.default_rng(0), period=PERIOD, watch=watch)
    assert seen[:4] == [(50.0, 50, 0), (100.0, 100, 0), (150.0, 120, 30), (200.0, 120, 80)]


def test_what_is_no_evidence_changes_nothing_but_its_own_cost() -> None:
    traffic, half = made_up(1_000, 6), np.arange(1_000) < 500
    runs = traffic.runs
    late_rows = ~half[runs.run_of_row]
    last = np.isin(np.arange(len(runs.x)), runs.last)
    ruined = np.where(late_rows & ~last, np.int8(1), runs.z).astype(np.int8)
    worse = replace(traffic, runs=replace(runs, z=ruined, d=ruined != 0))
    (one, _), (two, _) = streamed(traffic, learns=half), streamed(worse, learns=half)
    assert one.level[500:].any()
    assert np.array_equal(one.level, two.level), "the second half cannot be heard"
    assert two.drop(slice(500, None)) > one.drop(slice(500, None)), "and what it loses is told"
    (three, _) = streamed(worse)
    assert not np.array_equal(three.level, two.level), "as evidence it would have been"


@pytest.mark.parametrize("n", [1, PERIOD - 1, PERIOD, PERIOD + 1, 401])
def test_a_stream_of_any_length_is_served_to_its_end(n: int) -> None:
    traffic = made_up(n, 7)
    stream, in_force = streamed(traffic)
    assert len(stream.tokens) == n
    assert (stream.tokens > 0).all()
    assert len(in_force) == 1 + -(-n // PERIOD)


class Noticing(Certifier):
    """A keeper that writes down what it is shown of all traffic, and when."""

    def look(self, evidence: Evidence) -> CertifierDecision:
        self.seen += [(evidence.at, signals) for signals in evidence.signals]
        return Certifier.look(self, replace(evidence, signals=()))

    seen: list[tuple[float, Floats]]


@pytest.mark.slow(keep=4)
@pytest.mark.parametrize("period", [1, 10, 70, 100, 250, 1_000])
def test_signals_come_in_batches_of_a_hundred_whatever_the_period_is(period: int) -> None:
    traffic = made_up(730, 8)
    traffic = replace(traffic, early=np.random.default_rng(0).random((730, 2)))
    keeper = Noticing(PLAN, believing)
    keeper.seen = []
    run_stream(traffic, keeper, np.random.default_rng(0), period=period)
    assert len(keeper.seen) == 7
    for number, (now, signals) in enumerate(keeper.seen):
        until = 100 * (number + 1)
        assert np.array_equal(signals, traffic.early[until - 100 : until])
        assert until <= now < until + period, "at the first look behind its last request"


def test_a_design_of_ones_own_is_served_as_the_keeper_is() -> None:
    traffic = made_up(600, 9)

    class Halves:
        """Stops nothing, and audits every second request from the two hundredth on."""

        def __init__(self) -> None:
            self.now, self.level, self.n_taken = 0.0, 0, 0
            self.served: FoldedModels | None = None

        @property
        def in_burst(self) -> bool:
            return self.now < 200

        @property
        def share(self) -> float:
            return 1.0 if self.in_burst else 0.5

        def add_audits(self, runs: AuditRuns) -> None:
            self.n_taken += len(runs)

        def look(self, evidence: Evidence) -> CertifierDecision:
            self.now = evidence.at
            alarm = Change(kind="alarm", at=self.now, level=0, reason="always")
            return CertifierDecision(self.level, (alarm,) * len(evidence.signals))

    design = Halves()
    stream = run_stream(traffic, design, np.random.default_rng(1), period=PERIOD)
    assert stream.burst.sum() == 200
    assert stream.audit[:200].all()
    assert 150 < stream.audit[200:].sum() < 250
    assert design.n_taken == stream.audit.sum()
    assert [change.at for change in stream.changes] == [100, 200, 300, 400, 500, 600]

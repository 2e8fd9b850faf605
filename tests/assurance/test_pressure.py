"""The operating point stays inside what is certified, follows a spike within seconds, and does not flap."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from math import exp

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suffice.assurance.load_level import (
    MOST_DOUBLINGS,
    RAISE_AFTER_S,
    LoadSample,
    Operation,
    Stance,
    level_of,
    strain,
    update_pressure,
)
from suffice.settings import Pressure
from tests.drawn import examples

TARGETS = Pressure(queue=1.0, operating_point=0.6, slack_point=0.2)
STANCES: tuple[Stance, ...] = ("slack", "usual", "spike")
TICK_S = 0.5


@dataclass
class Walk:
    """An operation that is told one queue after the other, and the moves that it made."""

    targets: Pressure = TARGETS
    now_s: float = 1_000.0
    operation: Operation = field(default_factory=Operation)
    moves: list[tuple[float, Stance]] = field(default_factory=list)

    def tell(self, queue: float | None, *, dt_s: float = TICK_S) -> Operation:
        self.now_s += dt_s
        before = self.operation
        self.operation = update_pressure(before, self.targets, LoadSample(queue=queue), now_s=self.now_s)
        if self.operation.stance != before.stance:
            self.moves.append((self.now_s, self.operation.stance))
        assert self.operation.n_moves == len(self.moves)
        assert self.operation.reason
        return self.operation

    def stay(self, queue: Callable[[float], float | None], for_s: float) -> None:
        start_s = self.now_s
        while self.now_s < start_s + for_s:
            self.tell(queue(self.now_s - start_s))


def lowerings(moves: list[tuple[float, Stance]], first: Stance = "usual") -> Iterator[float]:
    """When each move to the safe side was."""
    for at_s, stance in moves:
        if STANCES.index(stance) < STANCES.index(first):
            yield at_s
        first = stance


loads = st.none() | st.floats(0, 10) | st.sampled_from([0.29, 0.31, 0.59, 0.61, 0.69, 0.71, 0.99, 1.0])


@given(told=st.lists(st.tuples(st.floats(0, 40), loads, st.integers(0, 40)), max_size=120))
@settings(max_examples=examples(150))
def test_whatever_is_measured_the_level_is_certified_and_moves_are_rare(
    told: list[tuple[float, float | None, int]],
) -> None:
    walk = Walk()
    for dt_s, queue, certified in told:
        stance = walk.tell(queue, dt_s=dt_s).stance
        level = level_of(stance, TARGETS, certified=certified)
        assert 0 <= level <= certified
    down = list(lowerings(walk.moves))
    assert all(later - earlier >= TARGETS.hold_s for earlier, later in pairwise(down))
    assert len(walk.moves) - len(down) <= len(down) + 1, "up no oftener than down, from where it began"


@given(certified=st.integers(0, 60), point=st.floats(0, 1), slack=st.floats(0, 1))
@settings(max_examples=examples(100))
def test_slack_is_safer_than_usual_and_a_spike_goes_all_the_way(certified: int, point: float, slack: float) -> None:
    targets = Pressure(queue=1.0, operating_point=point, slack_point=min(point, slack))
    levels = [level_of(stance, targets, certified=certified) for stance in STANCES]
    assert levels == sorted(levels)
    assert levels[-1] == certified
    owner_said_nothing = [level_of(stance, None, certified=certified) for stance in STANCES]
    assert set(owner_said_nothing) == {certified}


def test_a_point_is_a_share_of_the_certified_levels_rounded_to_the_safe_side() -> None:
    cases = [(0.5, 40, 20), (0.5, 41, 20), (0.99, 1, 0), (1.0, 1, 1), (0.0, 40, 0), (0.7, 10, 7)]
    for point, certified, level in cases:
        targets = Pressure(queue=1.0, operating_point=point)
        assert level_of("usual", targets, certified=certified) == level


# --------------------------------------------------------------------------- spikes


@dataclass
class Server:
    """A model server as a fluid: runs come in at a rate, each takes a slot for as long as its tokens take."""

    slots: float
    run_s: dict[Stance, float]
    open: float = 0.0  # runs inside, served and waiting
    queue: float = 0.0  # smoothed as the gateway does, over slots

    def step(self, per_s: float, stance: Stance, dt_s: float = TICK_S) -> float:
        done = min(self.open, self.slots) / self.run_s[stance] * dt_s
        self.open = max(0.0, self.open + per_s * dt_s - done)
        self.queue += (self.open / self.slots - self.queue) * (1 - exp(-dt_s / 2.0))
        return self.queue


RUN_S: dict[Stance, float] = {"slack": 4.0, "usual": 3.0, "spike": 2.0}


def served(walk: Walk, server: Server, per_s: Callable[[float], float], for_s: float) -> None:
    walk.stay(lambda t: server.step(per_s(t), walk.operation.stance), for_s)


@pytest.mark.parametrize("phase_s", [0.0, 0.1, 0.3, 0.45])
@pytest.mark.parametrize("times", [5.0, 8.0])
def test_a_spike_reaches_the_most_aggressive_level_within_ten_seconds_and_comes_back_in_one_move(
    times: float, phase_s: float
) -> None:
    walk, server = Walk(Pressure(queue=1.0, operating_point=0.6)), Server(slots=10, run_s=RUN_S)
    walk.now_s += phase_s
    quiet = lambda t: 1.5  # 45 % of the slots at the usual level
    served(walk, server, quiet, 60)
    assert walk.moves == []
    start_s = walk.now_s
    served(walk, server, lambda t: times * 1.5 if t < 30 else 1.5, 400)
    (up_s, up), (down_s, down) = walk.moves
    assert up == "spike"
    assert up_s - start_s <= 10
    assert (down, down_s - start_s > 30 + walk.targets.hold_s) == ("usual", True)
    assert "queue" in walk.operation.reason


def test_with_slack_the_level_is_safer_and_a_spike_out_of_slack_takes_no_detour() -> None:
    walk, server = Walk(), Server(slots=10, run_s=RUN_S)
    served(walk, server, lambda t: 0.5, 120)
    assert [stance for _, stance in walk.moves] == ["slack"]
    start_s = walk.now_s
    served(walk, server, lambda t: 7.5, 20)
    assert walk.moves[-1][1] == "spike"
    assert walk.moves[-1][0] - start_s <= 10
    assert len(walk.moves) <= 3


def test_a_load_that_our_own_moves_push_over_the_target_and_back_does_not_make_us_swing() -> None:
    """At the usual level the load is above its target, at the thrifty one far below: the worst case for any rule."""
    walk = Walk(Pressure(queue=1.0, operating_point=0.6))
    walk.stay(lambda t: 0.5 if walk.operation.stance == "spike" else 1.2, 3_600)
    without_memory = 2 * 3_600 / (walk.targets.hold_s + RAISE_AFTER_S)
    assert len(walk.moves) < without_memory / 8
    gaps = [later - earlier for (earlier, _), (later, _) in pairwise(walk.moves[-4:])]
    assert max(gaps) >= walk.targets.hold_s * 2**MOST_DOUBLINGS


def test_after_a_long_calm_the_hold_is_short_again() -> None:
    walk = Walk(Pressure(queue=1.0, operating_point=0.6))
    walk.stay(lambda t: 0.5 if walk.operation.stance == "spike" else 1.2, 1_000)
    assert walk.operation.n_doublings >= 3
    walk.stay(lambda t: 0.5, 3_000)
    walk.stay(lambda t: 1.5, 10)
    assert (walk.operation.stance, walk.operation.n_doublings) == ("spike", 0)


# --------------------------------------------------------------------------- noise


@pytest.mark.no_cover
@pytest.mark.parametrize("mean", [0.3, 0.6, 0.7, 1.0, 1.3])
@pytest.mark.parametrize("noise", [0.05, 0.2])
@pytest.mark.parametrize("start", STANCES)
def test_noise_about_a_threshold_makes_no_storm_of_moves(mean: float, noise: float, start: Stance) -> None:
    rng = random.Random(7)
    walk = Walk(operation=Operation(stance=start))
    walk.stay(lambda t: max(0.0, rng.gauss(mean, noise)), 1_800)
    assert len(walk.moves) <= 4, "half an hour of noise: from any stance to where it belongs, and hardly ever again"


@pytest.mark.parametrize(("start", "low", "high"), [("spike", 0.72, 5.0), ("slack", 0.0, 0.58), ("usual", 0.32, 0.98)])
def test_each_stance_has_a_band_of_loads_that_it_stays_in_for_ever(start: Stance, low: float, high: float) -> None:
    rng = random.Random(5)
    walk = Walk(operation=Operation(stance=start))
    walk.stay(lambda t: rng.choice([low, high]), 900)
    walk.stay(lambda t: low, 900)
    walk.stay(lambda t: high, 900)
    assert walk.moves == []


def test_a_single_outlier_moves_nothing() -> None:
    walk = Walk()
    walk.stay(lambda t: 50.0 if t == 5.0 else 0.5, 60)
    assert walk.moves == []


# --------------------------------------------------------------------------- what is not known


def test_the_worst_of_all_targets_counts_and_what_has_no_target_does_not() -> None:
    load = LoadSample(queue=0.5, latency_s=9.0, tokens_per_s=1e9, usd_per_hour=3.0)
    worst = strain(Pressure(queue=1.0, latency_s=10.0, usd_per_hour=2.0), load)
    assert worst is not None
    assert (worst.name, worst.share) == ("usd_per_hour", 1.5)
    assert str(worst) == "usd_per_hour 3 is 1.50 of its target 2"
    assert strain(Pressure(latency_s=1.0), LoadSample(queue=9.0)) is None
    assert strain(Pressure(queue=1.0), LoadSample(queue=float("nan"))) is None


def test_what_is_unknown_is_no_pressure_and_no_slack() -> None:
    walk = Walk()
    walk.stay(lambda t: None, 300)
    assert walk.moves == []
    walk.stay(lambda t: 2.0, 5)
    walk.stay(lambda t: None, 300)
    assert [stance for _, stance in walk.moves] == ["spike", "usual"]


def test_a_pause_in_looking_is_no_evidence_of_what_happened_in_it() -> None:
    walk = Walk()
    walk.tell(1.5)
    assert walk.tell(1.5, dt_s=60).stance == "usual"
    assert walk.tell(1.5, dt_s=RAISE_AFTER_S).stance == "spike"


def test_a_clock_that_goes_back_moves_nothing_and_stops_nothing() -> None:
    walk = Walk()
    walk.stay(lambda t: 1.5, 1.0)
    at_s = walk.operation.at_s
    assert walk.tell(1.5, dt_s=-500).at_s == at_s
    walk.now_s = at_s
    walk.stay(lambda t: 1.5, 2.0)
    assert [stance for _, stance in walk.moves] == ["spike"]

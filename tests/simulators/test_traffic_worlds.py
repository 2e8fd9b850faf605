"""Simulated traffic shows its stated phenomena in the stated amounts, and follows from its seed."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.simulators.traffic_worlds import (
    EARLY,
    FEATURES,
    HARSH,
    MANY,
    NEVER,
    SCENARIOS,
    USUAL,
    WORLDS,
    ArrivalRate,
    ClassWorld,
    LabelDelays,
    Path,
    Scenario,
    SimulatedTraffic,
    arrival_times,
    in_world,
    label_times,
    simulate,
    spiked,
)

N = 40_000


@pytest.fixture(scope="module")
def usual() -> SimulatedTraffic:
    return in_world(USUAL, N, seed=1)


def oracle_saving(traffic: SimulatedTraffic) -> float:
    """Share of tokens saved, net of probes, if each run ends at the first step as good as its end."""
    good = np.where(traffic.z <= 0, traffic.cost, np.inf)
    return float(1 - np.minimum.reduceat(good, traffic.starts[:-1]).sum() / traffic.full.sum())


def p_good(traffic: SimulatedTraffic, rows: NDArray[np.bool_]) -> float:
    """P(a stop is as good as the full run) over some rows."""
    return float((traffic.z[rows] <= 0).mean())


def test_classes_differ_in_accuracy_and_length_as_stated(usual: SimulatedTraffic) -> None:
    for at, (p_right, steps) in enumerate([(0.957, 6.0), (0.83, 8.9), (0.585, 11.9), (0.71, 10.75)]):
        mine = usual.query_class == at
        assert float(usual.right[mine].mean()) == pytest.approx(p_right, abs=0.02)
        assert float(usual.n_steps[mine].mean()) == pytest.approx(steps, abs=0.2)
        assert float(mine.mean()) == pytest.approx(USUAL.classes[at].share, abs=0.01)


@pytest.mark.parametrize(
    ("name", "saving", "early_good"),
    [
        ("usual", 0.72, 0.69),
        ("harsh", 0.72, 0.67),
        ("stealth", 0.705, 0.675),
        ("benign", 0.72, 0.72),
        ("harder", 0.73, 0.64),
        ("swapped", 0.687, 0.767),
    ],
)
def test_what_an_oracle_would_save_and_how_good_an_early_stop_is(name: str, saving: float, early_good: float) -> None:
    traffic = in_world(WORLDS[name], N, seed=2)
    assert oracle_saving(traffic) == pytest.approx(saving, abs=0.01)
    assert p_good(traffic, traffic.step == 2) == pytest.approx(early_good, abs=0.015)


def test_probing_every_step_costs_almost_five_percent(usual: SimulatedTraffic) -> None:
    probed = float(usual.cost[usual.starts[1:] - 1].sum() / usual.full.sum())
    assert probed - 1 == pytest.approx(0.048, abs=0.003)


def test_signals_tell_when_a_stop_is_good(usual: SimulatedTraffic) -> None:
    def rises(values: list[float]) -> bool:
        return all(a < b for a, b in pairwise(values))

    confidence = usual.x[:, FEATURES.index("confidence")]
    edges = np.quantile(confidence, np.linspace(0, 1, 9))
    by_confidence = [p_good(usual, (confidence >= a) & (confidence <= b)) for a, b in pairwise(edges)]
    assert rises(by_confidence)
    assert by_confidence[0] < 0.55
    assert by_confidence[-1] > 0.99
    streak = np.exp(usual.x[:, FEATURES.index("log_streak")])
    assert rises([p_good(usual, np.isclose(streak, n)) for n in (1, 2, 3, 4)])
    assert rises([p_good(usual, usual.step == n) for n in range(1, 7)])


def lost_when_sure(traffic: SimulatedTraffic) -> float:
    """Share of lost answers among stops at high confidence with an answer stable for three steps."""
    confidence, streak = (traffic.x[:, FEATURES.index(name)] for name in ("confidence", "log_streak"))
    return float((traffic.z > 0)[(confidence > 1.5) & (streak > np.log(2.5))].mean())


def test_some_wrong_answers_are_held_with_confidence_and_corrected_late(usual: SimulatedTraffic) -> None:
    assert 0.004 < lost_when_sure(usual) < 0.02, "what a careless threshold pays for"
    assert lost_when_sure(in_world(HARSH, N, seed=1)) > 3 * lost_when_sure(usual)


def test_more_thought_destroys_some_right_answers(usual: SimulatedTraffic) -> None:
    gained = usual.z < 0
    prone = usual.query_class[usual.run] == 3
    assert float(gained[prone].mean()) > 2.5 * float(gained[~prone].mean()) > 0


def test_the_silent_drift_moves_the_outcome_and_not_the_signals(usual: SimulatedTraffic) -> None:
    def batch_shift(other: SimulatedTraffic) -> float:
        """Largest shift of an early signal, in standard errors of a batch of 100."""
        sem = usual.early.std(axis=0) / 10
        return float((np.abs(other.early.mean(axis=0) - usual.early.mean(axis=0)) / sem).max())

    assert batch_shift(in_world(WORLDS["stealth"], N, seed=3)) < 0.75, "below a drift detector's slack"
    assert batch_shift(in_world(WORLDS["harsh"], N, seed=3)) > 3
    assert lost_when_sure(in_world(WORLDS["stealth"], N, seed=3)) > 2 * lost_when_sure(usual)


@pytest.mark.parametrize("name", sorted(SCENARIOS))
def test_every_scenario_is_sound_and_follows_from_its_seed(name: str) -> None:
    traffic, again = (simulate(SCENARIOS[name], 2_000, seed=5) for _ in range(2))
    other = simulate(SCENARIOS[name], 2_000, seed=6)
    assert np.array_equal(traffic.x, again.x)
    assert np.array_equal(traffic.cost, again.cost)
    assert not np.array_equal(traffic.full, other.full)
    last = traffic.starts[1:] - 1
    assert not traffic.d[last].any()
    assert not traffic.z[last].any(), "the last step is the full run"
    assert np.all((traffic.z == 0) | traffic.d), "who agrees loses nothing"
    assert np.isfinite(traffic.x).all()
    assert traffic.x.shape == (len(traffic.z), len(FEATURES))
    assert traffic.early.shape == (2_000, len(EARLY))
    assert np.all(np.diff(traffic.cost)[np.diff(traffic.run) == 0] > 0)
    assert set(np.diff(traffic.run).tolist()) == {0, 1}
    assert 3 <= traffic.n_steps.min() <= traffic.n_steps.max() <= 16


def mean_early(traffic: SimulatedTraffic, part: slice) -> float:
    return float(traffic.early[part, 0].mean())


def test_gradual_drift_goes_along_a_line_and_seasons_come_back() -> None:
    ramp = Path(shape="ramp", at=5_000, over=10_000)
    gradual = simulate(Scenario(name="g", says="", after=HARSH, path=ramp), 20_000, seed=7)
    first, middle, end = (mean_early(gradual, slice(a, a + 4_000)) for a in (1_000, 8_000, 16_000))
    assert first == pytest.approx(0.95, abs=0.1)
    assert end == pytest.approx(1.63, abs=0.1)
    assert middle == pytest.approx((first + end) / 2, abs=0.1)
    seasonal = simulate(SCENARIOS["seasonal"], 10_000, seed=7)
    hard = [float((seasonal.query_class[a : a + 1_000] == 2).mean()) for a in range(0, 10_000, 1_000)]
    assert hard[2] > hard[0] + 0.1
    assert hard[2] > hard[4] + 0.1
    assert hard[7] > hard[9] + 0.1, "and again"


def test_many_small_classes_are_of_unequal_size() -> None:
    sizes = np.bincount(simulate(SCENARIOS["many"], 20_000, seed=8).query_class, minlength=len(MANY.classes))
    assert len(sizes) == 24
    assert np.median(sizes) < 900 < sizes.max()
    assert sizes.min() > 0


@pytest.mark.parametrize("law", ["fixed", "geometric"])
def test_labels_come_late_and_mostly_for_wrong_answers(
    usual: SimulatedTraffic, law: Literal["fixed", "geometric"]
) -> None:
    labels = LabelDelays(delay=law, mean_delay=500, p_when_right=0.05, p_when_wrong=0.4)
    times = label_times(usual, labels, seed=9)
    come = times != NEVER
    assert float(come[usual.right].mean()) == pytest.approx(0.05, abs=0.01)
    assert float(come[~usual.right].mean()) == pytest.approx(0.4, abs=0.02)
    delay = (times - np.arange(len(times)))[come]
    assert float(delay.mean()) == pytest.approx(500, rel=0.05)
    assert (float(delay.std()) == 0) == (law == "fixed")
    assert np.array_equal(times, label_times(usual, labels, seed=9))
    assert np.array_equal(label_times(usual, LabelDelays(), seed=9), np.arange(len(usual)))


@given(rate=st.floats(5, 50), factor=st.floats(3, 6), seed=st.integers(0, 1_000))
def test_a_spike_multiplies_the_load_and_ends(rate: float, factor: float, seed: int) -> None:
    times = arrival_times(spiked(requests_per_s=rate, factor=factor), seed=seed)
    assert np.all(np.diff(times) >= 0)
    before, during, after = (int(((times >= a) & (times < b)).sum()) for a, b in ((0, 120), (120, 180), (180, 300)))
    for seen, expected in ((before, rate * 120), (during, rate * factor * 60), (after, rate * 120)):
        assert abs(seen - expected) < 6 * np.sqrt(expected)


@pytest.mark.parametrize(
    "refused",
    [
        lambda: simulate(SCENARIOS["none"], 0, seed=0),
        lambda: arrival_times([ArrivalRate(seconds=0, requests_per_s=1)], seed=0),
        lambda: label_times(in_world(USUAL, 5, seed=0), LabelDelays(mean_delay=-1), seed=0),
        lambda: label_times(in_world(USUAL, 5, seed=0), LabelDelays(p_when_wrong=1.1), seed=0),
        lambda: simulate(Scenario(name="x", says="", after=ClassWorld(classes=USUAL.classes[:2])), 5, seed=0),
    ],
)
def test_what_cannot_be_is_refused(refused: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=r"got|the same ones"):
        refused()


def test_twenty_thousand_requests_take_less_than_a_second() -> None:
    begin = time.process_time()
    simulate(SCENARIOS["harsh"], 20_000, seed=0)
    assert time.process_time() - begin < 1

"""How soon each alarm comes, and how rarely for nothing: measured, seeded, with the figures in the docs.

ASSURANCE.md §8.4 names the run lengths of the outcome detector: 2,183 audits at the budget, 457, 255 and 140 at a drop
of 4, 6 and 10 % for a budget of 2 %. `python -m tests.claims.test_drift 40` prints the alarms on signals of so many
streams of simulated traffic.
"""

from __future__ import annotations

import sys

import numpy as np
import pytest
from bench.claims.streams import SETTINGS

from suffice.assurance.drift import BATCH, REFERENCE, Cusum, ShiryaevRoberts


def run_length(rate: float, rng: np.random.Generator) -> int:
    """Audits until the alarm, at a budget of 2 % and losses that come at `rate`."""
    detector, n = ShiryaevRoberts(0.02), 0
    while True:
        for lost in (rng.random(1_000) < rate).tolist():
            n += 1
            if detector.add(int(lost)):
                return n


@pytest.mark.parametrize(
    ("rate", "expected", "runs"), [(0.02, 2_183, 150), (0.04, 457, 150), (0.06, 255, 150), (0.10, 140, 150)]
)
def test_the_outcome_detector_is_as_fast_as_promised_and_as_patient(rate: float, expected: int, runs: int) -> None:
    rng = np.random.default_rng(21)
    mean = float(np.mean([run_length(rate, rng) for _ in range(runs)]))
    print(f"drop {rate:.0%}: {mean:.0f} audits")
    assert 0.8 * expected <= mean <= 1.25 * expected
    if rate == 0.02:
        assert mean >= 2_000 * 0.9, "the threshold bounds the mean run length; 150 runs know it to 4 %"


def first_alarms(shift: float, n_batches: int, runs: int, rng: np.random.Generator) -> list[int | None]:
    """Batches behind the reference until the alarm, one of four features shifted by `shift` sd; None: no alarm."""
    result: list[int | None] = []
    for _ in range(runs):
        cusum, signals = Cusum(4), rng.normal(scale=np.sqrt(BATCH), size=(REFERENCE + n_batches, BATCH, 4))
        signals[REFERENCE:, :, 0] += shift
        alarms = [at - REFERENCE + 1 for at, batch in enumerate(signals) if cusum.add(batch)]
        result.append(alarms[0] if alarms else None)
    return result


def test_the_signal_alarm_is_rare_without_drift() -> None:
    result = first_alarms(0.0, 85, 100, np.random.default_rng(22))
    n_false = sum(alarm is not None for alarm in result)
    print(f"CUSUM: {n_false} of 100 runs of 8,500 requests with a false alarm")
    assert n_false <= 9, "seen 0.04 in 10,000 requests on independent normal features"


@pytest.mark.slow(keep=2)
@pytest.mark.parametrize(("shift", "within"), [(5.0, 4), (3.0, 8), (2.0, 18)])
def test_the_signal_alarm_comes_soon_after_a_shift(shift: float, within: int) -> None:
    result = first_alarms(shift, 40, 100, np.random.default_rng(23))
    soon = sum(alarm is not None and alarm <= within for alarm in result)
    assert soon >= 90, f"a shift of {shift:g} sd: {soon} of 100 within {within * 100} requests"


def signal_alarms(setting: str, n: int, seed: int) -> list[int]:
    """Requests at which the alarm comes on a stream of simulated traffic, with a new reference behind each."""
    early, cusum, result = SETTINGS[setting].draw(n, seed).traffic.early, Cusum(4), list[int]()
    for end in range(BATCH, n + 1, BATCH):
        if cusum.add(early[end - BATCH : end]):
            result.append(end)
            cusum = Cusum(4)
    return result


def on_streams(n_seeds: int, *, n: int = 20_000) -> tuple[float, list[int | None]]:
    """False alarms in 10,000 requests where nothing changes, and how soon a violent drift is found in each stream."""
    n_false = sum(len(signal_alarms("none", n, seed)) for seed in range(n_seeds))
    at = SETTINGS["harsh"].drift_at(n)
    streams = [signal_alarms("harsh", n, seed) for seed in range(n_seeds)]
    delays = [next((alarm - at for alarm in stream if alarm > at), None) for stream in streams]
    return 10_000 * n_false / (n * n_seeds), delays


@pytest.mark.slow
def test_on_simulated_traffic_the_signal_alarm_is_rare_and_finds_a_violent_drift_at_once() -> None:
    n_false, delays = on_streams(10)
    print(f"CUSUM on simulated traffic: {n_false:.2f} false alarms in 10,000 requests, violent drift after {delays}")
    assert n_false <= 0.25, "five in ten streams; at 0.05 in 10,000 requests one is expected"
    assert sum(delay is not None and delay <= 500 for delay in delays) >= 9


if __name__ == "__main__":
    rate, late = on_streams(int(sys.argv[1]))
    soon = sum(one is not None and one <= 500 for one in late)
    print(f"{rate:.3f} false alarms in 10,000 requests; a violent drift within 500 in {soon} of {len(late)}")

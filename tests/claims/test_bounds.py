"""The coverage that each bound claims, measured: a wrong formula fails here."""

from __future__ import annotations

from collections.abc import Callable
from math import comb

import numpy as np
import pytest

from suffice.assurance.bounds import Interval, exact_binomial, mean_interval, wilson
from suffice_demo.bootstrap import bootstrap_interval

RATES = np.linspace(0.01, 0.99, 41)


def coverage(n: int, bound: Callable[[int, int, float], Interval], confidence: float) -> list[float]:
    """The exact probability that the interval holds the rate, over all results of n trials, by rate."""
    intervals = [bound(k, n, confidence) for k in range(n + 1)]
    return [
        sum(
            comb(n, k) * p**k * (1 - p) ** (n - k)
            for k, interval in enumerate(intervals)
            if interval.low <= p <= interval.high
        )
        for p in RATES.tolist()
    ]


@pytest.mark.parametrize("confidence", [0.8, 0.95])
@pytest.mark.parametrize("n", [12, 60])
def test_the_exact_interval_covers_at_every_rate_and_is_not_idle(n: int, confidence: float) -> None:
    covered = coverage(n, exact_binomial, confidence)
    assert min(covered) >= confidence
    assert np.mean(covered) <= confidence + 0.7 * (1 - confidence), "wider than it has to be"


@pytest.mark.parametrize("confidence", [0.8, 0.95])
@pytest.mark.parametrize("n", [12, 60])
def test_the_wilson_interval_covers_on_average(n: int, confidence: float) -> None:
    covered = np.mean(coverage(n, wilson, confidence))
    assert abs(float(covered) - confidence) < 0.02


def ever_missed(
    data: np.ndarray[tuple[int, int], np.dtype[np.float64]], truth: float, low: float, scale: float = 1.0
) -> float:
    """Share of streams whose interval misses the truth at least once, looking after every value.

    scale  on the radius, to show that the test can tell a wrong formula
    """
    n = data.shape[1]
    means = np.cumsum(data, axis=1) / np.arange(1, n + 1)
    # The radius before cutting, read off at the middle of the range.
    middle = (1.0 + low) / 2
    radius = np.array([mean_interval(middle, i, 0.8, low=low).high - middle for i in range(1, n + 1)])
    possible = radius < (1.0 - low) / 2  # a cut interval is the whole range and cannot miss
    missed = (np.abs(means - truth) > scale * radius) & possible
    return float(missed.any(axis=1).mean())


@pytest.mark.parametrize("rate", [0.2, 0.5, 0.9])
def test_a_confidence_sequence_for_a_rate_may_be_watched_all_the_time(rate: float) -> None:
    data = (np.random.default_rng(11).random((2_000, 2_000)) < rate).astype(np.float64)
    assert ever_missed(data, rate, low=0.0) <= 0.2
    if rate == 0.5:  # the worst case of the sub-Gaussian bound, where it is nearly tight
        assert ever_missed(data, rate, low=0.0) > 0.05, "not idle either"
        assert ever_missed(data, rate, low=0.0, scale=0.6) > 0.2, "a radius too small is found out"


def test_a_confidence_sequence_for_paired_differences_may_be_watched_all_the_time() -> None:
    rng = np.random.default_rng(12)
    extremes = rng.choice([-1.0, 1.0], size=(2_000, 2_000))
    assert 0.05 < ever_missed(extremes, 0.0, low=-1.0) <= 0.2
    assert ever_missed(extremes, 0.0, low=-1.0, scale=0.6) > 0.2
    rare = rng.choice([-1.0, 0.0, 1.0], p=[0.01, 0.95, 0.04], size=(1_000, 2_000))
    assert ever_missed(rare, 0.03, low=-1.0) <= 0.2


@pytest.mark.slow
def test_the_bootstrap_covers_a_saving_when_questions_repeat_and_needs_the_groups_for_it() -> None:
    rng = np.random.default_rng(13)
    saving = lambda sums: 1 - float(sums[0] / sums[1])
    n_trials, n_questions, n_repeats = 200, 60, 8
    covered = {"by question": 0, "by row": 0}
    for _ in range(n_trials):
        question = np.repeat(np.arange(n_questions), n_repeats)
        full = rng.gamma(4.0, 100.0, n_questions)[question] * rng.uniform(0.9, 1.1, len(question))
        kept = np.clip(rng.normal(0.6, 0.2, n_questions), 0.05, 1.0)[question]  # E saving weighted by length
        rows = np.column_stack([full * kept, full])
        for name, groups in (("by question", question), ("by row", np.arange(len(question)))):
            interval = bootstrap_interval(rows, groups.tolist(), saving, 0.9, 200, rng)
            assert interval is not None
            covered[name] += interval.low <= TRUE_SAVING <= interval.high
    assert covered["by question"] / n_trials >= 0.83
    assert covered["by row"] / n_trials < 0.65, "rows of one question are no independent evidence"


# Lengths and kept shares are drawn independently, so the ratio of means is the mean kept share.
_KEPT = np.clip(np.random.default_rng(14).normal(0.6, 0.2, 1_000_000), 0.05, 1.0)
TRUE_SAVING = 1 - float(_KEPT.mean())

"""What off-policy evaluation claims, measured: intervals cover, also where those who label are not a sample (F36)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from suffice.learn.ope import LoggedDraws, Method, PolicyValue, estimate_value

Floats = NDArray[np.float64]
RATES = np.array([[0.92, 0.90], [0.75, 0.60]])  # EM by context and arm: the full run, and a short one
TRUTH = float(RATES[:, 1].mean())  # of always running short
N_LOGS, N_ROWS = 60, 2_500


def complained(rng: np.random.Generator) -> tuple[LoggedDraws, Floats]:
    """Traffic where users label what is wrong (60 %) far more often than what is right (5 %), and a lot asks 20 %.

    The running policy prefers the short run for easy questions, which an arm's plain mean mistakes for its merit.
    """
    context = rng.integers(0, 2, N_ROWS)
    p_short = np.where(context == 0, 0.7, 0.3)
    arm = (rng.random(N_ROWS) < p_short).astype(np.int64)
    right = rng.random(N_ROWS) < RATES[context, arm]
    sampled = rng.random(N_ROWS) < 0.2
    by_itself = rng.random(N_ROWS) < np.where(right, 0.05, 0.6)
    logged = LoggedDraws(
        x=np.eye(2)[context],
        arm=arm,
        odds=np.column_stack([1 - p_short, p_short]),
        reward=np.where(sampled | by_itself, right, np.nan),
        sampled=sampled,
        p_sampled=np.full(N_ROWS, 0.2),
    )
    return logged, np.tile([0.0, 1.0], (N_ROWS, 1))


def covers(estimate: PolicyValue) -> bool:
    return estimate.low <= TRUTH <= estimate.high


def test_doubly_robust_covers_where_complaints_mislead_the_mean() -> None:
    """F36: the naive mean lies outside of the interval that covers, in nearly every log."""
    rng = np.random.default_rng(36)
    covered = outside = close = 0
    for _ in range(N_LOGS):
        logged, target = complained(rng)
        estimate = estimate_value(logged, target, confidence=0.9, kind="logistic")
        mean = estimate_value(logged, target, "naive")
        covered += covers(estimate)
        outside += not estimate.low <= mean.value <= estimate.high
        close += abs(estimate.value - TRUTH) < 0.1
    print(f"of {N_LOGS} logs: covered {covered}, naive mean outside {outside}, within 10 points of the truth {close}")
    assert covered >= 0.9 * N_LOGS
    assert outside >= 0.9 * N_LOGS
    assert close >= 0.95 * N_LOGS


@pytest.mark.slow
def test_the_intervals_of_both_estimators_cover_at_every_look() -> None:
    rng = np.random.default_rng(37)
    missed: dict[Method, int] = {"dr": 0, "snips": 0}
    for _ in range(N_LOGS):
        logged, target = complained(rng)
        for n in (100, 300, 600, 1_000, 1_600, 2_500):
            part = replace(
                logged,
                **{name: getattr(logged, name)[:n] for name in ("x", "arm", "odds", "reward", "sampled", "p_sampled")},
            )
            for method in missed:
                missed[method] += not covers(estimate_value(part, target[:n], method, confidence=0.8))
    # 0.2 of the logs may miss at some look; 60 logs, and each look that misses is counted.
    assert max(missed.values()) <= 0.2 * N_LOGS

"""Regret is unbiased whatever the shares with which settings were drawn."""

from __future__ import annotations

import numpy as np

from suffice.agent.agent import RegretLog
from suffice.agent.plan import Regret

GAIN = np.array([[0.0, 0.04, 0.05], [0.0, 0.03, 0.02]])  # by settings and level; level 0 is the full run
LEVELS = (1, 1)  # that the agent serves under each


def filled(n: int, seed: int) -> tuple[RegretLog, float]:
    """Audits that drew the second settings rarely and later often, and what the agent earned."""
    log, rng, earned = RegretLog(2, 3), np.random.default_rng(seed), []
    for i in range(n):
        shares = np.array([0.9, 0.1]) if i < n / 2 else np.array([0.4, 0.6])
        setting = int(rng.choice(2, p=shares))
        gain = GAIN[setting] + rng.normal(0, 0.02, 3) * [0, 1, 1]
        log.add(setting, float(shares[setting]), LEVELS[setting], gain)
        earned.append(float(shares @ GAIN[[0, 1], LEVELS]))
    return log, float(np.mean(earned))


def covers(regret: Regret | None, truth: float) -> bool:
    assert regret is not None
    return regret.low <= truth <= regret.high


def test_intervals_cover_the_truth() -> None:
    idle, fixed = 0, 0
    for seed in range(100):
        log, earned = filled(600, seed)
        idle += covers(log.of_idle(), -earned)
        fixed += covers(log.of_best_fixed(2), float(GAIN.max()) - earned)
    assert idle >= 88
    assert fixed >= 93


def test_only_levels_that_may_be_used_are_compared() -> None:
    log, earned = filled(8_000, 1)
    assert covers(log.of_best_fixed(1), 0.04 - earned)


def test_two_audits_are_needed() -> None:
    log = RegretLog(2, 3)
    log.add(0, 1.0, 1, np.array([0.0, 0.1, 0.2]))
    assert log.of_idle() is None
    assert log.of_best_fixed(2) is None

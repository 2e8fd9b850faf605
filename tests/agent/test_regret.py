"""Regret is unbiased whatever the shares with which settings were tried."""

from __future__ import annotations

import numpy as np
import pytest

from suffice.agent.regret import RegretLog

GAIN = np.array([0.0, 0.04, 0.05, 0.03, 0.02])  # of the full run and of four actions
GROUPS = [0, 0, 0, 1, 1]


def filled(n: int, seed: int) -> tuple[RegretLog, float]:
    """Audits that tried the second group rarely and later often, and what the agent's shares earned."""
    log, rng, earned = RegretLog(GROUPS), np.random.default_rng(seed), []
    for i in range(n):
        trials = np.array([0.9, 0.1]) if i < n / 2 else np.array([0.4, 0.6])
        shares = np.array([0.0, 0.9, 0.05, 0.05, 0.0])
        group = int(rng.choice(2, p=trials))
        noise = rng.normal(0, 0.02)
        shown = {a: float(GAIN[a] + noise) for a in range(1, 5) if GROUPS[a] == group}
        log.add(group, float(trials[group]), shares, shown)
        earned.append(float(shares @ GAIN))
    return log, float(np.mean(earned))


def test_intervals_cover_the_truth() -> None:
    covered = [0] * len(GAIN)
    for seed in range(100):
        log, earned = filled(600, seed)
        for action, gain in enumerate(GAIN.tolist()):
            regret = log.against(action)
            assert regret is not None
            covered[action] += regret.low <= gain - earned <= regret.high
    assert min(covered) >= 88, covered


def test_the_best_fixed_action_is_found() -> None:
    log, earned = filled(8_000, 1)
    best = log.best_fixed([0, 1, 2, 3, 4])
    assert best is not None
    action, regret = best
    assert action == 2
    assert regret.low <= GAIN[2] - earned <= regret.high


def test_two_audits_are_needed_and_the_state_is_plain_data() -> None:
    log = RegretLog(GROUPS)
    assert log.against(0) is None
    assert log.best_fixed([0]) is None
    log, _ = filled(50, 2)
    other = RegretLog(GROUPS)
    other.restore(log.plain())
    assert other.against(3) == log.against(3) == pytest.approx(log.against(3))

"""The lottery's test, simulated: a healthy lottery is left alone, a broken one is found.

`python -m pytest -q -s tests/claims/test_sample_ratio.py` prints the figures of bench/assurance.md.
"""

from __future__ import annotations

from math import log
from typing import Final

import numpy as np

from suffice.assurance.sampling import LOG_ALARM, Draws, log_sample_ratio

SHARE: Final = 0.05
LOOK: Final = 50  # requests between two looks


def test_a_healthy_lottery_may_be_watched_all_the_time() -> None:
    # After every request; the e-value as a product of predictions, as tests/assurance/test_sample_ratio.py shows.
    # A limit of 20 in place of 1,000, which is too rare to be counted.
    rng, n_streams = np.random.default_rng(3), 2_000
    k, log_e, reached = np.zeros(n_streams), np.zeros(n_streams), np.zeros(n_streams, dtype=np.bool_)
    for i in range(5_000):
        won = rng.random(n_streams) < SHARE
        predicted = (100 * SHARE + k) / (100 + i)
        log_e += np.where(won, np.log(predicted / SHARE), np.log((1 - predicted) / (1 - SHARE)))
        k += won
        reached |= log_e >= log(20)
    ever = float(reached.mean())
    print(f"healthy, limit 20: ever reached in {ever:.1%} of {n_streams:,} streams of 5,000 requests")
    assert 0.01 < ever <= 0.05


def requests_to_alarm(*, lost: float, healthy: int) -> float:
    """Median number of requests from the moment at which a part of the audits gets lost; at most 20,000."""
    rng, delays = np.random.default_rng(4), []
    for _ in range(60):
        before = Draws(((SHARE, healthy, int(rng.binomial(healthy, SHARE))),))
        since = rng.binomial(LOOK, SHARE * (1 - lost), size=20_000 // LOOK).cumsum().tolist()
        delays.append(
            next(
                (
                    LOOK * (look + 1)
                    for look, n_audits in enumerate(since)
                    if log_sample_ratio(before + Draws(((SHARE, LOOK * (look + 1), n_audits),))) >= LOG_ALARM
                ),
                20_000,
            )
        )
    return float(np.median(delays))


def test_a_sampler_that_loses_audits_is_found_and_sooner_if_the_count_is_young() -> None:
    took = {
        (lost, healthy): requests_to_alarm(lost=lost, healthy=healthy)
        for lost in (1.0, 0.5, 0.3)
        for healthy in (0, 20_000)
    }
    for (lost, healthy), requests in took.items():
        print(f"{lost:4.0%} of the audits lost after {healthy:6,} healthy requests: alarm after {requests:,.0f}")
    assert took[1.0, 0] <= 500
    assert took[0.5, 0] <= 2_000
    assert took[0.3, 0] <= 6_000
    assert all(took[lost, 20_000] > took[lost, 0] for lost in (1.0, 0.5, 0.3)), "so count anew in each epoch"

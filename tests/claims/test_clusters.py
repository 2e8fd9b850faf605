"""What a window of full runs says about the requests to come, where losses come in clusters.

A cluster loses as a whole or not at all, and each with the same chance, 1.5 times the budget. All requests of the first
window run in full, so that its own claim is a fact about them and no inference.

`python -m pytest -q -s -m slow tests/claims/test_clusters.py` prints the figures of docs/reference/assurance.md.
"""

from __future__ import annotations

from math import log

import numpy as np
import pytest

from suffice.arrays import Small
from suffice.assurance.certify import weighted_log_wealth
from suffice.assurance.clusters import UNITS, log_wealth_by_cluster, own_clusters
from suffice.certification.plan import full_runs

EPS, DELTA = 0.02, 0.05
LIMIT = log(1 / DELTA)
N = full_runs(EPS)


def first_windows(n_streams: int, size: int, drop: float, *, seed: int) -> Small:
    """Z of each stream's full runs, shape (streams, N)."""
    lost = np.random.default_rng(seed).random((n_streams, -(-N // size))) < drop
    return np.repeat(lost, size, axis=1)[:, :N].astype(np.int8)


def certified(z: Small, size: int, unit: str) -> tuple[float, float]:
    """The shares of streams whose audits pass, and whose audits and clusters both pass."""
    clusters = own_clusters(N)
    clusters[:, UNITS.index(unit)] = 1 + np.arange(N) // size
    ones = np.ones(N)
    alone = weighted_log_wealth(z.T, ones, max_em_drop=EPS)
    both = log_wealth_by_cluster(z.T, ones, clusters, max_em_drop=EPS)
    return float((alone >= LIMIT).mean()), float((both >= LIMIT).mean())


@pytest.mark.parametrize("n_streams", [400, pytest.param(4_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("size", "before"), [(1, 0.0), (5, 0.0), (20, 0.12), (50, 0.4)])
@pytest.mark.parametrize("unit", ["conversation", "prompt"])
def test_a_level_over_the_budget_is_rarely_certified_at_the_end_of_the_first_window(
    size: int, before: float, unit: str, n_streams: int
) -> None:
    alone, both = certified(first_windows(n_streams, size, 1.5 * EPS, seed=size), size, unit)
    print(f"clusters of {size}: by audits {alone:.1%}, by {unit}s as well {both:.1%} of {n_streams:,} streams")
    assert alone >= before, "else this tests nothing"
    assert both <= DELTA


@pytest.mark.parametrize("drop", [0.0, EPS / 4, EPS / 2])
def test_single_requests_cost_nothing(drop: float) -> None:
    z = first_windows(400, 1, drop, seed=3)
    alone, both = certified(z, 1, "conversation")
    assert both == alone
    assert alone >= 0.4

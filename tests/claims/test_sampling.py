"""A log that keeps a tenth of its requests, whose truth is known; `python -m bench.claims.sampling` has the table.

Few seeds. A claim is rejected when as many failures as were seen would have less than a 1 % chance if it held.
"""

from __future__ import annotations

from functools import cache

import pytest
from bench.claims.sampling import AUDITS, KINDS, RATE, Measured, cell

from suffice.assurance.bounds import binomial_at_most

N_SEEDS = 6
N_REQUESTS = 4_000


@cache
def log(seed: int) -> Measured:
    return cell(seed, N_REQUESTS, blind=False)


def logs() -> list[Measured]:
    return [log(seed) for seed in range(N_SEEDS)]


@pytest.mark.slow
@pytest.mark.parametrize("estimate", ["EM, full runs", "EM, live runs", "EM, stopped runs", "saving"])
def test_intervals_of_a_sampled_log_hold_the_truth_of_all_traffic(estimate: str) -> None:
    reads = [one.reads(one.report)[estimate] for one in logs()]
    held = sum(low <= truth <= high for _, low, high, truth in reads)
    assert binomial_at_most(held, len(reads), 0.95) >= 0.01, reads


@pytest.mark.slow
def test_so_does_the_band_of_the_console() -> None:
    reads = [read for one in logs() for read in one.bands.values()]
    held = sum(low <= truth <= high for _, low, high, truth in reads)
    assert binomial_at_most(held, len(reads), 0.95) >= 0.01, reads


def test_counts_are_whole_and_rows_are_the_owners_part() -> None:
    for one in (log(0), log(1)):  # sums over a whole log: the bounds below are 20 standard errors wide
        report = one.report
        assert report.n_requests == report.n_governed == N_REQUESTS
        spent = report.tokens.client_completion / N_REQUESTS
        truth = sum(kind.share * kind.tokens for kind in KINDS)
        assert 0.5 * truth < spent < 0.85 * truth, "tokens of all, stopped ones among them"
        assert AUDITS * N_REQUESTS * 0.8 < report.n_audits < AUDITS * N_REQUESTS * 1.2
        assert set(one.rates) == {kind.name for kind in KINDS}
        assert max(one.rates.values()) > 1.2 * min(one.rates.values()), "what is uncertain is kept more often"


@pytest.mark.slow
def test_a_tenth_of_the_requests_takes_an_eighth_of_the_bytes_or_so() -> None:
    kept, sampled = (cell(1, N_REQUESTS, rate, blind=False, labelled=0.05) for rate in (1.0, RATE))
    assert sampled.cost.n_bytes <= 0.16 * kept.cost.n_bytes  # of a long log 14 %: an empty one takes its share here
    assert sampled.cost.n_rows <= 0.16 * kept.cost.n_rows

"""The least evidence for a certificate: against the bound itself, and for what no evidence can show."""

from __future__ import annotations

from math import ceil, log

import pytest
from hypothesis import given
from hypothesis import strategies as st

from suffice.assurance.bounds import exact_binomial
from suffice.assurance.guarantee import audits_needed, evidence, rate_of


@pytest.mark.no_cover
@given(drop=st.floats(0.002, 0.5), confidence=st.floats(0.5, 0.999), disagreements=st.integers(0, 20))
def test_it_is_the_first_number_whose_upper_bound_is_low_enough(
    drop: float, confidence: float, disagreements: int
) -> None:
    n, more = (audits_needed(drop, confidence, count) for count in (disagreements, disagreements + 1))
    assert n is not None
    assert more is not None
    # A one-sided bound at 95 % is the end of a two-sided interval at 90 %; below 50 % there is none.
    if confidence > 0.55:
        assert exact_binomial(disagreements, n, 2 * confidence - 1).high <= drop + 1e-9
        if n - 1 > disagreements:
            assert exact_binomial(disagreements, n - 1, 2 * confidence - 1).high > drop - 1e-9
    assert more > n


def test_without_a_disagreement_it_has_a_closed_form() -> None:
    assert audits_needed(0.02, 0.95, 0) == ceil(log(0.05) / log(0.98)) == 149
    assert audits_needed(0.01, 0.99, 0) == ceil(log(0.01) / log(0.99))


@pytest.mark.parametrize("wrong", [(0.0, 0.95, 0), (1.0, 0.95, 0), (0.02, 1.0, 0), (0.02, 0.0, 0), (0.02, 0.9, -1)])
def test_what_cannot_be_shown_needs_no_number(wrong: tuple[float, float, int]) -> None:
    assert audits_needed(*wrong) is None


def test_what_is_missing_and_when_it_will_be_there() -> None:
    result = evidence(max_em_drop=0.02, confidence=0.95, n_audits=49, n_disagreements=0, audits_at_s=[0.0, 20.0, 10.0])
    assert (result.n_needed, result.n_missing) == (149, 100)
    assert result.audits_per_s == pytest.approx(0.1)
    assert result.wait_s == pytest.approx(1_000)
    enough = evidence(max_em_drop=0.02, confidence=0.95, n_audits=149, n_disagreements=0)
    assert (enough.n_missing, enough.wait_s) == (0, 0.0)
    started = evidence(max_em_drop=0.02, confidence=0.95, n_audits=1, n_disagreements=0, audits_at_s=[5.0])
    assert (started.n_missing, started.wait_s) == (148, None)
    hopeless = evidence(max_em_drop=0.0, confidence=0.95, n_audits=10, n_disagreements=0)
    assert (hopeless.n_needed, hopeless.n_missing, hopeless.wait_s) == (None, None, None)


def test_the_rate_is_that_of_the_latest() -> None:
    assert rate_of([]) is None
    assert rate_of([3.0, 3.0]) is None
    slow_then_fast = [1_000.0 * i for i in range(50)] + [60_000.0 + i for i in range(100)]
    assert rate_of(slow_then_fast) == pytest.approx(1.0)

"""Bounds agree with published values and refuse what has no meaning."""

from __future__ import annotations

from math import isclose

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suffice.assurance.bounds import (
    Interval,
    exact_binomial,
    mean_interval,
    mixture_bound,
    wilson,
)
from tests.drawn import examples


@pytest.mark.parametrize(
    ("k", "n", "upper"), [(0, 150, 0.019773), (2, 300, 0.020836), (5, 600, 0.017441), (10, 1_000, 0.016903)]
)
def test_the_exact_bound_has_its_published_values(k: int, n: int, upper: float) -> None:
    assert exact_binomial(k, n, 0.90).high == pytest.approx(upper, abs=5e-7)


@pytest.mark.slow
@given(n=st.integers(1, 200_000), share=st.floats(0, 1), confidence=st.sampled_from([0.8, 0.95, 0.999]))
@settings(max_examples=examples(60))
def test_rates_lie_in_their_intervals_and_both_sides_mirror(n: int, share: float, confidence: float) -> None:
    k = round(share * n)
    for bound in (wilson, exact_binomial):
        interval, mirrored = bound(k, n, confidence), bound(n - k, n, confidence)
        assert 0 <= interval.low <= k / n <= interval.high <= 1
        assert isclose(interval.low, 1 - mirrored.high, abs_tol=1e-9)
        wider = bound(k, n, (1 + confidence) / 2)
        assert wider.low <= interval.low
        assert interval.high <= wider.high


def test_no_failure_in_n_trials_has_its_closed_form() -> None:
    assert exact_binomial(0, 59, 0.90).high == pytest.approx(1 - 0.05 ** (1 / 59), rel=1e-12)
    assert exact_binomial(59, 59, 0.90).low == pytest.approx(0.05 ** (1 / 59), rel=1e-12)


def test_the_mixture_bound_has_its_published_value() -> None:
    assert mixture_bound(100, 0.95, 100) == pytest.approx(30.35209, abs=5e-6)


def test_a_confidence_sequence_starts_at_everything_and_is_cut_to_what_is_possible() -> None:
    assert mean_interval(0.5, 0, 0.95) == Interval(0.0, 1.0)
    assert mean_interval(0.0, 3, 0.95) == Interval(0.0, 1.0)
    at_1000 = mean_interval(0.5, 1_000, 0.95)
    assert at_1000.high - 0.5 == pytest.approx(mixture_bound(250, 0.95, 250) / 1_000)
    assert mean_interval(0.0, 1_000, 0.95, low=-1).high == pytest.approx(2 * (at_1000.high - 0.5))


@pytest.mark.parametrize(
    "bad",
    [
        lambda: wilson(2, 1, 0.95),
        lambda: wilson(0, 0, 0.95),
        lambda: exact_binomial(-1, 5, 0.95),
        lambda: exact_binomial(1, 5, 1.0),
        lambda: mean_interval(1.5, 10, 0.95),
        lambda: mean_interval(0.5, -1, 0.95),
        lambda: mixture_bound(0, 0.95, 100),
        lambda: mixture_bound(1, 0.0, 100),
    ],
)
def test_what_has_no_meaning_is_refused(bad: object) -> None:
    assert callable(bad)
    with pytest.raises(ValueError, match="need"):
        bad()

"""Confidence sequences have the published values of their formulas, and read the same in one batch or in many."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from math import erf, exp, lgamma, log, sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suffice.assurance.bounds import (
    MOST,
    V_OPT,
    Interval,
    SequenceState,
    WatchedPairs,
    _log_lower_gamma,
    best_rho,
    gamma_exponential_bound,
    gamma_exponential_log_wealth,
    mean_above,
    mean_below,
    mean_between,
    mean_interval,
    mixture_bound,
    ratio_between,
    watch,
    watch_pairs,
)
from tests.drawn import examples

# The reference data of ASSURANCE.md §8.8.
X = np.array([0, 0, 1, 0, 0, 0, 0, 1, 0, 0] * 10, dtype=np.float64)


def test_the_mixtures_have_their_published_values() -> None:
    assert best_rho(100, 0.05) == pytest.approx(12.60056, abs=5e-6)
    assert mixture_bound(100, 0.95, 100) == pytest.approx(30.35209, abs=5e-6)
    # Published for c = 2: sums count in units of c, and variances in its square.
    assert 2 * gamma_exponential_bound(100 / 4, 0.05, v_opt=100 / 4) == pytest.approx(33.02017, abs=5e-6)
    assert gamma_exponential_log_wealth(10 / 2, 100 / 4, 0.05, v_opt=100 / 4) == pytest.approx(-0.2490165, abs=5e-8)


@pytest.mark.parametrize(("n", "expected"), [(10, 0.998159), (50, 0.448378), (100, 0.360313)])
def test_the_bound_for_a_mean_has_its_published_values(n: int, expected: float) -> None:
    # The reference cuts each bound with the earlier ones, and splits 5 % over two sides.
    uppers = [mean_below(watch(X[:i]), 0.025, v_opt=10) for i in range(1, n + 1)]
    assert min(uppers) == pytest.approx(expected, abs=5e-7)


@pytest.mark.parametrize("x", [0.01, 0.7, 1.4, 3.0, 40.0])
def test_the_incomplete_gamma_function_has_its_closed_forms(x: float) -> None:
    def lower(a: float) -> float:
        return exp(_log_lower_gamma(a, x) + a * log(x) - x)

    assert lower(1.0) == pytest.approx(1 - exp(-x), rel=1e-12)
    assert lower(0.5) == pytest.approx(sqrt(np.pi) * erf(sqrt(x)), rel=1e-12)
    assert lower(3.0) == pytest.approx(2 - exp(-x) * (x * x + 2 * x + 2), rel=1e-9, abs=1e-12)


@given(a=st.floats(0.05, 5_000), nearness=st.floats(0.3, 3.0))
@settings(max_examples=examples(80))
def test_series_and_fraction_agree_by_the_recurrence(a: float, nearness: float) -> None:
    x = a * nearness
    # gamma(a + 1, x) = a gamma(a, x) - x^a e^-x: the two sides are often on different branches.
    left = log(x) + _log_lower_gamma(a + 1, x)
    right = _log_lower_gamma(a, x)
    assert left == pytest.approx(log(a) + right + np.log1p(-exp(-log(a) - right)), abs=1e-6)
    assert right < lgamma(a) - a * log(x) + x + 1e-9, "the lower one is part of the whole"


@given(values=st.lists(st.sampled_from([-1.0, 0.0, 0.0, 0.0, 1.0]), min_size=1, max_size=60))
@settings(max_examples=examples(60))
def test_values_one_by_one_add_up_to_the_whole(values: list[float]) -> None:
    whole = watch(np.array(values), low=-1)
    assert whole.n == len(values)
    one_by_one = reduce(lambda so_far, z: so_far.plus((z + 1) / 2), values, SequenceState())
    assert one_by_one.n == whole.n
    assert one_by_one.total == pytest.approx(whole.total)
    assert one_by_one.deviation == pytest.approx(whole.deviation)
    interval = mean_between(whole, 0.95, low=-1)
    assert -1 <= interval.low <= np.mean(values) <= interval.high <= 1
    assert interval.low == pytest.approx(mean_above(whole, 0.025, low=-1), abs=1e-9)


def test_without_values_everything_is_possible() -> None:
    assert mean_between(SequenceState(), 0.95, low=-1) == Interval(-1.0, 1.0)
    assert mean_between(watch(np.array([])), 0.95) == Interval(0.0, 1.0)
    assert ratio_between(WatchedPairs(), 0.95) == Interval(0.0, MOST)


def test_a_small_drop_is_known_far_better_than_its_range_says() -> None:
    z = np.zeros(2_000)
    z[::100] = 1
    known = mean_below(watch(z, low=-1), 0.025, low=-1)
    assert known - 0.01 < 0.35 * (mean_interval(0.01, 2_000, 0.95, low=-1).high - 0.01)


def test_no_earlier_interval_is_cut_in() -> None:
    good, bad = np.zeros(2_000), np.full(2_000, 0.5)
    early = mean_below(watch(good), 0.05)
    assert mean_above(watch(np.concatenate([good, bad])), 0.05) > early, "the mean has moved out of the old interval"


def test_the_bound_is_tightest_where_it_was_tuned() -> None:
    here, early, late = (gamma_exponential_bound(V_OPT, 0.05, v_opt=v) for v in (V_OPT, V_OPT / 20, V_OPT * 20))
    assert here < min(early, late)


# --------------------------------------------------------------------------- ratios


def test_the_interval_holds_the_ratio() -> None:
    rng = np.random.default_rng(31)
    full = np.minimum(rng.lognormal(7, 0.5, 1_000), 8_000)
    part = full * np.clip(rng.normal(0.65, 0.25, 1_000), 0.1, 1)
    whole = watch_pairs(part, full, cap=8_000)
    interval = ratio_between(whole, 0.95)
    assert interval.low < part.sum() / full.sum() < interval.high
    assert interval.high - interval.low < 0.2
    assert ratio_between(whole, 0.8).high < interval.high


def test_equal_pairs_have_a_ratio_near_one_and_too_little_says_nothing() -> None:
    same = np.full(4_000, 500.0)
    interval = ratio_between(watch_pairs(same, same, cap=2_000), 0.95)
    assert interval.low < 1 < interval.high
    assert interval.high - interval.low < 0.1
    assert ratio_between(watch_pairs(same[:2], same[:2], cap=2_000), 0.95) == Interval(0.0, MOST)


@pytest.mark.parametrize(
    "bad",
    [
        lambda: watch(np.array([1.5])),
        lambda: watch(np.array([0.5]), low=1.0, high=0.0),
        lambda: watch(np.array([np.nan])),
        lambda: gamma_exponential_bound(-1, 0.05, v_opt=8),
        lambda: gamma_exponential_bound(1, 0.5, v_opt=8),
        lambda: gamma_exponential_bound(1, 0.05, v_opt=0),
        lambda: watch_pairs(np.array([2.0]), np.array([1.0]), cap=1.5),
        lambda: watch_pairs(np.array([]), np.array([]), cap=0.0),
    ],
)
def test_what_has_no_meaning_is_refused(bad: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match="need"):
        bad()

"""When a start by share is expected to act; `tests/claims/test_ramp.py` compares it with simulated streams."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from suffice.assurance.exposure import EXPOSURES, LOOK_PERIOD
from suffice.assurance.start import MOST_AUDITS, StartForecast, StartTerms, describe_starts, likely_parts

TERMS = StartTerms(max_em_drop=0.02, delta=0.05, finishes=False, n_learning=1_200)
PARTS = st.floats(0, 0.9)


@given(PARTS, st.integers(0, 3_000))
def test_the_first_stop_comes_no_later_than_all_of_them(part: float, n_audits: int) -> None:
    first_stop, full_share = TERMS.forecast(part, n_audits=n_audits)
    assert LOOK_PERIOD <= first_stop <= full_share


@given(PARTS, st.integers(0, 2_000), st.integers(0, 500))
def test_more_audits_never_make_the_wait_longer(part: float, n_audits: int, more: int) -> None:
    now, later = (TERMS.forecast(part, n_audits=n) for n in (n_audits, n_audits + more))
    assert later.first_stop <= now.first_stop
    assert later.full_share <= now.full_share


def test_a_smaller_share_takes_fewer_audits() -> None:
    counts = [TERMS.audits(one, part=0.5) for one in EXPOSURES]
    assert counts == sorted(counts)


def test_a_level_that_acts_has_no_first_stop_to_wait_for_and_gets_its_audits_from_the_other_requests() -> None:
    quarter, half = (TERMS.forecast(0.25, n_audits=200, share=share) for share in (0.25, 0.5))
    assert quarter.first_stop == half.first_stop == 0
    assert half.full_share == pytest.approx((1_200 - 200) / 0.5)
    assert quarter.full_share < half.full_share, "it leaves more audits"


def test_what_a_finish_may_change_is_waited_for_and_a_budget_of_nothing_for_ever() -> None:
    thought = StartTerms(max_em_drop=0.02, delta=0.05, finishes=True, n_learning=1_200)
    assert thought.forecast(0.0).first_stop > TERMS.forecast(0.0).first_stop
    nothing = StartTerms(max_em_drop=0.0, delta=0.05, finishes=False)
    assert nothing.audits() == MOST_AUDITS
    assert nothing.forecast(0.25) == (inf, inf)


def test_audits_so_far_say_more_than_what_is_usual() -> None:
    soon, late = (TERMS.likely_starts(100, n_missing) for n_missing in (20, 400))
    assert [one.first_stop for one in soon] < [one.first_stop for one in late]
    assert all(one.first_stop < one.full_share for one in [*soon, *late])
    low, seen, high = likely_parts(3, 300, 0.02)
    assert seen == pytest.approx(0.5)
    assert low < seen < high


@pytest.mark.parametrize(
    ("starts", "sentence"),
    [
        (
            [StartForecast(20, 400), StartForecast(40, 2_234), StartForecast(60, inf)],
            "a first stop after about 40 requests (20 to 60), on all requests after about 2,200 requests (400 or more)",
        ),
        (
            [StartForecast(0, 40), StartForecast(0, 60), StartForecast(0, 60)],
            "it to stop runs among all requests after about 60 requests (40 to 60)",
        ),
        ([StartForecast(500, 500)] * 3, "a first stop, then on all requests, after about 500 requests"),
        ([StartForecast(inf, inf)] * 3, "a first stop, then on all requests, only if it loses less than is usual"),
    ],
)
def test_a_forecast_in_words(starts: list[StartForecast], sentence: str) -> None:
    assert describe_starts(starts) == sentence

"""Grades count what came, and nine in ten intervals hold it in the end, however wrong the forecaster's spread is."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
import pytest

from suffice.assurance.forecast_grades import (
    AROUND,
    HORIZON,
    MIN_OUTCOMES,
    NARROWEST,
    WIDEST,
    ExpectedOutcomes,
    ForecastGrade,
    Of,
    TrackRecord,
    grade_due,
    grade_outcomes,
)


def expected(mean: float = 0.02, sd: float = 0.004) -> ExpectedOutcomes:
    return ExpectedOutcomes(mean=mean, sd=sd, noise=0.006)


def grade(inside: bool) -> ForecastGrade:
    return ForecastGrade(of="em_drop", made_at=0, low=0.0, high=1.0, observed=0.5 if inside else 2.0)


@dataclass(frozen=True)
class Window:
    until: int
    total: float
    n: float

    def outcomes(self, of: Of) -> tuple[float, float]:
        assert of == "em_drop"
        return self.total, self.n


@pytest.mark.parametrize("spread", [0.6, 1.0, 2.0])
def test_nine_in_ten_intervals_hold_what_came_though_the_forecaster_misjudges_its_own_spread(spread: float) -> None:
    rng = np.random.default_rng(7)
    record, waiting = TrackRecord(of="em_drop"), deque[ForecastGrade]()
    for _ in range(3_000):
        half = 1.645 * record.width  # of a forecaster that believes in a spread of 1
        waiting.append(
            ForecastGrade(of="em_drop", made_at=0, low=-half, high=half, observed=float(spread * rng.normal()))
        )
        if len(waiting) > 35:  # grades come with the delay of the horizon
            record = record.with_grades([waiting.popleft()])
    share = record.n_inside / record.n_graded
    assert share == pytest.approx(0.9, abs=0.04)
    if spread == 2.0:
        assert record.width == pytest.approx(2.0, abs=0.4)


def test_the_width_moves_with_each_grade_and_stays_within_its_limits() -> None:
    record = TrackRecord(of="em_drop")
    better, worse = record.with_grades([grade(True)]), record.with_grades([grade(False)])
    assert NARROWEST < better.width < 1 < worse.width < WIDEST
    assert worse.width - 1 == pytest.approx(9 * (1 - better.width), rel=0.1)
    assert record.with_grades([grade(True)] * 900).width == NARROWEST
    assert record.with_grades([grade(False)] * 900).width == WIDEST
    assert (worse.n_graded, worse.n_inside, better.n_inside) == (1, 0, 1)


def test_an_interval_allows_for_the_noise_of_the_outcomes_and_few_outcomes_grade_nothing() -> None:
    few = grade_outcomes("em_drop", 0, expected(), total=1.0, n=50)
    many = grade_outcomes("em_drop", 0, expected(), total=100.0, n=5_000)
    assert few is not None
    assert many is not None
    assert few.observed == many.observed == 0.02
    assert few.high - few.low > 2 * (many.high - many.low) > 4 * 1.645 * 0.004
    assert grade_outcomes("em_drop", 0, expected(), total=1.0, n=MIN_OUTCOMES - 1) is None


def test_a_forecast_is_graded_once_by_what_came_around_its_horizon() -> None:
    pending = deque([(1_000, expected()), (1_100, expected())])
    calm = [Window(until, 0.4, 20) for until in range(100, 4_501, 100)]
    assert list(grade_due(pending, "em_drop", 1_000 + HORIZON + AROUND - 100, calm)) == []
    harm = [Window(one.until, 20.0 if one.until > 3_500 else 0.4, 20) for one in calm]
    (result,) = grade_due(pending, "em_drop", 1_000 + HORIZON + AROUND, harm)
    assert (result.made_at, result.n, result.inside) == (1_000, 20 * 11, False)
    assert result.observed == pytest.approx((10 * 20 + 0.4) / 220)
    assert [made_at for made_at, _ in pending] == [1_100]


def test_an_alert_is_right_once_its_limit_is_crossed_and_wrong_if_it_ends_without() -> None:
    record = TrackRecord(of="em_drop").with_alert(500, is_open=True, was_open=False, crossed=False)
    assert record.alerted_at == 500
    record = record.with_alert(900, is_open=True, was_open=True, crossed=True)
    record = record.with_alert(1_000, is_open=True, was_open=True, crossed=True)
    record = record.with_alert(1_100, is_open=False, was_open=True, crossed=False)
    assert (record.n_right, record.n_wrong, record.leads, record.median_lead) == (1, 0, (400,), 400)
    record = record.with_alert(2_000, is_open=True, was_open=False, crossed=False)
    record = record.with_alert(2_100, is_open=False, was_open=True, crossed=False)
    assert (record.n_right, record.n_wrong, record.alerted_at) == (1, 1, None)
    assert str(record) == "2 alerts graded, 1 right, median lead 400 requests"


def test_a_record_is_one_sentence() -> None:
    record = TrackRecord(of="em_drop").with_grades([grade(True), grade(True), grade(False)])
    assert str(record) == "3 graded, 2 inside their interval"
    assert str(TrackRecord(of="em")) == ""

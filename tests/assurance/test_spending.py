"""Spending is forecast from whole days, graded, and right in about nine of ten; a spike is seen while it lasts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import date

import numpy as np
import pytest

from suffice.assurance.forecast_grades import ForecastGrade, TrackRecord
from suffice.assurance.spending import (
    DAY_HOURS,
    MIN_DAYS,
    SpendForecast,
    describe_spending,
    find_spike,
    forecast_spend,
    month_of,
    next_forecast,
)

START = (date(2026, 1, 1) - date(1970, 1, 1)).days
WEEKDAYS = 1 + np.array([0.12, 0.12, 0.12, 0.08, 0.0, -0.48, -0.48])  # Monday first


def amounts(seed: int, n: int, *, growth: float = 0.0, noise: float = 0.2) -> list[float]:
    """Tokens of n days from `START`: weekends are quiet, and the level wanders by 1 % a day."""
    rng = np.random.default_rng(seed)
    level = 1e6 * np.exp(growth * np.arange(n) + np.cumsum(0.01 * rng.normal(size=n)))
    day = np.arange(START, START + n)
    return list(level * WEEKDAYS[(day + 3) % 7] * rng.gamma(noise**-2, noise**2, size=n))


def looks(spent: list[float], first: int) -> Iterator[SpendForecast]:
    """The forecast of every day after the first ones."""
    earlier = list[SpendForecast]()
    for n in range(first, len(spent)):
        made = next_forecast("r", DAY_HOURS * (START + n), earlier, {"tokens": spent[:n]}, None, author="w")
        assert made is not None
        earlier.insert(0, made)
        yield made


@pytest.mark.no_cover
@pytest.mark.parametrize("growth", [0.0, 0.01])
def test_about_nine_in_ten_forecasts_of_days_and_months_hold_what_is_spent(growth: float) -> None:
    grades = [
        grade for seed in range(3) for one in looks(amounts(seed, 280, growth=growth), 30) for grade in one.grades
    ]
    days, months = list[bool](), list[bool]()
    for grade in grades:
        (months if grade.observed > 8e6 * np.exp(growth * (grade.made_at - START)) else days).append(grade.inside)
    assert len(days) > 600
    assert len(months) > 600
    assert np.mean(days) == pytest.approx(0.9, abs=0.04)
    assert np.mean(days + months) == pytest.approx(0.9, abs=0.05)


def test_a_month_is_what_was_spent_and_the_rest_of_it() -> None:
    spent = [1_000.0] * 40  # to 9 February
    pair = forecast_spend(spent, START + 40)
    assert pair is not None
    day, month = pair
    assert (day.so_far, month.so_far) == (0.0, 9_000.0)
    assert day.expected == pytest.approx(1_000, rel=0.01)
    assert month.expected == pytest.approx(28_000, rel=0.01)
    assert 9_000 < month.low < month.expected < month.high
    assert month_of(START + 40) == range(START + 31, START + 59)


def test_weekends_are_known_after_two_weeks() -> None:
    spent = [1_000.0 * WEEKDAYS[(day + 3) % 7] for day in range(START, START + 28)]
    monday = next(day for day in range(START + 21, START + 28) if (day + 3) % 7 == 0)
    sunday, after = (forecast_spend(spent[: day - START], day) for day in (monday - 1, monday))
    assert sunday is not None
    assert after is not None
    assert after[0].expected > 1.7 * sunday[0].expected


def test_a_day_is_forecast_once_and_graded_on_the_next_and_a_month_at_its_end() -> None:
    spent = amounts(1, 70)
    made = list(looks(spent, 20))
    assert [len(one.grades) for one in made[:3]] == [0, 1, 1]
    assert made[1].grades[0].observed == spent[20]
    (february,) = [one for one in made if one.hour == DAY_HOURS * (START + 31)]
    assert len(february.grades) == 1 + 11, "of the last day, and of eleven forecasts of January"
    observed = sorted(grade.observed for grade in february.grades)
    assert observed == pytest.approx([spent[30], *[sum(spent[:31])] * 11])
    again = next_forecast("r", made[-1].hour + 3, made[::-1], {"tokens": spent}, None, author="w")
    assert again is None


def test_too_few_days_or_none_with_traffic_are_no_forecast() -> None:
    assert forecast_spend([1.0] * (MIN_DAYS - 1), START) is None
    assert forecast_spend([0.0] * 30, START) is None
    assert next_forecast("r", DAY_HOURS * START, [], {"tokens": [5.0]}, None, author="w") is None


def hours(n_days: int = 10) -> list[float]:
    rng = np.random.default_rng(5)
    return list((1 + 0.5 * np.sin(np.arange(24 * n_days) * np.pi / 12)) * 1_000 * rng.gamma(100, 0.01, 24 * n_days))


def test_a_spike_is_counted_against_the_same_hours_of_earlier_days_while_it_lasts() -> None:
    calm = hours()
    assert find_spike(calm, [], 240) is None
    spiky = [*calm[:-3], *(4 * amount for amount in calm[-3:])]
    spike = find_spike(spiky, [amount / 1e6 for amount in spiky], 240)
    assert spike is not None
    assert (spike.since_hour, round(spike.times)) == (237, 4)
    assert spike.extra_tokens == pytest.approx(0.75 * sum(spiky[-3:]), rel=0.15)
    assert spike.extra_usd == pytest.approx(spike.extra_tokens / 1e6)
    assert find_spike([*spiky, calm[-24]], [], 241) is None, "it is over"
    assert find_spike(spiky[-100:], [], 240) is None, "a week is needed"


def test_a_spike_is_written_every_hour_and_once_more_when_it_ends() -> None:
    spent = [1_000.0] * 40
    first = next_forecast("r", DAY_HOURS * (START + 40), [], {"tokens": spent}, None, author="w")
    assert first is not None
    spike = find_spike([*hours()[:-1], 9_000.0], [], first.hour + 5)
    during = next_forecast("r", first.hour + 5, [first], {"tokens": spent}, spike, author="w")
    assert during == replace(first, hour=first.hour + 5, spike=spike)
    ended = next_forecast("r", first.hour + 6, [during, first], {"tokens": spent}, None, author="w")
    assert ended is not None
    assert ended.spike is None
    assert next_forecast("r", first.hour + 7, [ended, during, first], {"tokens": spent}, None, author="w") is None


def test_people_read_amounts_with_their_interval_and_the_grades() -> None:
    spent = [1_000.0] * 40
    made = next_forecast(
        "r",
        DAY_HOURS * (START + 40),
        [],
        {"tokens": spent, "usd": [amount / 100 for amount in spent]},
        None,
        author="w",
    )
    assert made is not None
    grade = ForecastGrade(of="tokens", made_at=1, low=0.0, high=1.0, observed=0.5)
    made = replace(made, records=(TrackRecord(of="tokens").with_grades([grade]),))
    report = dict(describe_spending(made))
    assert report["tokens this month"].startswith("9,000 before today, about 28,000 by its end (")
    assert report["cost this month"].startswith("$90.00 before today, about $280.00 by its end (")
    assert report["forecasts of tokens"] == "1 graded, 1 inside their interval"

"""Forecasts what a route spends this month, from whole days, and the extra cost of a spike, from whole hours.

A day is its weekday's usual part of a level that moves slowly. Days are UTC.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from typing import Final

import numpy as np

from suffice.arrays import Floats, Ints
from suffice.assurance.forecast_grades import LIKELY_SD, ForecastGrade, Of, TrackRecord, describe_records, record_of
from suffice.assurance.money import usd

DAY_HOURS: Final = 24
MOST_DAYS: Final = 56  # latest whole days that are read
MIN_DAYS: Final = 4  # … and needed
DAYS_HALF_LIFE: Final = 10.0
SLOPE: Final = 0.02  # sd of the growth in a day, relative
WEEKDAY_DAYS: Final = 0.5  # average days that each weekday's part is shrunk by
NOISE: Final = 1.1  # of a day, more than days differ, because the weekdays' parts are estimates …
YOUNG_DAYS: Final = 3.0  # … and more the fewer days are known
LEAST_SD: Final = 0.05  # of a day, relative to its expectation
DRIFT: Final = 0.02  # sd of the change of the level from day to day, relative
SPIKE_TIMES: Final = 2.0  # the usual amount of an hour
SPIKE_SD: Final = 4.0  # above it
MIN_HOURS: Final = 7 * DAY_HOURS


@dataclass(frozen=True, slots=True, kw_only=True)
class SpendEstimate:
    """Of one day, or of a month, in tokens or US dollars; the ends of a 90 % interval."""

    so_far: float  # before this day
    expected: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Spike:
    since_hour: int  # since 1970
    times: float  # the usual amount, in the last hour
    extra_tokens: float  # above the usual, since then
    extra_usd: float  # likewise; 0: no prices are set


@dataclass(frozen=True, slots=True, kw_only=True)
class SpendForecast:
    route: str
    hour: int  # since 1970, at which it was made
    day: dict[Of, SpendEstimate]  # of the day of that hour, by unit: tokens, usd
    month: dict[Of, SpendEstimate]  # of its whole month
    spike: Spike | None = None  # that lasts
    grades: tuple[ForecastGrade, ...] = ()
    records: tuple[TrackRecord, ...] = ()  # all grades so far, of days and of months
    author: str = ""


def month_of(day: int) -> range:
    """The days since 1970 of the month that holds a day."""
    first = (date(1970, 1, 1) + timedelta(days=day)).replace(day=1)
    following = (first + timedelta(days=32)).replace(day=1)
    start = (first - date(1970, 1, 1)).days
    return range(start, start + (following - first).days)


def next_forecast(
    route: str,
    hour: int,
    earlier: Sequence[SpendForecast],
    daily: Mapping[Of, Sequence[float]],
    spike: Spike | None,
    *,
    author: str,
) -> SpendForecast | None:
    """Forecast once a day, and once an hour in a spike and after it; None: nothing is new, or too little is known.

    earlier  forecasts of this month and the last, newest first
    daily    by unit, the amounts of all whole days before that hour, oldest first
    """
    day, last = hour // DAY_HOURS, earlier[0] if earlier else None
    if last is not None and last.hour // DAY_HOURS == day:
        if spike is None and last.spike is None:
            return None
        return replace(last, hour=hour, spike=spike, grades=(), author=author)
    days = {}
    months = {}
    grades = list[ForecastGrade]()
    records = list[TrackRecord]()
    for unit, amounts in daily.items():
        given = list(_grades(unit, day, earlier, amounts))
        record = record_of(last.records if last is not None else (), unit).with_grades(given)
        estimates = forecast_spend(amounts, day, width=record.width)
        if estimates is not None:
            days[unit], months[unit] = estimates
        grades += given
        records.append(record)
    if not days:
        return None
    return SpendForecast(
        route=route,
        hour=hour,
        day=days,
        month=months,
        spike=spike,
        grades=tuple(grades),
        records=tuple(records),
        author=author,
    )


def _grades(unit: Of, day: int, earlier: Sequence[SpendForecast], amounts: Sequence[float]) -> Iterator[ForecastGrade]:
    """Grade the forecast of the last day that had one and, as a month begins, those of the month before."""
    of_day = {one.hour // DAY_HOURS: one for one in earlier if unit in one.day and one.hour // DAY_HOURS < day}
    month = month_of(day - 1)
    for made_at, one in of_day.items():
        pairs = []
        if made_at == max(of_day):
            pairs.append((one.day[unit], range(made_at, made_at + 1)))
        if month.stop == day and made_at in month:
            pairs.append((one.month[unit], month))
        for estimate, days in pairs:
            if days.start >= day - len(amounts):
                observed = sum(amounts[len(amounts) + at - day] for at in days)
                yield ForecastGrade(of=unit, made_at=made_at, low=estimate.low, high=estimate.high, observed=observed)


def forecast_spend(
    amounts: Sequence[float], day: int, *, width: float = 1.0
) -> tuple[SpendEstimate, SpendEstimate] | None:
    """Forecast a day and its month from the amounts of the days before it, oldest first; None: too few."""
    y, n = np.array(amounts[-MOST_DAYS:], dtype=np.float64), min(len(amounts), MOST_DAYS)
    if n < MIN_DAYS or not y.any():
        return None
    t, weights = np.arange(1.0 - n, 1.0), 0.5 ** (np.arange(n)[::-1] / DAYS_HALF_LIFE)
    parts = _weekday_parts(y, (np.arange(day - n, day) + 3) % 7)
    even = y / parts[(np.arange(day - n, day) + 3) % 7]
    scale = float(weights @ even / weights.sum())
    # Bayesian regression on a line in time, whose slope is shrunk to 0; the noise is that of one day from the next.
    spread = float(np.sqrt(weights[1:] @ np.diff(even) ** 2 / (2 * weights[1:].sum())))
    noise = max(LEAST_SD * scale, NOISE * spread) * (1 + YOUNG_DAYS / n)
    line = np.stack([np.ones(n), t], axis=1)
    covariance = np.linalg.inv((line.T * weights) @ line / noise**2 + np.diag([0.0, (SLOPE * scale) ** -2]))
    fitted = covariance @ ((line.T * weights) @ even) / noise**2

    month = month_of(day)
    so_far = float(y[max(0, n - (day - month.start)) :].sum()) if day > month.start else 0.0
    estimates = []
    for days, spent in ((range(day, day + 1), 0.0), (range(day, month.stop), so_far)):
        part, ahead = parts[(np.array(days) + 3) % 7], np.arange(1.0, len(days) + 1)
        of_line = part @ np.stack([np.ones(len(days)), ahead], axis=1)  # the sum is linear in level and slope
        drift = (DRIFT * scale) ** 2 * float(np.square(np.cumsum(part[::-1])).sum())
        half = width * LIKELY_SD * float(np.sqrt(of_line @ covariance @ of_line + noise**2 * (part @ part) + drift))
        expected = spent + max(0.0, float(of_line @ fitted))
        estimates.append(
            SpendEstimate(so_far=spent, expected=expected, low=max(spent, expected - half), high=expected + half)
        )
    return estimates[0], estimates[1]


def _weekday_parts(y: Floats, weekdays: Ints) -> Floats:
    """What each weekday spends relative to the days around it, shape (7,), shrunk towards 1."""
    if len(y) < 14:
        return np.ones(7)
    weekly = np.convolve(y, np.ones(7) / 7, "valid")
    around = np.concatenate([np.repeat(weekly[0], 3), weekly, np.repeat(weekly[-1], 3)])
    ratio = np.divide(y, around, out=np.ones(len(y)), where=around > 0)
    sums, counts = np.bincount(weekdays, ratio, minlength=7), np.bincount(weekdays, minlength=7)
    parts = (sums + WEEKDAY_DAYS) / (counts + WEEKDAY_DAYS)
    return np.asarray(np.maximum(parts, 0.01))


def find_spike(tokens: Sequence[float], usd: Sequence[float], hour: int) -> Spike | None:
    """Find a spike in the last hours before `hour`, oldest first, against the same hours of the days before it."""
    y = np.array(tokens, dtype=np.float64)
    usual = list[float]()
    for place in range(len(y) - 1, max(len(y) - 1 - DAY_HOURS, MIN_HOURS - 1), -1):
        earlier = y[place % DAY_HOURS : len(y) - DAY_HOURS : DAY_HOURS]
        mean = float(earlier.mean())
        if not mean or y[place] <= max(SPIKE_TIMES * mean, mean + SPIKE_SD * float(earlier.std())):
            break
        usual.append(mean)
    if not usual:
        return None
    spent, n = float(y[-len(usual) :].sum()), len(usual)
    extra = spent - sum(usual)
    return Spike(
        since_hour=hour - n, times=y[-1] / usual[0], extra_tokens=extra, extra_usd=sum(usd[-n:]) * extra / spent
    )


def describe_spending(one: SpendForecast) -> Iterator[tuple[str, str]]:
    """Names and sentences for people."""
    for unit, month in one.month.items():
        name, amount = ("cost", usd) if unit == "usd" else ("tokens", "{:,.0f}".format)
        likely = f"{amount(month.low)} to {amount(month.high)} in nine of ten forecasts"
        whole = f"about {amount(month.expected)} by its end ({likely})"
        yield f"{name} this month", f"{amount(month.so_far)} before today, {whole}"
    if (spike := one.spike) is not None:
        cost = f" ({usd(spike.extra_usd)})" if spike.extra_usd else ""
        extra = f"in {one.hour - spike.since_hour} h {spike.extra_tokens:,.0f} tokens{cost} more than usual"
        yield "spike", f"the last hour took {spike.times:.1f} times its usual tokens; {extra}"
    yield from describe_records(one.records)

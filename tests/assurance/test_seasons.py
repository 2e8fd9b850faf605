"""Seasons: a crest that came before is expected again, from the second period on, and nowhere else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from suffice.arrays import Floats
from suffice.assurance.forecast import Forecast, ForecastWindow, Stance, forecast_drop, next_stance
from suffice.assurance.seasons import DAY_S, find_seasons
from tests.assurance.test_forecast import ramp, windows

DAY = 50  # windows
BUDGET = 0.02


def wave(n: int, low: float, high: float) -> Floats:
    """From `low` up to `high` and back within a day."""
    return low + (high - low) * (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(1, n + 1) / DAY))


def clocked(made: list[ForecastWindow]) -> list[ForecastWindow]:
    return [replace(one, at_s=(i + 1) * DAY_S / DAY) for i, one in enumerate(made)]


def report_of(made: list[ForecastWindow], *, alerted: bool = False) -> Forecast:
    result = forecast_drop(made, budget=BUDGET, alerted=alerted)
    assert result is not None
    return result


def season(n: int, seed: int = 0) -> list[ForecastWindow]:
    """The drop passes the budget at each noon."""
    return windows(wave(n, 0.01, 0.07), drop=wave(n, 0.002, 0.035), signals=wave(n, 0.0, 1.0), seed=seed)


@pytest.mark.parametrize("seed", range(5))
def test_at_the_foot_of_the_third_wave_its_crest_is_known_and_caps_the_level(seed: int) -> None:
    made = clocked(season(2 * DAY + 2, seed))
    result = report_of(made)
    assert (result.season, result.alert) == ("day", True)
    assert result.now < BUDGET, "it is the foot"
    stance = next_stance(Stance(), result, at=made[-1].until, alerted=True, relative=lambda: np.linspace(0, 1, 11))
    assert stance.cap is not None
    assert stance.cap < 10
    assert "in the course of the day" in result.reason


@pytest.mark.parametrize("seed", range(5))
def test_a_season_outlives_the_epoch_and_other_trends_end_with_it(seed: int) -> None:
    made = clocked(season(2 * DAY + 2, seed))
    begun = made[-3].until
    assert forecast_drop(made, budget=BUDGET, begun=begun) == report_of(made)
    assert forecast_drop(made[-3:], budget=BUDGET) is None, "the epoch alone is too short"
    n = 2 * DAY
    moved = clocked(windows(np.repeat([0.06, 0.03], n), drop=np.repeat([0.03, 0.01], n), seed=seed))
    assert forecast_drop(moved, budget=BUDGET, begun=moved[n - 1].until) == report_of(moved[n:])


def test_without_a_clock_the_same_foot_is_calm() -> None:
    result = report_of(season(2 * DAY + 2))
    assert result.season == ""
    assert not result.alert


def test_the_first_period_is_no_season() -> None:
    assert report_of(clocked(season(DAY - 2))).season == ""


@pytest.mark.parametrize("seed", range(5))
def test_steady_traffic_and_a_drift_have_no_season(seed: int) -> None:
    n = 3 * DAY
    steady = report_of(clocked(windows(np.full(n, 0.03), seed=seed)))
    assert (steady.season, steady.alert) == ("", False)
    rising = clocked(windows(0.03 + ramp(n, 100, 0.04), drop=ramp(n, 100, 0.02), signals=ramp(n, 100, 0.5), seed=seed))
    assert report_of(rising).alert


def test_requests_ahead_come_as_often_as_they_came_at_this_hour() -> None:
    at_s = np.concatenate([np.linspace(0, DAY_S / 2, 81), DAY_S / 2 + np.linspace(0, DAY_S / 2, 21)[1:]])
    at_s = np.concatenate([at_s, DAY_S + at_s[1:]])
    until = 100.0 * np.arange(1, len(at_s) + 1, dtype=np.float64)
    (result,) = find_seasons(
        np.asarray(until, dtype=np.float64), np.asarray(at_s, dtype=np.float64), np.array([0.0, 8_000.0, 10_000.0])
    )
    noon = 2 * np.pi * 0.5
    assert result.path[1, :2] == pytest.approx([np.sin(noon), np.cos(noon)], abs=1e-6)
    assert result.path[0] == pytest.approx(result.path[2], abs=1e-6)

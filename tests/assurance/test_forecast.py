"""A forecast says where things lead, warns only when even its better end does, and knows when it knows nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from suffice.arrays import Floats
from suffice.assurance.forecast import (
    MEMORY,
    Forecast,
    ForecastWindow,
    forecast_drop,
    forecast_em,
    near_levels,
    near_share,
    signal_distance,
)
from suffice.assurance.forecast_grades import HORIZON


def windows(
    near: Floats,
    *,
    drop: Floats | None = None,
    signals: Floats | None = None,
    predicted: Floats | None = None,
    n_audits: int = 20,
    seed: int = 0,
) -> list[ForecastWindow]:
    """Windows of 100 requests whose audits show just what is expected of them, and signals with a little noise."""
    rng = np.random.default_rng(seed)
    n = len(near)
    drop = np.zeros(n) if drop is None else drop
    whole = np.diff(np.round(np.concatenate([[0.0], np.cumsum(drop * n_audits)])))  # rounded without losing any
    moved = np.zeros(n) if signals is None else signals
    displayed = np.stack([moved, np.zeros(n)], axis=1) + 0.1 * rng.normal(size=(n, 2))
    return [
        ForecastWindow(
            until=100 * (i + 1),
            n_requests=100,
            signals=tuple(displayed[i].tolist()),
            predicted_drop=None if predicted is None else float(predicted[i]),
            n_audits=n_audits,
            near=n_audits * float(near[i]),
            near_squares=n_audits * float(near[i]) * 0.6,
            n_settled=n_audits,
            drop=int(whole[i]),
        )
        for i in range(n)
    ]


def ramp(n: int, start: int, end: float) -> Floats:
    """0 up to a window, then a line to `end` at the last."""
    return np.maximum(0.0, np.arange(n) - start) / (n - 1 - start) * end


def drop_of(seen: list[ForecastWindow], *, budget: float = 0.02, alerted: bool = False) -> Forecast:
    result = forecast_drop(seen, budget=budget, alerted=alerted)
    assert result is not None
    return result


QUIET = windows(np.full(60, 0.03))
RISING = windows(0.03 + ramp(60, 25, 0.03), drop=ramp(60, 25, 0.018), signals=ramp(60, 25, 0.4))


def test_where_nothing_moves_nothing_is_in_sight() -> None:
    result = drop_of(QUIET)
    assert not result.alert
    assert result.crossing.expected is None
    assert abs(result.per_1000) < 0.001
    assert result.ahead_low < result.ahead < result.ahead_high
    assert "not in sight" in result.reason


def test_a_drift_that_goes_on_is_seen_before_it_crosses() -> None:
    result = drop_of(RISING)
    assert result.now < 0.02
    assert result.per_1000 > 0
    assert result.alert
    assert not result.doubtful
    crossing = result.crossing
    assert crossing.expected is not None
    assert crossing.latest is not None
    assert crossing.earliest is not None
    assert 6_000 <= crossing.earliest <= crossing.expected <= crossing.latest <= 6_000 + HORIZON
    assert f"about request {crossing.expected:,}" in result.reason


def test_an_alert_needs_the_better_end_and_doubt_only_the_worse_one() -> None:
    seen = {until: drop_of(RISING[:until]) for until in range(30, 61)}
    first_doubt = next(until for until, result in seen.items() if result.doubtful)
    first_alert = next(until for until, result in seen.items() if result.alert)
    assert first_doubt < first_alert
    for until, result in seen.items():
        earliest, latest = result.crossing.earliest, result.crossing.latest
        assert result.alert == (latest is not None and latest <= 100 * until + HORIZON)
        near = earliest is not None and earliest <= 100 * until + HORIZON
        assert result.doubtful == (near and not result.alert)


def test_what_would_be_an_alert_is_doubt_until_the_epoch_has_45_windows() -> None:
    steep = windows(0.03 + ramp(60, 15, 0.12), drop=ramp(60, 15, 0.07))
    early, settled = drop_of(steep[:44]), drop_of(steep[:45])
    assert early.crossing.latest is not None
    assert early.crossing.latest <= 4_400 + HORIZON
    assert (early.alert, early.doubtful) == (False, True)
    assert (settled.alert, settled.doubtful) == (True, False)


def test_a_standing_alert_ends_only_when_the_forecast_is_clearly_lower() -> None:
    budgets = np.linspace(0.006, 0.06, 55).tolist()
    fresh = [drop_of(RISING, budget=budget).alert for budget in budgets]
    standing = [drop_of(RISING, budget=budget, alerted=True).alert for budget in budgets]
    assert fresh == sorted(fresh, reverse=True)
    assert all(stays or not new for stays, new in zip(standing, fresh, strict=True))
    assert sum(standing) > sum(fresh) + 2
    assert not standing[-1]


def test_signals_that_leave_what_was_certified_lose_trust_until_audits_give_it_back() -> None:
    far = ramp(60, 40, 0.8)
    few = drop_of(windows(np.full(60, 0.03), signals=far, n_audits=2))
    many = drop_of(windows(np.full(60, 0.03), signals=far, n_audits=60))
    still = drop_of(windows(np.full(60, 0.03), n_audits=2))
    assert few.ahead > still.ahead + 0.005
    assert many.ahead < few.ahead - 0.005


def test_what_the_stop_model_predicts_is_believed_until_audits_contradict() -> None:
    report = 0.01 + ramp(60, 30, 0.02)
    believed = drop_of(windows(np.full(60, 0.03), predicted=report, n_audits=2))
    contradicted = drop_of(windows(np.full(60, 0.03), predicted=report, n_audits=80))
    untold = drop_of(windows(np.full(60, 0.03), n_audits=2))
    assert believed.ahead > untold.ahead + 0.01
    assert contradicted.ahead < believed.ahead - 0.005


def test_windows_without_an_audit_are_bridged_and_where_most_have_none_the_model_says_nothing() -> None:
    report = 0.01 + ramp(60, 30, 0.02)
    whole = windows(np.full(60, 0.03), predicted=report, n_audits=2)
    straight = windows(np.full(60, 0.03), predicted=np.linspace(0.01, 0.02, 60), n_audits=2)

    def silent(seen: list[ForecastWindow], where: Callable[[int], bool]) -> list[ForecastWindow]:
        return [replace(window, predicted_drop=None) if where(i) else window for i, window in enumerate(seen)]

    assert drop_of(silent(whole, lambda i: i % 3 == 1)).ahead == pytest.approx(drop_of(whole).ahead, abs=0.002)
    bridged = drop_of(silent(straight, lambda i: 20 < i < 45)).ahead
    assert bridged == pytest.approx(drop_of(straight).ahead), "on a line nothing is lost"
    assert drop_of(silent(whole, lambda i: i % 3 > 0)) == drop_of(silent(whole, lambda _: True))


def test_without_signals_the_ramp_alone_speaks() -> None:
    silent = [replace(window, signals=()) for window in RISING]
    result = drop_of(silent)
    assert result.per_1000 > 0
    assert drop_of([replace(window, signals=()) for window in QUIET]).per_1000 == pytest.approx(0, abs=5e-4)


def test_a_season_that_has_been_seen_is_not_taken_for_the_beginning_of_the_end() -> None:
    way = 0.5 - 0.5 * np.cos(2 * np.pi * np.maximum(np.arange(165) - 15, 0) / 100)
    seen = windows(0.03 + 0.01 * way, drop=0.006 * way, signals=0.6 * way)
    first, second = drop_of(seen[:55]), drop_of(seen[:155])
    assert second.ahead < first.ahead, "the second time, signals stay in the range that they know"


def test_a_signal_that_never_moves_breaks_nothing() -> None:
    frozen = [replace(window, signals=(0.0, *window.signals)) for window in RISING]
    assert drop_of(frozen).ahead == pytest.approx(drop_of(RISING).ahead, abs=0.004)


def test_under_30_windows_or_without_audits_nothing_is_said() -> None:
    assert forecast_drop(QUIET[:29], budget=0.02) is None
    assert forecast_drop([replace(window, n_audits=0) for window in QUIET], budget=0.02) is None
    assert forecast_drop([replace(window, n_settled=0) for window in QUIET], budget=0.02) is None
    assert forecast_em(QUIET, critical_em=0.5) is None


def test_only_the_latest_windows_are_fitted_but_the_reference_stays() -> None:
    long = windows(np.full(MEMORY + 40, 0.03), signals=np.where(np.arange(MEMORY + 40) < 30, 0.0, 0.5))
    x = signal_distance(np.array([window.signals for window in long]), 100.0)
    assert x[:15].mean() == pytest.approx(0, abs=0.05)
    assert x[-15:].mean() == pytest.approx(0.5 / 1.0, abs=0.15), "the sd of a request is ten times that of a window"
    assert drop_of(long).of == "em_drop"


# --------------------------------------------------------------------------- EM


def labelled(wrong: Floats, n_labelled: int = 50) -> list[ForecastWindow]:
    rounded = np.diff(np.round(np.concatenate([[0.0], np.cumsum(wrong * n_labelled)])))
    return [
        replace(window, n_labelled=n_labelled, n_right=n_labelled - int(bad))
        for window, bad in zip(windows(np.full(len(wrong), 0.03)), rounded, strict=True)
    ]


def test_an_em_that_sinks_towards_the_critical_one_is_seen_and_one_that_stays_is_not() -> None:
    sinking = forecast_em(labelled(0.15 + ramp(80, 30, 0.18)), critical_em=0.6)
    assert sinking is not None
    assert (sinking.of, sinking.alert) == ("em", True)
    assert sinking.per_1000 < 0
    assert sinking.ahead_low < sinking.ahead < sinking.ahead_high
    assert sinking.now == pytest.approx(0.68, abs=0.04)
    still = forecast_em(labelled(np.full(80, 0.15)), critical_em=0.6)
    assert still is not None
    assert not still.alert
    assert still.now == pytest.approx(0.85, abs=0.02)
    below = forecast_em(labelled(np.full(80, 0.5)), critical_em=0.6)
    assert below is not None
    assert below.alert
    assert below.crossing.expected == 8_000
    assert "is crossed" in below.reason


# --------------------------------------------------------------------------- neighbours


def test_neighbours_are_the_levels_that_disagree_up_to_three_times_as_often() -> None:
    differs = np.zeros((100, 6), dtype=bool)
    for level, n in enumerate((0, 2, 4, 6, 7, 30)):
        differs[:n, level] = True
    assert near_levels(differs, 1) == range(1, 4)
    assert near_levels(differs, 4) == range(4, 5)
    assert near_levels(differs, 0) == range(2), "a level that never disagrees is compared as if it did once"
    assert near_levels(differs, 5) == range(5, 6)
    shares = near_share(differs, range(1, 4))
    assert shares[:6].tolist() == pytest.approx([1, 1, 2 / 3, 2 / 3, 1 / 3, 1 / 3])
    assert shares[6:].sum() == 0

"""Forecasts act before the crossing, hardly ever for nothing, and know how sure they are: on streams with known truth.

The whole table, with more seeds and scenarios, is printed by `python -m tests.claims.forecasts`. Bounds here leave room
for chance: a forecast that kept to what the table shows would fail with a probability far below 1 %.
"""

from __future__ import annotations

import pytest

from suffice.assurance.drift import DOUBT_SHARE
from tests.claims.forecasts import CALM, DRIFTS, coverage, false_alerts, false_caps, in_time, measure

SEEDS = range(12)


@pytest.mark.slow(keep=1)
@pytest.mark.parametrize("name", ["world: harsh over 10,000", "law: the stop model sees all of it"])
def test_drifts_that_can_be_seen_are_announced_and_the_level_is_capped_before_they_cross(name: str) -> None:
    result = measure(DRIFTS[name], SEEDS, 0.05, DOUBT_SHARE)
    acted = sum(each.acted for each in result)
    kept = [each.kept for each in result if each.kept is not None]
    print(f"{name}: {in_time(result):.0%} in time, capped in {acted} of {len(result)}, kept in {sum(kept)}")
    assert in_time(result) >= 7 / 12
    assert acted >= 7
    assert sum(kept) >= 0.7 * len(kept), "the level at the cap stays inside the budget while the drift goes on"
    assert all(each.doubted is not None and each.doubted < (each.crossing or 0) for each in result)


@pytest.mark.slow
def test_large_budgets_are_watched_as_well_as_small_ones() -> None:
    name = "law: nothing shows, budget 10 %"
    result = measure(DRIFTS[name], range(6), 0.1, DOUBT_SHARE)
    print(f"{name}: capped in {sum(each.acted for each in result)} of {len(result)}")
    assert sum(each.acted for each in result) >= 5


@pytest.mark.slow(keep=1)
@pytest.mark.parametrize("name", ["world: none", "world: harder mix, to and fro"])
def test_traffic_that_never_crosses_is_left_in_peace(name: str) -> None:
    calm = measure(CALM[name], range(6), 0.1, DOUBT_SHARE)
    print(f"{name}: {false_alerts(calm):.2f} alerts in 10,000 requests, {false_caps(calm):.2f} caps in 20,000")
    assert false_alerts(calm) <= 1.2
    assert false_caps(calm) <= 2.0


@pytest.mark.slow
def test_more_audits_while_in_doubt_are_few_where_nothing_happens() -> None:
    calm = measure(CALM["law: none"], range(6), 0.05, DOUBT_SHARE)
    share = sum(each.share for each in calm) / len(calm)
    print(f"audited {share:.1%}, {false_alerts(calm):.2f} false alerts in 10,000 requests")
    assert 0.05 < share < 0.25
    assert false_alerts(calm) <= 1.2


@pytest.mark.slow
def test_about_nine_in_ten_graded_intervals_hold_what_came_over_drifts_and_calm() -> None:
    names = ("world: harsh over 10,000", "law: the stop model sees half of it", "law: nothing shows")
    makers = [*(DRIFTS[name] for name in names), CALM["law: none"], CALM["law: up to 0.6 … 1.2 % and back, not seen"]]
    graded, covered = coverage([each for make in makers for each in measure(make, range(5), 0.05, DOUBT_SHARE)])
    print(f"{graded:.1%} of the grades inside, {covered:.1%} of the true drops")
    assert 0.83 <= graded <= 0.96
    assert 0.83 <= covered <= 0.98

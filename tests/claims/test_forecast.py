"""Alerts come before the crossing, and hardly ever for nothing: measured on streams whose truth is known.

The whole table, with more seeds and scenarios, is printed by `python -m tests.claims.forecasts`. Bounds here leave room
for chance: a forecast that kept to what the table shows would fail with a probability far below 1 %.
"""

from __future__ import annotations

import pytest

from suffice.assurance.drift import DOUBT_SHARE
from tests.claims.forecasts import CALM, DRIFTS, false_alerts, in_time, measure

SEEDS = range(12)


@pytest.mark.slow(keep=1)
@pytest.mark.parametrize("name", ["world: harsh over 10,000", "law: the stop model sees all of it"])
def test_drifts_that_can_be_seen_are_announced(name: str) -> None:
    found = in_time(measure(DRIFTS[name], SEEDS, 0.05, DOUBT_SHARE))
    print(f"{name}: {found:.0%} in time")
    assert found >= 7 / 12


@pytest.mark.slow(keep=1)
@pytest.mark.parametrize("name", ["world: none", "world: harder mix, to and fro"])
def test_traffic_that_never_crosses_is_left_in_peace(name: str) -> None:
    tolds = measure(CALM[name], range(6), 0.1, DOUBT_SHARE)
    print(f"{name}: {false_alerts(tolds):.2f} false alerts in 10,000 requests")
    assert false_alerts(tolds) <= 1.2


@pytest.mark.slow
def test_more_audits_while_in_doubt_are_few_where_nothing_happens() -> None:
    tolds = measure(CALM["law: none"], range(6), 0.05, DOUBT_SHARE)
    share = sum(each.share for each in tolds) / len(tolds)
    print(f"audited {share:.1%}, {false_alerts(tolds):.2f} false alerts in 10,000 requests")
    assert 0.05 < share < 0.25
    assert false_alerts(tolds) <= 1.2

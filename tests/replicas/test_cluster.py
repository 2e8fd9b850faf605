"""A cluster leaves no process behind, and what a member that died had to say is kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from suffice_testing import FakeUpstream, Samples
from tests.replicas.cluster import Cluster
from tests.replicas.kills import settings


@pytest.mark.slow
def test_a_cluster_that_fails_to_start_ends_what_it_has_started_and_keeps_the_log(tmp_path: Path) -> None:
    folder = tmp_path / "cluster"
    folder.mkdir()
    with FakeUpstream.in_thread(Samples(["4"])) as fake:
        cluster = Cluster(folder, settings(fake), n_gateways=2, n_workers=1)
        cluster.gateways[1].arguments = ("serve", "--config", str(folder / "missing.toml"))
        with pytest.raises(RuntimeError, match=r"missing\.toml"), cluster:
            pytest.fail("it has started")
    assert all(member.is_dead for member in cluster.members)
    assert cluster.workers[0].process is None
    assert "missing.toml" in (cluster.kept_logs / "g1.txt").read_text(encoding="utf-8")

"""A gateway whose clock is five minutes ahead and a worker whose clock is as much behind, under load, on one log."""

from __future__ import annotations

import asyncio
import tempfile
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from suffice.settings import Store
from suffice.store.database.location import database_at, log_location
from suffice.store.database.views import query_number
from suffice.store.routes.deployments import read_replicas
from suffice_testing import FakeUpstream
from tests.replicas.check import Report, check, read_rows
from tests.replicas.cluster import Cluster
from tests.replicas.kills import model, settings
from tests.replicas.load import Load
from tests.replicas.postgres import PostgresServer
from tests.replicas.rolling import measure_decisions

WITHIN_S = 60.0


@dataclass(frozen=True, kw_only=True)
class ClockPlan:
    shift_s: float = 300.0
    seconds: float = 15.0
    n_streams: int = 8
    delay_s: float = 0.02


def run_clocks(plan: ClockPlan) -> Report:
    with (
        tempfile.TemporaryDirectory(prefix="suffice-clocks-") as folder,
        FakeUpstream.in_thread(model(plan.delay_s)) as fake,
        PostgresServer() as server,
    ):
        cluster = Cluster(Path(folder), settings(fake), n_gateways=2, n_workers=2, server=server, shift_s=plan.shift_s)
        cluster.workers[0].shift_s = -plan.shift_s
        with cluster:
            load = Load(cluster.gateways, plan.n_streams)

            async def work() -> None:
                async with load:
                    await asyncio.sleep(plan.seconds)

            asyncio.run(work())
            fake.wait_idle(60.0)
            delays = measure_decisions(cluster)
            present = _present(cluster)
            n_summed, n_written = _summed(cluster)
            for gateway in cluster.gateways:
                cluster.hold_down(gateway.name)
                gateway.end()
            report = check(cluster, load.history, fake)
    report.add("every replica is known to live", present == [2, 2, 2], f"{present} by the log and by each gateway")
    report.add("the sums count every run once", n_summed == n_written, f"{n_summed} summed of {n_written}")
    for what, delay_s in delays.items():
        report.add(f"a {what} reaches both", delay_s < WITHIN_S, f"after {delay_s:.2f} s")
    return report


def _present(cluster: Cluster) -> list[int]:
    """Living gateways, as the log has them and as each gateway counts them."""
    seen = [len(read_replicas(log_location(Store(url=cluster.store_url))))]
    for one in cluster.gateways:
        with urllib.request.urlopen(f"{one.url}/metrics", timeout=30) as reply:
            seen.append(int(float(reply.read().decode().partition("\nsuffice_replicas ")[2].split()[0])))
    return seen


def _summed(cluster: Cluster) -> tuple[int, int]:
    """Runs in the sums, and runs in the log; waits until the job has come so far."""
    database, end_s = database_at(log_location(Store(url=cluster.store_url))), time.monotonic() + WITHIN_S
    n_written = len(read_rows(cluster.store_url).outcomes)
    while True:
        n = query_number(database, "SELECT coalesce(sum(n_requests), 0) FROM rollups WHERE grain = 1")
        if n >= n_written or time.monotonic() > end_s:
            return n, n_written
        time.sleep(0.5)

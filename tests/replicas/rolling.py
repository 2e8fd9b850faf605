"""Restarts one gateway after the other under load, and pauses, kills and promotes while all of them watch."""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from suffice.settings import Store
from suffice.store.database.decisions import Decisions
from suffice.store.database.location import database_at, log_location
from suffice.types import Pause
from suffice_testing import FakeUpstream
from tests.replicas.balancer import Balancer
from tests.replicas.check import Report, check
from tests.replicas.cluster import Cluster, Member
from tests.replicas.kills import model, settings
from tests.replicas.load import Load
from tests.replicas.postgres import PostgresServer

GRACE_S = 20.0


@dataclass(frozen=True, kw_only=True)
class RollingPlan:
    n_rounds: int = 1  # restarts of every gateway
    n_gateways: int = 3
    n_streams: int = 12
    delay_s: float = 0.02
    postgres: bool = True


def run_rolling(plan: RollingPlan, tell: Callable[[str], None] = lambda _: None) -> Report:
    with (
        tempfile.TemporaryDirectory(prefix="suffice-rolling-") as folder,
        FakeUpstream.in_thread(model(plan.delay_s)) as fake,
        PostgresServer() if plan.postgres else nullcontext() as server,
        Cluster(
            Path(folder),
            {**settings(fake), "server": {"grace_s": GRACE_S}},
            n_gateways=plan.n_gateways,
            n_workers=1,
            server=server,
        ) as cluster,
    ):
        load = Load(cluster.gateways, plan.n_streams)
        delays = asyncio.run(_roll(cluster, load, plan, tell))
        fake.wait_idle(60.0)
        for gateway in cluster.gateways:
            cluster.hold_down(gateway.name)
            gateway.end()
        report = check(cluster, load.history, fake)
    ends = Counter(call.end for call in load.history.calls)
    failed = [call for call in load.history.calls if call.end != "done"]
    report.add(
        "a rolling restart under load fails no call",
        not failed,
        f"{plan.n_rounds * plan.n_gateways} restarts, {dict(ends)} {failed[:2] or ''}".rstrip(),
    )
    for what, delay_s in delays.items():
        figures = f"after {delay_s:.2f} s at the last of {plan.n_gateways} gateways"
        report.add(f"every replica sees a {what} within 1 s", delay_s < 1.0, figures)
    return report


async def _roll(cluster: Cluster, load: Load, plan: RollingPlan, tell: Callable[[str], None]) -> dict[str, float]:
    async with Balancer(cluster.gateways) as balancer:
        load.url = balancer.url
        async with load:
            await asyncio.sleep(2.0)
            for n in range(plan.n_rounds):
                for gateway in cluster.gateways:
                    await asyncio.to_thread(_restart, cluster, gateway)
                tell(f"round {n + 1}: {dict(Counter(call.end for call in load.history.calls))}")
            delays = await asyncio.to_thread(measure_decisions, cluster)
            await asyncio.sleep(1.0)
    return delays


def _restart(cluster: Cluster, gateway: Member) -> None:
    cluster.hold_down(gateway.name)
    assert gateway.end(GRACE_S + 30) == 0, gateway.log.read_text()[-2000:]
    gateway.start()
    cluster.wait_ready([gateway])
    cluster.let_up(gateway.name)
    time.sleep(0.5)  # the balancer finds it ready


def measure_decisions(cluster: Cluster) -> dict[str, float]:
    """Seconds until the last gateway applies each decision."""
    names, delays = [gateway.url for gateway in cluster.gateways], dict[str, float]()
    for what, method, on in (("kill", "POST", True), ("release of the kill switch", "DELETE", False)):
        began_s = time.monotonic()
        _ask(f"{names[0]}/v1/admin/kill", method, {"reason": "a drill"} if on else None)
        while not all(_ask(f"{url}/v1/admin/kill", "GET")["on"] is on for url in names):
            time.sleep(0.02)
        delays[what] = time.monotonic() - began_s
    location = log_location(Store(url=cluster.store_url))
    with Decisions(database_at(location).location, now=time.time, monotonic_s=time.monotonic, create=False) as writer:
        began_s = time.monotonic()
        pause = Pause(route="stopped", number=1, cause="person", reason="a drill", author="ann")
        assert writer.write_new(pause)
        while not all(_is_paused(url) for url in names):
            time.sleep(0.02)
        delays["pause"] = time.monotonic() - began_s
    return delays


def _ask(url: str, method: str, body: object = None) -> dict[str, object]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"}, method=method)
    with urllib.request.urlopen(request, timeout=10) as reply:
        answer: dict[str, object] = json.loads(reply.read())
        return answer


def _is_paused(url: str) -> bool:
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as reply:
        text = reply.read().decode()
    return 'suffice_promise_state{route="stopped",state="paused"} 1.0' in text

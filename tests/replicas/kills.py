"""Kills any of the processes at random under load, and checks what must hold afterwards."""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from suffice_testing import Answerer, FakeUpstream, Reply, ScriptedThought
from tests.replicas.check import Report, check, unfinished
from tests.replicas.cluster import Cluster
from tests.replicas.load import History, Load
from tests.replicas.postgres import PostgresServer

SHORT = [("two and two\n", "3"), ("so four\n", "4"), ("yes four\n", "4"), ("is that so\n", "4"), ("or five\n", "5")]
LONG = [("two and two\n", "3"), *[("so it is four\n", "4")] * 24, ("or five\n", "5")]  # to be stopped on the way
STREAK = {"policy": "stable-answer", "streak": 3}
SETTLE_S = 120.0  # for the requests of dead gateways to be recorded as lost


def model(delay_s: float) -> Answerer:
    """Thinks long on the route whose runs are stopped."""
    short, long = (ScriptedThought(steps, "5 dear", reply=Reply(delay_s=delay_s)) for steps in (SHORT, LONG))
    return lambda seen: (long if seen.model == "stopped" else short)(seen)


def settings(fake: FakeUpstream) -> dict[str, Any]:
    match = {name: {"header": name} for name in ("votes", "stopped", "full")}
    enforced = {"mode": "enforce", "scorer": "number", "policy": STREAK, "upstream": "up"}
    return {
        "upstreams": {"up": {"url": fake.url, "driver": "llama.cpp", "finish": ["raw"], "slots": 1_000}},
        "control": {"tick_requests": 20},
        "routes": {
            # Certified, withdrawn and certified again by its audits, while workers die.
            "votes": {
                **enforced,
                "kind": "samples",
                "samples": 5,
                "wave": 1,
                "audit_share": 0.5,
                "max_em_drop": 0.2,
                "match": match["votes"],
            },
            # Stops in the stream: replicas die in the middle of the transition.
            "stopped": {
                **enforced,
                "uncertified": True,
                "probe": {},
                "audit_share": 0.1,
                "steps": {"min_tokens": 3, "growth": 1.0},
                "match": match["stopped"],
            },
            "full": {"upstream": "up", "match": match["full"]},
        },
    }


@dataclass(frozen=True, kw_only=True)
class Plan:
    n_kills: int
    n_gateways: int = 4
    n_workers: int = 2
    n_streams: int = 40
    every_s: float = 2.0
    delay_s: float = 0.05  # between tokens
    postgres: bool = True
    shift_s: float = 300.0  # of one gateway's clock
    seed: int = 7


@dataclass
class Result:
    report: Report
    history: History
    kills: Counter[str]
    took_s: float


def run(plan: Plan, tell: Callable[[str], None] = lambda _: None) -> Result:
    began_s, rng, kills = time.monotonic(), random.Random(plan.seed), Counter[str]()
    with (
        tempfile.TemporaryDirectory(prefix="suffice-replicas-") as folder,
        FakeUpstream.in_thread(model(plan.delay_s)) as fake,
        PostgresServer() if plan.postgres else nullcontext() as server,
        Cluster(
            Path(folder),
            settings(fake),
            n_gateways=plan.n_gateways,
            n_workers=plan.n_workers,
            server=server,
            shift_s=plan.shift_s,
        ) as cluster,
    ):
        load = Load(cluster.gateways, plan.n_streams, seed=plan.seed)

        async def work() -> None:
            async with load:
                await asyncio.sleep(3.0)
                for n in range(plan.n_kills):
                    await asyncio.to_thread(cluster.wait_for_half)
                    name = await asyncio.to_thread(cluster.kill_one, rng)
                    kills[name] += 1
                    if n % 10 == 9:
                        ends = Counter(call.end for call in load.history.calls)
                        tell(f"{n + 1} kills in {time.monotonic() - began_s:.0f} s: {dict(ends)}")
                    await asyncio.sleep(rng.uniform(0.5, 1.5) * plan.every_s)
                await asyncio.to_thread(cluster.wait_ready)
                await asyncio.sleep(3.0)

        asyncio.run(work())
        fake.wait_idle(60.0)
        end_s = time.monotonic() + SETTLE_S
        while unfinished(cluster.store_url) and time.monotonic() < end_s:
            time.sleep(1.0)
        for gateway in cluster.gateways:  # writes what is in its queue
            cluster.hold_down(gateway.name)
            gateway.end()
        report = check(cluster, load.history, fake)
    return Result(report, load.history, kills, time.monotonic() - began_s)

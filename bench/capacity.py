"""What a request costs Suffice itself: CPU time of gateway and worker, and bytes of the log; and what 10⁸ of them cost.

    python bench/capacity.py [--requests 600] [--postgres]

A real `suffice serve` before a fake model server; every request is streamed, one chunk a token. Two lengths give the
cost of a request and that of a chunk. The prices are public list prices with their date.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.gateway_process import GatewayProcess
from tests.replicas.postgres import PostgresServer

from suffice_testing import FakeUpstream, Reply

LENGTHS = (100, 500)  # chunks of thought
HEADS = "route,ms/request,us/chunk,worker ms,database ms,log bytes,RSS MiB,core-h/10^8,USD/10^8,GB/10^8"
WARM = 100  # requests before the clock starts
TICKS = os.sysconf("SC_CLK_TCK")
ROUTES: dict[str, dict[str, Any]] = {
    "off": {"mode": "off"},
    "observe": {},
    "enforce": {
        "mode": "enforce",
        "uncertified": True,
        "policy": {"policy": "fixed-budget", "max_tokens": 10**6},  # looks at every step, stops none
    },
}
# List prices, US dollars, on demand, region us-east-1, as published in 2025; look today's up.
PRICES = {"core_hour": 0.0363, "gb_month": 0.08}  # half of a c7g.large; gp3 storage


@dataclass(frozen=True, slots=True)
class Cost:
    gateway_s: float  # CPU time a request
    worker_s: float
    log_bytes: float
    database_s: float  # CPU time a request of PostgreSQL's processes; 0: SQLite
    rss_bytes: int  # of the gateway, at the end


def cpu_s(pid: int) -> tuple[float, float]:
    """CPU time of a process, and of its children that live, so far. Linux only."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    return (int(fields[11]) + int(fields[12])) / TICKS, sum(sum(cpu_s(int(child))) for child in children)


def log_bytes(folder: Path) -> int:
    """Size of the log of a gateway that has ended, which leaves no write-ahead log."""
    return sum(file.stat().st_size for file in folder.glob("log.db*") if not file.name.endswith(".good"))


async def ask(url: str, n: int, n_at_once: int, at: int, *, model: str = "m") -> None:
    left = iter(range(n))

    async def client(session: aiohttp.ClientSession) -> None:
        for i in left:
            body = {"model": model, "stream": True, "messages": [{"role": "user", "content": f"how much? {at} {i}"}]}
            async with session.post(f"{url}/v1/chat/completions", json=body) as response:
                if not (await response.read()).endswith(b"[DONE]\n\n"):
                    raise SystemExit("a stream did not end as it should")

    async with aiohttp.ClientSession() as session:
        await asyncio.gather(*(client(session) for _ in range(n_at_once)))


def database_bytes(url: str) -> int:
    import psycopg

    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CHECKPOINT")
        rows = connection.execute("SELECT pg_database_size(current_database())").fetchall()
    return int(rows[0][0])


def measure(route: dict[str, Any], n_chunks: int, n: int, server: PostgresServer | None) -> Cost:
    words = ("so ", "it ", "is ", "four\n")
    reply = Reply(reasoning=tuple(words[i % 4] for i in range(n_chunks)), answer=("fo", "ur"))
    with tempfile.TemporaryDirectory() as name, FakeUpstream.in_thread(reply) as fake:
        settings: dict[str, Any] = {
            "upstreams": {"up": {"url": fake.url, "slots": 8}},
            "routes": {"r": {"upstream": "up", **route}},
            "control": {"burst_requests": 20},  # the steady state, not the cold start
        }
        if server is not None:
            settings["store"] = {"url": server.url, "schema_name": f"log_{time.time_ns()}"}

        def size() -> int:
            return log_bytes(Path(name)) if server is None else database_bytes(server.url)

        def database_s() -> float:
            return 0.0 if server is None or server.process is None else sum(cpu_s(server.process.pid))

        with GatewayProcess.serving(name, settings, log_level="error"):
            pass
        empty = size()
        with GatewayProcess.serving(name, settings, log_level="error") as gateway:
            asyncio.run(ask(gateway.url, WARM, 8, 0))
            time.sleep(1.0)
            before_s, database_before_s = cpu_s(gateway.process.pid), database_s()
            asyncio.run(ask(gateway.url, n, 8, 1))
            time.sleep(3.0)  # the writer and the worker finish what belongs to them
            after_s, rss = cpu_s(gateway.process.pid), gateway.rss_bytes()
            spent_s = (database_s() - database_before_s) / n
        own_s, worker_s = ((after - before) / n for after, before in zip(after_s, before_s, strict=True))
        return Cost(own_s, worker_s, (size() - empty) / (n + WARM), spent_s, rss)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=600, help="a measurement")
    parser.add_argument("--postgres", action="store_true", help="a log in PostgreSQL, which is started for it")
    given = parser.parse_args()
    with PostgresServer() if given.postgres else contextlib.nullcontext() as server:
        show(given.requests, server)


def show(n: int, server: PostgresServer | None) -> None:
    print(("{:<9}" + "{:>12}" * 9).format(*HEADS.split(",")))
    for name, route in ROUTES.items():
        short, long = (measure(route, length, n, server) for length in LENGTHS)
        chunk_s = (long.gateway_s - short.gateway_s) / (LENGTHS[1] - LENGTHS[0])
        fixed_s = short.gateway_s - LENGTHS[0] * chunk_s
        beside_s = long.worker_s + long.database_s
        hours = (fixed_s + 1_000 * chunk_s + beside_s) * 1e8 / 3_600  # a request of 1,000 tokens
        costs_ms = (fixed_s * 1e3, chunk_s * 1e6, long.worker_s * 1e3, long.database_s * 1e3)
        figures = (*costs_ms, long.log_bytes, long.rss_bytes / 2**20)
        totals = (hours, hours * PRICES["core_hour"], long.log_bytes * 1e8 / 1e9)
        print(("{:<9}" + "{:>12.2f}" * 4 + "{:>12.0f}" * 5).format(name, *figures, *totals), flush=True)


if __name__ == "__main__":
    main()

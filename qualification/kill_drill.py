"""Drills of the kill switch: pulled at one of three gateways and released at another, beside a busy processor."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.replicas.cluster import Cluster
from tests.replicas.postgres import PostgresServer, binaries

from suffice_testing import FakeUpstream, Samples

GOAL_S = 1.0
WAIT_S = 10.0  # after which a gateway counts as never having seen an order
URL = "/v1/admin/kill"


@dataclass(frozen=True)
class Drill:
    pulled_s: float  # until every gateway was killed
    released_s: float  # until none was

    @property
    def is_good(self) -> bool:
        return max(self.pulled_s, self.released_s) <= GOAL_S


def ask(url: str, method: str = "GET", body: dict[str, Any] | None = None) -> dict[str, Any]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url + URL, data=data, method=method, headers={"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=WAIT_S) as reply:
        answer: dict[str, Any] = json.loads(reply.read())
    return answer


def give(cluster: Cluster, at: int, *, on: bool) -> float:
    """Give an order at one gateway; return how many seconds later the last gateway obeyed it."""
    began_s, waiting = time.monotonic(), {one.url for one in cluster.gateways}
    url = cluster.gateways[at].url
    if on:
        ask(url, "POST", {"reason": "a drill"})
    else:
        ask(url, "DELETE")
    while waiting and time.monotonic() - began_s < WAIT_S:
        waiting -= {one for one in waiting if ask(one)["on"] is on}
        time.sleep(0.01)
    return float("inf") if waiting else time.monotonic() - began_s


@contextlib.contextmanager
def busy_processors(n: int) -> Iterator[None]:
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(n)]
    try:
        yield
    finally:
        for one in loops:
            one.kill()
            one.wait()


def run(n_drills: int, *, postgres: bool, seed: int = 1, n_busy: int = 1) -> list[Drill]:
    """Return the drills on three gateways, of which the last one's clock is five minutes ahead."""
    rng, drills = random.Random(seed), list[Drill]()
    with (
        tempfile.TemporaryDirectory(prefix="suffice-drill-") as folder,
        FakeUpstream.in_thread(Samples(["4"])) as fake,
        PostgresServer() if postgres else nullcontext() as server,
    ):
        settings = {"upstreams": {"up": {"url": fake.url}}, "routes": {"r": {"upstream": "up"}}}
        cluster = Cluster(Path(folder), settings, n_gateways=3, n_workers=0, server=server, shift_s=300.0)
        with cluster, busy_processors(n_busy):
            for _ in range(n_drills):
                pulled_at, released_at = rng.sample(range(3), 2)
                drills.append(Drill(give(cluster, pulled_at, on=True), give(cluster, released_at, on=False)))
    return drills


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--drills", type=int, default=20)
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--busy", type=int, default=os.cpu_count() or 1, help="endless loops beside the gateways")
    named = options.parse_args()
    databases = ["sqlite", *(["postgres"] if binaries() is not None else [])]
    n_missed = 0
    for database in databases:
        drills = run(named.drills, postgres=database == "postgres", seed=named.seed, n_busy=named.busy)
        for number, drill in enumerate(drills, 1):
            print(f"{database} {number:2}: all killed after {drill.pulled_s:.2f} s, all free {drill.released_s:.2f} s")
        n_good = sum(one.is_good for one in drills)
        print(f"{database}: {n_good} of {len(drills)} within {GOAL_S:g} s both ways")
        n_missed += len(drills) - n_good
    return int(n_missed > 0)


if __name__ == "__main__":
    sys.exit(main())

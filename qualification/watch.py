"""Looks that raise, hang or crawl, and a worker that is killed: what is served as certified afterwards, over HTTP.

Real processes: a gateway without a worker of its own, `suffice worker` beside it, and a fake model server whose samples
always agree, so that a level is certified soon. Faults are put into the worker's looks by a file. For each fault, the
program sends requests until one runs in full, and counts those that were served as certified since the fault began.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.gateway_process import GatewayProcess

from suffice.gateway.lease import CHECK_S, LEAST_S
from suffice.settings import Control
from suffice_testing import FakeUpstream
from suffice_testing.chain import Samples

AT_ONCE: Final = 4
MOST_SENT: Final = 4_000  # until a first level is certified
BUSY: Final = 40.0  # requests a second, of which 500 take longer than the least time of a lease
NOTICED_S: Final = 5.0  # from the end of the lease to the metric and the row

FAULTS: Final = (
    ("worker killed", BUSY),
    ("raises", BUSY),
    ("hangs", 2.0),  # so few that the lease ends by its time
    ("too slow", BUSY),
    ("worker killed", None),  # as fast as they are answered
)

# What the worker's process runs before its main: each look at a route first does what the file says.
_WORKER: Final = """
import sys, time, pathlib
from suffice.control.loop.route_loop import RouteLoop
told, settle = pathlib.Path(sys.argv.pop()), RouteLoop.settle
def faulty(self):
    began_s = time.process_time()
    what = told.read_text()
    if what == "raises":
        raise ValueError("what a user wrote")
    while what == "hangs" and told.read_text() == what:
        time.sleep(0.05)
    made = settle(self)
    if what == "crawls":
        time.sleep(9 * (time.process_time() - began_s))
    if what == "too slow":
        time.sleep(90)
    return made
RouteLoop.settle = faulty
from suffice.cli.main import main; main()
"""


@dataclass
class World:
    """A gateway, the file that says what is wrong with looks, and the worker, which may be started again."""

    gateway: GatewayProcess
    fault: Path
    worker: subprocess.Popen[bytes] | None = None
    n_sent: int = 0

    def start_worker(self) -> None:
        folder = self.gateway.folder
        command = [sys.executable, "-c", _WORKER, "worker", "--config", str(folder / "suffice.toml"), str(self.fault)]
        paths = os.pathsep.join(path for path in sys.path if path)
        with (folder / "worker.txt").open("ab") as output:
            self.worker = subprocess.Popen(
                command, stdout=output, stderr=output, env={**os.environ, "PYTHONPATH": paths}
            )

    def kill_worker(self) -> None:
        if self.worker is not None:
            self.worker.send_signal(signal.SIGKILL)
            self.worker.wait()
            self.worker = None

    def ask(self, number: int) -> dict[str, Any]:
        body = {"model": "m", "messages": [{"role": "user", "content": f"question {number}"}], "suffice": {}}
        request = urllib.request.Request(
            f"{self.gateway.url}/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as reply:
            reported: dict[str, Any] = json.loads(reply.read())["suffice"]
            return reported

    def send(self, n: int, *, per_s: float | None = None) -> list[dict[str, Any]]:
        """Send requests, as fast as they are answered or at a rate; what each reply says of itself."""
        first, self.n_sent = self.n_sent, self.n_sent + n
        began_s = time.monotonic()

        def ask(place: int) -> dict[str, Any]:
            if per_s is not None:
                time.sleep(max(0.0, began_s + place / per_s - time.monotonic()))
            return self.ask(first + place)

        with ThreadPoolExecutor(AT_ONCE) as threads:
            return list(threads.map(ask, range(n)))

    def gauge(self, name: str) -> float:
        with urllib.request.urlopen(f"{self.gateway.url}/metrics", timeout=60) as reply:
            lines = reply.read().decode().splitlines()
        return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(f'{name}{{route="r"')), 0.0)

    def readiness(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self.gateway.url}/readyz", timeout=60) as reply:
            details: dict[str, Any] = json.loads(reply.read())
            return details

    def status(self) -> str:
        command = [sys.executable, "-c", "from suffice.cli.main import main; main()", "status", "--json", "--config"]
        made = subprocess.run([*command, str(self.gateway.folder / "suffice.toml")], capture_output=True, check=False)
        return made.stdout.decode()

    def lapses(self) -> list[int]:
        """For each lease that ended, the requests that the gateway counted in it."""
        with closing(sqlite3.connect(self.gateway.database)) as log:
            rows = log.execute("SELECT body FROM events WHERE kind = 'watch_changed' ORDER BY seq").fetchall()
        changes = [json.loads(body)["watch"] for (body,) in rows]
        return [int(one["n_requests"]) for one in changes if one["lapsed"]]

    def heal(self) -> float:
        """Take the fault back and wait until requests are certified again; after how many seconds they are."""
        self.fault.write_text("")
        if self.worker is None:
            self.start_worker()
        began_s = time.monotonic()
        while not all(reply["certified"] for reply in self.send(1)):
            time.sleep(0.2)
        return time.monotonic() - began_s


@dataclass(frozen=True, kw_only=True)
class Result:
    """What happened after one fault."""

    fault: str
    per_s: float | None  # requests; None: as fast as they are answered
    n_certified: int  # requests served as certified since it began
    counted: int  # … since the last look that the gateway saw, as it says
    most: int  # that may be
    after_s: float  # until the first request in full
    reported: dict[str, bool]  # where it is said

    @property
    def is_met(self) -> bool:
        return self.counted <= self.most and all(self.reported.values())


def end_lease(world: World, fault: str, *, per_s: float | None, rules: Control) -> Result:
    """Begin a fault, and send until a request runs in full because nobody watches."""
    n_lapses, n_batch = len(world.lapses()), AT_ONCE if per_s is None else max(1, round(per_s / 4))
    if fault == "worker killed":
        world.kill_worker()
    else:
        world.fault.write_text(fault)
    began_s, n_certified, after_s = time.monotonic(), 0, 0.0
    while after_s < 2 * rules.lease_s:
        replies = world.send(n_batch, per_s=per_s)
        n_certified += sum(reply["certified"] for reply in replies)
        after_s, last = time.monotonic() - began_s, replies[-1]
        if not last["certified"]:
            break
        if per_s is not None:
            time.sleep(max(0.0, n_batch / per_s - (time.monotonic() - began_s - after_s) - 0.02))
    end_s = time.monotonic() + NOTICED_S
    while len(world.lapses()) == n_lapses and time.monotonic() < end_s:
        time.sleep(0.1)
    ready, ended = world.readiness(), world.lapses()[n_lapses:]
    reported = {
        "reply": not last["certified"] and not last["stopped"] and "nobody watches" in last["promise"],
        "metric": world.gauge("suffice_watch_lapsed") == 1 and world.gauge("suffice_certified_level") == 0,
        "readyz": ready.get("unwatched") == ["r"] and (fault != "raises" or "certify of route r" in str(ready)),
        "row": len(ended) == 1,
        "status": '"promise_state":"unwatched"' in world.status().replace(": ", ":"),
        "in time": after_s <= rules.lease_s + NOTICED_S,
    }
    # Beyond 100 requests a second, a lease lasts for its 5 s, which began at a look before the fault.
    most = rules.lease_requests
    if per_s is None:
        most = max(most, round(n_certified / after_s * (LEAST_S + CHECK_S)))
    return Result(
        fault=fault,
        per_s=per_s,
        n_certified=n_certified,
        counted=sum(ended),
        most=most,
        after_s=after_s,
        reported=reported,
    )


def go_on(world: World, fault: str, *, n: int, per_s: float) -> Result:
    """Send under a fault that ends no lease: nothing may run in full for it."""
    world.fault.write_text(fault)
    n_lapses, began_s = len(world.lapses()), time.monotonic()
    n_certified = sum(reply["certified"] for reply in world.send(n, per_s=per_s))
    kept = {"no lapse": len(world.lapses()) == n_lapses, "all certified": n_certified == n}
    after_s = time.monotonic() - began_s
    return Result(fault=fault, per_s=per_s, n_certified=n_certified, counted=0, most=n, after_s=after_s, reported=kept)


@contextmanager
def opened(folder: Path) -> Iterator[World]:
    with FakeUpstream.in_thread(Samples(["it is 4"])) as fake:
        route = {"upstream": "up", "kind": "samples", "samples": 8, "wave": 1, "scorer": "number", "mode": "enforce"}
        settings = {
            "server": {"retry_window_s": 0.0},
            "upstreams": {"up": {"url": fake.url, "driver": "llama.cpp", "slots": 64}},
            "routes": {"r": route | {"max_em_drop": 0.1, "confidence": 0.9, "agent": "off"}},
            "control": {"enabled": False},
            "console": {"enabled": False},
        }
        with GatewayProcess.serving(folder, settings, log_level="warning") as gateway:
            world = World(gateway, folder / "fault")
            world.fault.write_text("")
            world.start_worker()
            try:
                yield world
            finally:
                world.kill_worker()


def main() -> int:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--requests", type=int, default=600, help="under a fault that ends no lease")
    chosen = words.parse_args()
    rules = Control()
    with tempfile.TemporaryDirectory() as folder, opened(Path(folder)) as world:
        while not world.gauge("suffice_certified_level"):
            assert world.n_sent < MOST_SENT, "a level is certified by then"
            world.send(50)
        print(f"certified after {world.n_sent:,} requests", flush=True)
        world.heal()
        head = f"{'fault':14} {'per s':>6} {'certified':>10} {'counted':>8} {'at most':>8} {'after':>6} {'healed':>7}"
        print(f"{head}  reported")
        results = []
        for fault, per_s in FAULTS:
            one = end_lease(world, fault, per_s=per_s, rules=rules)
            if fault == "too slow":  # its look ends only later
                world.kill_worker()
            _print(one, world.heal())
            results.append(one)
        crawling = go_on(world, "crawls", n=chosen.requests, per_s=BUSY)
        _print(crawling, world.heal())
        results.append(crawling)
    missed = [one.fault for one in results if not one.is_met]
    print(f"missed: {', '.join(missed)}" if missed else "every goal is met")
    return bool(missed)


def _print(one: Result, healed_s: float) -> None:
    where = ", ".join(f"{name} {'yes' if holds else 'NO'}" for name, holds in one.reported.items())
    rate = "most" if one.per_s is None else f"{one.per_s:g}"
    numbers = f"{one.n_certified:10,} {one.counted:8,} {one.most:8,} {one.after_s:5.0f}s {healed_s:6.0f}s"
    print(f"{one.fault:14} {rate:>6} {numbers}  {where}", flush=True)


if __name__ == "__main__":
    sys.exit(main())

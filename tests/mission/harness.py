"""A real `suffice serve` with its worker before a model server with known truth, and a client that counts."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import sqlite3
import sys
import time
from asyncio.subprocess import PIPE, STDOUT
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import aiohttp

from suffice_testing import FakeUpstream
from suffice_testing.world import Question, World
from tests.gateway_process import GatewayProcess

AT_ONCE = 16  # requests in flight
MOST_SOUGHT = 3_000  # requests in which a level is certified
N_LOOKS = 80  # at the worker, 10 ms apart: several of its periods
N_WORKERS = 2  # one watches, the other does all other jobs
CALM = 0.8  # of them asleep: it has read everything, and only looks whether there is more
FOLLOWS_S = 1.2  # a gateway looks for decisions every second
FEEDBACK_KEY = "a-feedback-key"
_FREQUENT = ("request", "outcome", "feedback", "job_ran", "label_wanted", "route_monitored", "requests_counted")
OPEN = "SELECT count(*) FROM requests WHERE episode_id NOT IN (SELECT episode_id FROM outcomes)"
_ids = count(1)
_ENTRY = "from suffice.cli.main import main; main()"


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """One request as its client saw it, beside the truth."""

    question: Question
    status: int
    episode_id: str
    answer: str | None
    report: Mapping[str, Any]  # the reply's object `suffice`
    tokens: int  # the client's usage and the probes

    @property
    def lost(self) -> int:
        return self.question.lost_by(self.answer)

    @property
    def stopped(self) -> bool:
        return bool(self.report.get("stopped"))

    @property
    def level(self) -> int:
        """Of the pinned version; 0: none is active."""
        _, mark, level = self.report.get("policy_version", "").rpartition("@")
        return int(level) if mark else 0


@dataclass(slots=True)
class Mission:
    simulation: World
    fake: FakeUpstream
    gateway: GatewayProcess
    session: aiohttp.ClientSession
    served: list[Served] = field(default_factory=list)
    figures: dict[str, object] = field(default_factory=dict)  # shown beside the result
    _followed: int = 0  # the newest decision that the gateway has surely read

    # ---- the client

    async def send(
        self,
        n: int,
        *,
        route: str = "r",
        query_class: str = "",
        at_once: int = AT_ONCE,
        labelled: float = 0.0,
        **options: Any,
    ) -> list[Served]:
        """Ask n new questions as fast as possible, and send the gold answers of a share of them afterwards.

        query_class  "": each drawn by the simulation's shares
        """
        questions = [self.simulation.ask(query_class) for _ in range(n)]
        gate = asyncio.Semaphore(at_once)

        async def one(question: Question) -> Served:
            async with gate:
                return await self.ask(question, route=route, **options)

        served = list(await asyncio.gather(*(one(question) for question in questions)))
        self.served += served
        if labelled:
            step = round(1 / labelled)
            await self.feedback([{"episode_id": s.episode_id, "gold": s.question.gold} for s in served[::step]])
        return served

    async def ask(self, question: Question, *, route: str = "r", **options: Any) -> Served:
        headers = {"x-suffice-route": route}
        body = {"model": "m", "messages": [{"role": "user", "content": question.text}], "suffice": {}, **options}
        async with self.session.post(f"{self.gateway.url}/v1/chat/completions", json=body, headers=headers) as reply:
            output: dict[str, Any] = await reply.json()
            report = output.get("suffice") or {}
            text = output["choices"][0]["message"]["content"] if reply.status == 200 else ""
            result = re.findall(r"\d+", text or "")
            return Served(
                question=question,
                status=reply.status,
                episode_id=reply.headers.get("x-suffice-episode-id", ""),
                answer=result[-1] if result else None,
                report=report,
                tokens=(output.get("usage") or {}).get("completion_tokens", 0) + report.get("probe_tokens", 0),
            )

    async def feedback(self, words: Sequence[Mapping[str, Any]], *, source: str = "exact-match") -> None:
        """Send feedback in batches, as a system that knows."""
        for at in range(0, len(words), 500):
            batch = [{"feedback_id": f"f{next(_ids)}", "source": source, **word} for word in words[at : at + 500]]
            output = await self.post("/v1/feedback/batch", {"feedback": batch}, key=FEEDBACK_KEY)
            assert not output["refused"], output

    # ---- what people and programs read

    async def post(self, path: str, body: Mapping[str, Any], *, key: str = "") -> dict[str, Any]:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        async with self.session.post(self.gateway.url + path, json=body, headers=headers) as reply:
            text = await reply.text()
            assert reply.status < 300, f"POST {path}: {reply.status} {text[:500]}"
            return dict(json.loads(text))

    async def api(self, path: str, body: Mapping[str, Any] | None = None, **query: str) -> dict[str, Any]:
        """The control API, as the admin: GET, or POST if there is a body."""
        secret = await asyncio.to_thread(getattr, self.gateway, "admin_secret")
        if body is not None:
            return await self.post(f"/api{path}", body, key=secret)
        headers = {"authorization": f"Bearer {secret}"}
        async with self.session.get(f"{self.gateway.url}/api{path}", params=query, headers=headers) as reply:
            text = await reply.text()
            assert reply.status == 200, f"GET {path}: {reply.status} {text[:500]}"
            return dict(json.loads(text))

    async def metrics(self) -> dict[str, float]:
        headers = {"accept-encoding": "identity"}
        async with self.session.get(f"{self.gateway.url}/metrics", headers=headers) as reply:
            lines = (line.rpartition(" ") for line in (await reply.text()).splitlines() if not line.startswith("#"))
            return {name: float(value) for name, _, value in lines}

    def rows(self, kind: str, route: str = "r") -> list[dict[str, Any]]:
        """Rows of the log in its order, as a SQL tool reads them, less the name around each."""
        query = "SELECT body FROM events WHERE kind = ? AND route = ? ORDER BY seq"
        bodies = [json.loads(body) for (body,) in self.sql(query, kind, route)]
        return [next(iter(body.values())) if len(body) == 1 else body for body in bodies]

    def sql(self, query: str, *values: object) -> list[Any]:
        with contextlib.closing(sqlite3.connect(self.gateway.database)) as connection:
            return connection.execute(query, values).fetchall()

    async def command(self, *arguments: str) -> tuple[int, str]:
        """Run `suffice` on this gateway's settings: its exit status, and what it wrote."""
        config = ("--config", str(self.gateway.folder / "suffice.toml"))
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", _ENTRY, *arguments, *config, stdout=PIPE, stderr=STDOUT, env=_environment()
        )
        output, _ = await process.communicate()
        return process.returncode or 0, output.decode()

    async def certified(self, *, route: str = "r", epoch: int = 1, **sending: Any) -> dict[str, Any]:
        """Ask until a level is certified: its publication."""
        n_before = len(self.served)
        while True:
            made = self.rows("policy_published", route)
            result = [one for one in made if one["epoch"] == epoch and one["level"]]
            if result:
                return result[0]
            assert len(self.served) - n_before < MOST_SOUGHT, "it has been certified by then"
            await self.send(100, route=route, **sending)
            await self.rest()

    async def stop(self) -> None:
        """End the gateway as an operator does; the log stays."""
        await asyncio.to_thread(self.gateway.end)

    # ---- waiting

    async def until(self, holds: Callable[[], object], *, within_s: float = 60.0, what: str = "") -> None:
        end_s = time.monotonic() + within_s
        while not holds():
            assert time.monotonic() < end_s, f"it did not come to that within {within_s:g} s: {what}"
            await asyncio.sleep(0.05)

    async def rest(self, *, within_s: float = 90.0) -> None:
        """Wait until the worker has read everything and the gateway follows what was decided."""
        await self.until(lambda: not self.sql(OPEN)[0][0], what="all outcomes are in the log")
        end_s, pids = time.monotonic() + within_s, self.worker_pids()
        slept = deque([False], maxlen=N_LOOKS)
        while len(slept) < N_LOOKS or sum(slept) < CALM * N_LOOKS:
            assert time.monotonic() < end_s, "the worker came to no rest"
            await asyncio.sleep(0.01)
            slept.append(all(_sleeps(pid) for pid in pids))
        newest = self._newest_decision()
        if newest > self._followed:
            await asyncio.sleep(FOLLOWS_S)
        self._followed = newest

    def worker_pids(self) -> list[int]:
        """The processes of the control loop; []: they have not been started yet. Linux only."""
        pid = self.gateway.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
        return [int(child) for child in children]

    def _newest_decision(self) -> int:
        marks = ", ".join("?" * len(_FREQUENT))
        return int(self.sql(f"SELECT coalesce(max(seq), 0) FROM events WHERE kind NOT IN ({marks})", *_FREQUENT)[0][0])


def _sleeps(pid: int) -> bool:
    """Whether a process waits for something to do: it neither runs, nor would it like to."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] == "S"
    return False


def _environment() -> dict[str, str]:
    paths = os.pathsep.join(path for path in sys.path if path)
    return {**os.environ, "PYTHONPATH": paths, "SUFFICE_FEEDBACK": FEEDBACK_KEY}


@contextlib.asynccontextmanager
async def on_mission(
    simulation: World, folder: Path, routes: Mapping[str, Mapping[str, Any]] | None = None, **tables: Any
) -> AsyncIterator[Mission]:
    """Serve a simulation through a gateway with its worker.

    routes  tables of the routes, each merged over the kind's defaults; None: one, `r`
    tables  further tables of the settings, merged over the defaults
    """
    slots = 4 * AT_ONCE * max(simulation.votes, 1)
    async with FakeUpstream(simulation) as fake:
        upstream = {
            "url": fake.url,
            "driver": "llama.cpp",
            "slots": slots,
            "finish": ["raw"],
            "extra": {"when_busy": "queue"},
        }
        server = {"retry_window_s": 0.0, "feedback_keys_env": "SUFFICE_FEEDBACK"}
        settings: dict[str, Any] = {
            "server": server | tables.pop("server", {}),
            "upstreams": {"up": upstream | tables.pop("upstream", {})},
            "routes": {name: route_for(simulation) | dict(table) for name, table in (routes or {"r": {}}).items()},
            "store": {"flush_ms": 5},
            "control": {"period_s": 0.3} | tables.pop("control", {}),
            **tables,
        }
        serving = GatewayProcess.serving(folder, settings, log_level="warning", environment=_environment())
        gateway = await asyncio.to_thread(serving.__enter__)
        try:
            async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
                mission = Mission(simulation, fake, gateway, session)
                await mission.until(lambda: len(mission.worker_pids()) == N_WORKERS, what="the workers have started")
                for pid in mission.worker_pids():
                    with contextlib.suppress(OSError):  # these requests come faster than any real ones
                        os.setpriority(os.PRIO_PROCESS, pid, 0)
                yield mission
        finally:
            await asyncio.to_thread(serving.__exit__, *sys.exc_info())


def route_for(simulation: World) -> dict[str, Any]:
    """A route that learns and acts, for a simulation's kind."""
    common = {"upstream": "up", "scorer": "number", "mode": "enforce"}
    if simulation.votes:
        return {**common, "kind": "samples", "samples": simulation.votes, "wave": 1}
    probe = {"max_tokens": 8, "verified_by": "owner"}
    return {**common, "probe": probe, "steps": {"min_tokens": 3, "growth": 1.0}}


# --------------------------------------------------------------------------- the truth, over requests


def saving(served: Iterable[Served], full_tokens: float) -> float:
    """The share of tokens saved against full runs of so many tokens each."""
    spent = [one.tokens for one in served]
    return 1 - sum(spent) / (full_tokens * len(spent))


def tokens_of(served: Sequence[Served]) -> float:
    """Tokens of a request, on average."""
    return sum(one.tokens for one in served) / len(served)


def drop(served: Iterable[Served]) -> float:
    """Exact Match lost against full runs, per request."""
    lost = [one.lost for one in served]
    return sum(lost) / len(lost)

"""The pause that a stop puts into a client's stream, with a real model: prefix cache warm, cold, all slots busy.

    python bench/pause.py [--quick] [--runs N]

A small model is served by llama.cpp on this machine, two slots. The gateway stops each thought at its first step,
and the client measures the time from the last word of the thought to the first word of the answer.

    warm   the original is closed first and its slot goes on with the continuation: the prefix is in its cache
    cold   the continuation opens in the other slot while the original still runs: the whole prefix is read anew
    busy   the same, but other streams hold the other slot: the continuation waits, or the original goes on

Native control closes the thought inside the running stream: it needs no second slot and reads nothing anew, so
the states should not differ. Exits with 2 and a sentence when the extra `local` or the weights are missing.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import aiohttp

from peers import report
from suffice.server import serve_in_loop
from suffice.settings import Settings, parse_settings
from suffice.store.database.views import read_episodes
from suffice_demo.local import LocalModelError
from suffice_demo.local.server import LocalServer, ServerSpec
from suffice_demo.local.weights import cached_file, find_weights, is_whole

MODEL, QUICK_MODEL = "qwen0.5b", "smol"
N_SLOTS = 2
FILLER = "river stone paper window garden bridge letter copper winter orange market silver".split()  # noqa: SIM905
STATES = ("warm", "cold", "busy")
METHODS = ("native", "raw")
FETCH = "python -m suffice_demo.local.weights"


@dataclass(slots=True)
class Pauses:
    """What one state of one method showed."""

    pauses_ms: list[float] = field(default_factory=list)
    handovers_ms: list[float] = field(default_factory=list)
    cached: list[float] = field(default_factory=list)  # share of the continuation's prompt that was cached
    n_runs: int = 0


def settings(url: str, folder: Path, method: str, state: str) -> Settings:
    return parse_settings(
        {
            "upstreams": {
                "local": {
                    "url": url,
                    "driver": "llama.cpp",
                    "finish": [method],
                    "slots": 1
                    if state == "warm"
                    else N_SLOTS,  # 1: the original is closed before the continuation opens
                }
            },
            "routes": {
                "r": {
                    "upstream": "local",
                    "mode": "enforce",
                    "uncertified": True,
                    "audit_share": 0.0,
                    "scorer": "text",
                    "policy": {"policy": "stable-answer", "streak": 1},
                    "steps": {"boundary": "tokens", "min_tokens": 24},
                }
            },
            "store": {"url": f"sqlite:///{folder}/{method}-{state}.db"},
        }
    )


def body(rng: random.Random, *, max_tokens: int = 48) -> dict[str, Any]:
    """A question behind a text that no other question shares, so that no cache knows it."""
    text = " ".join(rng.choice(FILLER) for _ in range(80))
    words = rng.sample(FILLER, 2)
    question = f"{text}\n\nWhich word stands more often in this text, {words[0]} or {words[1]}? Think step by step."
    return {
        "model": "local",
        "stream": True,
        "max_tokens": max_tokens,
        "temperature": 0,
        "seed": rng.randrange(10**6),
        "messages": [{"role": "user", "content": question}],
    }


async def pause_ms(session: aiohttp.ClientSession, url: str, asked: dict[str, Any]) -> float | None:
    """From the last word of the thought to the first word of the answer; None: one of the two never came."""
    thought_s = pause = None
    async with session.post(f"{url}/v1/chat/completions", json=asked) as response:
        async for line in response.content:
            if not line.startswith(b"data: {"):
                continue
            for choice in json.loads(line[6:]).get("choices") or ():
                delta = choice.get("delta") or {}
                if delta.get("reasoning_content"):
                    thought_s = time.perf_counter()
                elif (delta.get("content") or "").strip() and thought_s is not None and pause is None:
                    pause = (time.perf_counter() - thought_s) * 1e3
    return pause


@asynccontextmanager
async def busy(session: aiohttp.ClientSession, url: str, rng: random.Random, n: int) -> AsyncIterator[None]:
    """Keep `n` long streams running at the model server itself."""

    async def hold() -> None:
        while True:
            async with session.post(f"{url}/v1/chat/completions", json=body(rng, max_tokens=400)) as response:
                async for _ in response.content.iter_any():
                    pass

    tasks = [asyncio.create_task(hold()) for _ in range(n)]
    await asyncio.sleep(1.0 if n else 0.0)
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def one_state(model_url: str, folder: Path, method: str, state: str, n_runs: int, limit_s: float) -> Pauses:
    found, rng = Pauses(), random.Random(f"{method} {state}")
    until_s = time.monotonic() + limit_s
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=limit_s)) as session,
        serve_in_loop(settings(model_url, folder, method, state)) as url,
        busy(session, model_url, rng, N_SLOTS - 1 if state == "busy" else 0),
    ):
        with contextlib.suppress(TimeoutError):
            while found.n_runs < n_runs and time.monotonic() < until_s:
                found.n_runs += 1
                pause = await pause_ms(session, url, body(rng))
                if pause is not None:
                    found.pauses_ms.append(pause)
    for labelled in read_episodes(folder / f"{method}-{state}.db"):
        outcome = labelled.episode.outcome
        if outcome is not None and outcome.stopped and outcome.handover_ms is not None:
            found.handovers_ms.append(outcome.handover_ms)
            found.cached += [
                call.cached_tokens / call.prompt_tokens
                for call in outcome.calls
                if call.purpose == "continuation" and call.prompt_tokens
            ]
    return found


def row(method: str, state: str, found: Pauses) -> str:
    def both(values: list[float]) -> str:
        if not values:
            return "-"
        return f"{median(values):.0f} / {sorted(values)[min(len(values) - 1, int(0.95 * len(values)))]:.0f}"

    cached = f"{median(found.cached):.0%}" if found.cached else "-"
    stopped = f"{len(found.handovers_ms)} of {found.n_runs}"
    return f"| {method} | {state} | {both(found.pauses_ms)} | {both(found.handovers_ms)} | {cached} | {stopped} |"


async def main(file: Path, n_runs: int, limit_s: float) -> None:
    spec = ServerSpec(model_path=file, alias="local", template="think", n_parallel=N_SLOTS, ctx_tokens_per_slot=1536)
    print("| way | state | pause ms, median / p95 | hand-over ms, median / p95 | prefix cached | stopped |")
    print("| --- | --- | --- | --- | --- | --- |")
    with (
        tempfile.TemporaryDirectory(prefix="pause-") as name,
        LocalServer(spec, log_path=Path(name) / "server.log") as server,
    ):
        for method in METHODS:
            for state in STATES:
                found = await one_state(server.url, Path(name), method, state, n_runs, limit_s)
                print(row(method, state, found), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the smaller model, four runs a state")
    parser.add_argument("--runs", type=int, help="runs a state; default 12")
    options, _ = parser.parse_known_args()  # `make bench ARGS=...` gives all programs the same words
    weights = find_weights(QUICK_MODEL if options.quick else MODEL)
    path = cached_file(weights)
    if not path.is_file() or not is_whole(path, weights):
        print(
            f"pause: the weights of {weights.name} are not in the cache; {FETCH} {weights.name} fetches them",
            file=sys.stderr,
        )
        sys.exit(2)
    print(f"machine: {report.machine()}")
    print(f"model: {weights.title}, {N_SLOTS} slots, one thread; thoughts are stopped at their first step, 24 tokens\n")
    try:
        asyncio.run(main(path, options.runs or (4 if options.quick else 12), 10.0 if options.quick else 40.0))
    except LocalModelError as error:
        print(f"pause: {error}", file=sys.stderr)
        sys.exit(2)

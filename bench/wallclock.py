"""Wall-clock truth: requests finished per hour and p95 latency, direct, observing and stopping.

A real model behind llama.cpp's server with 4 slots is asked the same questions by clients that each
ask again as soon as they have their answer: 4 calls in flight (1 x), then 8, 16 and 32. Probes,
continuations and audits are part of what is timed. Each cell starts its own model server, so that no
arm finds its prompts in the cache of another, and the server's own counters say how many tokens it
generated and how many prompt tokens it had to read.

    python bench/wallclock.py [--quick] [--kinds reasoning,samples] [--levels 1,2,4,8] [--json FILE]

Exits with 2 and a sentence when the model or the package that serves it is not there.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import math
import os
import sys
import tempfile
import time
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import aiohttp

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.gateway_process import GatewayProcess

from suffice.episode import vote
from suffice.scoring.base import build_scorer
from suffice_demo.local import LocalModelError, weights
from suffice_demo.local.server import LocalServer, ServerSpec
from suffice_demo.local.tasks import TaskQuestion, questions

SLOTS = 4
THREADS = 2  # of the model server; clients and gateway need little of the two cores beside it
N_SAMPLES = 8
WAVE = 4
TIMEOUT_S = 900.0
MODELS = {"reasoning": ("qwen0.5b", "think"), "samples": ("smol", None)}

ARMS: Mapping[str, tuple[str, ...]] = {
    "reasoning": ("direct", "observe", "visible", "confidence"),
    "samples": ("direct", "observe", "beta"),
}
COMMON: Mapping[str, Mapping[str, Any]] = {
    "reasoning": {"kind": "reasoning", "scorer": "number"},
    "samples": {"kind": "samples", "scorer": "text", "samples": N_SAMPLES, "wave": WAVE},
}
ACTS = {"mode": "enforce", "uncertified": True}
# What each arm writes beyond the upstream and the kind. The policies are those of `suffice demo`.
ARM_SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "observe": {"mode": "observe"},
    "confidence": {
        **ACTS,
        "policy": {"policy": "confidence-threshold", "threshold": 0.95},
        "steps": {"min_tokens": 16, "growth": 1.2},
        "probe": {"max_tokens": 6, "verified_by": "owner"},
    },
    # No probe: the trial answer is the last number that the thought itself shows, and the engine closes it in place.
    "visible": {
        **ACTS,
        "policy": {"policy": "stable-answer", "streak": 2},
        "steps": {"min_tokens": 8, "growth": 1.0},
    },
    "beta": {**ACTS, "policy": {"policy": "beta", "threshold": 0.95}},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One arm at one level."""

    kind: str
    arm: str
    level: int  # calls in flight, in multiples of the slots
    n_requests: int
    n_failed: int
    wall_s: float
    p50_s: float
    p95_s: float
    em: float
    generated_tokens: int  # by the model server's own count, probes and cancelled calls included
    prompt_tokens: int  # read anew, not from a cache, by the same count
    load_1min: float

    @property
    def per_hour(self) -> float:
        """Requests finished in an hour."""
        return 3600 * (self.n_requests - self.n_failed) / self.wall_s


def configuration(kind: str, arm: str, upstream: str) -> dict[str, Any]:
    """The settings of an arm, as an owner would write them."""
    return {
        "upstreams": {"local": {"url": upstream, "driver": "llama.cpp", "slots": SLOTS}},
        "routes": {"all": {"upstream": "local", **COMMON[kind], **ARM_SETTINGS[arm]}},
    }


def counters(upstream: str) -> tuple[int, int]:
    """Tokens generated and prompt tokens read so far, as the model server counts them."""
    found = {}
    with urllib.request.urlopen(f"{upstream}/metrics", timeout=30) as reply:
        for line in reply.read().decode().splitlines():
            name, _, value = line.partition(" ")
            found[name] = value
    return int(float(found["llamacpp:tokens_predicted_total"])), int(float(found["llamacpp:prompt_tokens_total"]))


def body_of(question: TaskQuestion, seed: int) -> dict[str, Any]:
    """One chat request."""
    return {
        "model": "local",
        "messages": [dict(m) for m in question.messages],
        "max_tokens": question.max_tokens,
        "temperature": question.temperature,
        "seed": seed,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


async def completion(session: aiohttp.ClientSession, url: str, body: Mapping[str, Any]) -> str:
    """The answer's text, read from a stream. Raises ValueError when it is no answer."""
    text = ""
    async with session.post(f"{url}/v1/chat/completions", json=body) as reply:
        if reply.status != 200:
            raise ValueError(f"HTTP {reply.status}")
        async for line in reply.content:
            data = line.strip().removeprefix(b"data: ")
            if not data.startswith(b"{"):
                continue
            chunk = json.loads(data)
            if "error" in chunk:
                raise ValueError(f"error frame: {chunk['error'].get('code')}")
            for choice in chunk["choices"]:
                text += choice["delta"].get("content") or ""
    return text


async def voted(session: aiohttp.ClientSession, url: str, question: TaskQuestion, seed: int) -> str:
    """What a client without a gateway does: all samples, a wave at a time, and its own vote."""
    scorer = build_scorer(question.scorer)
    texts: list[str] = []
    for first in range(0, N_SAMPLES, WAVE):
        seeds = range(seed + first, seed + first + WAVE)
        texts += await asyncio.gather(*(completion(session, url, body_of(question, s)) for s in seeds))
    return texts[vote.count_votes([scorer.extract(text) for text in texts]).winner - 1]


async def drive(
    url: str, kind: str, asked: Sequence[TaskQuestion], n_clients: int, *, direct: bool
) -> tuple[list[float], int, int, float]:
    """Clients that ask one question after the other; latencies, how many failed, were right, wall time."""
    waiting = list(enumerate(asked))[::-1]
    latencies: list[float] = []
    failed = right = 0
    scorer = build_scorer(asked[0].scorer)

    async def client(session: aiohttp.ClientSession) -> None:
        nonlocal failed, right
        while waiting:
            index, question = waiting.pop()
            begun = time.monotonic()
            try:
                if kind == "samples" and direct:
                    text = await voted(session, url, question, 1000 * index)
                else:
                    text = await completion(session, url, body_of(question, 1000 * index))
            except (ValueError, aiohttp.ClientError, TimeoutError) as error:
                failed += 1
                print(f"wallclock: a request failed ({type(error).__name__}: {error})", file=sys.stderr)
                continue
            latencies.append(time.monotonic() - begun)
            right += scorer.match(scorer.extract(text), scorer.normalise(question.gold) or "")

    begun = time.monotonic()
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0, force_close=True)) as s:
        await asyncio.gather(*(client(s) for _ in range(n_clients)))
    return latencies, failed, right, time.monotonic() - begun


def quantile(values: Sequence[float], q: float) -> float:
    """The smallest value that at least a share `q` of the values does not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * q) - 1)] if ordered else math.nan


def run_cell(kind: str, arm: str, level: int, asked: Sequence[TaskQuestion], spec: ServerSpec) -> Cell:
    """One arm at one level, with a model server of its own."""
    in_flight = SLOTS * level
    n_clients = in_flight if kind == "reasoning" else in_flight // WAVE
    with tempfile.TemporaryDirectory(prefix="suffice-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        upstream = stack.enter_context(LocalServer(spec, log_path=folder / "model.log")).url
        url = upstream
        if arm != "direct":
            settings = configuration(kind, arm, upstream)
            url = stack.enter_context(GatewayProcess.serving(folder, settings, log_level="warning")).url
        latencies, failed, right, wall_s = asyncio.run(drive(url, kind, asked, n_clients, direct=arm == "direct"))
        generated, prompted = counters(upstream)
    return Cell(
        kind=kind,
        arm=arm,
        level=level,
        n_requests=len(asked),
        n_failed=failed,
        wall_s=wall_s,
        p50_s=quantile(latencies, 0.5),
        p95_s=quantile(latencies, 0.95),
        em=right / len(asked),
        generated_tokens=generated,
        prompt_tokens=prompted,
        load_1min=os.getloadavg()[0],
    )


def saved(cell: Cell, direct: Cell) -> tuple[float, float, float]:
    """Fractions saved against direct: generated tokens, all tokens (generated and read anew), wall time."""
    generated = 1 - cell.generated_tokens / direct.generated_tokens
    every = 1 - (cell.generated_tokens + cell.prompt_tokens) / (direct.generated_tokens + direct.prompt_tokens)
    return generated, every, 1 - cell.wall_s / direct.wall_s


def line_of(cell: Cell, direct: Cell) -> str:
    """One row of the table, beside the direct run at the same level."""
    generated, every, time_saved = saved(cell, direct)
    ratios = [f"{time_saved / tokens:8.2f}" if tokens > 0.02 else f"{'-':>8}" for tokens in (generated, every)]
    return (
        f"{cell.level:>3} x  {cell.arm:<11}{cell.per_hour:>8.0f}{cell.p50_s:>8.2f}{cell.p95_s:>8.2f}"
        f"{cell.p95_s / direct.p95_s:>8.2f}{cell.em:>7.3f}{cell.generated_tokens:>10,}{cell.prompt_tokens:>9,}"
        f"{generated:>9.0%}{every:>8.0%}{time_saved:>8.0%} {''.join(ratios)}"
        f"{f'  {cell.n_failed} failed' if cell.n_failed else ''}"
    )


HEAD = (
    f"{'load':>5}  {'arm':<11}{'req/h':>8}{'p50 s':>8}{'p95 s':>8}{'/direct':>8}{'EM':>7}{'generated':>10}"
    f"{'read':>9}{'gen.':>9}{'all':>8}{'time':>8} {'t/gen.':>8}{'t/all':>8}"
)


def main() -> int:
    """Run the table. 0: printed; 2: the model is not there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="levels 1 and 4, few requests: a look, no figures")
    parser.add_argument("--kinds", default="reasoning,samples")
    parser.add_argument("--levels", default="1,2,4,8", help="calls in flight, in multiples of the slots")
    parser.add_argument("--arms", default="", help="only these, beside direct")
    parser.add_argument("--requests", type=int, default=0, help="per cell [default: 32]")
    parser.add_argument("--json", type=Path, help="write all cells here")
    options = parser.parse_args()
    levels = [1, 4] if options.quick else [int(level) for level in options.levels.split(",")]
    n_requests = options.requests or (16 if options.quick else 32)
    cells: list[Cell] = []
    for kind in options.kinds.split(","):
        model, template = MODELS[kind]
        try:
            spec = ServerSpec(model_path=weights.fetch(model, progress=lambda _done, _total: None), template=template)
        except LocalModelError as error:
            print(f"wallclock: {error}", file=sys.stderr)
            return 2
        spec = ServerSpec(model_path=spec.model_path, template=template, n_parallel=SLOTS, n_threads=THREADS)
        asked = questions(kind, n_requests)
        print(f"\n{kind}: {model}, {SLOTS} slots, {n_requests} requests a cell\n{HEAD}", flush=True)
        chosen = [a for a in ARMS[kind] if not options.arms or a == "direct" or a in options.arms.split(",")]
        for level in levels:
            here: dict[str, Cell] = {}
            for arm in chosen:
                here[arm] = run_cell(kind, arm, level, asked, spec)
                print(line_of(here[arm], here["direct"]), flush=True)
            cells += here.values()
    print(
        "\ngenerated: tokens by the model server's own count, probes, audits and cancelled calls included; read: prompt"
        "\ntokens that no cache held; gen., all, time: saved against direct at the same load, of generated tokens, of"
        "\ngenerated and read tokens together, and of wall time; t/gen., t/all: time saved over tokens saved"
    )
    if options.json:
        options.json.write_text(json.dumps([asdict(cell) for cell in cells], indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

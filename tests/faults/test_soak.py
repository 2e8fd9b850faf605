"""F11: stream after stream, the bad ones too, leaves no task and no descriptor behind."""

from __future__ import annotations

import asyncio
import gc
from pathlib import Path
from typing import Any

import openai
import pytest

from suffice_testing import FakeRequest, Fault, Reply, ScriptedThought
from tests.faults.test_clients import Client
from tests.faults.test_upstream import FAILS, ROUTE, TEXT
from tests.gateway.conftest import Serve
from tests.gateway.served import Served, chat
from tests.gateway.test_stop import enforcing
from tests.sse_scripts import SCRIPTS

KINDS: dict[str, Any] = {
    "good": ScriptedThought([(f"so {n}\n", "4") for n in range(6)], "4"),
    "dies": Reply(reasoning=("so\n",) * 6, faults=(Fault(die_after=3),)),
    "refuses": Reply(faults=(Fault(status=503),)),
    "endless": Reply(reasoning=("so\n",) * 1_000, delay_s=0.01),
}
ROUTES: dict[str, Any] = {
    "off": {"upstream": "up", "mode": "off", "match": {"header": "off"}},
    "observe": {"upstream": "up", "match": {"header": "observe"}},
    "votes": {"upstream": "up", "kind": "samples", "samples": 2, "match": {"header": "votes"}},
    "enforce": {"upstream": "up", "match": {"header": "enforce"}, **enforcing()},
}


def says(seen: FakeRequest) -> Any:
    kind = KINDS.get(str(seen.body.get("model")), KINDS["good"])
    return kind(seen) if callable(kind) else kind


async def some(g: Served, n: int) -> None:
    for i in range(n):
        route, kind = list(ROUTES)[i % 4], list(KINDS)[i // 4 % 4]
        body = chat(stream=i % 3 > 0) | {"model": kind}
        if kind != "endless":
            await g.ask(body, headers={"x-suffice-route": route})
            continue
        client = Client(g)
        await client.ask(body | {"stream": True})
        await client.read_until(b'"so')
        client.leave()


def n_descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


async def left(g: Served) -> tuple[int, int]:
    """Tasks and descriptors once everything is over."""
    await g.quiet()
    counts = [(0, 0)] * 3
    async with asyncio.timeout(10):
        while len(counts) < 6 or len(set(counts[-3:])) > 1:
            await asyncio.sleep(0.05)
            gc.collect()
            counts.append((len(asyncio.all_tasks()), n_descriptors()))
    return counts[-1]


@pytest.mark.slow
async def test_three_hundred_streams_leave_nothing_behind(serve: Serve) -> None:
    async with serve(says, routes=ROUTES, upstream={"finish": ["raw"], "slots": 4, "keepalive_s": 0.1}) as g:
        await some(g, 32)
        await asyncio.sleep(0.3)  # kept connections are given up
        n_tasks, n_files = await left(g)
        await some(g, 300)
        await asyncio.sleep(0.3)
        assert await left(g) == (n_tasks, n_files)
        await g.episodes(332)


@pytest.mark.parametrize("name", sorted(set(SCRIPTS) - {"bytewise"}))
async def test_openai_python_reads_an_ordinary_answer_or_an_error_and_never_half_of_one(
    serve: Serve, name: str
) -> None:
    """Six of the 21 streams, read directly, look complete to this client although they are not."""
    async with (
        serve(fake={"scripts": SCRIPTS}, route=ROUTE | {"mode": "enforce"}) as g,
        openai.AsyncOpenAI(base_url=f"{g.url}/v1", api_key="x", max_retries=0) as client,
    ):
        text, finish = "", None
        try:
            chunks = await client.chat.completions.create(
                model=name, messages=[{"role": "user", "content": "?"}], stream=True
            )
            async for chunk in chunks:
                for choice in chunk.choices or ():  # frames of other kinds are the upstream's own
                    text += choice.delta.content or ""
                    finish = choice.finish_reason or finish
        except openai.APIError:
            assert name in FAILS
            assert finish is None
        else:
            assert name not in FAILS
            assert (text, finish) == (TEXT, "early_stop" if name == "custom_finish" else "stop")

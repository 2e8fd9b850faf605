"""A server with /v1/embeddings on loopback, and what it says. Knows no expectation."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

from tests.edge.threaded import threaded

Reply = Callable[[list[str]], object]


def letters(texts: list[str]) -> object:
    """Vectors that count three letters, told in the wrong order."""
    entries = [{"index": i, "embedding": [t.count(c) for c in "abc"]} for i, t in enumerate(texts)]
    return {"data": entries[::-1]}


@asynccontextmanager
async def server(reply: Reply, seen: list[Any]) -> AsyncIterator[str]:
    """Its base address; `reply` may be an answer, a whole response, or so many seconds of silence."""

    async def embeddings(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        seen.append((body, dict(request.headers)))
        output = reply(body["input"])
        if isinstance(output, float):
            await asyncio.sleep(output)
            return web.Response()
        return output if isinstance(output, web.Response) else web.Response(body=json.dumps(output).encode())

    app = web.Application()
    app.router.add_post("/v1/embeddings", embeddings)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@contextlib.contextmanager
def served(reply: Reply, seen: list[Any]) -> Iterator[str]:
    """The same in a thread, for tests that are synchronous."""
    with threaded(lambda: server(reply, seen)) as url:
        yield url

"""Serves Envoy's external processor for each route, and prints their ports: one line of JSON.

python -m tests.loop.players.envoy GATEWAY ROUTE …
"""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import AsyncExitStack

from suffice import Governor
from suffice_loop.envoy import serve


async def main() -> None:
    gateway, *routes = sys.argv[1:]
    ports = {}
    async with AsyncExitStack() as stack:
        for route in routes:
            governor = stack.enter_context(Governor.connect(gateway, route=route, timeout_s=30))
            server, ports[route] = await serve(governor, "127.0.0.1:0")
            stack.push_async_callback(server.stop, None)
        print(json.dumps(ports), flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())

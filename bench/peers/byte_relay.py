"""The least that a relay in Python can do: aiohttp's client to bare ASGI under uvicorn, bytes in, bytes out.

It reads nothing, records nothing and checks nothing. What a gateway costs beyond this is the price of
what it does; what it costs below this is not to be had with these libraries.

    python byte_relay.py PORT UPSTREAM_URL
"""

from __future__ import annotations

import sys
from typing import Any

import aiohttp
import uvicorn


class Relay:
    """The ASGI application."""

    def __init__(self, upstream: str) -> None:
        self.upstream = upstream
        self.session: aiohttp.ClientSession | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if self.session is None:
            connector = aiohttp.TCPConnector(limit=0)
            self.session = aiohttp.ClientSession(connector=connector, auto_decompress=False)
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message["body"], message.get("more_body", False)
        headers = {"content-type": "application/json"}
        async with self.session.post(self.upstream + scope["path"], data=body, headers=headers) as response:
            await self.answer(response, send)

    async def answer(self, response: aiohttp.ClientResponse, send: Any) -> None:
        kept = ("content-type", "content-length")
        sent = [(k.lower().encode(), v.encode()) for k, v in response.headers.items() if k.lower() in kept]
        await send({"type": "http.response.start", "status": response.status, "headers": sent})
        async for data in response.content.iter_any():
            await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def serve(relay: type[Relay]) -> None:
    """Until it is ended, at the port and for the upstream that the command line names."""
    uvicorn.run(
        relay(sys.argv[2]),
        host="127.0.0.1",
        port=int(sys.argv[1]),
        log_level="error",
        access_log=False,
        lifespan="off",
        loop="uvloop",
        http="httptools",
    )


if __name__ == "__main__":
    serve(Relay)

"""The byte relay, but every event is parsed as JSON and written again, as a proxy does that looks at each one.

    python decoding_relay.py PORT UPSTREAM_URL
"""

from __future__ import annotations

import json
import sys
from typing import Any

import aiohttp
import uvicorn

DONE = b"[DONE]"


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
            kind = response.headers["content-type"].encode()
            await send({"type": "http.response.start", "status": response.status, "headers": [(b"content-type", kind)]})
            rest = b""
            async for data in response.content.iter_any():
                *events, rest = (rest + data).split(b"\n\n")
                sent = [self.again(event) for event in events]
                if sent:
                    await send({"type": "http.response.body", "body": b"".join(sent), "more_body": True})
        await send({"type": "http.response.body", "body": rest, "more_body": False})

    def again(self, event: bytes) -> bytes:
        data = event.removeprefix(b"data: ")
        if data == DONE:
            return event + b"\n\n"
        return b"data: " + json.dumps(json.loads(data), separators=(",", ":")).encode() + b"\n\n"


if __name__ == "__main__":
    uvicorn.run(
        Relay(sys.argv[2]), host="127.0.0.1", port=int(sys.argv[1]), log_level="error", access_log=False,
        lifespan="off", loop="uvloop", http="httptools",
    )  # fmt: skip

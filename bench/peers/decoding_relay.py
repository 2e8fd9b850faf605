"""The byte relay, but every event is parsed as JSON and written again, as a proxy does that looks at each one.

python decoding_relay.py PORT UPSTREAM_URL
"""

from __future__ import annotations

import json
from typing import Any

import aiohttp
from byte_relay import Relay, serve

DONE = b"[DONE]"


class DecodingRelay(Relay):
    """The ASGI application."""

    async def answer(self, response: aiohttp.ClientResponse, send: Any) -> None:
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
    serve(DecodingRelay)

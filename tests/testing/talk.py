"""How tests talk to the fake: with an HTTP client of another make, or with bare bytes."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import AsyncIterator
from typing import Any

import aiohttp

from suffice_testing import FakeUpstream, Reply

QUESTION = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "what is 2 + 2?"}]
REPLY = Reply(reasoning=("two ", "and ", "two"), answer=("fo", "ur"))
CHAT, RAW = "/v1/chat/completions", "/v1/completions"


@contextlib.asynccontextmanager
async def posted(fake: FakeUpstream, path: str = CHAT, **body: Any) -> AsyncIterator[aiohttp.ClientResponse]:
    if path == CHAT:
        body.setdefault("messages", QUESTION)
    sent = {"model": "m", **body}
    async with aiohttp.ClientSession() as session, session.post(fake.url + path, json=sent) as response:
        yield response


async def answer_of(fake: FakeUpstream, path: str = CHAT, **body: Any) -> Any:
    async with posted(fake, path, **body) as response:
        return await response.json()


async def bytes_of(fake: FakeUpstream, path: str = CHAT, **body: Any) -> bytes:
    async with posted(fake, path, stream=True, **body) as response:
        return await response.read()


EMPTY_REQUEST = b"POST /chat/completions HTTP/1.1\r\ncontent-length: 2\r\n\r\n{}"


def address(fake: FakeUpstream) -> tuple[str, int]:
    host, _, port = fake.url.removeprefix("http://").partition(":")
    return host, int(port)


def dialled(fake: FakeUpstream) -> socket.socket:
    return socket.create_connection(address(fake))


def head(sent: bytes) -> bytes:
    return b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: %d\r\n\r\n" % len(sent)


def datas(stream: bytes) -> list[Any]:
    """Read plain `data: …` frames without the code that is under test elsewhere."""
    lines = [line.removeprefix("data: ") for line in stream.decode().split("\n\n") if line]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]

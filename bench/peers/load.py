"""The client of the benchmark: asks over kept connections, as cheaply as Python can, and reads to the end.

A bare asyncio protocol: it looks for the end of an answer and for the first event, nothing else, so
that it takes little of the machine from the gateway that is measured.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

LAST_PART = b"\r\n0\r\n\r\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where to ask and what it wants to hear."""

    name: str
    url: str  # with the path of chat completions
    model: str = "m"
    headers: dict[str, str] = field(default_factory=dict)
    fields: Mapping[str, object] = field(default_factory=dict)  # of the body, besides the usual ones
    pid: int | None = None  # whose CPU time is the cost; None: nobody's, it is the upstream itself

    def request(self, *, stream: bool) -> bytes:
        parts = urlsplit(self.url)
        messages = [{"role": "user", "content": "How much is 17 * 24? " * 6}]
        fields = {"model": self.model, "input" if parts.path.endswith("/responses") else "messages": messages}
        fields |= self.fields
        if stream:
            fields["stream"] = True
        body = json.dumps(fields, separators=(",", ":")).encode()
        lines = [
            f"POST {parts.path} HTTP/1.1",
            f"host: {parts.netloc}",
            "content-type: application/json",
            "accept: */*",
            "authorization: Bearer unused",
            "user-agent: bench/1",
            f"content-length: {len(body)}",
        ]
        lines += [f"{key}: {value}" for key, value in self.headers.items()]
        return "\r\n".join([*lines, "", ""]).encode() + body


@dataclass(slots=True)
class Heard:
    """What came back of one request."""

    status: int
    n_events: int
    first_event_s: float | None  # after the request was written
    total_s: float


class Asker(asyncio.Protocol):
    """One connection. `ask` sends a request and returns when its answer is complete."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.done: asyncio.Future[None] | None = None
        self.need = -1  # bytes of a body with a known length; -1: chunked, or not known yet
        self.size = 0
        self.tail = b""
        self.first_s: float | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        if self.done is not None and not self.done.done():
            self.done.set_exception(ConnectionError("the gateway closed its connection"))

    def data_received(self, data: bytes) -> None:
        if self.first_s is None and b"data: " in data:
            self.first_s = time.perf_counter()
        if not self.parts:
            head, _, rest = data.partition(b"\r\n\r\n")
            at = head.lower().find(b"content-length:")
            self.need = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else -1
            self.size = len(rest)
        else:
            self.size += len(data)
        self.parts.append(data)
        self.tail = (self.tail + data)[-len(LAST_PART) :]
        over = self.size >= self.need if self.need >= 0 else self.tail == LAST_PART
        if over and self.done is not None and not self.done.done():
            self.done.set_result(None)

    async def ask(self, request: bytes) -> Heard:
        self.parts, self.tail, self.first_s, self.size, self.need = [], b"", None, 0, -1
        self.done = asyncio.get_running_loop().create_future()
        start = time.perf_counter()
        self.transport.write(request)
        await self.done
        total_s = time.perf_counter() - start
        raw = b"".join(self.parts)
        first = None if self.first_s is None else self.first_s - start
        return Heard(int(raw[9:12]), _unchunked(raw).count(b"data: "), first, total_s)


def _unchunked(raw: bytes) -> bytes:
    head, _, rest = raw.partition(b"\r\n\r\n")
    if b"chunked" not in head.lower():
        return rest
    parts = []
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        n = int(size.split(b";")[0], 16)
        parts.append(rest[:n])
        rest = rest[n + 2 :]
    return b"".join(parts)


async def connect(url: str, n: int) -> list[Asker]:
    parts = urlsplit(url)
    assert parts.hostname is not None
    loop = asyncio.get_running_loop()
    return [(await loop.create_connection(Asker, parts.hostname, parts.port))[1] for _ in range(n)]


async def run(target: Target, *, stream: bool, n_at_once: int, each: int, stagger_s: float = 0.0) -> list[Heard]:
    """`each` requests over each of `n_at_once` connections; they begin within `stagger_s`, evenly."""
    request = target.request(stream=stream)
    askers = await connect(target.url, n_at_once)

    async def one(at: int, asker: Asker) -> list[Heard]:
        await asyncio.sleep(stagger_s * at / n_at_once)
        return [await asker.ask(request) for _ in range(each)]

    try:
        heard = await asyncio.gather(*[one(at, asker) for at, asker in enumerate(askers)])
    finally:
        for asker in askers:
            asker.transport.close()
    return [h for some in heard for h in some]


async def plan(upstream_url: str, **settings: object) -> None:
    """Tell the upstream what to answer from now on."""
    parts = urlsplit(upstream_url)
    query = "&".join(f"{key}={value}" for key, value in settings.items())
    (asker,) = await connect(upstream_url, 1)
    try:
        await asker.ask(f"GET /set?{query} HTTP/1.1\r\nhost: {parts.netloc}\r\n\r\n".encode())
    finally:
        asker.transport.close()

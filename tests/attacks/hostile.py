"""What attacks of browsers and headers need: a model server that answers any bytes, a gateway, and a raw client."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import socketserver
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from suffice.server import serve_in_loop
from suffice.settings import Settings, parse_settings

Pairs = Iterable[tuple[str, str]]
COMPLETION = (
    b'{"id":"chatcmpl-1","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,"message":'
    b'{"role":"assistant","content":"fine"},"finish_reason":"stop"}],"usage":{"prompt_tokens":1,"completion_tokens":1,'
    b'"total_tokens":2}}'
)
STREAM = (
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":'
    b'{"role":"assistant","content":"fine"},"finish_reason":null}]}\n\n'
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":'
    b'{},"finish_reason":"stop"}]}\n\n'
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"m","choices":[],"usage":'
    b'{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2}}\n\ndata: [DONE]\n\n'
)


def answer_of(
    body: bytes = COMPLETION, headers: Pairs = (("content-type", "application/json"),), status: str = "200 OK"
) -> bytes:
    """An HTTP answer as a server writes it."""
    lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in headers)]
    lines += [f"content-length: {len(body)}", "connection: close", "", ""]
    return "\r\n".join(lines).encode("latin-1") + body


class HostileUpstream(socketserver.ThreadingTCPServer):
    """Sends `answer` to everybody, whatever it is, and keeps the heads that it got."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer = answer_of()
        self.answers: dict[str, bytes] = {}  # by path, before `answer`
        self.heads: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    @classmethod
    @contextlib.contextmanager
    def running(cls) -> Iterator[HostileUpstream]:
        with cls() as server:
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
            thread.start()
            try:
                yield server
            finally:
                server.shutdown()
                thread.join()


class _Handler(socketserver.StreamRequestHandler):
    server: HostileUpstream

    def handle(self) -> None:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            line = self.rfile.readline(2**20)
            if not line:
                return
            head += line
        text = head.decode("latin-1")
        named = dict(line.lower().split(": ", 1) for line in text.split("\r\n")[1:] if ": " in line)
        self.rfile.read(int(named.get("content-length", "0")))
        self.server.heads.append(text)
        path = text.split(" ", 2)[1]
        with contextlib.suppress(OSError):
            self.wfile.write(self.server.answers.get(path, self.server.answer))


@dataclass(frozen=True, slots=True)
class Answer:
    """What a client got."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def __getitem__(self, name: str) -> str:
        return ", ".join(value for key, value in self.headers if key == name)

    @property
    def names(self) -> set[str]:
        return {name for name, _ in self.headers}


@dataclass(slots=True)
class Stage:
    """A gateway before a hostile upstream."""

    url: str
    upstream: HostileUpstream
    settings: Settings
    own: dict[str, str] = field(default_factory=dict)  # headers that `ask` adds

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def ask(
        self,
        method: str,
        target: str,
        headers: Pairs | Mapping[str, str] = (),
        body: bytes = b"",
        *,
        host: str | None = None,
    ) -> Answer:
        """One request with exactly these headers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        with contextlib.closing(connection):
            connection.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
            given = [("host", f"127.0.0.1:{self.port}" if host is None else host), *self.own.items()]
            given += headers.items() if isinstance(headers, Mapping) else headers
            if body:
                given.append(("content-length", str(len(body))))
            for name, value in given:
                connection.putheader(name, value.encode("latin-1"))
            connection.endheaders(body or None)
            response = connection.getresponse()
            result = [(name.lower(), value) for name, value in response.getheaders()]
            return Answer(response.status, result, response.read())


def settings_for(upstream: HostileUpstream, folder: Path, **tables: Any) -> Settings:
    """Routes `off` and `observe`, chosen by the model's name, on one upstream."""
    return parse_settings(
        {
            "upstreams": {"up": {"url": upstream.url, "retries": 0}},
            "routes": {
                "observe": {"upstream": "up", "mode": "observe", "match": {"model": "observe*"}},
                "off": {"upstream": "up", "mode": "off"},
            },
            "store": {"url": f"sqlite:///{folder / 'log.db'}", "flush_ms": 5},
            **tables,
        }
    )


@contextlib.contextmanager
def stage(folder: Path, **tables: Any) -> Iterator[Stage]:
    """A gateway with its console over a real socket, in a thread, before a hostile upstream."""
    with HostileUpstream.running() as upstream:
        settings = settings_for(upstream, folder, **tables)
        ready = threading.Event()
        report: list[Any] = []

        async def serve() -> None:
            end = asyncio.Event()
            async with serve_in_loop(settings) as url:
                report.extend((url, asyncio.get_running_loop(), end))
                ready.set()
                await end.wait()

        def run() -> None:
            try:
                asyncio.run(serve())
            finally:
                ready.set()

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        ready.wait()
        assert report, "the gateway did not start"
        try:
            yield Stage(report[0], upstream, settings)
        finally:
            report[1].call_soon_threadsafe(report[2].set)
            thread.join()

"""F10: a client that does not read costs no memory, holds its upstream back, and is cut off in the end."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from suffice.store.database.views import read_episodes
from suffice_testing import FakeUpstream, Reply
from tests.gateway_process import GatewayProcess

TOTAL_BYTES = 200 * 2**20
ROUTES: dict[str, Any] = {
    "off": {"mode": "off", "match": {"header": "off"}},
    "observe": {"match": {"header": "observe"}},
    "handover": {
        "mode": "enforce",
        "uncertified": True,
        "audit_share": 0.0,
        "handover_ms": 60_000,
        "policy": {"policy": "fixed-budget", "max_tokens": 100},
        "match": {"header": "handover"},
    },
}
GROWTH_BYTES = 5 * 2**20
SENT_BYTES = 64 * 2**20  # the kernel's socket buffers hold some of the 200 MB; about 10 MB here


def frame(delta: dict[str, Any]) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": None}
    chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


class Torrent:
    """An upstream that sends as fast as it is read; it never answers a continuation."""

    def __init__(self, field: str) -> None:
        data = frame({field: "x" * 1_000 + "\n"}) * 16
        self._data = b"%x\r\n%s\r\n" % (len(data), data)
        self.sent_bytes = self.n_open = 0
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    @classmethod
    @contextlib.contextmanager
    def running(cls, field: str) -> Iterator[Torrent]:
        torrent = cls(field)
        try:
            yield torrent
        finally:
            torrent._listener.shutdown(socket.SHUT_RDWR)
            torrent._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=self._serve, args=(self._listener.accept()[0],), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with self._lock:
            self.n_open += 1
        with client, contextlib.suppress(OSError):
            request = b""
            while b"}]" not in request:  # the end of the messages, whichever field comes behind them
                request += client.recv(65536)
            if b'"assistant"' in request:
                client.recv(1)  # until the gateway hangs up
            else:
                client.sendall(
                    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
                )
                for _ in range(TOTAL_BYTES // len(self._data)):
                    client.sendall(self._data)
                    self.sent_bytes += len(self._data)
        with self._lock:
            self.n_open -= 1

    def settled_bytes(self) -> int:
        """What it has got rid of once it is held back."""
        before = -1
        while before != (now := self.sent_bytes):
            before = now
            time.sleep(0.4)
        return now

    def idle(self) -> None:
        end_s = time.monotonic() + 20
        while self.n_open and time.monotonic() < end_s:
            time.sleep(0.01)
        assert self.n_open == 0


def dialled(gateway: GatewayProcess, text: str, route: str = "") -> socket.socket:
    """A client that has asked and reads what it likes."""
    raw = b'{"model":"m","stream":true,"messages":[{"role":"user","content":"%s"}]}' % text.encode()
    host, _, port = gateway.url.removeprefix("http://").partition(":")
    client = socket.create_connection((host, int(port)))
    head = ["POST /v1/chat/completions HTTP/1.1", "host: 127.0.0.1", "content-type: application/json"]
    head += [f"content-length: {len(raw)}"]
    head += [f"x-suffice-route: {route}"] if route else []
    client.sendall("\r\n".join([*head, "", ""]).encode() + raw)
    return client


@pytest.mark.slow(keep=1)
@pytest.mark.parametrize(
    ("route", "field"),
    [
        ("off", "content"),
        ("observe", "reasoning_content"),
        ("handover", "reasoning_content"),
    ],
)
def test_a_client_that_does_not_read_costs_no_memory_and_holds_the_upstream_back(
    tmp_path: Path, route: str, field: str
) -> None:
    with Torrent.running(field) as upstream:
        routes = {name: {"upstream": "up", **settings} for name, settings in ROUTES.items()}
        upstreams = {"up": {"url": upstream.url, "driver": "vllm", "finish": ["prefill"], "slots": 4}}
        with GatewayProcess.serving(tmp_path, {"upstreams": upstreams, "routes": routes}) as gateway:
            for n in range(3):  # what a first request loads once stays
                with dialled(gateway, f"x{n}", route) as client:
                    client.recv(1_000)
                    time.sleep(0.2)
            upstream.idle()
            base_bytes, spent = gateway.rss_bytes(), upstream.sent_bytes
            with dialled(gateway, "x", route) as client:
                client.recv(100)
                if route == "handover":
                    client.settimeout(3.0)  # reads on, but nothing more comes while the hand-over waits
                    with pytest.raises(TimeoutError):
                        while client.recv(65536):
                            pass
                    client.settimeout(None)
                    assert upstream.n_open == 2
                assert upstream.settled_bytes() - spent < SENT_BYTES
                for _ in range(0 if route == "handover" else 5):
                    client.recv(1)  # one byte a while changes nothing
                    time.sleep(0.1)
                assert upstream.settled_bytes() - spent < SENT_BYTES
                assert gateway.rss_bytes() - base_bytes < GROWTH_BYTES
            upstream.idle()


def test_a_client_that_reads_nothing_is_cut_off_at_the_limit_and_recorded(tmp_path: Path) -> None:
    with Torrent.running("content") as upstream:
        settings = {
            "server": {"client_idle_timeout_s": 1.0},
            "upstreams": {"up": {"url": upstream.url}},
            "routes": {"r": {"upstream": "up"}},
        }
        with GatewayProcess.serving(tmp_path, settings) as gateway, dialled(gateway, "x") as deaf:
            deaf.recv(100)
            start_s = time.monotonic()
            upstream.idle()
            assert time.monotonic() - start_s >= 0.9
    assert [e.episode.outcome.end_reason for e in read_episodes(gateway.database)] == ["client_left"]
    assert b"disconnected a client that read nothing" in gateway.stderr()


@pytest.mark.slow
def test_a_model_that_thinks_for_long_is_no_client_that_does_not_read(tmp_path: Path) -> None:
    thinks = Reply(reasoning=("so\n",), answer=("4",), first_delay_s=2.5)
    with FakeUpstream.in_thread(thinks) as fake:
        settings = {"server": {"client_idle_timeout_s": 0.2}, "upstreams": {"up": {"url": fake.url}}}
        with GatewayProcess.serving(tmp_path, settings) as gateway, dialled(gateway, "x") as client:
            client.settimeout(20)
            result = b""
            while b"[DONE]" not in result:
                data = client.recv(65536)
                assert data
                result += data

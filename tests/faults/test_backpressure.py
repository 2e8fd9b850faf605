"""F10: a client that does not read costs no memory, holds its upstream back, and is cut off in the end."""

from __future__ import annotations

import socket
import time
from pathlib import Path
from typing import Any

import pytest

from suffice.store.views import read_episodes
from suffice.testing import FakeUpstream, GatewayProcess, Reply, RequestSeen, slow_headers

PIECE = "x" * 16_383 + "\n"
N_PIECES = 12_800  # 200 MB
FAST = {
    "thought": Reply(reasoning=(PIECE,) * N_PIECES, answer=("4",)),
    "answer": Reply(reasoning=("so\n",), answer=(PIECE,) * N_PIECES),
    "short": Reply(reasoning=("so\n",), answer=("4",)),
}
MUTE = Reply(faults=(slow_headers(60.0),))
ROUTES: dict[str, Any] = {
    "off": {"mode": "off", "match": {"header": "off"}},
    "observe": {"match": {"header": "observe"}},
    "handover": {
        "mode": "enforce", "uncertified": True, "audit_share": 0.0, "handover_ms": 60_000,
        "policy": {"policy": "fixed-budget", "max_tokens": 20}, "match": {"header": "handover"},
    },
}  # fmt: skip
GROWTH_BYTES = 5 * 2**20
SENT_BYTES = 64 * 2**20  # the kernel's socket buffers hold some of the 200 MB; about 10 MB here


def says(seen: RequestSeen) -> Reply:
    return MUTE if seen.is_raw else FAST[seen.text]


def dialled(gateway: GatewayProcess, text: str, route: str = "") -> socket.socket:
    """A client that has asked and reads what it likes."""
    raw = b'{"model":"m","stream":true,"messages":[{"role":"user","content":"%s"}]}' % text.encode()
    host, _, port = gateway.url.removeprefix("http://").partition(":")
    client = socket.create_connection((host, int(port)))
    head = ["POST /v1/chat/completions HTTP/1.1", "host: h", f"content-length: {len(raw)}"]
    head += [f"x-suffice-route: {route}"] if route else []
    client.sendall("\r\n".join([*head, "", ""]).encode() + raw)
    return client


def settled_bytes(fake: FakeUpstream) -> int:
    """What the upstream has got rid of once it is held back."""
    before = -1
    while before != (now := fake.total_completion_tokens):
        before = now
        time.sleep(0.5)
    return now * len(PIECE)


@pytest.mark.parametrize(("route", "text"), [
    ("off", "thought"), ("off", "answer"), ("observe", "thought"), ("observe", "answer"), ("handover", "thought"),
])  # fmt: skip
def test_a_client_that_does_not_read_costs_no_memory_and_holds_the_upstream_back(
    tmp_path: Path, route: str, text: str
) -> None:
    with FakeUpstream.in_thread(says) as fake:
        routes = {name: {"upstream": "up", **settings} for name, settings in ROUTES.items()}
        upstreams = {"up": {"url": fake.url, "driver": "llama.cpp", "finish": ["raw"], "slots": 4}}
        with GatewayProcess.serving(tmp_path, {"upstreams": upstreams, "routes": routes}) as gateway:
            for _ in range(3):  # what a first request loads once stays
                with dialled(gateway, "short", route) as client:
                    while b"[DONE]" not in client.recv(65536):
                        pass
                with dialled(gateway, text, route) as client:
                    client.recv(1_000)
            fake.wait_idle()
            base_bytes, spent = gateway.rss_bytes(), fake.total_completion_tokens * len(PIECE)
            with dialled(gateway, text, route) as client:
                client.recv(100)
                if route == "handover":
                    client.settimeout(1.0)  # reads on, but nothing more comes while the hand-over waits
                    with pytest.raises(TimeoutError):
                        while client.recv(65536):
                            pass
                sent_bytes = settled_bytes(fake) - spent
                assert sent_bytes < SENT_BYTES
                for _ in range(5):
                    if route != "handover":
                        client.recv(1)  # one byte a while changes nothing
                    time.sleep(0.1)
                assert settled_bytes(fake) - spent < SENT_BYTES
                assert gateway.rss_bytes() - base_bytes < GROWTH_BYTES
            fake.wait_idle()
            assert all(call.cancelled for call in fake.completions if call.n_tokens_sent > 10)


def test_a_client_that_reads_nothing_is_cut_off_at_the_limit_and_recorded(tmp_path: Path) -> None:
    with FakeUpstream.in_thread(says) as fake:
        settings = {
            "server": {"client_idle_timeout_s": 1.0}, "upstreams": {"up": {"url": fake.url}},
            "routes": {"r": {"upstream": "up"}},
        }  # fmt: skip
        with GatewayProcess.serving(tmp_path, settings) as gateway:
            with dialled(gateway, "answer") as deaf:
                deaf.recv(100)
                start_s = time.monotonic()
                fake.wait_idle(20)
                assert time.monotonic() - start_s >= 1.0
                assert fake.completions[0].cancelled
            with dialled(gateway, "short") as client:  # others are served as ever
                while b"[DONE]" not in client.recv(65536):
                    pass
    assert [e.episode.outcome.end_reason for e in read_episodes(gateway.database)] == ["client_left", "done"]
    assert b"read nothing was cut off" in gateway.stderr()


def test_a_model_that_thinks_for_long_is_no_client_that_does_not_read(tmp_path: Path) -> None:
    thinks = Reply(reasoning=("so\n",), answer=("4",), first_delay_s=2.5)
    with FakeUpstream.in_thread(thinks) as fake:
        settings = {"server": {"client_idle_timeout_s": 0.2}, "upstreams": {"up": {"url": fake.url}}}
        with GatewayProcess.serving(tmp_path, settings) as gateway, dialled(gateway, "short") as client:
            client.settimeout(20)
            found = b""
            while b"[DONE]" not in found:
                data = client.recv(65536)
                assert data
                found += data

"""Attacks over HTTP that any gateway can meet. Suffice must hold; with `--peers` others are shown beside it.

The peers run in environments of their own (`bench/peers`), as their documentation starts them, without keys.
"""

from __future__ import annotations

import importlib
import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest

from suffice_testing import FakeRequest, FakeUpstream, Reply
from tests.attacks.conftest import OUTCOME
from tests.attacks.raw_http import CHAT, statuses
from tests.gateway_process import GatewayProcess

HELD, FAILED = "holds", "does not"
WAIT_S = 20.0
SECRET = "sk-for-this-hop"
ROOT = Path(__file__).resolve().parents[2]
CONTROL = {"enabled": False, "unread_audits": 0}  # what a client leaves is closed, as the peers promise


class Target(NamedTuple):
    name: str
    port: int
    path: str
    model: str
    upstream: FakeUpstream

    def body(self, **fields: object) -> bytes:
        messages = [{"role": "user", "content": "2 + 2?"}]
        return json.dumps({"model": self.model, "messages": messages, **fields}).encode()

    def head(self, *lines: str, line: str = "") -> bytes:
        first = line or f"POST {self.path} HTTP/1.1"
        known = {one.partition(":")[0].lower() for one in lines}
        usual = [f"{name}: {value}" for name, value in USUAL.items() if name not in known]
        return "\r\n".join([first, *usual, *lines]).encode("latin-1") + b"\r\n\r\n"

    def send(self, raw: bytes, within_s: float = WAIT_S) -> tuple[bytes, bool]:
        """What comes until the server closes, and whether it does in time."""
        got, end_s = b"", time.monotonic() + within_s
        with socket.create_connection(("127.0.0.1", self.port), timeout=within_s) as client:
            try:
                client.sendall(raw)
                while True:
                    client.settimeout(max(0.01, end_s - time.monotonic()))
                    data = client.recv(65_536)
                    if not data:
                        return got, True
                    got += data
            except TimeoutError:
                return got, False
            except OSError:
                return got, True

    def ask(self, *lines: str, body: bytes | None = None, line: str = "") -> bytes:
        """The reply to a request that ends its connection."""
        body = self.body() if body is None else body
        known = {one.partition(":")[0].lower() for one in lines}
        length = () if known & {"content-length", "transfer-encoding"} else (f"content-length: {len(body)}",)
        close = () if "connection" in known else ("connection: close",)
        return self.send(self.head(*lines, *length, *close, line=line) + body)[0]


USUAL = {"host": "127.0.0.1", "content-type": "application/json", "authorization": "Bearer unused"}


def refused(reply: bytes) -> bool:
    """Refused, or closed without a word."""
    return all(400 <= status < 500 for status in statuses(reply))


def length_and_chunks(t: Target) -> bool:
    body = t.body()
    return refused(t.ask(f"content-length: {len(body)}", "transfer-encoding: chunked", body=b"0\r\n\r\n" + body))


def two_lengths(t: Target) -> bool:
    return refused(t.ask("content-length: 5", f"content-length: {len(t.body())}"))


def bad_chunk(t: Target) -> bool:
    return refused(t.ask("transfer-encoding: chunked", body=b"0x%x\r\n%b\r\n0\r\n\r\n" % (len(t.body()), t.body())))


def folded_header(t: Target) -> bool:
    return refused(t.ask("x-a: b\r\n transfer-encoding: chunked"))


def signed_length(t: Target) -> bool:
    return refused(t.ask(f"content-length: +{len(t.body())}"))


def two_hosts(t: Target) -> bool:
    return refused(t.ask("host: 127.0.0.1", "host: evil.example"))


def unfinished_head(t: Target) -> bool:
    return t.send(t.head()[:-2], within_s=40)[1]


def rebound_name(t: Target) -> bool:
    return refused(t.ask("host: evil.example"))


def page_of_another_site(t: Target) -> bool:
    lines = ("content-type: text/plain", "origin: http://evil.example", "sec-fetch-site: cross-site")
    return refused(t.ask(*lines))


def nested_json(t: Target) -> bool:
    n = 50_000
    body = t.body()[:-1] + b', "x": ' + b"[" * n + b"]" * n + b"}"
    started_s = time.monotonic()
    return refused(t.ask(body=body)) and time.monotonic() - started_s < 10


def not_a_number(t: Target) -> bool:
    return refused(t.ask(body=t.body()[:-1] + b', "temperature": NaN}'))


def nominated_header(t: Target) -> bool:
    n = len(t.upstream.calls)
    t.ask("connection: close, x-hop", f"x-hop: {SECRET}")
    return not any(SECRET in str(dict(call.headers)) for call in t.upstream.calls[n:])


def client_leaves(t: Target) -> bool:
    """The upstream call of a stream is closed within 2 s."""
    n, body = len(t.upstream.calls), t.body(stream=True, max_tokens=9_000)
    with socket.create_connection(("127.0.0.1", t.port), timeout=WAIT_S) as client:
        client.sendall(t.head(f"content-length: {len(body)}") + body)
        client.settimeout(WAIT_S)
        client.recv(1_000)
    end_s = time.monotonic() + 2
    while time.monotonic() < end_s:
        calls = t.upstream.calls[n:]
        if calls and all(call.closed_at_s is not None and call.cancelled for call in calls):
            return True
        time.sleep(0.02)
    return False


ATTACKS: dict[str, Callable[[Target], bool]] = {
    "a length and chunks in one request": length_and_chunks,
    "two lengths": two_lengths,
    "a length with a sign": signed_length,
    "a chunk size written 0x…": bad_chunk,
    "a folded header": folded_header,
    "two hosts": two_hosts,
    "a head that never ends is closed within 40 s": unfinished_head,
    "another name leads to loopback (DNS rebinding)": rebound_name,
    "a page of another site posts plain text": page_of_another_site,
    "arrays nested 50,000 deep": nested_json,
    "NaN in the body": not_a_number,
    "a header that `Connection` nominates goes no further": nominated_header,
    "a client leaves: the call is closed within 2 s": client_leaves,
}


def says(seen: FakeRequest) -> Reply:
    return Reply(reasoning=("so\n",) * (2_000 if seen.body.get("stream") else 2), answer=("4",), delay_s=0.002)


def start(stack: ExitStack, name: str, fake: FakeUpstream, folder: Path) -> tuple[str, str]:
    """Start a gateway before the upstream; return where it takes chats, and under which name of the model."""
    if name == "Suffice":
        settings = {"upstreams": {"up": {"url": fake.url}}, "routes": {"r": {"upstream": "up"}}, "control": CONTROL}
        return stack.enter_context(GatewayProcess.serving(folder, settings)).url + CHAT, "m"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "bench"))
        targets: Any = importlib.import_module("peers.targets")
    (peer,) = stack.enter_context(getattr(targets, name.lower())(fake.url, folder))
    return peer.url, peer.model


@pytest.fixture(scope="session")
def attacked(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    with ExitStack() as stack:
        fake = stack.enter_context(FakeUpstream.in_thread(says))
        url, model = start(stack, request.param, fake, tmp_path_factory.mktemp("peers"))
        place = urlsplit(url)
        assert place.port
        yield Target(request.param, place.port, place.path, model, fake)


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_over_http_is_held(attacked: Target, attack: str, request: pytest.FixtureRequest) -> None:
    held = ATTACKS[attack](attacked)
    request.node.user_properties.append((OUTCOME, (attack, attacked.name, HELD if held else FAILED)))
    assert held or attacked.name != "Suffice", attack
    assert statuses(attacked.ask()) == [200], "it serves after each attack"

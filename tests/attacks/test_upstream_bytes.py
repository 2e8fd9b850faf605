"""Answers of a hostile upstream that are too long, too many, too deep, or slow to read.

One gateway in a process of its own; the upstream picks its attack by the model that is asked for. What is asserted is
one clean answer, memory that does not grow, and CPU time in proportion to the bytes.
"""

from __future__ import annotations

import http.client
import itertools
import json
import os
import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.gateway_process import GatewayProcess

MIB = 2**20
TICK_S = 1 / os.sysconf("SC_CLK_TCK")
CPU_S = 20.0  # for all that one attack sends; none needs half of it on two slow cores
GROWTH_BYTES = 50 * MIB


def event(choice: bytes, **more: bytes) -> bytes:
    fields = b"".join(b',"%s":%s' % (name.encode(), value) for name, value in more.items())
    return b'data: {"id":"c","choices":[' + choice + b"]" + fields + b"}\n\n"


def delta(fields: bytes, index: bytes = b"0") -> bytes:
    return b'{"index":' + index + b',"delta":{' + fields + b"}}"


END = event(b'{"index":0,"delta":{},"finish_reason":"stop"}') + b"data: [DONE]\n\n"
TEXT_64K = event(delta(b'"content":"' + b"a" * 65_536 + b'"'))
COLLIDING = 2**61 - 1  # whole numbers that are multiples of this have one hash


def again(piece: bytes, n: int) -> list[bytes]:
    return [piece] * n


def tokens(fields: bytes, n: int) -> list[bytes]:
    return again(event(delta(fields)) * 100, n // 100)


def calls(n: int, step: int) -> bytes:
    return b",".join(b'{"index":%d,"function":{"arguments":"a"}}' % (i * step) for i in range(n))


# name: (the bytes of the body, statuses that are allowed)
ATTACKS: dict[str, tuple[list[list[bytes]], set[int]]] = {
    "300 MB of text": ([again(TEXT_64K, 4_700), [END]], {502}),
    "300 MB of a thought": ([again(TEXT_64K.replace(b"content", b"reasoning_content"), 4_700), [END]], {502}),
    "300 MB in one event": ([[b'data: {"x":"'], again(b"a" * 65_536, 4_700), [b'"}\n\n', END]], {502}),
    "300 MB in one line without a name": ([again(b"a" * 65_536, 4_700)], {502}),
    "300 MB of spaces": ([again(event(delta(b'"content":"' + b" " * 65_536 + b'"')), 4_700), [END]], {502}),
    "letters, one an event": ([tokens(b'"content":"a"', 60_000), [END]], {200}),
    "signs": ([tokens('"content":"\U0001f600\U0001f600"'.encode(), 30_000), [END]], {200}),
    "100,000 empty events": ([again(b"data: {}\n\n" * 4_000, 25), [END]], {200}),
    "a million comments": ([again(b":\n\n" * 20_000, 50), [END]], {502}),
    "a million line ends": ([again(b"\n" * 65_536, 32), [END]], {502}),
    "a million carriage returns": ([again(b"\r" * 65_536, 32), [END]], {502}),
    "an event of 4 million lines": ([again(b"data:\n" * 10_000, 130), [b"\n", END]], {502}),
    "an event of lines without a name": ([[b"x\n" * 2_000_000 + b"\n", END]], {502}),
    "100,000 choices in one event": (
        [[event(b",".join(delta(b'"content":"a"', b"%d" % i) for i in range(100_000))), END]],
        {502},
    ),
    "100,000 choices, one an event": (
        [[event(delta(b'"content":"a"', b"%d" % i)) for i in range(100_000)], [END]],
        {502},
    ),
    "choices whose numbers collide": (
        [[event(delta(b'"content":"a"', b"%d" % (i * COLLIDING))) for i in range(20_000)], [END]],
        {502},
    ),
    "one choice 100,000 times in one event": ([[event(b",".join([delta(b'"content":"a"')] * 100_000)), END]], {502}),
    "choices that are empty objects": ([[event(b",".join([b"{}"] * 1_000_000)), END]], {502}),
    "choices that are numbers": ([[event(b",".join([b"1"] * 1_000_000)), END]], {502}),
    "20,000 tool calls": ([[event(delta(b'"tool_calls":[' + calls(20_000, 1) + b"]")), END]], {502}),
    "tool calls whose numbers collide": (
        [[event(delta(b'"tool_calls":[' + calls(9_000, COLLIDING) + b"]")), END]],
        {502},
    ),
    "tool calls without a number": (
        [[event(delta(b'"tool_calls":[' + b",".join(b'{"id":"t%d"}' % i for i in range(20_000)) + b"]")), END]],
        {502},
    ),
    "arguments in a million pieces": ([tokens(b'"tool_calls":[' + calls(100, 0) + b"]", 1_000), [END]], {200, 502}),
    "names in pieces": (
        [tokens(b'"tool_calls":[' + b",".join([b'{"index":0,"function":{"name":"ab"}}'] * 100) + b"]", 1_000), [END]],
        {200, 502},
    ),
    "parts of content": (
        [tokens(b'"content":[' + b",".join([b'{"type":"text","text":"a"}'] * 100) + b"]", 1_000), [END]],
        {200, 502},
    ),
    "new names in each delta": ([[event(delta(b'"x%d":"a"' % i)) for i in range(20_000)], [END]], {502}),
    "new names of lists": ([[event(delta(b'"x%d":[1,2,3]' % i)) for i in range(20_000)], [END]], {502}),
    "lists that add up": ([tokens(b'"x":[[],[],[],[],[],[],[],[],[],[],[],[]]', 200_000), [END]], {502}),
    "a new name in each event": (
        [[event(delta(b'"content":"a"'), **{f"x{i}": b"1"}) for i in range(20_000)], [END]],
        {502},
    ),
    "log-probabilities": (
        [
            tokens(
                b'"content":"a"},"logprobs":{"content":['
                + b",".join([b'{"token":"a","logprob":-0.1,"bytes":[97],"top_logprobs":[]}'] * 20)
                + b']},"x":{',
                60_000,
            ),
            [END],
        ],
        {502},
    ),
    "log-probabilities that are slow to convert": (
        [
            tokens(
                b'"content":"a"},"logprobs":{"content":['
                + b",".join([b'{"token":"a","logprob":-1e308}'] * 400)
                + b']},"x":{',
                100,
            ),
            [END],
        ],
        {200, 502},
    ),
    "numbers that are slow to convert": (
        [tokens(b'"x":[' + b",".join([b"1e308"] * 1_000) + b"]", 100), [END]],
        {200, 502},
    ),
    "log-probabilities of no number": (
        [
            [
                event(
                    b'{"index":0,"delta":{"content":"a"},"logprobs":{"content":[{"token":"a","logprob":%s,"top_logprobs":'
                    b'[{"token":"b","logprob":%s}]}]}}' % (n, n)
                )
                for n in (b"1e308", b"9" * 300, b"null", b'"a"', b"[]")
            ],
            [END],
        ],
        {200},
    ),
    "half characters in log-probabilities": (
        [
            [
                event(b'{"index":0,"delta":{"content":"a"},"logprobs":{"content":[{"token":"\\ud800","logprob":-1}]}}'),
                END,
            ]
        ],
        {200},
    ),
    "nested lists": ([[event(b"[" * 40_000 + b"]" * 40_000), END]], {502}),
    "nested objects": ([[event(delta(b'"x":' + b'{"a":' * 10_000 + b"1" + b"}" * 10_000)), END]], {502}),
    "nested where it is kept": ([[event(delta(b'"x":' + b"[" * 500 + b"]" * 500)), END]], {200, 502}),
    "a function that is no object": (
        [
            [
                event(delta(b'"tool_calls":[{"index":0,"function":"f"}]')),
                event(delta(b'"tool_calls":[{"index":0,"function":{"name":"g"}}]')),
                END,
            ]
        ],
        {200},
    ),
    "a finish reason that is a list": (
        [[event(b'{"index":0,"delta":{"content":"a"},"finish_reason":[[]]}'), END]],
        {200, 502},
    ),
    "a number of 5,000 digits": ([[event(delta(b'"content":"a"', b"9" * 5_000)), END]], {502}),
    "an index that is no number": ([[event(delta(b'"content":"a"', b'"1e308"')), END]], {200, 502}),
    "half characters": ([tokens(b'"content":"\\ud800"', 2_000), [END]], {200}),
    "accents without a letter": ([tokens('"reasoning_content":"\u0301\u200d"'.encode(), 10_000), [END]], {200, 502}),
    "halves of flags": ([tokens('"reasoning_content":"\U0001f1e6"'.encode(), 10_000), [END]], {200, 502}),
    "a thought without a space": ([tokens(b'"reasoning_content":"a"', 40_000), [END]], {200, 502}),
    "tags": ([tokens(b'"content":"<think></think><"', 20_000), [END]], {200}),
    "spaces before a tag": ([tokens(b'"content":" "', 20_000), [END]], {200}),
    "an error in each event": ([again(b'data: {"error":{"message":"m"}}\n\n', 10_000)], {502}),
    "no end": ([tokens(b'"content":"a"', 1_000)], {502}),
    "nothing": ([[]], {502}),
    "no UTF-8": ([[event(delta(b'"content":"\xff"')), END]], {502}),
    "NUL": ([again(b"\x00" * 65_536, 300)], {502}),
}
TRAILERS = {"an endless trailer": b"x-a: aaaaaaaaaaaaaaaa\r\n", "an endless header in a trailer": b"a" * 65_536}


class Hostile(socketserver.StreamRequestHandler):
    """Answers with the attack that the request's model names."""

    def handle(self) -> None:
        size = 0
        while (line := self.rfile.readline()) not in (b"\r\n", b""):
            if line.lower().startswith(b"content-length:"):
                size = int(line.partition(b":")[2])
        requested = json.loads(self.rfile.read(size) or b"{}")
        name = str(requested.get("model", "")).partition(" ")[2]
        self.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        try:
            for part in itertools.chain.from_iterable(ATTACKS[name][0] if name in ATTACKS else [[TEXT_64K, END]]):
                self.wfile.write(b"%x\r\n%b\r\n" % (len(part), part) if part else b"")
            self.wfile.write(b"0\r\n")
            for _ in range(20_000 if name in TRAILERS else 0):
                self.wfile.write(TRAILERS[name])
            self.wfile.write(b"\r\n")
        except OSError:
            pass  # the gateway has had enough


class Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    request_queue_size = 128


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    with Server(("127.0.0.1", 0), Hostile) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        route: dict[str, Any] = {"upstream": "up", "mode": "observe"}
        settings = {
            "control": {"enabled": False},
            "upstreams": {"up": {"url": f"http://127.0.0.1:{server.server_address[1]}", "retries": 0}},
            "routes": {
                "samples": {
                    **route,
                    "kind": "samples",
                    "samples": 4,
                    "wave": 4,
                    "max_extra_calls": 3,
                    "match": {"model": "samples *"},
                },
                "reasoning": {**route, "match": {"model": "reasoning *"}},
                "off": {**route, "mode": "off", "match": {"model": "off *"}},
            },
        }
        with GatewayProcess.serving(tmp_path_factory.mktemp("hostile"), settings) as process:
            ask(process, "samples", "warm up")
            yield process
        server.shutdown()


def ask(gateway: GatewayProcess, route: str, attack: str, *, stream: bool = False) -> tuple[int, bytes, int]:
    """Status, the end of the body, and its length."""
    host, _, port = gateway.url.removeprefix("http://").partition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=120)
    body = {"model": f"{route} {attack}", "stream": stream, "messages": [{"role": "user", "content": "2 + 2?"}]}
    try:
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"})
        reply = connection.getresponse()
        end, size = b"", 0
        try:
            while part := reply.read(2**16):
                end, size = (end + part)[-2_000:], size + len(part)
        except (http.client.IncompleteRead, ConnectionError):
            end += b"torn"
        return reply.status, end, size
    finally:
        connection.close()


def cpu_s(gateway: GatewayProcess) -> float:
    fields = Path(f"/proc/{gateway.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * TICK_S


def is_healthy(gateway: GatewayProcess) -> bool:
    host, _, port = gateway.url.removeprefix("http://").partition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=60)
    try:
        connection.request("GET", "/healthz")
        return connection.getresponse().status == 200
    finally:
        connection.close()


@pytest.mark.slow(keep=1)
@pytest.mark.parametrize("attack", ATTACKS)
def test_samples_of_a_hostile_upstream_cost_little_and_end_in_one_answer(gateway: GatewayProcess, attack: str) -> None:
    before_bytes, before_s = gateway.rss_bytes(), cpu_s(gateway)
    status, end, _ = ask(gateway, "samples", attack)
    assert status in ATTACKS[attack][1], end
    if status != 200:
        error = json.loads(end)["error"]
        assert error["type"] == "upstream_error", error
    assert gateway.rss_bytes() - before_bytes < GROWTH_BYTES
    assert cpu_s(gateway) - before_s < CPU_S
    assert is_healthy(gateway)


@pytest.mark.slow
def test_memory_comes_back(gateway: GatewayProcess) -> None:
    """The same attack again and again takes no more than once."""
    for attack in ("300 MB of text", "new names of lists"):
        ask(gateway, "samples", attack)
        before_bytes = gateway.rss_bytes()
        for _ in range(4):
            assert ask(gateway, "samples", attack)[0] == 502
        assert gateway.rss_bytes() - before_bytes < GROWTH_BYTES


LONG = [name for name in ATTACKS if name.startswith("300")]
SHORT = [name for name in ATTACKS if name not in LONG]


@pytest.mark.slow
@pytest.mark.parametrize("attack", LONG)
@pytest.mark.parametrize("stream", [False, True], ids=["body", "stream"])
def test_a_run_of_300_mb_is_passed_on_or_refused_in_flat_memory(
    gateway: GatewayProcess, attack: str, stream: bool
) -> None:
    before_bytes = gateway.rss_bytes()
    status, end, size = ask(gateway, "reasoning", attack, stream=stream)
    assert status in (200, 502)
    if not stream:
        assert (status, json.loads(end)["error"]["code"]) == (502, "upstream_protocol")
    else:
        assert size > 250 * MIB or b'"error"' in end
    assert gateway.rss_bytes() - before_bytes < 2 * GROWTH_BYTES
    assert is_healthy(gateway)


@pytest.mark.slow(keep=1)
@pytest.mark.parametrize("attack", SHORT)
def test_a_run_of_a_hostile_upstream_ends(gateway: GatewayProcess, attack: str) -> None:
    before_s = cpu_s(gateway)
    for stream in (False, True):
        status, end, _ = ask(gateway, "reasoning", attack, stream=stream)
        assert status in (200, 502), end
        assert b"internal" not in end
    assert cpu_s(gateway) - before_s < CPU_S
    assert is_healthy(gateway)


@pytest.mark.slow(keep=3)
@pytest.mark.parametrize("route", ["samples", "reasoning", "off"])
@pytest.mark.parametrize("attack", TRAILERS)
def test_what_follows_an_answer_is_not_read_for_ever(gateway: GatewayProcess, attack: str, route: str) -> None:
    before_bytes, before_s = gateway.rss_bytes(), cpu_s(gateway)
    ask(gateway, route, attack)
    assert gateway.rss_bytes() - before_bytes < GROWTH_BYTES
    assert cpu_s(gateway) - before_s < CPU_S
    assert is_healthy(gateway)

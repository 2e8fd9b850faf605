"""Attacks on connections: bytes that are no HTTP or could mean two things, clients that keep us waiting, and signals.

The first cases are the rows of `ATTACKS.md` about connections and signals; the others vary them.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from suffice_testing import FakeUpstream, Reply
from tests.attacks.raw_http import (
    BODY,
    CHAT,
    CHUNKED,
    GET,
    LAST,
    LENGTH,
    PROMPT,
    SECRET,
    STREAM,
    WAIT_S,
    WHOLE,
    N,
    closing,
    connect,
    healthz,
    port_of,
    read_to_end,
    request,
    statuses,
    talk,
)
from tests.fake_models import EchoNonce
from tests.gateway_process import GatewayProcess, nested_toml

# --------------------------------------------------------------------------- a gateway that is attacked


@pytest.fixture(scope="module")
def fake() -> Iterator[FakeUpstream]:
    with FakeUpstream.in_thread(EchoNonce(n_reasoning=2, n_answer=1)) as upstream:
        yield upstream


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, fake: FakeUpstream) -> Iterator[GatewayProcess]:
    settings = {
        "server": {"head_timeout_s": 1.0, "body_timeout_s": 1.0, "keepalive_s": 2.0},
        "upstreams": {"up": {"url": fake.url}},
        "control": {"enabled": False},
        "routes": {"r": {"upstream": "up"}},
    }
    with GatewayProcess.serving(tmp_path_factory.mktemp("attacked"), settings) as process:
        yield process


# --------------------------------------------------------------------------- what is no HTTP, or could mean two things

OLD = f"POST {CHAT} HTTP/1.0"
REFUSED: dict[str, tuple[bytes, int]] = {
    "HTTP/1.0 with chunks": (closing(CHUNKED, line=OLD, body=WHOLE), 400),
    "HTTP/0.9": (b"GET /healthz\r\n\r\n", 505),
    "HTTP/0.9 by name": (b"GET /healthz HTTP/0.9\r\nhost: 127.0.0.1\r\n\r\n", 505),
    "HTTP/2.0 by name": (closing(LENGTH, line=f"POST {CHAT} HTTP/2.0"), 505),
    "HTTP/2 preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9), 400),
    "HTTP/3.7": (closing(LENGTH, line=f"POST {CHAT} HTTP/3.7"), 400),
    "HTTP/11": (closing(LENGTH, line=f"POST {CHAT} HTTP/11"), 400),
    "a TLS hello": (bytes.fromhex("16030100c8010000c40303") + bytes(189), 400),
    "an SSH banner": (b"SSH-2.0-OpenSSH_9.9\r\n", 400),
    "a PROXY line": (b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\nGET /healthz HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n", 400),
    "random bytes": (bytes(range(256)), 400),
    "no host": (closing(LENGTH, host=""), 400),
    "two hosts": (closing(LENGTH, "host: other"), 400),
    "the same host twice": (closing(LENGTH, "Host: h"), 400),
    "a length twice": (closing(LENGTH, LENGTH), 400),
    "two lengths": (closing(LENGTH, "content-length: 0"), 400),
    "a list of lengths": (closing(f"{LENGTH}, {N}"), 400),
    "a negative length": (closing("content-length: -1"), 400),
    "a signed length": (closing(f"content-length: +{N}"), 400),
    "a hexadecimal length": (closing(f"content-length: {N:#x}"), 400),
    "a length with a fraction": (closing(f"content-length: {N}.0"), 400),
    "an empty length": (closing("content-length:"), 400),
    "a length with a gap": (closing("content-length: 1 2"), 400),
    "a length beyond any number": (closing("content-length: 18446744073709551617"), 400),
    "length, then chunks": (closing(LENGTH, CHUNKED, body=WHOLE), 400),
    "chunks, then length": (closing(CHUNKED, LENGTH, body=WHOLE), 400),
    "gzip, then chunks": (closing("transfer-encoding: gzip, chunked", body=WHOLE), 400),
    "chunks, then gzip": (closing("transfer-encoding: chunked, gzip", body=WHOLE), 400),
    "chunks twice": (closing("transfer-encoding: chunked, chunked", body=WHOLE), 400),
    "two encodings": (closing(CHUNKED, "transfer-encoding: identity", body=WHOLE), 400),
    "an encoding that looks like one": (closing("transfer-encoding: xchunked", body=WHOLE), 400),
    "a quoted encoding": (closing('transfer-encoding: "chunked"', body=WHOLE), 400),
    "a vertical tab before it": (closing("transfer-encoding: \x0bchunked", body=WHOLE), 400),
    "a space before the colon": (closing("transfer-encoding : chunked", body=WHOLE), 400),
    "a folded header": (closing("x-a: b\r\n transfer-encoding: chunked", body=WHOLE), 400),
    "a folded first header": (request(LENGTH, host=" host: 127.0.0.1"), 400),
    "a header without a name": (closing(LENGTH, ": v"), 400),
    "a header without a colon": (closing(LENGTH, "nothing"), 400),
    "a bare line feed": (closing(LENGTH, "x-a: b\nx-c: d"), 400),
    "a bare carriage return": (closing(LENGTH, "x-a: b\rx-c: d"), 400),
    "a NUL in a value": (closing(LENGTH, "x-a: \0"), 400),
    "line feeds only": (closing(LENGTH).replace(b"\r\n", b"\n"), 400),
    "a chunk of size 0x": (closing(CHUNKED, body=b"0x5\r\nhello\r\n0\r\n\r\n"), 400),
    "a negative chunk": (closing(CHUNKED, body=b"-5\r\nhello\r\n0\r\n\r\n"), 400),
    "a chunk beyond any number": (closing(CHUNKED, body=b"f" * 17 + b"\r\n"), 400),
    "a chunk that is longer than it says": (closing(CHUNKED, body=b"2\r\nhello\r\n0\r\n\r\n"), 400),
    "a chunk that ends with a line feed": (closing(CHUNKED, body=b"5\nhello\n0\n\n"), 400),
    "a space for a chunk's size": (closing(CHUNKED, body=b" \r\nhello\r\n0\r\n\r\n"), 400),
    "257 headers": (closing(LENGTH, *[f"x-{n}: v" for n in range(257)]), 431),
    "100,000 headers": (closing(LENGTH, *["a: b"] * 100_000), 431),
    "a header of 1 MB": (closing(LENGTH, "x-a: " + "a" * 2**20), 431),
    "a path of 1 MB": (closing(LENGTH, line=f"POST /{'a' * 2**20} HTTP/1.1"), 431),
    "lines without an end": (b"\r\n" * 2**17, 431),
    "CONNECT": (b"CONNECT h:443 HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n", 400),
    "a method in lower case": (closing(LENGTH, line=f"post {CHAT} HTTP/1.1"), 400),
    "a method of nobody": (closing(LENGTH, line=f"BREW {CHAT} HTTP/1.1"), 400),
    "TRACE": (b"TRACE /healthz HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n", 405),
    "a tab in the line": (closing(LENGTH, line=f"POST\t{CHAT} HTTP/1.1"), 400),
    "a path with bytes beyond ASCII": (closing(LENGTH, line="POST /v1/\xff HTTP/1.1"), 400),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_could_mean_two_things_is_refused(gateway: GatewayProcess, fake: FakeUpstream, name: str) -> None:
    sent, status = REFUSED[name]
    n_before = len(fake.calls)
    answer = talk(port_of(gateway.url), sent)
    assert statuses(answer)[:1] == [status], answer[:300]
    assert all(400 <= code < 600 for code in statuses(answer)), answer[:600]
    assert len(fake.calls) == n_before, "nothing reaches the upstream"
    assert SECRET.encode() not in answer
    assert healthz(gateway.url) == 200


SMUGGLED = b"GET /v1/models HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n"
SERVED: dict[str, tuple[bytes, list[int]]] = {
    "behind an upgrade to websocket": (GET + b"connection: upgrade\r\nupgrade: websocket\r\n\r\n" + SMUGGLED, [200]),
    "behind an upgrade to h2c": (GET + b"connection: upgrade\r\nupgrade: h2c\r\n\r\n" + SMUGGLED, [200]),
    "behind connection: close": (LAST + SMUGGLED, [200]),
    "behind HTTP/1.0": (b"GET /healthz HTTP/1.0\r\n\r\n" + SMUGGLED, [200]),
    "behind HTTP/1.0, kept": (b"GET /healthz HTTP/1.0\r\nconnection: keep-alive\r\n\r\n" + SMUGGLED, [200]),
    "in the body of a GET": (GET + b"content-length: %d\r\n\r\n" % len(SMUGGLED) + SMUGGLED + LAST, [200, 200]),
    "behind a body without a length": (b"DELETE /healthz HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n" + LAST, [405, 200]),
    "garbage behind a whole request": (GET + b"\r\n" + b"\0\1\2\r\n\r\n" + SMUGGLED, [200]),
    "ten in one piece": ((GET + b"\r\n") * 9 + LAST, [200] * 10),
}


@pytest.mark.parametrize("name", SERVED)
def test_what_is_whole_is_answered_and_nothing_is_smuggled_behind_it(
    gateway: GatewayProcess, fake: FakeUpstream, name: str
) -> None:
    sent, expected = SERVED[name]
    n_before = len(fake.calls)
    assert statuses(talk(port_of(gateway.url), sent)) == expected
    assert len(fake.calls) == n_before


def test_a_thousand_pipelined_requests_are_not_all_taken_in(gateway: GatewayProcess) -> None:
    answer = talk(port_of(gateway.url), (GET + b"\r\n") * 1_000)
    assert 1 <= len(statuses(answer)) < 1_000
    assert set(statuses(answer)) == {200}, "the answer to a whole request is never a later one's refusal"


def test_garbage_behind_a_request_does_not_get_into_its_answer(gateway: GatewayProcess) -> None:
    length = f"content-length: {len(STREAM)}"
    answer = talk(port_of(gateway.url), request(length, body=STREAM) + b"\0garbage\r\n\r\n")
    assert statuses(answer) == [200]
    assert answer.endswith(b"\r\n0\r\n\r\n")
    assert answer.count(b"[DONE]") == 1


OLD_CLIENTS: dict[str, tuple[str, ...]] = {
    "plain": (),
    "keep-alive": ("connection: keep-alive",),
    "te": ("te: chunked",),
    "expect": ("expect: 100-continue",),
}


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "body"])
@pytest.mark.parametrize("name", OLD_CLIENTS)
def test_a_client_of_http_1_0_gets_no_chunks_and_a_closed_connection(
    gateway: GatewayProcess, name: str, stream: bool
) -> None:
    body = STREAM if stream else BODY
    sent = request(f"content-length: {len(body)}", *OLD_CLIENTS[name], line=OLD, host="", body=body)
    answer = talk(port_of(gateway.url), sent)
    head, _, rest = answer.partition(b"\r\n\r\n")
    assert statuses(answer) == [200], "no interim answer either"
    assert b"transfer-encoding" not in head.lower()
    assert b"connection: close" in head.lower()
    if stream:
        assert rest.startswith(b"data: {")
        assert rest.endswith(b"data: [DONE]\n\n")
    else:
        assert json.loads(rest)["choices"]


# --------------------------------------------------------------------------- clients that keep us waiting


def drip(client: socket.socket, sent: bytes, every_s: float = 0.2) -> bytes:
    """Send a byte at a time until the server has enough."""
    client.settimeout(every_s)
    got = b""
    for byte in sent:
        with contextlib.suppress(ConnectionError):
            client.sendall(bytes([byte]))
        try:
            data = client.recv(65_536)
        except TimeoutError:
            continue
        except ConnectionError:
            return got
        if not data:
            return got
        got += data
    client.settimeout(WAIT_S)
    return got + read_to_end(client)


def waits(sent: bytes) -> Callable[[socket.socket], bytes]:
    def attack(client: socket.socket) -> bytes:
        client.sendall(sent)
        return read_to_end(client)

    return attack


def dripping(begun: bytes, then: bytes) -> Callable[[socket.socket], bytes]:
    def attack(client: socket.socket) -> bytes:
        client.sendall(begun)
        return drip(client, then)

    return attack


SLOW: dict[str, tuple[Callable[[socket.socket], bytes], list[int]]] = {
    "an unfinished head": (waits(b"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\n"), [408]),
    "an unfinished body": (waits(request(LENGTH)[:-1]), [408]),
    "no byte at all": (waits(b""), []),
    "one byte": (waits(b"G"), [408]),
    "half a line": (waits(b"GET /heal"), [408]),
    "empty lines alone": (waits(b"\r\n\r\n"), []),
    "a head that ends with one line feed too few": (waits(GET), [408]),
    "a body of which nothing comes": (waits(request(LENGTH, body=b"")), [408]),
    "a chunk that does not come": (waits(request(CHUNKED, body=b"400\r\nabc")), [408]),
    "chunks without an end": (waits(request(CHUNKED, body=b"1\r\na\r\n")), [408]),
    "100-continue and then nothing": (waits(request(LENGTH, "expect: 100-continue", body=b"")), [100, 408]),
    "a body that was refused and does not come": (waits(request("content-length: 99999999", body=b"{")), [413]),
    "a body for nobody": (waits(request(LENGTH, line="POST /nowhere HTTP/1.1", body=b"{")), [404]),
    "idle behind an answer": (waits(GET + b"\r\n"), [200]),
    "half a second request": (waits(GET + b"\r\n" + b"GET /hea"), [200, 408]),
    "a head that drips": (dripping(b"GET /", b"h" * 200), [408]),
    "headers that drip": (dripping(GET, b"x-a: b\r\n" * 30), [408]),
    "a body that drips": (dripping(request("content-length: 500", body=b""), b"{" + b" " * 200), [408]),
    "empty lines that drip": (dripping(b"", b"\r\n" * 100), []),
    "empty lines that drip behind an answer": (dripping(GET + b"\r\n", b"\r\n" * 100), [200]),
    "chunks of one byte that drip": (dripping(request(CHUNKED, body=b""), b"1\r\n \r\n" * 40), [408]),
}


@pytest.fixture(scope="module")
def waited(gateway: GatewayProcess) -> dict[str, tuple[bytes, float]]:
    """What each slow client got, and after how long it was closed; all of them at once."""

    def one(attack: Callable[[socket.socket], bytes]) -> tuple[bytes, float]:
        begin_s = time.monotonic()
        with connect(port_of(gateway.url)) as client:
            return attack(client), time.monotonic() - begin_s

    with ThreadPoolExecutor(len(SLOW)) as pool:
        running = {name: pool.submit(one, attack) for name, (attack, _) in SLOW.items()}
        return {name: future.result(WAIT_S) for name, future in running.items()}


@pytest.mark.parametrize("name", SLOW)
def test_who_keeps_us_waiting_is_closed(waited: dict[str, tuple[bytes, float]], name: str) -> None:
    answer, after_s = waited[name]
    assert statuses(answer) == SLOW[name][1], answer[:300]
    assert after_s < WAIT_S / 2


@pytest.mark.slow
def test_a_slow_but_steady_upload_is_served(gateway: GatewayProcess) -> None:
    """16 KiB buy a second: a line that is merely thin loses nothing."""
    body = json.dumps({"model": "m", "pad": "a" * 200_000, "messages": [{"role": "user", "content": "?"}]}).encode()
    with connect(port_of(gateway.url)) as client:
        client.sendall(request(f"content-length: {len(body)}", "connection: close", body=b""))
        for at in range(0, len(body), 50_000):
            client.sendall(body[at : at + 50_000])
            time.sleep(0.7)
        assert statuses(read_to_end(client)) == [200]


@pytest.mark.slow
def test_a_model_that_thinks_for_longer_than_any_limit_of_the_client_is_waited_for(tmp_path: Path) -> None:
    says = Reply(reasoning=("so\n",) * 10, answer=("4",), delay_s=0.4)
    with FakeUpstream.in_thread(says) as upstream:
        settings = {
            "server": {"head_timeout_s": 0.5, "body_timeout_s": 0.5, "keepalive_s": 0.5},
            "upstreams": {"up": {"url": upstream.url}},
            "control": {"enabled": False},
        }
        with GatewayProcess.serving(tmp_path, settings) as one:
            answer = talk(port_of(one.url), closing(f"content-length: {len(STREAM)}", body=STREAM))
            assert statuses(answer) == [200]
            assert b"[DONE]" in answer


# --------------------------------------------------------------------------- signals

SIGNALS: dict[str, tuple[signal.Signals, ...]] = {
    "SIGTERM": (signal.SIGTERM,),
    "SIGHUP again and again, then SIGTERM": (signal.SIGHUP,) * 5 + (signal.SIGTERM,),
    "SIGTERM, then SIGHUP": (signal.SIGTERM, signal.SIGHUP),
}


@pytest.mark.slow(keep=1)
@pytest.mark.parametrize("name", SIGNALS)
def test_a_signal_never_kills_without_grace(tmp_path: Path, name: str) -> None:
    says = Reply(reasoning=("so\n",) * 20, answer=("4",), delay_s=0.05)
    with FakeUpstream.in_thread(says) as upstream:
        settings = {"upstreams": {"up": {"url": upstream.url}}, "control": {"enabled": False}}
        with GatewayProcess.serving(tmp_path, settings) as one, connect(port_of(one.url)) as client:
            client.sendall(request(f"content-length: {len(STREAM)}", body=STREAM))
            begun = client.recv(64)
            for number in SIGNALS[name]:
                one.signal(number)
            assert b"[DONE]" in begun + read_to_end(client), "a request that had begun is answered to its end"
            assert one.process.wait(WAIT_S) == 0


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2, signal.SIGPIPE])
def test_a_signal_that_means_nothing_does_nothing(gateway: GatewayProcess, number: signal.Signals) -> None:
    gateway.process.send_signal(number)
    for _ in range(3):
        assert healthz(gateway.url) == 200
    assert gateway.process.poll() is None


@pytest.mark.slow
def test_standard_error_that_nobody_reads_holds_nobody_up(tmp_path: Path, fake: FakeUpstream) -> None:
    """The access log fills the pipe; requests are answered all the same, and the process still ends."""
    settings = {"upstreams": {"up": {"url": fake.url}}, "store": {"url": f"sqlite:///{tmp_path / 'log.db'}"}}
    (tmp_path / "suffice.toml").write_text(nested_toml(settings), encoding="utf-8")
    command = [sys.executable, "-c", "from suffice.cli.main import main; main()", "serve"]
    command += ["--config", str(tmp_path / "suffice.toml"), "--port", "0"]
    paths = os.pathsep.join(path for path in sys.path if path)
    process = subprocess.Popen(command, stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": paths})
    assert process.stderr is not None
    try:
        while not (results := re.search(rb"listening on http://127.0.0.1:(\d+)/", process.stderr.readline())):
            pass
        line = b"GET /" + b"a" * 150 + b" HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n"
        for _ in range(40):
            with connect(int(results[1])) as client:
                client.sendall(line * 50)
                got = b""
                while len(statuses(got)) < 50:
                    got += client.recv(65_536)
        process.terminate()
        assert process.wait(WAIT_S) == 0
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


# --------------------------------------------------------------------------- what the log says


def test_the_access_log_has_a_line_for_each_request_and_no_word_of_its_client(
    gateway: GatewayProcess, waited: dict[str, tuple[bytes, float]]
) -> None:
    assert waited
    port, key = port_of(gateway.url), f"authorization: Bearer {SECRET}"
    talk(port, closing(LENGTH, key, line=f"POST {CHAT}?api_key={SECRET}&q=%0a HTTP/1.1"))
    talk(port, closing(line=f"GET /a%0aFAKE%20INFO%1b[2J?{SECRET} HTTP/1.1", body=b""))
    talk(port, closing(line=f"GET /{'b' * 4_000}?{SECRET} HTTP/1.1", body=b""))
    end_s = time.monotonic() + WAIT_S
    while b"GET /bbb" not in gateway.stderr():
        assert time.monotonic() < end_s
        time.sleep(0.02)
    report = gateway.stderr().decode()
    assert SECRET not in report
    assert PROMPT not in report
    assert "\x1b" not in report
    assert re.search(
        rf"suffice.access: POST {CHAT} 200 \d+ ms \d+ bytes route=r id=ep_\w+ request_id=req_\w+\n", report
    )
    assert re.search(
        r"suffice.access: GET /a%0aFAKE%20INFO%1b\[2J 404 \d+ ms \d+ bytes route=- id=- request_id=req_\w+\n", report
    )
    assert re.search(r"suffice.access: GET /b{199} 404 ", report), "long paths are cut"
    assert re.search(rf"suffice.access: POST {CHAT} 408 \d+ ms", report), "slow bodies are told, too"
    assert re.search(r"suffice.access: - - 408 0 ms", report), "and slow heads"
    assert "Traceback" not in report

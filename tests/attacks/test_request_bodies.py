"""Bodies and heads that cost more to read than to send, and bodies of senders who may not be heard.

Each attack is sent to a gateway of its own process. What is asserted is the answer, the CPU time that the whole
process took for it, and that another client is served meanwhile. Wall-clock times depend on the machine and are not.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from suffice.gateway.app import ENDPOINTS
from suffice_testing import FakeUpstream, Reply
from tests.gateway_process import GatewayProcess

KEY = "attacker-proof"
KIB, MIB = 2**10, 2**20
CPU_S_PER_MIB = 0.25  # that the gateway may take to read, check, hash and relay or refuse a body
CPU_S = 1.0  # … and beside that for everything else that it does
TICK_S = 1 / os.sysconf("SC_CLK_TCK")

Gateway = tuple[GatewayProcess, dict[str, str]]


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    body: bytes
    headers: dict[str, str]


def serving(folder: Path, url: str, **server: object) -> contextlib.AbstractContextManager[GatewayProcess]:
    settings = {
        "server": server,
        "control": {"enabled": False},
        "upstreams": {"up": {"url": url}},
        "routes": {
            "samples": {
                "upstream": "up",
                "kind": "samples",
                "mode": "observe",
                "samples": 2,
                "max_extra_calls": 3,
                "match": {"model": "s*"},
            },
            "loop": {"kind": "rounds", "mode": "observe"},
            "all": {"upstream": "up", "mode": "observe", "match": {"model": "*"}},
        },
    }
    return GatewayProcess.serving(folder, settings, environment={"ATTACK_KEYS": KEY})


@pytest.fixture(scope="module")
def upstream() -> Iterator[FakeUpstream]:
    with FakeUpstream.in_thread(Reply()) as fake:
        yield fake


@pytest.fixture(scope="module")
def opened(upstream: FakeUpstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    with serving(tmp_path_factory.mktemp("open"), upstream.url) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def keyed(upstream: FakeUpstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    with serving(tmp_path_factory.mktemp("keyed"), upstream.url, api_keys_env="ATTACK_KEYS") as gateway:
        yield gateway


def post(gateway: GatewayProcess, path: str, body: bytes, *, key: str = "", method: str = "POST") -> Answer:
    host, _, port = gateway.url.removeprefix("http://").partition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=60)
    try:
        headers = {"content-type": "application/json", **({"authorization": f"Bearer {key}"} if key else {})}
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # refused by its head, the rest unread
            connection.request(method, path, body=body, headers=headers)
        reply = connection.getresponse()
        return Answer(reply.status, reply.read(), {k.lower(): v for k, v in reply.getheaders()})
    finally:
        connection.close()


def cpu_s(gateway: GatewayProcess) -> float:
    fields = Path(f"/proc/{gateway.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * TICK_S


def healthy(gateway: GatewayProcess) -> bool:
    return post(gateway, "/healthz", b"", method="GET").status == 200


def attacked(gateway: GatewayProcess, attack: Callable[[], Answer], n_bytes: int) -> Answer:
    """The answer to an attack, during which another client is served, and which costs no more than it may."""
    before_s, result = cpu_s(gateway), list[Answer]()
    thread = threading.Thread(target=lambda: result.append(attack()))
    thread.start()
    assert healthy(gateway)
    thread.join(60)
    assert result, "the attack has no answer after a minute"
    assert cpu_s(gateway) - before_s <= CPU_S + CPU_S_PER_MIB * n_bytes / MIB
    assert healthy(gateway)
    return result[0]


# --------------------------------------------------------------------------- bodies

MIDDLE = b'"model": "m", "messages": [{"role": "user", "content": "2 + 2?"}]'


def filled(piece: bytes, n_bytes: int, *, end: bytes = b"1") -> bytes:
    return b'{"x": [' + piece * (n_bytes // len(piece)) + end + b"], " + MIDDLE + b"}"


def one(value: bytes) -> bytes:
    return filled(value + b",", len(value) + 1)


def names(n_bytes: int) -> bytes:
    return b"{" + b", ".join(b'"%07x": 1' % n for n in range(n_bytes // 14)) + b', "0000000": 1, ' + MIDDLE + b"}"


# name: (what is repeated, status where it is short enough to be read, status where it is 20 MiB)
FILLS: dict[str, tuple[Callable[[int], bytes], int, int]] = {
    "repeated last name": (names, 400, 413),
    "repeated name in each object": (lambda n: filled(b'{"a":1,"a":2},', n), 400, 413),
    "empty lists": (lambda n: filled(b"[],", n), 200, 413),
    "empty objects": (lambda n: filled(b"{},", n), 200, 413),
    "objects of one empty name": (lambda n: filled(b'{"":0},', n), 200, 413),
    "small numbers": (lambda n: filled(b"1,", n), 200, 413),
    "numbers that are slow to convert": (lambda n: filled(b"1e308,", n), 200, 413),
    "more of them": (lambda n: filled(b"1.7976931348623157e308,", n), 200, 413),
    "numbers beside the smallest": (lambda n: filled(b"2.2250738585072011e-308,", n), 200, 413),
    "numbers that are too large": (lambda n: filled(b"1e999,", n), 400, 413),
    "whole numbers of 4,000 digits": (lambda n: filled(b"9" * 4_000 + b",", n), 400, 400),
    "whole numbers of 300 digits": (lambda n: filled(b"9" * 300 + b",", n), 400, 400),
    "whole numbers of 60 digits": (lambda n: filled(b"9" * 60 + b",", n), 200, 413),
    "one whole number": (lambda n: filled(b"9", n, end=b""), 400, 400),
    "one fraction": (lambda n: one(b"0." + b"1" * n), 400, 400),
    "empty texts": (lambda n: filled(b'"",', n), 200, 413),
    "escapes": (lambda n: one(b'"' + b"\\n" * (n // 2) + b'"'), 200, 413),
    # The fake upstream reads no half characters: the gateway has let them pass.
    "escapes in the slow reader": (lambda n: one(b'"\\ud800' + b"\\n" * (n // 2) + b'"'), 502, 413),
    "half characters": (lambda n: one(b'"' + b"\\ud800" * (n // 6) + b'"'), 502, 413),
    "JSON inside a text": (lambda n: one(b'"' + b'{\\"a\\": [1, 2]}, ' * (n // 19) + b'"'), 200, 413),
    "backslashes": (lambda n: one(b'"' + b"\\\\" * (n // 2) + b'"'), 200, 413),
    "quotes alone": (lambda n: b'"' * n, 400, 400),
    "open lists": (lambda n: b"[" * n, 400, 413),
    "open objects": (lambda n: b'{"a":' * (n // 5), 400, 413),
    "colons": (lambda n: b'{"a"' + b":" * n, 400, 413),
    "spaces": (lambda n: b'{"x":' + b" " * n + b"1, " + MIDDLE + b"}", 200, 200),
    "spaces alone": (lambda n: b" " * n, 400, 400),
    "NUL": (lambda n: b"\x00" * n, 400, 400),
    "no UTF-8": (lambda n: b'{"x": "' + b"\xff" * n, 400, 400),
    "a byte order mark": (lambda n: b"\xef\xbb\xbf{" + b" " * n + MIDDLE + b"}", 400, 400),
    "a torn text": (lambda n: b'{"x": "' + b"a" * n, 400, 400),
    "many messages": (
        lambda n: (
            b'{"model": "m", "messages": [' + b'{"role":"user","content":"a"},' * (n // 30) + b'{"role":"user"}]}'
        ),
        200,
        413,
    ),
    "many parts of a message": (
        lambda n: (
            b'{"model": "m", "messages": [{"role": "user", "content": ['
            + b'{"type":"text","text":"a"},' * (n // 27)
            + b'{"type":"text","text":""}]}]}'
        ),
        200,
        413,
    ),
    "a question of accents": (
        lambda n: b'{"model": "m", "messages": [{"role": "user", "content": "a' + b"\xcc\x81" * (n // 2) + b'"}]}',
        200,
        200,
    ),
    "a question of line ends": (
        lambda n: (
            b'{"model": "m", "messages": [{"role": "user", "content": "' + b"\\nA), B) and C) " * (n // 16) + b'"}]}'
        ),
        200,
        200,
    ),
    "a long model": (  # the fake upstream repeats it in an event that is too long
        lambda n: b'{"model": "' + b"*" * n + b'", "messages": [{"role": "user", "content": "q"}]}',
        200,
        502,
    ),
}


@pytest.mark.parametrize("name", FILLS)
def test_a_body_of_64_kib_costs_no_more_than_it_may(opened: GatewayProcess, name: str) -> None:
    make, small, _ = FILLS[name]
    body = make(64 * KIB)
    assert attacked(opened, lambda: post(opened, "/v1/chat/completions", body), len(body)).status == small


@pytest.mark.slow(keep=5)
@pytest.mark.parametrize("name", FILLS)
def test_a_body_of_nearly_20_mib_costs_no_more_than_it_may(opened: GatewayProcess, name: str) -> None:
    make, _, large = FILLS[name]
    body = make(20 * MIB - KIB)
    assert attacked(opened, lambda: post(opened, "/v1/chat/completions", body), len(body)).status == large


def test_most_attacks_of_20_mib_do_not_wait_for_each_other(opened: GatewayProcess) -> None:
    """Several at once, of the sort that takes longest to read, and small requests of another client meanwhile."""
    body = FILLS["quotes alone"][0](4 * MIB)
    result = list[Answer]()
    threads = [
        threading.Thread(target=lambda: result.append(post(opened, "/v1/chat/completions", body))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    small = b"{" + MIDDLE + b"}"
    assert {post(opened, "/v1/chat/completions", small).status for _ in range(5)} == {200}
    for thread in threads:
        thread.join(60)
    assert [answer.status for answer in result] == [400] * 8


# --------------------------------------------------------------------------- every endpoint

POISON = names(48 * KIB)  # 13 s of work for the gateway that looked for its repeated name one by one
WRITES = sorted({(e.method, e.path.replace("{id}", "resp_1")) for e in ENDPOINTS if e.method == "POST"})
KEYED = sorted({(e.method, e.path.replace("{id}", "resp_1")) for e in ENDPOINTS if not e.public})


@pytest.mark.parametrize(("method", "path"), KEYED, ids=[f"{m} {p}" for m, p in KEYED])
def test_without_a_key_every_endpoint_answers_401_whatever_the_body_holds(
    keyed: GatewayProcess, method: str, path: str
) -> None:
    """Were the poisoned body parsed, its fault would be told (400), not the missing key."""
    for key in ("", "wrong"):
        answer = attacked(keyed, lambda key=key: post(keyed, path, POISON, key=key, method=method), len(POISON))  # type: ignore[misc]
        assert answer.status == 401, answer.body[:200]
        assert b"appears twice" not in answer.body


@pytest.mark.parametrize(("method", "path"), WRITES, ids=[f"{m} {p}" for m, p in WRITES])
def test_with_a_key_the_same_body_is_refused_at_once_or_goes_on_unread(
    keyed: GatewayProcess, upstream: FakeUpstream, method: str, path: str
) -> None:
    answer = attacked(keyed, lambda: post(keyed, path, POISON, key=KEY, method=method), len(POISON))
    if "/responses/" in path:  # no body is read there: it is the upstream's
        assert answer.status >= 400
    elif "/runs/" in path:
        assert answer.status == 409, "the run has ended; such a request has no body"
    elif "/admin/" in path:
        assert answer.status == 403, "this key lacks the scope, so the body is not read"
    else:
        assert answer.status == 400, answer.body[:200]
        assert b"appears twice" in answer.body


@pytest.mark.parametrize("path", ["", "/batch", "/langfuse", "/label-studio"])
def test_a_long_body_without_a_key_is_not_read(keyed: GatewayProcess, path: str) -> None:
    body = FILLS["empty lists"][0](8 * MIB)
    assert attacked(keyed, lambda: post(keyed, f"/v1/feedback{path}", body), 0).status == 401


TOKENS = {
    "none": b'{"rating": 1, "feedback_id": "a"}',
    "forged": b'{"rating": 1, "token": "v1.ep_1.ffffffff.00000000000000000000000000000000", ',
    "no text": b'{"token": 7, ',
    "behind a megabyte": b'{"comment": "' + b"a" * MIB + b'", "token": "v1.e.f.0"}',
    "escaped name": b'{"tok\\u0065n": "v1.e.f.0"}',
    "inside a text": b'{"comment": "\\"token\\": \\"v1.e.f.0\\""}',
    "many": b'{"token": "x", ' * 4_000,
    "spaces before it": b'{"token"' + b" " * 60_000,
    "too long": b'{"token": "' + b"v" * 60_000 + b'"}',
}


@pytest.mark.parametrize("name", TOKENS)
def test_a_token_in_the_body_is_checked_before_the_body_is_parsed(keyed: GatewayProcess, name: str) -> None:
    body = TOKENS[name]
    answer = attacked(keyed, lambda: post(keyed, "/v1/feedback", body), len(body))
    assert answer.status == 401, answer.body


@pytest.mark.slow(keep=9)
@pytest.mark.parametrize(
    "path",
    [
        "/v1/decide",
        "/v1/feedback",
        "/v1/feedback/batch",
        "/v1/feedback/label-studio",
        "/v1/feedback/langfuse",
        "/v1/completions",
        "/v1/embeddings",
        "/v1/responses",
        "/v1/messages",
    ],
)
@pytest.mark.parametrize("name", ["numbers that are slow to convert", "empty lists", "repeated last name"])
def test_other_endpoints_bound_their_work_as_well(opened: GatewayProcess, path: str, name: str) -> None:
    body = FILLS[name][0](7 * MIB)
    assert attacked(opened, lambda: post(opened, path, body), len(body)).status in (400, 413)


def many_rows(path: str) -> bytes:
    if path.endswith("studio"):
        return (
            b'{"action": "ANNOTATIONS_CREATED", "annotation": ['
            + b'{"id":1},' * 20_000
            + b'{"id":1}], "task": ['
            + b'{"id":1},' * 20_000
            + b'{"id":1}]}'
        )
    return b'{"data": [' + b'{"id":"a"},' * 20_000 + b'{"id":"a"}]}'


@pytest.mark.parametrize("path", ["/v1/feedback/label-studio", "/v1/feedback/langfuse"])
def test_a_webhook_of_many_rows_is_refused_like_a_batch_of_many_rows(opened: GatewayProcess, path: str) -> None:
    body = many_rows(path)
    answer = attacked(opened, lambda: post(opened, path, body), len(body))
    assert (answer.status, b"too_many_rows" in answer.body) == (413, True)


def test_json_inside_a_text_of_a_webhook_is_not_a_way_around_the_limits(opened: GatewayProcess) -> None:
    for metadata in (b"[" * 9_000, b"[[]," * MIB, b"9" * 9_000):
        body = b'{"id": "a", "name": "correct", "value": 1, "traceId": "e", "metadata": "' + metadata + b'"}'
        assert attacked(opened, lambda body=body: post(opened, "/v1/feedback/langfuse", body), len(body)).status == 200  # type: ignore[misc]


# --------------------------------------------------------------------------- heads


def raw_answer(gateway: GatewayProcess, sent: bytes) -> bytes:
    host, _, port = gateway.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=60) as client:
        result = b""
        try:
            client.sendall(sent)
            client.shutdown(socket.SHUT_WR)
            while part := client.recv(65_536):
                result += part
        except ConnectionError:
            pass
        return result


def request_head(*lines: bytes) -> bytes:
    return b"\r\n".join([b"GET /healthz HTTP/1.1", b"host: localhost", *lines, b"", b""])


HEADS = {
    "257 headers": (request_head(*[b"a: b"] * 257), b"431"),
    "100,000 headers": (request_head(*[b"a:"] * 100_000), b"431"),
    "a value of 65 KiB": (request_head(b"a: " + b"b" * 66_000), b"431"),
    "a name of 65 KiB": (request_head(b"a" * 66_000 + b": b"), b"431"),
    "1,000 hosts": (request_head(*[b"host: a"] * 200), b"400"),
    "a host of 60 KiB": (b"GET /healthz HTTP/1.1\r\nhost: " + b"a." * 30_000 + b"!\r\n\r\n", b"400"),
    "a port of 60,000 digits": (b"GET /healthz HTTP/1.1\r\nhost: a:" + b"9" * 60_000 + b"\r\n\r\n", b"400"),
    "a length of 60,000 digits": (
        b"POST /v1/feedback HTTP/1.1\r\nhost: a\r\ncontent-length: " + b"9" * 60_000 + b"\r\n\r\n",
        b"400",
    ),
    "a path of 60 KiB": (b"GET /" + b"a/" * 30_000 + b" HTTP/1.1\r\nhost: a\r\n\r\n", b"404"),
    "a query of 60 KiB": (
        b"GET /v1/responses/a?" + b"a=%41&" * 10_000 + b" HTTP/1.1\r\nhost: localhost\r\n\r\n",
        b"400",
    ),
    "cookies": (request_head(b"cookie: " + b"a=b; " * 12_000), b"200"),
}


@pytest.mark.parametrize("name", HEADS)
def test_a_head_is_refused_by_its_size_and_costs_little(opened: GatewayProcess, name: str) -> None:
    sent, status = HEADS[name]
    before_s = cpu_s(opened)
    assert raw_answer(opened, sent).split(b" ", 2)[1:2] == [status]
    assert cpu_s(opened) - before_s <= CPU_S
    assert healthy(opened)

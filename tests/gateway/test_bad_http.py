"""Bad input 11 to 13, 17 to 19, 23 and 24 as bytes on the wire, 49 to 58 at full size, and a count of them all.

Whatever comes: our 4xx or the server's own 400, never a 5xx, a traceback or a secret, and the next client is served.
"""

from __future__ import annotations

import asyncio
import gc
import inspect
import re
import resource
from itertools import chain
from pathlib import Path

import pytest

from suffice.gateway.http_protocol import UNFINISHED_HEAD_BYTES
from suffice_testing import Fault, Reply, Script
from tests.faults import test_upstream
from tests.gateway import test_bad_input, test_endpoint_table
from tests.gateway.conftest import Serve
from tests.gateway.served import CHAT, chat
from tests.gateway.test_bad_input import AUTH, GOOD, SECRET, assert_alive, assert_no_leak

N = len(GOOD)
CHUNKED = "Transfer-Encoding: chunked"
LENGTH = f"Content-Length: {N}"


def request(
    *headers: str, body: bytes = GOOD, line: str = f"POST {CHAT} HTTP/1.1", host: str = "Host: localhost"
) -> bytes:
    head = [line, host, "Connection: close", "Content-Type: application/json", f"X-Canary: {SECRET}", *headers]
    return "\r\n".join(head).encode("latin-1") + b"\r\n\r\n" + body


def chunked(size: bytes, *, headers: tuple[str, ...] = (CHUNKED,)) -> bytes:
    return request(*headers, body=size + b"\r\n" + GOOD + b"\r\n0\r\n\r\n")


HEX = b"%x" % N
REFUSED: dict[str, tuple[bytes, int]] = {
    "11 short": (request(f"Content-Length: {N - 5}"), 400),
    "11 negative": (request("Content-Length: -5"), 400),
    "11 two values": (request(LENGTH, f"Content-Length: {N - 1}"), 400),
    "11 twice": (request(LENGTH, LENGTH), 400),
    "11 a list": (request(f"{LENGTH}, {N}"), 400),
    "11 a word": (request("Content-Length: ten"), 400),
    "11 a sign": (request(f"Content-Length: +{N}"), 400),
    "11 beyond any number": (request("Content-Length: 99999999999999999999999"), 400),
    "12 length and chunked": (chunked(HEX, headers=(LENGTH, CHUNKED)), 400),
    "12 chunked and length": (chunked(HEX, headers=(CHUNKED, LENGTH)), 400),
    "12 gzip inside chunked": (chunked(HEX, headers=("Transfer-Encoding: gzip, chunked",)), 400),
    "12 identity": (request("Transfer-Encoding: identity"), 400),
    "12 nearly chunked": (request("Transfer-Encoding: xchunked"), 400),
    "13 no number": (chunked(b"zz"), 400),
    "13 0x": (chunked(b"0x" + HEX), 400),
    "13 plus": (chunked(b"+" + HEX), 400),
    "13 minus": (chunked(b"-" + HEX), 400),
    "13 beyond any number": (chunked(b"f" * 18), 400),
    "13 too short": (chunked(b"5"), 400),
    "18 64 KB header": (request(LENGTH, "X-A: " + "a" * 65_536), 431),
    "18 1000 headers": (request(LENGTH, *[f"X-{n}: a" for n in range(1_000)]), 431),
    "18 1 MB header": (request(LENGTH, "X-A: " + "a" * 1_000_000), 431),
    "18 long request line": (request(LENGTH, line=f"POST {CHAT}?{'a' * 100_000} HTTP/1.1"), 400),
    "19 NUL": (request(LENGTH, "X-A: a\0b"), 400),
    "19 bare line feed": (request(LENGTH, "X-A: a\nX-B: b"), 400),
    "19 bare carriage return": (request(LENGTH, "X-A: a\rb"), 400),
    "19 space in a name": (request(LENGTH, "X A: b"), 400),
    "19 non-ASCII name": (request(LENGTH, "X\xe9: b"), 400),
    "19 space before the colon": (request(f"Content-Length : {N}"), 400),
    "19 folded": (request(LENGTH, "X-A: a\r\n b"), 400),
    "20 no host that could be one": (request(LENGTH, host="Host: a b"), 400),
    "23 HTTP/2 preface": (request(line="PRI * HTTP/2.0"), 400),
    "23 HTTP/9.9": (request(LENGTH, line=f"POST {CHAT} HTTP/9.9"), 400),
    "23 CONNECT": (request(line="CONNECT a:80 HTTP/1.1", body=b""), 400),
    "23 OPTIONS *": (request(line="OPTIONS * HTTP/1.1", body=b""), 404),
    "23 unknown method": (request(line=f"BREW {CHAT} HTTP/1.1", body=b""), 400),
    "24 NUL in a key": (request(LENGTH, "Authorization: Bearer a\0b"), 400),
    "24 1 MB key": (request(LENGTH, "Authorization: Bearer " + "a" * 1_000_000), 431),
}
SERVED: dict[str, tuple[bytes, int]] = {
    "13 extension": (chunked(HEX + b";a=b"), 1),
    "17 Expect": (request(LENGTH, "Expect: 100-continue"), 1),
    "17 another Expect": (request(LENGTH, "Expect: tea"), 1),
    "19 latin-1 value": (request(LENGTH, "X-A: \xe9"), 1),
    "20 no host at all, as HTTP/1.0 has it": (request(LENGTH, host="X: y", line=f"POST {CHAT} HTTP/1.0"), 1),
    "23 HTTP/1.0": (request(LENGTH, line=f"POST {CHAT} HTTP/1.0"), 1),
    "23 absolute-form": (request(LENGTH, line=f"POST http://other{CHAT} HTTP/1.1"), 1),
    "23 pipelined": (request(LENGTH).replace(b"Connection: close\r\n", b"") + request(LENGTH), 2),
}


async def talk(port: int, sent: bytes, *, within_s: float = 10.0) -> bytes:
    """All that comes back until the connection is closed."""
    async with asyncio.timeout(within_s):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(sent)
            return await reader.read()
        finally:
            writer.close()


def statuses(answer: bytes) -> list[int]:
    return [int(code) for code in re.findall(rb"HTTP/1\.1 (\d{3}) ", answer)]


async def test_broken_http_is_refused_and_nothing_reaches_the_upstream(serve: Serve) -> None:
    async with serve() as g:
        for name, (sent, code) in REFUSED.items():
            answer = await talk(g.port, sent)
            assert statuses(answer)[0] == code, (name, answer[:300])
            assert all(400 <= s < 500 for s in statuses(answer)), name
            assert_no_leak(answer.partition(b"\r\n\r\n")[2])
            assert g.fake.calls == [], name
        await assert_alive(g)


async def test_odd_http_that_means_one_thing_is_served(serve: Serve) -> None:
    async with serve(route={"mode": "off"}) as g:
        for name, (sent, n_answers) in SERVED.items():
            n_before = len(g.fake.calls)
            answer = await talk(g.port, sent)
            assert [s for s in statuses(answer) if s != 100] == [200] * n_answers, name
            calls = g.fake.calls[n_before:]
            assert [call.raw_body for call in calls] == [GOOD] * n_answers, name
            assert all(call.request.target == CHAT for call in calls), name
            assert all(call.request.header("expect") is None for call in calls), name


async def test_11_a_body_that_never_comes_whole_ends_with_its_client(serve: Serve) -> None:
    async with serve() as g:
        reader, writer = await asyncio.open_connection("127.0.0.1", g.port)
        writer.write(request(f"Content-Length: {N + 5}"))
        await asyncio.sleep(0.05)
        writer.close()
        assert await reader.read() == b""
        assert (await g.outcome()).end_reason == "client_left"
        assert g.fake.calls == []


async def test_18_a_head_without_an_end_is_cut_off(serve: Serve) -> None:
    """Endless headers, and one endless header: the parser by itself would keep them all."""
    async with serve() as g:
        for piece in (b"X-A: aaaaaaaaaaaaaaaa\r\n" * 4_000, b"a" * 80_000):
            reader, writer = await asyncio.open_connection("127.0.0.1", g.port)
            writer.write(f"POST {CHAT} HTTP/1.1\r\nHost: 127.0.0.1\r\nX-B: ".encode())
            n_sent = 0
            while n_sent < 8 * UNFINISHED_HEAD_BYTES:
                writer.write(piece)
                await writer.drain()
                n_sent += len(piece)
            async with asyncio.timeout(10):
                assert statuses(await reader.read()) == [431]
            writer.close()
            assert g.fake.calls == []
        await assert_alive(g)


def memory_mb() -> float:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


HUGE: dict[str, Script] = {
    "51 a frame of 50 MB": Script(pieces=(b"data: ", *[b"x" * 2**20] * 50, b"\n\n", b"data: [DONE]\n\n")),
    "52 a million empty deltas": Script(pieces=(b'data: {"choices":[{"index":0,"delta":{}}]}\n\n' * 20_000,) * 50),
}


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the process's memory from /proc")
@pytest.mark.parametrize("name", HUGE)
async def test_a_huge_stream_passes_through_in_flat_memory(serve: Serve, name: str) -> None:
    script = HUGE[name]
    async with serve(script, route={"mode": "off"}) as g:
        before = memory_mb()
        n_bytes = 0
        async with g.session.post(g.url + CHAT, json=chat(stream=True)) as answer:
            async for part in answer.content.iter_any():
                n_bytes += len(part)
        assert n_bytes == sum(map(len, script.pieces))
        assert memory_mb() - before < 40
        assert (await g.outcome()).end_reason == "done"


@pytest.mark.parametrize("mode", ["off", "observe"])
async def test_57_a_redirect_is_not_followed_and_1xx_is_no_answer(serve: Serve, mode: str) -> None:
    inner = Reply(
        faults=(
            Fault(status=307, status_body=b"", status_headers={"location": "http://169.254.169.254/latest/meta-data"}),
        )
    )
    async with serve(inner, route={"mode": mode}) as g:
        answer = await g.ask(chat(), headers=AUTH)
        assert answer.status == 502
        assert b"169.254" not in answer.raw
        assert "location" not in answer.headers


@pytest.mark.parametrize("mode", ["off", "observe"])
async def test_58_cookies_and_hop_by_hop_headers_stay_upstream(serve: Serve, mode: str) -> None:
    report = {
        "set-cookie": "a=b",
        "set-cookie2": "c=d",
        "proxy-authenticate": "Basic",
        "upgrade": "h2c",
        "x-request-id": "1",
    }
    async with serve(
        Reply(faults=(Fault(status=418, status_body=b"{}", status_headers=report),)), route={"mode": mode}
    ) as g:
        answer = await g.ask(chat())
        assert answer.headers["x-request-id"] == "1"
        assert not {"set-cookie", "set-cookie2", "proxy-authenticate", "upgrade"} & set(answer.headers)


# Cases that are not in a table of their own.
ELSEWHERE = {
    20: test_bad_input.test_a_host_that_could_mean_two_things_is_refused,
    21: test_bad_input.test_a_path_is_found_exactly_or_not_at_all,
    22: test_bad_input.test_another_method_is_refused_and_the_right_one_named,
    24: test_bad_input.test_without_keys_of_ours_the_clients_own_authorization_goes_on,
    43: test_bad_input.test_override_fields_are_removed_and_counted,
    49: test_upstream.test_a_stream_where_json_was_asked_for_passes_as_it_came,
}


def test_every_number_from_1_to_58_has_a_case() -> None:
    tables = (
        test_bad_input.REFUSED,
        test_bad_input.FORWARDED,
        test_upstream.WRONG,
        test_upstream.ODD,
        REFUSED,
        SERVED,
        HUGE,
    )
    result = {int(name.split()[0]) for name in chain(*tables) if name.split()[0].isdigit()} | set(ELSEWHERE)
    assert sorted(result) == list(range(1, 59))
    assert all(inspect.iscoroutinefunction(test) for test in ELSEWHERE.values())
    assert inspect.iscoroutinefunction(test_endpoint_table.test_every_endpoint_has_its_guards)

"""One connection: framing as servers really do it, what may be used again, and how long one waits."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from suffice.errors import UpstreamDown, UpstreamTimeout
from suffice.settings import Upstream
from suffice.upstream.client import UpstreamClient
from suffice.upstream.connection import REST_S, Address
from tests.upstream.raw_server import RawServer

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


class Scripted(RawServer):
    """Answers each request of a connection with the next of `answers`: parts of bytes, each in its own write.

    After the last one it closes, or keeps the connection open when `stays`.
    """

    def __init__(self, *answers: Sequence[bytes], stays: bool = True, reads_body: bool = True) -> None:
        super().__init__()
        self._answers, self._stays, self._reads_body = answers, stays, reads_body
        self.heads: list[bytes] = []
        self.bodies: list[bytes] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for parts in self._answers:
            head = await reader.readuntil(b"\r\n\r\n")
            self.heads.append(head)
            length = next((v for v in head.lower().split(b"\r\n") if v.startswith(b"content-length:")), b":0")
            if self._reads_body:
                self.bodies.append(await reader.readexactly(int(length.partition(b":")[2])))
            for part in parts:
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(0.005)
        if self._stays:
            await asyncio.Event().wait()


@contextlib.asynccontextmanager
async def client_of(url: str, *, api_key: str | None = None, **settings: Any) -> AsyncIterator[UpstreamClient]:
    async with UpstreamClient("up", Upstream(url=url, **settings), api_key) as client:
        yield client


async def ask(client: UpstreamClient, body: bytes = b"{}") -> tuple[int, bytes]:
    async with client.open("/x", body) as call:
        return call.status, await call.read_all()


WHOLE: dict[str, tuple[bytes, ...]] = {
    "with a length": (OK,),
    "in chunks": (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\no\r\n", b"1;x=y\r\nk\r\n", b"0\r\n\r\n"),
    "with trailers": (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nx-late: 1\r\n\r\n",),
    "behind interim answers": (b"HTTP/1.1 100 Continue\r\nx-a: 1\r\n\r\n", b"HTTP/1.1 103 Early\r\n\r\n" + OK),
    "with bare line feeds": (b"HTTP/1.1 200 OK\ncontent-length: 2\n\nok",),
    "without a reason": (b"HTTP/1.1 200\r\ncontent-length: 2\r\n\r\nok",),
    "byte by byte": tuple(bytes([b]) for b in OK),
}


@pytest.mark.parametrize("name", WHOLE)
async def test_an_answer_is_whole_however_it_is_framed_and_its_connection_is_used_again(name: str) -> None:
    async with Scripted(WHOLE[name], [OK]) as server, client_of(server.url) as client:
        first = await ask(client)
        await asyncio.sleep(1.5 * REST_S)
        assert [first, await ask(client)] == [(200, b"ok"), (200, b"ok")]
        assert server.n_connections == 1


ENDS: dict[str, tuple[bytes, ...]] = {
    "no length": (b"HTTP/1.1 200 OK\r\n\r\no", b"k"),
    "HTTP/1.0": (b"HTTP/1.0 200 OK\r\n\r\nok",),
}


@pytest.mark.parametrize("name", ENDS)
async def test_an_answer_without_a_length_ends_with_its_connection(name: str) -> None:
    async with Scripted(ENDS[name], stays=False) as server, client_of(server.url) as client:
        assert [await ask(client), await ask(client)] == [(200, b"ok"), (200, b"ok")]
        assert server.n_connections == 2


NOT_AGAIN: dict[str, tuple[bytes, ...]] = {
    "told to close": (OK.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n"),),
    "HTTP/1.0": (OK.replace(b"1.1", b"1.0"),),
    "bytes behind the answer": (OK + b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil",),
    "bytes later": (OK, b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil"),
    "nonsense behind the answer": (OK + b"\x00\x01",),
    "another protocol": (b"HTTP/1.1 101 Go\r\nupgrade: x\r\nconnection: upgrade\r\n\r\nraw",),
}


@pytest.mark.parametrize("name", NOT_AGAIN)
async def test_nobody_gets_what_another_one_left_behind(name: str) -> None:
    """A connection that is not clean behind its answer is never used again."""
    async with Scripted(NOT_AGAIN[name]) as server, client_of(server.url) as client:
        first = await ask(client)
        assert first == ((101, b"") if name == "another protocol" else (200, b"ok"))
        await asyncio.sleep(0.02)
        await ask(client)
        assert server.n_connections == 2


CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"


async def test_a_server_that_closes_behind_a_stream_without_saying_so_costs_no_call() -> None:
    """Not even one that may not be tried again, and not the first one either."""
    async with Scripted([CHUNKED], stays=False) as server, client_of(server.url) as client:
        for _ in range(20):
            async with client.open("/x", b"{}", extra=True) as call:
                assert await call.read_all() == b"ok"
        assert server.n_connections == 20


async def test_a_server_that_keeps_connections_behind_streams_gets_them_all() -> None:
    async with Scripted(*[[CHUNKED]] * 20) as server, client_of(server.url) as client:
        await ask(client)
        await asyncio.sleep(1.5 * REST_S)
        for _ in range(10):
            assert await ask(client) == (200, b"ok")
        assert server.n_connections == 1


BROKEN: dict[str, tuple[bytes, ...]] = {
    "no HTTP": (b"SSH-2.0-OpenSSH_9.2\r\n",),
    "two lengths": (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nok!",),
    "a long header": (b"HTTP/1.1 200 OK\r\nx: " + b"y" * 40_000 + b"\r\n\r\n",),
    "a head without an end": (b"HTTP/1.1 200 OK\r\n", *[b"x: " + b"y" * 20_000 + b"\r\n"] * 10),
    "half a head": (b"HTTP/1.1 200 OK\r\ncontent-le",),
    "half a body": (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nok",),
    "a bad chunk": (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\nzz\r\n",),
}


@pytest.mark.parametrize("name", BROKEN)
async def test_what_is_no_whole_answer_is_down_and_never_asked_for_again(name: str) -> None:
    async with Scripted(BROKEN[name], stays=False) as server, client_of(server.url, retries=3) as client:
        with pytest.raises(UpstreamDown):
            await ask(client)
        assert server.n_connections == 1


async def test_what_came_before_an_answer_broke_is_read_first() -> None:
    parts = (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\nzz\r\n",)
    async with Scripted(parts) as server, client_of(server.url) as client, client.open("/x", b"{}") as call:
        await asyncio.sleep(0.02)
        assert await call.read() == b"ok"
        with pytest.raises(UpstreamDown):
            await call.read()


BEGUN = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
WORDS = [b"%d," % n for n in range(40)]
IN_CHUNKS = [BEGUN, *(b"%x\r\n%s\r\n" % (len(word), word) for word in WORDS), b"0\r\n\r\n"]


@pytest.mark.parametrize("takes", [1, 2, 3, 100], ids="all but every {}th".format)
async def test_bytes_are_taken_where_they_arrive_or_read_and_none_twice_or_out_of_order(takes: int) -> None:
    """Whoever takes at once declines now and then: the reader gets that, and what came behind it, first."""
    got, n_begun, n_read = list[bytes](), 0, 0

    def at_once(data: bytes) -> bool:
        nonlocal n_begun
        n_begun += 1
        if n_begun % takes == 0:
            return False
        got.append(data)
        return True

    async with Scripted(IN_CHUNKS, (OK,)) as server, client_of(server.url) as client:
        async with client.open("/x", b"{}") as call:
            while data := await call.read(at_once):
                got.append(data)
                n_read += 1
        await asyncio.sleep(2 * REST_S)
        assert b"".join(got) == b"".join(WORDS)
        assert n_read <= n_begun / takes + 1
        assert await ask(client) == (200, b"ok")
        assert server.n_connections == 1, "a stream that was taken at once leaves its connection as any other"


async def test_silence_is_counted_from_what_was_taken_at_once_too() -> None:
    drips = (BEGUN, *[b"1\r\nx\r\n"] * 120)
    async with Scripted(drips) as server, client_of(server.url, idle_timeout_s=0.3) as client:
        taken = list[bytes]()
        async with client.open("/x", b"{}") as call:
            start_s = time.monotonic()
            with pytest.raises(UpstreamTimeout):
                await call.read(lambda data: not taken.append(data))  # type: ignore[func-returns-value]
        assert b"".join(taken) == b"x" * 120
        assert time.monotonic() - start_s >= 0.6


async def test_nothing_is_handed_to_whoever_has_left() -> None:
    async with Scripted(IN_CHUNKS) as server, client_of(server.url) as client:
        taken = list[bytes]()
        async with client.open("/x", b"{}") as call:
            reading = asyncio.create_task(call.read(lambda data: not taken.append(data)))  # type: ignore[func-returns-value]
            while not taken:  # noqa: ASYNC110 - there is no event
                await asyncio.sleep(0.001)
            reading.cancel()
            known = len(taken)
            await asyncio.sleep(0.05)
            assert len(taken) == known
            assert b"".join(taken) + await call.read_all() == b"".join(WORDS), "what came since is there to be read"


async def test_a_server_that_answers_before_it_has_read_everything_is_heard() -> None:
    refused = b"HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\n\r\nno"
    async with Scripted([refused], reads_body=False) as server, client_of(server.url) as client:
        assert await ask(client, b"x" * 20_000_000) == (413, b"no")
        assert await ask(client) == (413, b"no")
        assert server.n_connections == 2  # the rest of the body is still owed to the first


async def test_a_server_that_takes_no_more_is_a_timeout() -> None:
    async with Scripted([], reads_body=False) as server, client_of(server.url, first_byte_timeout_s=0.2) as client:
        start_s = time.monotonic()
        with pytest.raises(UpstreamTimeout):
            await ask(client, b"x" * 50_000_000)
        assert 0.15 < time.monotonic() - start_s < 60


async def test_a_head_that_trickles_is_a_timeout() -> None:
    """Each byte is no new beginning: the limit is for the whole head."""
    drips = tuple(bytes([byte]) for byte in b"HTTP/1.1 200 OK\r\n" + b"x-a: b\r\n" * 500)
    async with Scripted(drips) as server, client_of(server.url, first_byte_timeout_s=0.3, idle_timeout_s=5.0) as client:
        with pytest.raises(UpstreamTimeout, match="did not begin to answer"):
            await ask(client)


@pytest.mark.no_cover
async def test_silence_is_counted_from_the_last_bytes_not_from_the_start() -> None:
    drips = (b"HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\n", *[b"x"] * 500)
    async with Scripted(drips) as server, client_of(server.url, idle_timeout_s=2.0) as client:
        assert await ask(client) == (200, b"x" * 500)  # 500 times 5 ms and more


@pytest.mark.parametrize("header", [("x-a", "1\r\nx-b: 2"), ("x-a", "1\nx-b: 2"), ("x-a\r", "1")])
async def test_no_header_can_smuggle_another_one(header: tuple[str, str]) -> None:
    async with Scripted([OK]) as server, client_of(server.url) as client:
        with pytest.raises(ValueError, match="line break"):
            async with client.open("/x", b"{}", [header]):
                pass
        assert server.n_connections == 0


async def test_headers_arrive_byte_for_byte() -> None:
    output = OK.replace(b"\r\n\r\n", b"\r\nx-request-id: \xc3\xa9\xff\r\n\r\n")
    async with Scripted([output]) as server, client_of(server.url) as client:
        async with client.open("/x", b"{}", [("x-mine", "\xc3\xa9\xff")]) as call:
            assert ("x-request-id", "\xc3\xa9\xff") in call.headers
        assert b"x-mine: \xc3\xa9\xff\r\n" in server.heads[0]


@pytest.mark.parametrize(
    ("headers", "sent"),
    [
        ((), b"authorization: Basic bWU6c2VjcmV0\r\n"),
        ((("authorization", "Bearer mine"),), b"authorization: Bearer mine\r\n"),
    ],
)
async def test_a_login_in_the_address_is_sent_where_the_caller_has_none(
    headers: Sequence[tuple[str, str]], sent: bytes
) -> None:
    async with Scripted([OK]) as server, client_of(server.url.replace("//", "//me:secret@")) as client:
        async with client.open("/x", b"{}", headers):
            pass
        assert sent in server.heads[0]
        assert server.heads[0].count(b"authorization") == 1
        assert b"me:secret" not in server.heads[0]


@pytest.mark.parametrize(
    ("url", "host", "port", "path", "authority"),
    [
        ("http://h/v1", "h", 80, "", "h"),
        ("https://h", "h", 443, "", "h"),
        ("http://h:81/a/v1/", "h", 81, "/a", "h:81"),
        ("http://[::1]:9", "::1", 9, "", "[::1]:9"),
        ("https://bücher.example./x", "xn--bcher-kva.example", 443, "/x", "xn--bcher-kva.example"),
    ],
)
def test_an_address_is_read_as_the_standards_have_it(url: str, host: str, port: int, path: str, authority: str) -> None:
    result = Address.of(url)
    assert (result.host, result.port, result.path, result.authority) == (host, port, path, authority)
    assert result.tls == url.startswith("https")

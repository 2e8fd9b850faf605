"""HTTP out: what is sent, what comes back, when it is tried again, and that leaving early really cuts."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from suffice.errors import UpstreamDown, UpstreamError, UpstreamTimeout
from suffice.settings import Upstream
from suffice.upstream.client import UpstreamClient, governed_headers
from suffice.upstream.connection import REST_S
from suffice_testing import FakeUpstream, Fault, Reply, ServerBehaviour
from tests.upstream.raw_server import RawServer

PATH = "/v1/chat/completions"
BODY = b'{"model":"m","messages":[{"role":"user","content":"hi"}],"stream":true}'


@asynccontextmanager
async def client_of(url: str, *, api_key: str | None = None, **settings: Any) -> AsyncIterator[UpstreamClient]:
    async with UpstreamClient("up", Upstream(url=url, **settings), api_key) as client:
        yield client


async def read(client: UpstreamClient, body: bytes = BODY) -> bytes:
    async with client.open(PATH, body) as call:
        return await call.read_all()


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/"])
async def test_the_base_address_may_carry_v1_or_not(suffix: str) -> None:
    async with FakeUpstream(Reply()) as fake, client_of(fake.url + suffix) as client:
        assert b"[DONE]" in await read(client)
        assert [call.request.target for call in fake.calls] == [PATH]


async def test_headers_of_the_connection_and_our_own_stay_here() -> None:
    given = [
        ("Host", "evil"),
        ("Content-Length", "7"),
        ("Connection", "close"),
        ("Cookie", "c"),
        ("Expect", "100-continue"),
        ("X-Suffice-Route", "r"),
        ("transfer-encoding", "chunked"),
        ("X-Mine", "1"),
        ("X-Mine", "2"),
        ("Authorization", "Bearer client"),
    ]
    async with FakeUpstream(Reply()) as fake, client_of(fake.url) as client:
        async with client.open(PATH, BODY, given) as call:
            await call.read_all()
        sent = [(k.lower(), v) for k, v in fake.calls[0].headers]
        assert [v for k, v in sent if k == "x-mine"] == ["1", "2"]
        assert ("authorization", "Bearer client") in sent
        names = [k for k, _ in sent]
        assert names.count("content-length") == 1
        assert not {"cookie", "expect", "x-suffice-route", "transfer-encoding", "user-agent"} & set(names)
        assert ("host", "evil") not in sent
        assert fake.calls[0].raw_body == BODY


async def test_the_upstreams_own_key_takes_the_place_of_the_clients() -> None:
    async with (
        FakeUpstream(Reply(), ServerBehaviour(api_key="theirs")) as fake,
        client_of(fake.url, api_key="theirs") as client,
    ):
        async with client.open(PATH, BODY, [("authorization", "Bearer client")]) as call:
            assert call.status == 200
        assert [v for k, v in fake.calls[0].headers if k.lower() == "authorization"] == ["Bearer theirs"]


def test_a_body_that_was_rewritten_is_declared_as_what_it_is() -> None:
    given = [("Content-Type", "text/x"), ("Accept-Encoding", "gzip"), ("Content-Encoding", "br"), ("x-a", "b")]
    assert governed_headers(given) == [
        ("x-a", "b"),
        ("content-type", "application/json"),
        ("accept-encoding", "identity"),
    ]


async def test_leaving_early_closes_the_call_at_once() -> None:
    endless = Reply(answer=("x",) * 10_000, delay_s=0.002)
    async with FakeUpstream(endless) as fake, client_of(fake.url) as client:
        async with client.open(PATH, BODY) as call:
            await call.read()
        left_at_s = time.monotonic()
        await fake.idle()
        closed_at_s = fake.calls[0].closed_at_s
        assert fake.calls[0].cancelled
        assert closed_at_s is not None
        assert closed_at_s - left_at_s < 10  # by itself it goes on for 20 s


async def test_a_finished_answer_gives_its_connection_back() -> None:
    async with FakeUpstream(Reply()) as fake, client_of(fake.url) as client:
        for _ in range(3):
            async with client.open(PATH, BODY) as call:
                while b"[DONE]" not in await call.read():
                    pass
                await call.settle()
            await asyncio.sleep(1.5 * REST_S)
        assert len(fake._tasks) == 1


async def test_settling_waits_for_nobody_long() -> None:
    says = Reply(faults=(Fault(stall_after=1, stall_s=60.0),), answer=("a", "b"))
    async with FakeUpstream(says) as fake, client_of(fake.url) as client:
        async with client.open(PATH, BODY) as call:
            start_s = time.monotonic()
            await call.settle()
            assert time.monotonic() - start_s < 30


async def test_silence_is_a_timeout_at_the_start_and_in_the_middle() -> None:
    async with FakeUpstream(Reply(faults=(Fault(header_delay_s=60.0),))) as fake:
        async with client_of(fake.url, first_byte_timeout_s=0.1) as client:
            with pytest.raises(UpstreamTimeout, match="did not begin to answer"):
                await read(client)
    async with FakeUpstream(Reply(faults=(Fault(stall_after=0, stall_s=60.0),))) as fake:
        async with client_of(fake.url, idle_timeout_s=0.1) as client:
            with pytest.raises(UpstreamTimeout, match="silent"):
                await read(client)


@pytest.mark.parametrize("how", ["rst", "fin"])
async def test_a_torn_answer_is_down_and_says_no_secret(how: Any) -> None:
    async with FakeUpstream(Reply(answer=("a", "b", "c"), faults=(Fault(die_after=2, die_how=how),))) as fake:
        async with client_of(fake.url) as client:
            with pytest.raises(UpstreamDown, match="before its answer was complete") as raised:
                await read(client)
            assert fake.url not in str(raised.value)


async def test_nobody_there_is_down() -> None:
    async with client_of("http://127.0.0.1:9", retries=2) as client:
        with pytest.raises(UpstreamDown, match="no connection to upstream 'up'") as raised:
            await read(client)
    assert "127.0.0.1" not in str(raised.value), "a client is told this"
    assert raised.value.for_operator().endswith("; tried 127.0.0.1:9")


class Slammer(RawServer):
    """Accepts connections and closes the first few without a word; then it answers."""

    def __init__(self, n_slams: int) -> None:
        super().__init__()
        self.n_slams = n_slams

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        if self.n_connections > self.n_slams:
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok")
            await writer.drain()


@pytest.mark.parametrize(("retries", "n_slams", "works"), [(0, 1, False), (1, 1, True), (1, 2, False), (2, 2, True)])
async def test_a_call_that_was_never_answered_is_tried_again_as_often_as_was_said(
    retries: int, n_slams: int, works: bool
) -> None:
    async with Slammer(n_slams) as server, client_of(server.url, retries=retries) as client:
        if works:
            assert await read(client) == b"ok"
        else:
            with pytest.raises(UpstreamDown):
                await read(client)
        assert server.n_connections == min(retries, n_slams) + 1


async def test_an_answer_that_began_is_never_asked_for_again() -> None:
    for says in (Reply(faults=(Fault(die_after=0),)), Reply(faults=(Fault(status=500),))):
        async with FakeUpstream(says) as fake, client_of(fake.url, retries=3) as client:
            with contextlib.suppress(UpstreamError):
                await read(client)
            assert len(fake.calls) == 1


async def test_a_long_body_arrives_whole() -> None:
    body = b'{"model":"m","messages":[],"x":"' + b"y" * 3_000_000 + b'"}'
    async with FakeUpstream(Reply()) as fake, client_of(fake.url) as client:
        await read(client, body)
        assert fake.calls[0].raw_body == body


async def test_short_calls_end_in_time_and_within_their_size() -> None:
    async with FakeUpstream(Reply(faults=(Fault(header_delay_s=60.0),))) as fake, client_of(fake.url) as client:
        assert (await client.fetch("/v1/models", method="GET", timeout_s=30.0))[:2] == (200, fake_models())
        assert (await client.fetch("/tokenize", b'{"content":"a b"}', timeout_s=30.0))[0] == 200
        with pytest.raises(UpstreamTimeout, match=r"took longer than 0\.1 s"):
            await client.fetch(PATH, BODY, timeout_s=0.1)
    async with FakeUpstream(Reply(answer=("x" * 1000,) * 40)) as fake, client_of(fake.url) as client:
        async with client.open(PATH, BODY) as call:
            with pytest.raises(UpstreamDown, match="longer than 10000 bytes"):
                await call.read_all(10_000)


def fake_models() -> bytes:
    from suffice.upstream.wire import encode_json
    from suffice_testing.send import CREATED

    listed = [{"id": "fake", "object": "model", "created": CREATED, "owned_by": "fake"}]
    return encode_json({"object": "list", "data": listed})

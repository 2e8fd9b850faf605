"""A gateway that is its own upstream: refused at the start where the address shows it, and at its first nested call."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from suffice.errors import ConfigError
from suffice.wiring.startup import preflight
from tests.gateway.served import chat, served, settings_for

PROBED = {"kind": "samples", "samples": 4, "scorer": "number", "max_extra_calls": 8}


class Relay:
    """Passes bytes on to a port that is set later, as a load balancer before the gateway would."""

    def __init__(self) -> None:
        self.port = self.own_port = self.n_connections = self.n_posts = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.own_port}"

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.n_connections += 1
        near, far = await asyncio.open_connection("127.0.0.1", self.port)

        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter, see: Callable[[bytes], None]) -> None:
            while data := await source.read(65_536):
                see(data)
                sink.write(data)
                await sink.drain()
            sink.close()

        try:
            await asyncio.gather(pump(reader, far, self._count), pump(near, writer, lambda _: None))
        except OSError:
            far.close()
            writer.close()

    def _count(self, data: bytes) -> None:
        self.n_posts += data.count(b"POST /v1/")


@asynccontextmanager
async def relayed() -> AsyncIterator[Relay]:
    relay = Relay()
    async with await asyncio.start_server(relay, "127.0.0.1", 0) as server:
        relay.own_port = server.sockets[0].getsockname()[1]
        yield relay


@pytest.mark.parametrize("route", [{"mode": "off"}, {"scorer": "number"}, PROBED], ids=["off", "observe", "samples"])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_loop_ends_at_the_second_pass(tmp_path: Path, route: dict[str, Any], *, stream: bool) -> None:
    async with relayed() as relay, served(tmp_path, upstream={"url": relay.url}, route=route) as here:
        relay.port = here.port
        async with asyncio.timeout(30):
            answer = await here.ask(chat(stream=stream))
        assert (answer.status, answer.json["error"]["code"]) == (508, "loop_detected")
        assert "leads back" in answer.json["error"]["message"]
        assert relay.n_posts <= route.get("samples", 1)  # each of the request's own calls, and nothing nested
        assert here.fake.calls == []


async def test_a_loop_through_another_gateway_ends_too(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    async with (
        relayed() as relay,
        served(tmp_path / "far", upstream={"url": relay.url}) as far,
        served(tmp_path, upstream={"url": far.url}) as near,
    ):
        relay.port = near.port
        answer = await near.ask(chat())
        assert (answer.status, answer.json["error"]["code"], relay.n_posts) == (508, "loop_detected", 1)


async def test_gateways_may_stand_behind_each_other(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    async with served(tmp_path / "far") as far, served(tmp_path, upstream={"url": far.url}) as near:
        answer = await near.ask(chat(), headers={"via": "1.1 edge"})
        assert answer.status == 200
        hops = [value for name, value in far.fake.calls[0].headers if name.lower() == "via"]
        assert hops == ["1.1 edge", f"1.1 {near.gateway.via}", f"1.1 {far.gateway.via}"]


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8400"),
        ("127.0.0.1", "http://localhost:8400/v1"),
        ("0.0.0.0", "http://localhost:8400"),
        ("127.0.0.1", "http://0.0.0.0:8400"),
        ("::1", "http://[::1]:8400"),
    ],
)
def test_its_own_address_is_refused_at_the_start(tmp_path: Path, host: str, url: str) -> None:
    with pytest.raises(ConfigError, match=r"upstreams\.up\.url: got .*8400.* where this gateway itself listens"):
        preflight(settings_for(url, tmp_path), host=host, port=8400, insecure_open=True)


@pytest.mark.parametrize("url", ["http://127.0.0.1:8080", "http://127.0.0.2:8400", "http://192.0.2.1:8400"])
def test_another_address_is_not(tmp_path: Path, url: str) -> None:
    assert preflight(settings_for(url, tmp_path), port=8400).port == 8400

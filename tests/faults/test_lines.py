"""The gateway behind a faulty line to its upstream, and clients behind one: whole, or told, and always on record."""

from __future__ import annotations

import pytest

from suffice.settings import Upstream
from suffice.upstream.client import UpstreamClient
from suffice_testing import Reply
from tests.faults.test_upstream import assert_error
from tests.gateway.conftest import Serve
from tests.gateway.served import Served, chat
from tests.simulators.fault_proxy import FaultProxy, LinkFaults

SAYS = Reply(reasoning=("so ", "it ", "is\n") * 20, answer=("It ", "is ", "four"))
MODES = ("off", "observe")
HARMLESS = {
    "late": LinkFaults(latency_s=0.02, jitter_s=0.01),
    "thin": LinkFaults(bytes_per_s=60_000),
    "in pieces": LinkFaults(piece_bytes=7),
    "closes late": LinkFaults(slow_close_s=0.3),
}
BREAKS = {
    "reset": LinkFaults(reset_after=2_000),
    "cut": LinkFaults(limit_bytes=2_000),
    "silent": LinkFaults(silent_after=2_000),
}


async def behind(g: Served, proxy: FaultProxy) -> None:
    """Let the gateway reach its upstream through the proxy only."""
    settings = Upstream(url=proxy.url, driver="llama.cpp", first_byte_timeout_s=2.0, idle_timeout_s=2.0)
    client = await UpstreamClient("up", settings, None).__aenter__()
    old, g.gateway.upstreams = g.gateway.upstreams["up"], {"up": client}
    await old.__aexit__(None, None, None)


@pytest.mark.slow(keep=5)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", HARMLESS)
async def test_a_slow_line_changes_nothing_but_time(serve: Serve, name: str, mode: str) -> None:
    line = HARMLESS[name]
    async with serve(SAYS, route={"mode": mode}) as g, FaultProxy(g.fake.url, to_client=line, to_upstream=line) as up:
        await behind(g, up)
        async with FaultProxy(g.url, to_client=line, to_upstream=line) as down:
            for stream in (True, False):
                through = await g.ask(chat(stream=stream), url=down.url)
                direct = await g.direct(chat(stream=stream))
                assert (through.text, through.thought, through.finish) == (direct.text, direct.thought, direct.finish)
        assert {e.episode.outcome.end_reason for e in await g.episodes(2)} == {"done"}
        for client in g.gateway.upstreams.values():
            await client.__aexit__(None, None, None)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", BREAKS)
async def test_a_line_that_breaks_is_told_and_mended_by_itself(serve: Serve, name: str, mode: str) -> None:
    async with serve(SAYS, route={"mode": mode}) as g, FaultProxy(g.fake.url, to_client=BREAKS[name]) as up:
        await behind(g, up)
        assert_error(await g.ask(chat(stream=True)), stream=True)
        up.to_client = LinkFaults()
        assert (await g.ask(chat(stream=True))).done
        await up.down()
        answer = await g.ask(chat(stream=True))
        assert (answer.status, answer.json["error"]["code"]) == (502, "upstream_down")
        await up.up()
        assert (await g.ask(chat(stream=True))).done
        ends = [e.episode.outcome.end_reason for e in await g.episodes(4)]
        assert ends == ["timeout" if name == "silent" else "upstream_error", "done", "upstream_error", "done"]
        for client in g.gateway.upstreams.values():
            await client.__aexit__(None, None, None)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("line", [LinkFaults(reset_after=1_500), LinkFaults(limit_bytes=1_500)], ids=["reset", "cut"])
async def test_a_line_that_breaks_on_the_clients_side_closes_the_upstream(
    serve: Serve, line: LinkFaults, mode: str
) -> None:
    slow = Reply(reasoning=("so\n",) * 2_000, answer=("4",), delay_s=0.002)
    async with serve(slow, route={"mode": mode}) as g, FaultProxy(g.url, to_client=line) as down:
        try:
            answer = await g.ask(chat(stream=True), url=down.url)
            assert answer.torn
        except OSError:
            pass  # the reset came before the head was read
        await g.quiet()
        assert g.fake.calls[0].cancelled
        assert (await g.outcome()).end_reason == "client_left"

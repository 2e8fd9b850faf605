"""The promises of the fault proxy, tested with plain sockets on both sides."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator

import pytest

from suffice_testing import FakeUpstream
from tests.simulators.fault_proxy import FaultProxy, LinkFaults

MESSAGE = bytes(range(256)) * 8


class Far:
    """An echo server that records what it received and how each connection ended."""

    def __init__(self) -> None:
        self.received = bytearray()
        self.ended: list[str] = []
        self.tasks: set[asyncio.Task[None] | None] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.tasks.add(asyncio.current_task())
        try:
            while data := await reader.read(65536):
                self.received += data
                writer.write(data)
                await writer.drain()
            self.ended.append("end")
        except ConnectionResetError:
            self.ended.append("reset")
        finally:
            writer.close()

    async def has_ended(self) -> str:
        async with asyncio.timeout(20):
            while not self.ended:  # noqa: ASYNC110 - the server has no event for it
                await asyncio.sleep(0.002)
        return self.ended[0]


@contextlib.asynccontextmanager
async def through(**lines: LinkFaults) -> AsyncIterator[tuple[FaultProxy, Far]]:
    far = Far()
    server = await asyncio.start_server(far.serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()[:2]
    try:
        async with FaultProxy(f"{host}:{port}", **lines) as proxy:  # type: ignore[arg-type]
            yield proxy, far
    finally:
        server.close()
        for task in far.tasks:
            if task is not None:
                task.cancel()
        await asyncio.gather(*(t for t in far.tasks if t is not None), return_exceptions=True)


async def echoed(proxy: FaultProxy, sent: bytes, *, within_s: float = 20.0) -> tuple[bytes, str]:
    """The bytes echoed before the connection ended or fell silent, and which of these it was."""
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    got = bytearray()
    try:
        writer.write(sent)
        async with asyncio.timeout(within_s):
            while len(got) < len(sent):
                data = await reader.read(65536)
                if not data:
                    return bytes(got), "end"
                got += data
        return bytes(got), "whole"
    except ConnectionResetError:
        return bytes(got), "reset"
    except TimeoutError:
        return bytes(got), "silent"
    finally:
        writer.close()


async def test_a_sound_line_changes_nothing_and_is_counted() -> None:
    async with through() as (proxy, far):
        assert await echoed(proxy, MESSAGE * 100) == (MESSAGE * 100, "whole")
        assert await echoed(proxy, MESSAGE) == (MESSAGE, "whole")
        assert await far.has_ended() == "end"
        assert proxy.n_connections == 2
        assert proxy.bytes_to_upstream == proxy.bytes_to_client == len(MESSAGE) * 101 == len(far.received)
        async with asyncio.timeout(20):
            while proxy.n_open:  # noqa: ASYNC110 - the proxy has no event for it
                await asyncio.sleep(0.002)
        assert [link.end for link in proxy.links] == ["closed", "closed"]
        assert all(link.client_closed_at_s and link.closed_at_s for link in proxy.links)


@pytest.mark.parametrize("way", ["to_upstream", "to_client"])
async def test_latency_comes_on_top_each_way_and_keeps_the_width(way: str) -> None:
    async with through(**{way: LinkFaults(latency_s=0.5)}) as (proxy, _):
        start_s = time.monotonic()
        assert await echoed(proxy, MESSAGE * 100) == (MESSAGE * 100, "whole")  # many reads, one delay
        assert 0.5 <= time.monotonic() - start_s < 20.0


async def test_jitter_is_drawn_from_the_seed_and_keeps_the_order() -> None:
    draws = [FaultProxy("127.0.0.1:1", seed=seed).jitter() for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]
    async with through(to_client=LinkFaults(jitter_s=0.02, piece_bytes=100)) as (proxy, _):
        assert await echoed(proxy, MESSAGE * 20) == (MESSAGE * 20, "whole")


async def test_a_narrow_line_takes_its_time() -> None:
    async with through(to_client=LinkFaults(bytes_per_s=10_000)) as (proxy, _):
        start_s = time.monotonic()
        assert await echoed(proxy, MESSAGE) == (MESSAGE, "whole")
        assert time.monotonic() - start_s >= len(MESSAGE) / 10_000 - 0.06  # no wait after the last piece


async def test_a_slicer_cuts_into_pieces_with_pauses() -> None:
    async with through(to_client=LinkFaults(piece_bytes=512, piece_delay_s=0.03)) as (proxy, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.write(MESSAGE)
        pieces = [await reader.read(65536) for _ in range(4)]
        assert [len(piece) for piece in pieces] == [512] * 4
        assert b"".join(pieces) == MESSAGE
        writer.close()


@pytest.mark.parametrize("after", [0, 700])
async def test_silence_keeps_the_connection_open_until_the_line_is_mended(after: int) -> None:
    async with through(to_client=LinkFaults(silent_after=after)) as (proxy, far):
        assert await echoed(proxy, MESSAGE, within_s=1.0) == (MESSAGE[:after], "silent")
        assert await far.has_ended() == "end"  # the client's close reaches the server
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.write(MESSAGE)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.readexactly(after + 1), 0.05)
        proxy.to_client = LinkFaults()
        assert await asyncio.wait_for(reader.readexactly(len(MESSAGE)), 20) == MESSAGE
        writer.close()


async def test_silence_may_end_in_a_close() -> None:
    async with through(to_client=LinkFaults(silent_after=10, silence_s=0.05)) as (proxy, far):
        assert await echoed(proxy, MESSAGE) == (MESSAGE[:10], "end")
        assert await far.has_ended() == "end"
        assert proxy.links[0].end == "silence"


@pytest.mark.parametrize(
    ("line", "n_bytes"), [(LinkFaults(reset_after=100), 100), (LinkFaults(reset_after_s=0.05), None)]
)
async def test_a_reset_is_seen_at_both_ends(line: LinkFaults, n_bytes: int | None) -> None:
    async with through(to_client=line) as (proxy, far):
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.write(b"x" * 200)
        with pytest.raises(ConnectionResetError):
            while await reader.read(4096):
                pass
        assert await far.has_ended() == "reset"
        assert proxy.links[0].end == "reset"
        assert n_bytes is None or proxy.bytes_to_client == n_bytes
        writer.close()


async def test_a_limit_closes_after_exactly_so_many_bytes() -> None:
    async with through(to_client=LinkFaults(limit_bytes=100)) as (proxy, _):
        assert await echoed(proxy, MESSAGE) == (MESSAGE[:100], "end")
        assert proxy.links[0].end == "limit"
    async with through(to_upstream=LinkFaults(limit_bytes=100)) as (proxy, far):
        assert (await echoed(proxy, MESSAGE))[1] in ("end", "reset")  # unread bytes make a close a reset
        await far.has_ended()
        assert far.received == MESSAGE[:100]


async def test_a_slow_close_passes_the_end_on_late() -> None:
    async with through(to_upstream=LinkFaults(slow_close_s=0.1)) as (proxy, far):
        _, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.write_eof()
        start_s = time.monotonic()
        assert await far.has_ended() == "end"
        assert time.monotonic() - start_s >= 0.09
        writer.close()


async def test_down_refuses_and_resets_and_up_serves_on_the_same_port() -> None:
    async with through() as (proxy, far):
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.write(b"a")
        assert await reader.readexactly(1) == b"a"
        await proxy.down()
        with pytest.raises(ConnectionResetError):
            await reader.read(1)
        assert await far.has_ended() == "reset"
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", proxy.port)
        assert proxy.links[0].end == "down"
        await proxy.up()
        assert await echoed(proxy, MESSAGE) == (MESSAGE, "whole")
        writer.close()


async def test_an_upstream_that_is_not_there_resets_the_client() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    async with FaultProxy(f"127.0.0.1:{port}") as proxy:
        assert (await echoed(proxy, b"x"))[1] == "reset"


async def test_a_fast_sender_waits_for_a_slow_reader() -> None:
    async with through(to_client=LinkFaults(silent_after=0)) as (proxy, far):
        _, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                while True:
                    writer.write(bytes(2**20))
                    await writer.drain()
        # Socket buffers hold some megabytes; the proxy itself almost nothing.
        assert 0 < len(far.received) < 64 * 2**20
        writer.transport.abort()


def answers(port: int) -> bool:
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(b"GET /health HTTP/1.1\r\nconnection: close\r\n\r\n")
        return client.recv(12) == b"HTTP/1.1 200"


def test_it_runs_beside_a_program_that_is_not_asynchronous() -> None:
    with FakeUpstream.in_thread() as fake, FaultProxy.in_thread(fake.url) as proxy:
        assert answers(proxy.port)
        proxy.switch(down=True)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", proxy.port))
        proxy.switch(down=False)
        assert answers(proxy.port)


def test_an_address_that_is_none_is_refused() -> None:
    for wrong in ("", "localhost", "http://localhost", "localhost:x"):
        with pytest.raises(ValueError, match="host:port"):
            FaultProxy(wrong)
    with pytest.raises(RuntimeError, match="not running"):
        _ = FaultProxy("127.0.0.1:1").url

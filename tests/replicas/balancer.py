"""A round-robin balancer of TCP connections that leaves out gateways which are not ready, as a real one does."""

from __future__ import annotations

import asyncio
import contextlib
from itertools import cycle
from typing import Self

from tests.replicas.cluster import Member

CHECK_S = 0.1  # between two readiness checks


class Balancer:
    """`async with Balancer(gateways) as url:`"""

    def __init__(self, gateways: list[Member]) -> None:
        self._gateways, self._ready = gateways, set[str]()
        self._turn = cycle(gateways)
        self._relays = set[asyncio.Task[None]]()

    async def __aenter__(self) -> Self:
        self._checks = asyncio.create_task(self._check())
        self._server = await asyncio.start_server(self._relay, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        while not self._ready:  # noqa: ASYNC110 - there is no event
            await asyncio.sleep(0.05)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self._checks.cancel()
        await asyncio.gather(self._checks, *self._relays, return_exceptions=True)

    async def _check(self) -> None:
        while True:
            answers = await asyncio.gather(*(asyncio.to_thread(one.is_ready) for one in self._gateways))
            self._ready = {one.name for one, is_ready in zip(self._gateways, answers, strict=True) if is_ready}
            await asyncio.sleep(CHECK_S)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if (task := asyncio.current_task()) is not None:
            self._relays.add(task)
            task.add_done_callback(self._relays.discard)
        for _ in self._gateways:
            gateway = next(self._turn)
            if gateway.name not in self._ready:
                continue
            host, _, port = gateway.url.removeprefix("http://").partition(":")
            try:
                up_reader, up_writer = await asyncio.open_connection(host, int(port))
            except OSError:  # it has closed its door since the last check: the next one
                continue
            await asyncio.gather(_copy(reader, up_writer), _copy(up_reader, writer), return_exceptions=True)
            await _close(up_writer)
            break
        await _close(writer)


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()

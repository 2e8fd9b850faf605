"""A server of bytes for tests: what its handler writes is what the client gets, and nothing of it outlives the test."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Self


class RawServer:
    """Runs `serve` for each connection, and closes the connection behind it.

    Its end waits for every handler: one that is still there when the event loop closes leaves its transport to the
    garbage collector, which Python 3.11 reports as an error of whichever test runs then.
    """

    def __init__(self) -> None:
        self.n_connections = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Handle one connection."""
        raise NotImplementedError

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._run, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks)
        await asyncio.sleep(0)  # transports close one round of the loop later

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def _run(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.n_connections += 1
        # Python 3.11 logs a handler that ends cancelled as an error, so this one ends.
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            await self.serve(reader, writer)
        writer.close()

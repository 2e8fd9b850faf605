"""A TCP proxy that injects faults into connections: delay, narrow bandwidth, splits, silence, resets, outages.

It knows only bytes and sockets, so that it can break what HTTP takes for granted.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal, Self, TypeAlias

READ_BYTES = 16 * 1024  # per read; the proxy buffers a few times this per connection
WAITING_READS = 16  # reads ahead during a delay; then the sender waits
WIDTH_STEP_S = 0.05  # a limited line sends as much as fits into this, then waits
ACCEPT_STEPS = 4  # iterations of the event loop between accepting a connection and its first task
CLOSE_S = 1.0  # then an end that does not read the rest is closed
POLL_S = 0.005  # interval of checks for replaced faults

End: TypeAlias = Literal["", "closed", "reset", "limit", "silence", "down"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkFaults:
    """The faults of one direction. The default forwards bytes at once.

    latency_s       delay of each byte; does not change the bandwidth
    jitter_s        maximum of an added random delay, from the proxy's seed; order is kept
    bytes_per_s     bandwidth; None: no limit
    piece_bytes     write at most this many bytes at once; 0: as received
    piece_delay_s   pause after each piece
    silent_after    bytes before silence on an open connection; None: never
    silence_s       duration of the silence before the connection is closed; None: until the faults are replaced
                    or the receiving end hangs up
    limit_bytes     bytes before the connection is closed in good order; None: no limit
    reset_after     bytes before both ends see a reset; None: never
    reset_after_s   seconds before both ends see a reset; None: never
    slow_close_s    delay of the end of the stream
    """

    latency_s: float = 0.0
    jitter_s: float = 0.0
    bytes_per_s: float | None = None
    piece_bytes: int = 0
    piece_delay_s: float = 0.0
    silent_after: int | None = None
    silence_s: float | None = None
    limit_bytes: int | None = None
    reset_after: int | None = None
    reset_after_s: float | None = None
    slow_close_s: float = 0.0


@dataclass(slots=True)
class Link:
    """One connection through the proxy. Times are monotonic, in seconds."""

    opened_at_s: float
    bytes_to_upstream: int = 0
    bytes_to_client: int = 0
    client_closed_at_s: float | None = None  # the client ended its side
    upstream_closed_at_s: float | None = None  # the upstream ended its side
    closed_at_s: float | None = None  # both ends closed
    end: End = ""  # the cause; "": still open


class _Broken(Exception):
    """The faults end this connection."""

    def __init__(self, end: End) -> None:
        super().__init__(end)
        self.end: End = end


class FaultProxy:
    """A faulty line to `upstream` ("host:port" or "http://host:port"); clients connect to `url`.

    >>> import urllib.request
    >>> from suffice_testing import FakeUpstream
    >>> from tests.simulators.fault_proxy import FaultProxy, LinkFaults
    >>> with FakeUpstream.in_thread() as fake, FaultProxy.in_thread(fake.url) as proxy:
    ...     with urllib.request.urlopen(proxy.url + "/health") as reply:
    ...         print(reply.status)
    ...     proxy.to_client = LinkFaults(limit_bytes=0)
    ...     try:
    ...         urllib.request.urlopen(proxy.url + "/health")
    ...     except OSError as error:
    ...         print(type(error).__name__)
    ...     proxy.n_connections, proxy.links[1].bytes_to_client
    200
    RemoteDisconnected
    (2, 0)

    to_upstream, to_client   the faults of each direction; replace them at any time, from any thread
    links                    every connection so far, oldest first
    """

    def __init__(
        self,
        upstream: str,
        *,
        to_upstream: LinkFaults | None = None,
        to_client: LinkFaults | None = None,
        seed: int = 0,
    ) -> None:
        host, _, port = upstream.removeprefix("http://").rstrip("/").rpartition(":")
        if not host or not port.isdigit():
            raise ValueError(f"FaultProxy: upstream {upstream!r}; need host:port or http://host:port")
        self._upstream = (host.strip("[]"), int(port))
        self.to_upstream, self.to_client = to_upstream or LinkFaults(), to_client or LinkFaults()
        self.links: list[Link] = []
        self._random = random.Random(seed)
        self._address: tuple[str, int] | None = None
        self._server: asyncio.Server | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._live: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    @property
    def port(self) -> int:
        """Raise RuntimeError when the proxy is not running."""
        if self._address is None:
            raise RuntimeError("FaultProxy.port: the proxy is not running; use `async with` or `in_thread`")
        return self._address[1]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def n_connections(self) -> int:
        return len(self.links)

    @property
    def n_open(self) -> int:
        """Connections with at least one open end."""
        return sum(link.closed_at_s is None for link in self.links)

    @property
    def bytes_to_upstream(self) -> int:
        return sum(link.bytes_to_upstream for link in self.links)

    @property
    def bytes_to_client(self) -> int:
        return sum(link.bytes_to_client for link in self.links)

    # ---- running

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        await self._up()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._down()
        self._address = None

    @classmethod
    @contextlib.contextmanager
    def in_thread(
        cls, upstream: str, *, to_upstream: LinkFaults | None = None, to_client: LinkFaults | None = None, seed: int = 0
    ) -> Iterator[Self]:
        """Run a proxy in its own thread, for synchronous programs."""
        proxy = cls(upstream, to_upstream=to_upstream, to_client=to_client, seed=seed)
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever, name="fault-proxy", daemon=True)
        thread.start()
        try:
            asyncio.run_coroutine_threadsafe(proxy.__aenter__(), loop).result()
            try:
                yield proxy
            finally:
                asyncio.run_coroutine_threadsafe(proxy.__aexit__(None, None, None), loop).result()
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()

    async def down(self) -> None:
        """Refuse new connections and reset open ones. Await it in the proxy's event loop."""
        await self._down()

    async def up(self) -> None:
        """Serve again, on the same port."""
        await self._up()

    def switch(self, *, down: bool) -> None:
        """`down` or `up` for synchronous programs; returns when done."""
        if self._loop is None:
            raise RuntimeError("FaultProxy.switch: the proxy is not running")
        asyncio.run_coroutine_threadsafe(self._down() if down else self._up(), self._loop).result()

    async def _up(self) -> None:
        if self._server is None:
            host, port = self._address or ("127.0.0.1", 0)
            self._server = await asyncio.start_server(self._accept, host, port, limit=READ_BYTES)
            self._address = self._server.sockets[0].getsockname()[:2]

    async def _down(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.close()
        for _ in range(ACCEPT_STEPS):
            await asyncio.sleep(0)
        live = dict(self._live)
        for task in live:
            task.cancel()
        await asyncio.gather(*live, return_exceptions=True)
        for writer in live.values():
            await _finish(writer, reset=True)  # of connections cancelled before their first step

    # ---- one connection

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = Link(opened_at_s=time.monotonic())
        self.links.append(link)
        task = asyncio.create_task(self._serve(link, reader, writer))
        self._live[task] = writer
        task.add_done_callback(self._live.pop)

    async def _serve(self, link: Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        dialled = asyncio.create_task(asyncio.open_connection(*self._upstream, limit=READ_BYTES))
        try:
            up_reader, up_writer = await asyncio.shield(dialled)  # a cancelled dial would leak a socket
            pumps = (
                _Pump(self, link, reader, up_writer, upwards=True),
                _Pump(self, link, up_reader, writer, upwards=False),
            )
            async with asyncio.TaskGroup() as group:
                timer = group.create_task(self._expire(link))
                for pump in pumps:
                    group.create_task(pump.read())
                await asyncio.wait([group.create_task(pump.write()) for pump in pumps])
                timer.cancel()
            link.end = "closed"
        except* _Broken as broken:
            link.end = _first(broken).end
        except* OSError:
            link.end = "reset"  # one end broke off; reset the other
        except* asyncio.CancelledError:
            link.end = "down"
        finally:
            reset = link.end in ("reset", "down")
            with contextlib.suppress(OSError):
                await _finish((await dialled)[1], reset=reset)
            await _finish(writer, reset=reset)
            link.closed_at_s = time.monotonic()

    async def _expire(self, link: Link) -> None:
        while True:
            limits_s = [line.reset_after_s for line in (self.to_upstream, self.to_client)]
            age_s = time.monotonic() - link.opened_at_s
            if any(limit_s is not None and age_s >= limit_s for limit_s in limits_s):
                raise _Broken("reset")
            await asyncio.sleep(POLL_S)

    def jitter(self) -> float:
        """The next jitter factor, in [0, 1)."""
        return self._random.random()


async def _finish(writer: asyncio.StreamWriter, *, reset: bool) -> None:
    raw = writer.get_extra_info("socket")
    if reset:
        if raw is not None and raw.fileno() >= 0:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
    writer.close()
    try:
        async with asyncio.timeout(CLOSE_S):
            # Shielded: a cancelled waiter would cancel the wait of all others.
            await asyncio.shield(writer.wait_closed())
    except OSError:  # includes time-outs
        writer.transport.abort()


def _first(group: BaseExceptionGroup[_Broken]) -> _Broken:
    results: BaseException = group
    while isinstance(results, BaseExceptionGroup):
        results = results.exceptions[0]
    assert isinstance(results, _Broken)
    return results


@dataclass(slots=True)
class _Pump:
    """One direction of one connection: reads ahead a little, and writes as the faults allow."""

    proxy: FaultProxy
    link: Link
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    upwards: bool
    n_passed: int = 0
    waiting: asyncio.Queue[tuple[float, bytes]] = field(default_factory=lambda: asyncio.Queue(WAITING_READS))

    @property
    def line(self) -> LinkFaults:
        return self.proxy.to_upstream if self.upwards else self.proxy.to_client

    async def read(self) -> None:
        due_s = 0.0
        data = b"?"
        while data:
            data = await self.reader.read(READ_BYTES)
            line = self.line
            delay_s = line.latency_s + (line.jitter_s * self.proxy.jitter() if line.jitter_s else 0.0)
            due_s = max(due_s, time.monotonic() + delay_s)  # keep the order
            if not data and self.upwards:
                self.link.client_closed_at_s = time.monotonic()
            elif not data:
                self.link.upstream_closed_at_s = time.monotonic()
            await self.waiting.put((due_s, data))

    async def write(self) -> None:
        """Forward to the end of the stream. Raise _Broken where a fault ends the connection."""
        while True:
            due_s, data = await self.waiting.get()
            await asyncio.sleep(due_s - time.monotonic())
            if not data:
                await asyncio.sleep(self.line.slow_close_s)
                with contextlib.suppress(OSError):
                    self.writer.write_eof()
                return
            view = memoryview(data)
            while view:
                await self._while_silent()
                n_bytes = self._room(len(view))
                await self._pass(bytes(view[:n_bytes]))
                view = view[n_bytes:]

    async def _while_silent(self) -> None:
        start_s = time.monotonic()
        while (after := self.line.silent_after) is not None and self.n_passed >= after:
            longest_s = self.line.silence_s
            if longest_s is not None and time.monotonic() - start_s >= longest_s:
                raise _Broken("silence")
            left_at_s = self.link.client_closed_at_s if not self.upwards else self.link.upstream_closed_at_s
            if left_at_s is not None:
                raise _Broken("closed")  # the receiver has gone
            await asyncio.sleep(POLL_S)

    def _room(self, n_bytes: int) -> int:
        """Size of the next piece. Raise _Broken if no more bytes may pass."""
        line = self.line
        if line.piece_bytes:
            n_bytes = min(n_bytes, line.piece_bytes)
        if line.bytes_per_s is not None:
            n_bytes = min(n_bytes, max(1, int(line.bytes_per_s * WIDTH_STEP_S)))
        if line.silent_after is not None:
            n_bytes = min(n_bytes, line.silent_after - self.n_passed)
        for end, limit in (("limit", line.limit_bytes), ("reset", line.reset_after)):
            if limit is not None:
                if self.n_passed >= limit:
                    raise _Broken("limit" if end == "limit" else "reset")
                n_bytes = min(n_bytes, limit - self.n_passed)
        return n_bytes

    async def _pass(self, piece: bytes) -> None:
        self.writer.write(piece)
        await self.writer.drain()
        self.n_passed += len(piece)
        if self.upwards:
            self.link.bytes_to_upstream += len(piece)
        else:
            self.link.bytes_to_client += len(piece)
        line = self.line
        if line.limit_bytes is not None and self.n_passed >= line.limit_bytes:
            raise _Broken("limit")
        if line.reset_after is not None and self.n_passed >= line.reset_after:
            raise _Broken("reset")
        if line.bytes_per_s is not None:
            await asyncio.sleep(len(piece) / line.bytes_per_s)
        if line.piece_bytes:
            await asyncio.sleep(line.piece_delay_s)

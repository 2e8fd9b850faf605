"""Connections to one server: made, kept for a while behind their answer, and taken again.

It knows addresses, TLS and how long a connection may wait; it refuses to know what is sent over it.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections import deque
from dataclasses import dataclass
from functools import partial

import aiohappyeyeballs
from yarl import URL

from suffice.upstream.connection import Connection

REST_S = 0.02  # a server that closes behind an answer without saying so has done it by then
NEXT_ADDRESS_S = 0.25  # a server's next address is tried beside a silent one after this long (RFC 8305)


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server listens."""

    host: str
    port: int
    tls: bool
    path: str  # what stands before every path; "" or "/…"
    authority: str  # what the Host header says

    @classmethod
    def of(cls, url: str) -> Address:
        """From a base address, its `/v1` left out."""
        parsed = URL(url.rstrip("/").removesuffix("/v1"))
        return cls(
            host=(parsed.raw_host or "").rstrip("."),
            port=parsed.port or 80,
            tls=parsed.scheme == "https",
            path=parsed.raw_path.rstrip("/"),
            authority=parsed.host_port_subcomponent or "",
        )


@dataclass(frozen=True, slots=True)
class _Kept:
    """A connection that waits to be used again."""

    connection: Connection
    since_s: float
    behind_stream: bool  # its last answer came in chunks


class ConnectionPool:
    """The connections to one server. There is no limit to them: `slots` are the engine's affair.

    llama.cpp closes a connection about a millisecond behind a stream and announces the contrary. A request that
    takes it at once is lost, and some calls may not be made twice. So behind a stream a connection rests for
    REST_S, until one that has rested was still open: this server keeps them.
    """

    def __init__(
        self,
        address: Address,
        *,
        connect_timeout_s: float,
        first_byte_timeout_s: float,
        idle_timeout_s: float,
        keep_s: float,
    ) -> None:
        self._address = address
        self._connect_timeout_s, self._keep_s = connect_timeout_s, keep_s
        self._made = partial(Connection, first_byte_timeout_s=first_byte_timeout_s, idle_timeout_s=idle_timeout_s)
        self._kept: deque[_Kept] = deque()  # the latest stands last
        self._held: set[Connection] = set()
        self._keeps = {True: False, False: True}  # is one known to stay open, behind a stream and behind a body?
        self._sweep: asyncio.TimerHandle | None = None
        self._tls = ssl.create_default_context() if address.tls else None
        if self._tls is not None:
            self._tls.set_alpn_protocols(["http/1.1"])

    async def take(self, *, fresh: bool = False) -> Connection:
        """A connection for one request.

        fresh  one that never carried a request, and will carry one only

        Raises OSError when none can be made and TimeoutError when that takes too long.
        """
        taken = None if fresh else self._take_kept(asyncio.get_running_loop().time())
        if taken is None:
            taken = await self._connect(keep=not fresh)
        self._held.add(taken)
        return taken

    def _take_kept(self, now_s: float) -> Connection | None:
        """The latest one that is open and has rested for long enough."""
        resting, found = list[_Kept](), None
        while self._kept and found is None:
            kept = self._kept.pop()
            age_s = now_s - kept.since_s
            if kept.connection.closed or age_s >= self._keep_s:
                self._drop(kept)
            elif age_s < REST_S and not self._keeps[kept.behind_stream]:
                resting.append(kept)
            else:
                self._keeps[kept.behind_stream] |= age_s >= REST_S
                found = kept.connection
        self._kept.extend(reversed(resting))
        return found

    def _drop(self, kept: _Kept) -> None:
        """Close one that waited, and learn from one that the server has closed at once."""
        if kept.connection.closed and kept.connection.lost_s - kept.since_s < REST_S:
            self._keeps[kept.behind_stream] = False
        kept.connection.cut()

    def give_back(self, connection: Connection) -> None:
        """The request is over: keep the connection, or cut it where its answer was not read to its end."""
        self._held.discard(connection)
        if not connection.is_reusable:
            connection.cut()
            return
        connection.rest()
        loop = asyncio.get_running_loop()
        self._kept.append(_Kept(connection, loop.time(), connection.came_in_chunks))
        if self._sweep is None:
            self._sweep = loop.call_later(self._keep_s, self._drop_old)

    def close(self) -> None:
        """Cut all of them."""
        if self._sweep is not None:
            self._sweep.cancel()
        for connection in (*self._held, *(kept.connection for kept in self._kept)):
            connection.cut()
        self._kept.clear()

    def _drop_old(self) -> None:
        """Close what has waited for too long; one timer for all of them."""
        loop = asyncio.get_running_loop()
        now_s = loop.time()
        while self._kept and (now_s - self._kept[0].since_s >= self._keep_s or self._kept[0].connection.closed):
            self._drop(self._kept.popleft())
        left_s = self._kept[0].since_s + self._keep_s - now_s if self._kept else 0.0
        self._sweep = loop.call_later(left_s, self._drop_old) if self._kept else None

    async def _connect(self, *, keep: bool) -> Connection:
        loop, address = asyncio.get_running_loop(), self._address
        async with asyncio.timeout(self._connect_timeout_s or None):
            found = await loop.getaddrinfo(
                address.host, address.port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP
            )
            sock = await aiohappyeyeballs.start_connection(
                found, happy_eyeballs_delay=NEXT_ADDRESS_S, interleave=1, loop=loop
            )
            try:
                _, made = await loop.create_connection(
                    partial(self._made, keep=keep),
                    sock=sock,
                    ssl=self._tls,
                    server_hostname=address.host if self._tls is not None else None,
                )
            except BaseException:
                sock.close()
                raise
        return made

"""Connections to one server: made, kept for a while behind their answer, and taken again.

It knows addresses, TLS and how long a connection may wait; it refuses to know what is sent over it.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections import deque
from dataclasses import dataclass

import aiohappyeyeballs
from yarl import URL

from suffice.upstream.connection import Connection

NEXT_ADDRESS_S = 0.25   # a server's next address is tried beside a silent one after this long (RFC 8305)


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server listens."""

    host: str
    port: int
    tls: bool
    path: str        # what stands before every path; "" or "/…"
    authority: str   # what the Host header says

    @classmethod
    def of(cls, url: str) -> Address:
        """From a base address, its `/v1` left out."""
        parsed = URL(url.rstrip("/").removesuffix("/v1"))
        return cls(
            host=(parsed.raw_host or "").rstrip("."), port=parsed.port or 80, tls=parsed.scheme == "https",
            path=parsed.raw_path.rstrip("/"), authority=parsed.host_port_subcomponent or "",
        )  # fmt: skip


class Pool:
    """The connections to one server. There is no limit to them: `slots` are the engine's affair."""

    def __init__(self, address: Address, *, connect_timeout_s: float, idle_timeout_s: float, keep_s: float) -> None:
        self._address = address
        self._connect_timeout_s, self._idle_timeout_s, self._keep_s = connect_timeout_s, idle_timeout_s, keep_s
        self._kept: deque[tuple[float, Connection]] = deque()   # since when; the latest stands last
        self._held: set[Connection] = set()
        self._sweep: asyncio.TimerHandle | None = None
        self._tls = ssl.create_default_context() if address.tls else None
        if self._tls is not None:
            self._tls.set_alpn_protocols(["http/1.1"])

    async def take(self, *, fresh: bool = False) -> Connection:
        """A connection for one request.

        fresh  one that never carried a request, and will carry one only

        Raises OSError when none can be made and TimeoutError when that takes too long.
        """
        now_s = asyncio.get_running_loop().time()
        while self._kept and not fresh:
            since_s, kept = self._kept.pop()
            if not kept.closed and now_s - since_s < self._keep_s:
                self._held.add(kept)
                return kept
            kept.cut()
        made = await self._connect(keep=not fresh)
        self._held.add(made)
        return made

    def give_back(self, connection: Connection) -> None:
        """The request is over: keep the connection, or cut it where its answer was not read to its end."""
        self._held.discard(connection)
        if not connection.is_reusable:
            connection.cut()
            return
        connection.rest()
        loop = asyncio.get_running_loop()
        self._kept.append((loop.time(), connection))
        if self._sweep is None:
            self._sweep = loop.call_later(self._keep_s, self._drop_old)

    def close(self) -> None:
        """Cut all of them."""
        if self._sweep is not None:
            self._sweep.cancel()
        for connection in (*self._held, *(kept for _, kept in self._kept)):
            connection.cut()
        self._kept.clear()

    def _drop_old(self) -> None:
        """Close what has waited for too long; one timer for all of them."""
        loop = asyncio.get_running_loop()
        now_s = loop.time()
        while self._kept and (now_s - self._kept[0][0] >= self._keep_s or self._kept[0][1].closed):
            self._kept.popleft()[1].cut()
        left_s = self._kept[0][0] + self._keep_s - now_s if self._kept else 0.0
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
                    lambda: Connection(idle_timeout_s=self._idle_timeout_s, keep=keep), sock=sock, ssl=self._tls,
                    server_hostname=address.host if self._tls is not None else None,
                )  # fmt: skip
            except BaseException:
                sock.close()
                raise
        return made

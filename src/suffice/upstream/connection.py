"""One connection to a model server, HTTP/1.1, the client's side: a request out, an answer in, and the next.

    ask ──▶ head of the answer ──▶ take, more, take … ──▶ complete ──▶ reusable, or cut

llhttp (through httptools) parses an answer where its bytes arrive, which wakes the reader once a packet, or not at all
where it left somebody who takes them at once. One timer a request ends a wait that lasts too long.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import TypeAlias, cast

import aiohappyeyeballs
from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser
from yarl import URL

HEADER_LIMIT_BYTES = 32 * 1024  # an upstream's header line beyond this is its fault, not ours
HEAD_LIMIT_BYTES = 128 * 1024  # … and so is a head, a trailer, or whatever else is no body
HELD_BYTES = 128 * 1024  # of an answer that nobody reads; beyond it the server is made to wait
PIECE_BYTES = 64 * 1024  # a long body is sent in pieces, so that other requests are served meanwhile
READ_BYTES = 32 * 1024  # … and so is an answer read
LONG_BODY_BYTES = 256 * 1024
LOOK_AGAIN_S = 0.05  # where a wait is over time although nobody waits at this moment

TakesAtOnce: TypeAlias = Callable[[bytes], bool]  # of a body: True: it has taken them; must not raise, nor wait


class ConnectionBroken(Exception):
    """The connection ended, or no HTTP came over it; `began`: after something of the answer had come."""

    def __init__(self, message: str, *, began: bool) -> None:
        super().__init__(message)
        self.began = began


class _Response:
    """The answer as llhttp's parser reads it, by calling the methods `on_…`."""

    def __init__(self, *, keep: bool) -> None:
        self.keep = keep  # may the connection be used again when the answer is complete?
        self.status = 0  # 0: its head has not come
        self.head: list[tuple[bytes, bytes]] = []  # header names and values as they came
        self.complete = True  # no answer is awaited
        self.n_bytes = 0  # its head included
        self.n_framing_bytes = 0  # since the last part of its body
        self.parts: list[bytes] = []  # of the body, not yet read
        self.on_body = self.parts.append  # the parser calls it with every part: no frame of ours in between
        self.parser: HttpResponseParser | None = HttpResponseParser(self)
        # What real servers and proxies send and other clients accept: odd characters in values, bare line feeds.
        self.parser.set_dangerous_leniencies(
            lenient_headers=True, lenient_optional_cr_before_lf=True, lenient_spaces_after_chunk_size=True
        )

    def expect(self) -> None:
        self.status, self.head, self.complete = 0, [], False
        self.n_bytes = self.n_framing_bytes = 0

    def has_header(self, wanted: bytes) -> bool:
        return any(name.lower() == wanted for name, _ in self.head)

    def on_message_begin(self) -> None:
        """An answer begins; one that nobody asked for spoils the connection."""
        if self.complete:
            raise ValueError("an answer without a request")

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.status:
            self.head.append((name, value))

    def on_headers_complete(self) -> None:
        """The head has ended; an interim one (100 to 199) is forgotten."""
        assert self.parser is not None
        status = self.parser.get_status_code()
        if 100 <= status < 200 and status != 101:
            self.head = []
            return
        if self.n_bytes > HEADER_LIMIT_BYTES and any(len(k) + len(v) > HEADER_LIMIT_BYTES for k, v in self.head):
            raise ValueError("a header is too long")
        self.status = status
        self.keep = self.keep and self.parser.should_keep_alive()

    def on_message_complete(self) -> None:
        self.complete = self.status != 0


class _Waiting:
    """Who waits for the next event of a connection, and how long: 0 seconds are for ever."""

    def __init__(self, response: _Response, *, first_byte_timeout_s: float, idle_timeout_s: float) -> None:
        self.error: Exception | None = None  # that ends this wait and all later ones
        self.at_once: TakesAtOnce | None = None  # is asked before the waiter is woken
        self.since_s = 0.0
        self._response = response
        self._first_byte_s, self._idle_s = first_byte_timeout_s or inf, idle_timeout_s or inf
        self._loop = asyncio.get_running_loop()
        self._waiter: asyncio.Future[None] | None = None
        self._asked_s = 0.0
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_on(self) -> bool:
        return self._waiter is not None and not self._waiter.done()

    def begin_request(self) -> None:
        self._asked_s = self.since_s = self._loop.time()
        self._look_in(min(self._first_byte_s, self._idle_s))

    def end_request(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def begin(self, at_once: TakesAtOnce | None) -> asyncio.Future[None]:
        self.since_s, self.at_once = self._loop.time(), at_once
        waiter = self._waiter = self._loop.create_future()
        return waiter

    def fail(self, error: Exception) -> None:
        self.error = error
        self.wake()

    def wake(self) -> None:
        waiter = self._waiter
        if waiter is not None:
            self._waiter = self.at_once = None
            if not waiter.done():
                waiter.set_result(None)

    def _look(self) -> None:
        """The timer fired: has somebody waited for too long?"""
        now_s, waits = self._loop.time(), self.is_on
        if not self._response.status:
            left_s = self._first_byte_s - (now_s - self._asked_s)
        else:
            left_s = self._idle_s - (now_s - self.since_s if waits else 0.0)
        if waits and left_s <= 0:
            self.fail(TimeoutError())
            return
        self._look_in(min(max(left_s, LOOK_AGAIN_S), self._idle_s))  # behind the head, the shorter limit may hold

    def _look_in(self, within_s: float) -> None:
        if within_s < inf:
            self._timer = self._loop.call_later(within_s, self._look)


class Connection(asyncio.Protocol):
    """One connection. It carries one request at a time; whoever holds it is the only one to use it.

    first_byte_timeout_s  how long `ask` waits for the whole head of the answer; 0: for ever
    idle_timeout_s        how long `more` waits for the next bytes of a body; 0: for ever
    """

    def __init__(self, *, first_byte_timeout_s: float, idle_timeout_s: float, keep: bool = True) -> None:
        self.response = _Response(keep=keep)
        self.closed = False  # it can carry nothing more
        self.lost_s = 0.0  # when it was found closed, by the event loop's clock
        self._waiting = _Waiting(
            self.response, first_byte_timeout_s=first_byte_timeout_s, idle_timeout_s=idle_timeout_s
        )
        self._transport: asyncio.Transport | None = None
        self._held_bytes = 0
        self._spoiled = False  # bytes came that belong to no request
        self._sent_all = True
        self._reading_paused = self._writing_paused = False

    # ---- for whoever holds it

    @property
    def is_reusable(self) -> bool:
        return self.at_end and self._sent_all and self.response.keep and not (self.closed or self._spoiled)

    @property
    def at_end(self) -> bool:
        return self.response.complete and not self.response.parts

    @property
    def came_in_chunks(self) -> bool:
        """Was the answer's length unknown when it began, as a stream's is?"""
        return self.response.has_header(b"transfer-encoding")

    async def ask(self, head: bytes, body: bytes | None) -> None:
        """Send one request and return when the head of its answer has come.

        Raises ConnectionBroken, and TimeoutError after `first_byte_timeout_s`, however the head trickles in.
        """
        transport = self._transport
        if transport is None or self.closed:
            raise ConnectionBroken("it was closed while it waited to be used", began=False)
        self.response.expect()
        self._waiting.begin_request()
        if body is None or len(body) < LONG_BODY_BYTES:
            transport.write(head + body if body else head)
        else:
            await self._send_long(transport, head, body)
        while not self.response.status:
            await self.more()

    async def _send_long(self, transport: asyncio.Transport, head: bytes, body: bytes) -> None:
        """Send a long body as fast as it is taken, or until the server has answered without the rest of it."""
        self._sent_all = False
        transport.write(head)
        view = memoryview(body)
        for at in range(0, len(view), PIECE_BYTES):
            if self.response.status or self.closed:
                return
            transport.write(view[at : at + PIECE_BYTES])
            await asyncio.sleep(0)
            while self._writing_paused and not self.response.status:
                await self.more()
        self._sent_all = True

    def take(self) -> bytes | None:
        """What has come of the body since the last time, a piece of it; b"" at its end, None when nothing has come."""
        parts = self.response.parts
        if not parts:
            return b"" if self.response.complete else None
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        parts.clear()
        if len(data) > READ_BYTES:
            parts.append(data[READ_BYTES:])
            data = data[:READ_BYTES]
        self._held_bytes = len(parts[0]) if parts else 0
        if self._reading_paused and not parts and self._transport is not None:
            self._reading_paused = False
            self._transport.resume_reading()
        return data

    def more(self, at_once: TakesAtOnce | None = None) -> asyncio.Future[None]:
        """To be awaited: done when something has come, or can be sent. Raises what `ask` does.

        Bytes that came before an error are to be taken first. What `at_once` takes where it arrives wakes nobody. No
        coroutine: each layer here is paid for by every chunk of every stream.
        """
        if self._waiting.error is not None:
            raise self._waiting.error
        return self._waiting.begin(at_once)

    def rest(self) -> None:
        """The request is over: watch the time no longer."""
        self._waiting.end_request()

    def cut(self) -> None:
        """Close it now, whatever is under way: the server sees it at once."""
        self.rest()
        self.closed = True
        if self._transport is not None:
            self._transport.abort()

    # ---- for the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one in all but name

    def data_received(self, data: bytes) -> None:
        response, waiting = self.response, self._waiting
        parts, parser = response.parts, response.parser
        if response.complete or parser is None:
            self._spoil()
            return
        response.n_bytes += len(data)
        n_parts = len(parts)
        try:
            parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade) as error:
            self._spoil()
            if not response.complete:
                waiting.fail(ConnectionBroken(f"no HTTP ({type(error).__name__})", began=True))
                return
        response.n_framing_bytes = 0 if len(parts) > n_parts else response.n_framing_bytes + len(data)
        if response.n_framing_bytes > HEAD_LIMIT_BYTES:
            self._spoil()
            waiting.fail(ConnectionBroken("its head or trailer is too long", began=True))
            return
        if waiting.at_once is not None and parts and self._is_taken_at_once(waiting.at_once):
            return
        self._held_bytes += len(data)
        if self._held_bytes > HELD_BYTES and not self._reading_paused and self._transport is not None:
            self._reading_paused = True
            self._transport.pause_reading()
        waiting.wake()

    def eof_received(self) -> None:
        """The server sends nothing more; `connection_lost` follows."""

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone. An answer without a length ends here; any other one was broken off."""
        self.closed, self.lost_s = True, asyncio.get_running_loop().time()
        response = self.response
        if not response.complete:
            has_length = self.came_in_chunks or response.has_header(b"content-length")
            if response.status and exc is None and not has_length:
                response.complete = True
                self._waiting.wake()
            else:
                message = f"disconnected ({type(exc).__name__})" if exc else "disconnected"
                self._waiting.fail(ConnectionBroken(message, began=response.n_bytes > 0))
        response.parser = None  # it refers to the response: without this, both wait for the garbage collector

    def pause_writing(self) -> None:
        self._writing_paused = True

    def resume_writing(self) -> None:
        self._writing_paused = False
        self._waiting.wake()

    def _is_taken_at_once(self, at_once: TakesAtOnce) -> bool:
        """Has somebody taken what has come? Then the reader is woken for the end of the answer alone."""
        parts, waiting = self.response.parts, self._waiting
        if not waiting.is_on:  # the reader has left, and with it whoever takes at once
            return False
        if not at_once(parts[0] if len(parts) == 1 else b"".join(parts)):
            return False
        parts.clear()
        waiting.since_s = asyncio.get_running_loop().time()
        if self.response.complete:
            waiting.wake()
        return True

    def _spoil(self) -> None:
        self._spoiled = True
        if self.at_end:
            self.cut()


REST_S = 0.02  # a server that closes behind an answer without saying so has done it by then
NEXT_ADDRESS_S = 0.25  # a server's next address is tried beside a silent one after this long (RFC 8305)


@dataclass(frozen=True, slots=True)
class Address:
    host: str
    port: int
    tls: bool
    path: str  # before every path; "" or "/…"
    authority: str  # for the Host header

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

    llama.cpp closes a connection about a millisecond behind a stream without saying so, and a request that takes it at
    once is lost. So behind a stream a connection rests for REST_S, until one that has rested was still open.
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
        self._new = partial(Connection, first_byte_timeout_s=first_byte_timeout_s, idle_timeout_s=idle_timeout_s)
        self._kept: deque[_Kept] = deque()  # the latest one last
        self._held: set[Connection] = set()
        self._keeps = {True: False, False: True}  # is one known to stay open, behind a stream and behind a body?
        self._sweep: asyncio.TimerHandle | None = None
        self._tls = ssl.create_default_context() if address.tls else None
        if self._tls is not None:
            self._tls.set_alpn_protocols(["http/1.1"])

    async def take(self, *, fresh: bool = False) -> Connection:
        """A connection for one request; a fresh one never carried a request, and will carry one only.

        Raises OSError when none can be made and TimeoutError when that takes too long.
        """
        connection = None if fresh else self._take_kept(asyncio.get_running_loop().time())
        if connection is None:
            connection = await self._connect(keep=not fresh)
        self._held.add(connection)
        return connection

    def _take_kept(self, now_s: float) -> Connection | None:
        """The latest one that is open and has rested for long enough."""
        resting, connection = list[_Kept](), None
        while self._kept and connection is None:
            kept = self._kept.pop()
            age_s = now_s - kept.since_s
            if kept.connection.closed or age_s >= self._keep_s:
                self._drop(kept)
            elif age_s < REST_S and not self._keeps[kept.behind_stream]:
                resting.append(kept)
            else:
                self._keeps[kept.behind_stream] |= age_s >= REST_S
                connection = kept.connection
        self._kept.extend(reversed(resting))
        return connection

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
            addresses = await loop.getaddrinfo(
                address.host, address.port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP
            )
            sock = await aiohappyeyeballs.start_connection(
                addresses, happy_eyeballs_delay=NEXT_ADDRESS_S, interleave=1, loop=loop
            )
            try:
                _, connection = await loop.create_connection(
                    partial(self._new, keep=keep),
                    sock=sock,
                    ssl=self._tls,
                    server_hostname=address.host if self._tls is not None else None,
                )
            except BaseException:
                sock.close()
                raise
        return connection

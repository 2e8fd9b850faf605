"""One HTTP/1.1 connection to a model server, and the pool of them.

    ask ──▶ head of the response ──▶ take, more, take … ──▶ complete ──▶ reusable, or cut

llhttp (through httptools) parses bytes on arrival, which wakes the reader once a packet, or not at all if an
`on_arrival` callback consumes them. One timer per connection ends a wait that is too long.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections import deque
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import TypeAlias, cast

import aiohappyeyeballs
from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser
from yarl import URL

from suffice.settings import Upstream

HEADER_LIMIT_BYTES = 32 * 1024  # a longer header line is the upstream's fault
HEAD_LIMIT_BYTES = 128 * 1024  # likewise a head, a trailer, or anything else outside the body
HELD_BYTES = 128 * 1024  # of a response that nobody reads; beyond it the server has to wait
PIECE_BYTES = 64 * 1024  # a long body is sent in pieces, so that other requests are served meanwhile
READ_BYTES = 32 * 1024  # a response is read in such pieces
LONG_BODY_BYTES = 256 * 1024
MIN_CHECK_S = 0.05  # earliest next check while nobody waits

ArrivalCallback: TypeAlias = Callable[[bytes], bool]  # of a body; True: it consumed them; must not raise or block


class ConnectionBroken(Exception):
    """The connection ended or carried no HTTP; `began`: after a part of the response had arrived."""

    def __init__(self, message: str, *, began: bool = False) -> None:
        super().__init__(message)
        self.began = began


class _Response:
    def __init__(self, *, keep: bool) -> None:
        self.keep = keep  # whether the connection may be reused after the response
        self.status = 0  # 0: its head has not arrived
        self.head: list[tuple[bytes, bytes]] = []  # header names and values as received
        self.complete = True  # no response is pending
        self.n_bytes = 0  # including its head
        self.n_framing_bytes = 0  # since the last part of its body
        self.parts: list[bytes] = []  # of the body, not yet read
        self.on_body = self.parts.append  # the parser calls it with every part, without a Python frame of ours
        self.parser: HttpResponseParser | None = HttpResponseParser(self)
        # What real servers and proxies send and other clients accept: odd characters in values, bare line feeds.
        self.parser.set_dangerous_leniencies(
            lenient_headers=True, lenient_optional_cr_before_lf=True, lenient_spaces_after_chunk_size=True
        )

    def expect(self) -> None:
        self.status = 0
        self.head = []
        self.complete = False
        self.n_bytes = self.n_framing_bytes = 0

    def has_header(self, wanted: bytes) -> bool:
        return wanted in [name.lower() for name, _ in self.head]

    def on_message_begin(self) -> None:
        if self.complete:
            raise ValueError("the server sent a response without a request")

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.status:
            self.head.append((name, value))

    def on_headers_complete(self) -> None:
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
    """The wait for a connection's next event, with its timeouts: for a whole head, and for the next bytes of a body."""

    def __init__(self, response: _Response, settings: Upstream) -> None:
        self.error: Exception | None = None  # ends this wait and all later ones
        self.on_arrival: ArrivalCallback | None = None  # called before the waiter is woken
        self.since_s = 0.0
        self._response = response
        self._first_byte_s, self._idle_s = settings.first_byte_timeout_s or inf, settings.idle_timeout_s or inf
        self._loop = asyncio.get_running_loop()
        self._waiter: asyncio.Future[None] | None = None
        self._requested_s = 0.0
        self._timer: asyncio.TimerHandle | None = None  # of the next check; it outlives a request
        self._due_s = 0.0  # of that check

    @property
    def is_waiting(self) -> bool:
        return self._waiter is not None and not self._waiter.done()

    def begin_request(self) -> None:
        self._requested_s = self.since_s = self._loop.time()
        within_s = min(self._first_byte_s, self._idle_s)
        if self._timer is None or self._requested_s + within_s < self._due_s:  # else an earlier request's serves
            self.close()
            self._schedule_check(within_s)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def begin(self, on_arrival: ArrivalCallback | None) -> asyncio.Future[None]:
        self.since_s, self.on_arrival = self._loop.time(), on_arrival
        waiter = self._waiter = self._loop.create_future()
        return waiter

    def fail(self, error: Exception) -> None:
        self.error = error
        self.wake()

    def wake(self) -> None:
        waiter = self._waiter
        if waiter is not None:
            self._waiter = self.on_arrival = None
            if not waiter.done():
                waiter.set_result(None)

    def _check_timeouts(self) -> None:
        self._timer = None
        if self._response.complete:
            return
        now_s, waits = self._loop.time(), self.is_waiting
        if not self._response.status:
            left_s = self._first_byte_s - (now_s - self._requested_s)
        else:
            left_s = self._idle_s - (now_s - self.since_s if waits else 0.0)
        if waits and left_s <= 0:
            self.fail(TimeoutError())
            return
        self._schedule_check(min(max(left_s, MIN_CHECK_S), self._idle_s))  # after the head, the shorter limit may apply

    def _schedule_check(self, within_s: float) -> None:
        if within_s < inf:
            self._due_s = self._loop.time() + within_s
            self._timer = self._loop.call_later(within_s, self._check_timeouts)


class Connection(asyncio.Protocol):
    """One connection. It carries one request at a time, of one holder."""

    def __init__(self, settings: Upstream, *, keep: bool = True) -> None:
        self.response = _Response(keep=keep)
        self.closed = False  # it can carry nothing more
        self.lost_s = 0.0  # when it was closed, by the event loop's clock; likewise
        self.kept_s = 0.0  # when its last response was complete
        self._waiting = _Waiting(self.response, settings)
        self._transport: asyncio.Transport | None = None
        self._held_bytes = 0
        self._is_unusable = False  # it received bytes that belong to no request
        self._sent_all = True
        self._reading_paused = self._writing_paused = False

    # ---- for its holder

    @property
    def is_reusable(self) -> bool:
        return self.at_end and self._sent_all and self.response.keep and not (self.closed or self._is_unusable)

    @property
    def at_end(self) -> bool:
        return self.response.complete and not self.response.parts

    @property
    def came_in_chunks(self) -> bool:
        """Whether the response's length was unknown when it began, as a stream's is."""
        return self.response.has_header(b"transfer-encoding")

    async def ask(self, head: bytes, body: bytes | None) -> None:
        """Send a request and wait for its response's head. Raise ConnectionBroken, or TimeoutError for a late head."""
        transport = self._transport
        if transport is None or self.closed:
            raise ConnectionBroken("the idle connection was closed", began=False)
        self.response.expect()
        self._waiting.begin_request()
        if body is None or len(body) < LONG_BODY_BYTES:
            transport.write(head + body if body else head)
        else:
            await self._send_long(transport, head, body)
        while not self.response.status:
            await self.more()

    async def _send_long(self, transport: asyncio.Transport, head: bytes, body: bytes) -> None:
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
        """Return the next piece of the body that has arrived; b"" at its end, None if nothing has arrived."""
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

    def more(self, on_arrival: ArrivalCallback | None = None) -> asyncio.Future[None]:
        """Return a future that is done when something has arrived or can be sent. Raises as `ask` does.

        Take bytes that arrived before an error first. Bytes that `on_arrival` consumes wake nobody. It is not a
        coroutine, because every chunk of every stream pays for each layer here.
        """
        if self._waiting.error is not None:
            raise copy(self._waiting.error)  # one with a traceback would hold the frames that hold this connection
        return self._waiting.begin(on_arrival)

    def rest(self) -> None:
        self.kept_s = asyncio.get_running_loop().time()

    def cut(self) -> None:
        self._waiting.close()
        self.closed = True
        if self._transport is not None:
            self._transport.abort()

    # ---- for the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's transport is not a subclass

    def data_received(self, data: bytes) -> None:
        response, waiting = self.response, self._waiting
        parts, parser = response.parts, response.parser
        if response.complete or parser is None:
            self._mark_unusable()
            return
        response.n_bytes += len(data)
        n_parts = len(parts)
        try:
            parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade) as error:
            self._mark_unusable()
            if not response.complete:
                waiting.fail(ConnectionBroken(f"the response is not valid HTTP ({type(error).__name__})", began=True))
                return
        response.n_framing_bytes = 0 if len(parts) > n_parts else response.n_framing_bytes + len(data)
        if response.n_framing_bytes > HEAD_LIMIT_BYTES:
            self._mark_unusable()
            waiting.fail(ConnectionBroken("the response head or trailer is too long", began=True))
            return
        if waiting.on_arrival is not None and parts and self._consume_on_arrival(waiting.on_arrival):
            return
        self._held_bytes += len(data)
        if self._held_bytes > HELD_BYTES and not self._reading_paused and self._transport is not None:
            self._reading_paused = True
            self._transport.pause_reading()
        waiting.wake()

    def connection_lost(self, exc: Exception | None) -> None:
        """End a response without a length; any other response was broken off."""
        self.closed, self.lost_s = True, asyncio.get_running_loop().time()
        response = self.response
        self._waiting.close()
        if not response.complete:
            has_length = self.came_in_chunks or response.has_header(b"content-length")
            if response.status and exc is None and not has_length:
                response.complete = True
                self._waiting.wake()
            else:
                message = f"disconnected ({type(exc).__name__})" if exc else "disconnected"
                self._waiting.fail(ConnectionBroken(message, began=response.n_bytes > 0))
        response.parser = None  # it refers to the response: breaks the reference cycle

    def pause_writing(self) -> None:
        self._writing_paused = True

    def resume_writing(self) -> None:
        self._writing_paused = False
        self._waiting.wake()

    def _consume_on_arrival(self, on_arrival: ArrivalCallback) -> bool:
        """Offer arrived bytes to `on_arrival`; if it takes them, return True: then only the end wakes the reader."""
        parts, waiting = self.response.parts, self._waiting
        if not waiting.is_waiting:  # the reader has left, and its callback with it
            return False
        if not on_arrival(parts[0] if len(parts) == 1 else b"".join(parts)):
            return False
        parts.clear()
        waiting.since_s = asyncio.get_running_loop().time()
        if self.response.complete:
            waiting.wake()
        return True

    def _mark_unusable(self) -> None:
        self._is_unusable = True
        if self.at_end:
            self.cut()


REST_S = 0.02  # a server that closes after a response without announcing it has done so by then
NEXT_ADDRESS_S = 0.25  # after so long the server's next address is tried beside a silent one (RFC 8305)


@dataclass(frozen=True, slots=True)
class Address:
    host: str
    port: int
    tls: bool
    path: str  # in front of every path; "" or "/…"
    authority: str  # for the Host header

    @property
    def name(self) -> str:
        return f"{self.host}:{self.port}"

    @classmethod
    def of(cls, url: str) -> Address:
        """Parse a base address; its `/v1` is left out."""
        parsed = URL(url.rstrip("/").removesuffix("/v1"))
        return cls(
            host=(parsed.raw_host or "").rstrip("."),
            port=parsed.port or 80,
            tls=parsed.scheme == "https",
            path=parsed.raw_path.rstrip("/"),
            authority=parsed.host_port_subcomponent or "",
        )


class ConnectionPool:
    """The connections to one server, without a limit: `slots` belong to the engine.

    llama.cpp closes a connection about a millisecond after a stream without announcing it, and a request sent meanwhile
    is lost. So a connection rests for REST_S after a stream, until a rested one was still open.
    """

    def __init__(self, settings: Upstream) -> None:
        self.address = Address.of(settings.url)
        self._settings, self._keep_s = settings, settings.keepalive_s
        self._kept: deque[Connection] = deque()  # the latest one last
        self._held: set[Connection] = set()
        self._keeps = {True: False, False: True}  # whether one is known to stay open, after a stream and after a body
        self._sweep: asyncio.TimerHandle | None = None
        self._tls = ssl.create_default_context() if self.address.tls else None
        if self._tls is not None:
            self._tls.set_alpn_protocols(["http/1.1"])

    def take_kept(self) -> Connection | None:
        """Return an idle connection, if there is one."""
        if not self._kept:
            return None
        now_s, resting = asyncio.get_running_loop().time(), list[Connection]()
        taken = None
        while self._kept and taken is None:
            connection = self._kept.pop()
            age_s = now_s - connection.kept_s
            if connection.closed or age_s >= self._keep_s:
                self._drop(connection)
            elif age_s < REST_S and not self._keeps[connection.came_in_chunks]:
                resting.append(connection)
            else:
                self._keeps[connection.came_in_chunks] |= age_s >= REST_S
                taken = connection
        self._kept.extend(reversed(resting))
        if taken is not None:
            self._held.add(taken)
        return taken

    def _drop(self, connection: Connection) -> None:
        if connection.closed and connection.lost_s - connection.kept_s < REST_S:
            self._keeps[connection.came_in_chunks] = False
        connection.cut()

    def give_back(self, connection: Connection) -> None:
        """Keep the connection after a request, or cut it if its response was not read to the end."""
        self._held.discard(connection)
        if not connection.is_reusable:
            connection.cut()
            return
        connection.rest()
        self._kept.append(connection)
        if self._sweep is None:
            self._sweep = asyncio.get_running_loop().call_later(self._keep_s, self._drop_old)

    def close(self) -> None:
        if self._sweep is not None:
            self._sweep.cancel()
        for connection in (*self._held, *self._kept):
            connection.cut()
        self._kept.clear()

    def _drop_old(self) -> None:
        loop = asyncio.get_running_loop()
        now_s = loop.time()
        while self._kept and (now_s - self._kept[0].kept_s >= self._keep_s or self._kept[0].closed):
            self._drop(self._kept.popleft())
        left_s = self._kept[0].kept_s + self._keep_s - now_s if self._kept else 0.0
        self._sweep = loop.call_later(left_s, self._drop_old) if self._kept else None

    async def connect(self, *, keep: bool) -> Connection:
        """Return a new connection; one not to `keep` carries one request. Raise OSError or TimeoutError."""
        loop, address = asyncio.get_running_loop(), self.address
        async with asyncio.timeout(self._settings.connect_timeout_s or None):
            addresses = await loop.getaddrinfo(
                address.host, address.port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP
            )
            sock = await aiohappyeyeballs.start_connection(
                addresses, happy_eyeballs_delay=NEXT_ADDRESS_S, interleave=1, loop=loop
            )
            try:
                _, connection = await loop.create_connection(
                    partial(Connection, self._settings, keep=keep),
                    sock=sock,
                    ssl=self._tls,
                    server_hostname=address.host if self._tls is not None else None,
                )
            except BaseException:
                sock.close()
                raise
        self._held.add(connection)
        return connection

"""uvicorn's HTTP protocol with limits for slow clients, strict parsing, direct writes and an access log."""

from __future__ import annotations

import asyncio
import http
import logging
import socket
from collections.abc import Callable, Iterator
from enum import IntEnum
from functools import partial
from math import inf
from typing import Any
from weakref import ref

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from suffice.asgi import Message, Receive, Scope, Send
from suffice.gateway.exchange import CONTEXT, HANG_UP, MAX_HEADERS, WRITE_NOW
from suffice.settings import Server
from suffice.telemetry import ACCESS, ACCESS_LINE, NO_REQUEST, RequestContext
from suffice.upstream.wire import error_body


class ConnectionPhase(IntEnum):
    HEAD = 0  # waits for the client's request head
    BODY = 1  # waits for the rest of the body
    ANSWER = 2  # waits for our response


class Connections:
    """Counts connections, in total and per address.

    At a limit, a new connection replaces the one that has waited longest for its client, so that half-open connections
    cannot lock others out. A request that has arrived in full is never dropped.
    """

    def __init__(self, server: Server, *, affordable: int | None = None) -> None:
        limits = [n for n in (server.max_connections, affordable) if n is not None]
        self.most, self.most_per_address = min(limits, default=inf), server.max_connections_per_address or inf
        self._address_of: dict[LimitedHttp, str | bytes] = {}
        self._by_address: dict[str | bytes, dict[LimitedHttp, None]] = {}  # longest wait first
        self._waiting: tuple[dict[LimitedHttp, None], ...] = ({}, {})  # by phase, longest wait first

    def __len__(self) -> int:
        return len(self._address_of)

    def admit(self, peer: LimitedHttp, host: str) -> str | None:
        """Return why a new connection is refused, or None if it is accepted."""
        address = _network_of(host)
        same = self._by_address.get(address, {})
        phases = (ConnectionPhase.HEAD, ConnectionPhase.BODY)
        here = (one for phase in phases for one in same if one.phase == phase)
        if len(same) >= self.most_per_address and not self._evict(here):
            return f"server.max_connections_per_address: {self.most_per_address} requests are being answered"
        anywhere = (one for waiting in self._waiting for one in waiting)
        if len(self) >= self.most and not self._evict(anywhere):
            return f"server.max_connections: {self.most} requests are being answered"
        self._address_of[peer] = address
        self._by_address.setdefault(address, {})[peer] = None
        self._waiting[ConnectionPhase.HEAD][peer] = None
        return None

    def move(self, peer: LimitedHttp, phase: ConnectionPhase) -> None:
        before, peer.phase = peer.phase, phase
        if peer not in self._address_of:
            return
        if before != ConnectionPhase.ANSWER:
            self._waiting[before].pop(peer, None)
        if phase != ConnectionPhase.ANSWER:
            self._waiting[phase][peer] = None
            same = self._by_address[self._address_of[peer]]
            del same[peer]
            same[peer] = None

    def forget(self, peer: LimitedHttp) -> None:
        address = self._address_of.pop(peer, None)
        if address is None:
            return
        same = self._by_address[address]
        del same[peer]
        if not same:
            del self._by_address[address]
        for waiting in self._waiting:
            waiting.pop(peer, None)

    def _evict(self, candidates: Iterator[LimitedHttp]) -> bool:
        peer = next(candidates, None)
        if peer is None:
            return False
        self.forget(peer)
        peer.transport.abort()
        return True


def _network_of(host: str) -> str | bytes:
    """Return the unit of the limit per address: an IPv4 address, or the /64 network of an IPv6 address."""
    if ":" not in host:
        return host
    try:
        packed = socket.inet_pton(socket.AF_INET6, host.partition("%")[0])
    except OSError:
        return host
    if packed.startswith(bytes(10) + b"\xff\xff"):  # IPv4-mapped
        return socket.inet_ntop(socket.AF_INET, packed[12:])
    return packed[:8]


UNFINISHED_HEAD_BYTES = 128 * 1024
BODY_BYTES_PER_S = 16 * 1024  # each such amount extends a body's time limit by one second
MOST_PIPELINED = 64  # requests waiting on one connection
LINGER_S = 1.0  # time for a client to read the error before the connection is closed
MOST_PATH_CHARS = 200  # of a path in the access log
_CODES = {408: "request_timeout", 431: "headers_too_large", 503: "too_many_connections", 505: "http_version"}


class _Refused(Exception):
    pass


class LimitedHttp(HttpToolsProtocol):
    _hang_up: HangUp

    def __init__(self, *args: Any, limits: Server, connections: Connections, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.limits, self.connections_open = limits, connections
        self.phase = ConnectionPhase.HEAD
        self._in_head = True
        self._has_begun = False  # a byte of this head has arrived
        self._n_bytes = 0  # of the current head or body
        self._n_requests = 0  # heads complete
        self._n_read = 0  # requests complete
        self._seen: object = None  # what it waited for at the last check
        self._since_s = 0.0  # of that wait, by the clock given to `look`
        self._active: RequestResponseCycle | None = None  # of the current or last handler
        self._refusal: tuple[int, str] | None = None
        self._is_refused = False  # stop reading

    # ---- called by the event loop

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._hang_up = HangUp(self.flow.resume_reading)
        problem = self.connections_open.admit(self, self.client[0] if self.client else "")
        if problem is not None:
            self._refuse(503, f"{problem}; try again later")

    def data_received(self, data: bytes) -> None:
        if self._ends():
            return
        n_read = self._n_read
        super().data_received(data)
        if self._ends():
            return
        if n_read == self._n_read:  # otherwise the bytes belong to a complete request
            self._n_bytes += len(data)
        if self._in_head and self._n_bytes > UNFINISHED_HEAD_BYTES:
            self._refuse(431, f"the request's head is longer than {UNFINISHED_HEAD_BYTES} bytes")
        else:
            self._enter()

    def connection_lost(self, exc: Exception | None) -> None:
        self.connections_open.forget(self)
        if self._active is not None and not self._active.response_complete:
            _log(self._active)
        super().connection_lost(exc)
        self._hang_up.notify()

    # ---- called by the parser

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._has_begun = True

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        if len(self.headers) > MAX_HEADERS:
            self._reject(431, f"headers: at most {MAX_HEADERS} are accepted")

    def on_headers_complete(self) -> None:
        version = self.parser.get_http_version()
        if version not in ("1.0", "1.1"):
            self._reject(505, "HTTP version: must be 1.1 or 1.0")
        names = [name for name, _ in self.headers]
        if version == "1.0":
            self.expect_100_continue = False  # it has no interim responses and no chunks
            if b"transfer-encoding" in names:
                self._reject(400, "transfer-encoding: is not accepted with HTTP/1.0")
        elif names.count(b"host") != 1:
            self._reject(400, f"Host header: must come once; got {names.count(b'host')}")
        if len(self.pipeline) >= MOST_PIPELINED:
            self._reject(400, f"pipelining: at most {MOST_PIPELINED} requests may wait on one connection")
        self._in_head, self._n_bytes, self._n_requests = False, 0, self._n_requests + 1
        before = self.cycle
        super().on_headers_complete()
        if self.cycle is before:
            return
        cycle, writer = self.cycle, HeadWithBody(self.transport, self.loop)
        cycle.transport = writer  # type: ignore[assignment]
        cycle.on_response = partial(self._answered, cycle)
        if self.parser.should_upgrade():
            cycle.keep_alive = False  # the parser stops after it
        write_now = partial(
            _write_now, ref(cycle)
        )  # the cycle has the scope: a reference back would be a cycle of them
        self.scope["extensions"] = {HANG_UP: self._hang_up.subscribe, WRITE_NOW: write_now}  # type: ignore[dict-item]

    def on_message_complete(self) -> None:
        self._in_head, self._has_begun, self._n_bytes, self._n_read = True, False, 0, self._n_read + 1
        super().on_message_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._active = cycle
        is_old = cycle.scope["http_version"] == "1.0"
        super()._start_asgi_task(cycle, partial(_unchunked, cycle, app) if is_old else app)

    def _answered(self, cycle: RequestResponseCycle) -> None:
        _log(cycle)
        self.on_response_complete()
        self._enter()

    # ---- limits

    def timeout_keep_alive_handler(self) -> None:
        """Ignore uvicorn's timer, which does not notice a partial head; `look` closes idle connections."""

    def _enter(self) -> None:
        active = self._active
        if active is not None and not active.response_complete and not active.more_body:
            phase = ConnectionPhase.ANSWER
        else:
            phase = ConnectionPhase.HEAD if self._in_head else ConnectionPhase.BODY
        if phase != self.phase:
            self.connections_open.move(self, phase)

    def look(self, now_s: float) -> None:
        """Close the connection if its client is too slow, by a clock that stops while the event loop is blocked."""
        ends = self._is_refused and self.phase != ConnectionPhase.ANSWER
        waits_for: object = "the end" if ends else (self.phase, self._n_requests, self._has_begun)
        if waits_for != self._seen or self.phase == ConnectionPhase.ANSWER or self.flow.read_paused:
            self._seen, self._since_s = waits_for, now_s
            return
        if now_s - self._since_s < self._patience_s():
            return
        if self._is_refused:
            self.transport.abort()
        elif self.phase == ConnectionPhase.BODY and self._active is not None and self._active.response_complete:
            self.transport.close()  # the response did not need the body
        elif self.phase == ConnectionPhase.BODY:
            self._refuse(408, "the request's body did not come whole in time (server.body_timeout_s)")
        elif self._has_begun:
            self._refuse(408, "the request's head did not come whole in time (server.head_timeout_s)")
        else:
            self.transport.close()

    def _patience_s(self) -> float:
        if self._is_refused:
            return LINGER_S
        if self.phase == ConnectionPhase.BODY:
            return (self.limits.body_timeout_s or inf) + self._n_bytes / BODY_BYTES_PER_S
        is_in_head = self._has_begun or not self._n_requests
        return (self.limits.head_timeout_s if is_in_head else self.limits.keepalive_s) or inf

    # ---- refusals

    def _ends(self) -> bool:
        return self._is_refused or self.transport.is_closing()

    def send_400_response(self, msg: str) -> None:
        """Refuse bytes that are not HTTP, and requests that our callbacks reject."""
        self._refuse(*(self._refusal or (400, msg)))

    def _reject(self, status: int, message: str) -> None:
        self._refusal = (status, message)
        raise _Refused

    def _refuse(self, status: int, message: str) -> None:
        self._is_refused = True
        active = self._active
        if active is not None and not active.response_complete:
            if not active.more_body:
                active.keep_alive = False
                self.pipeline.clear()
                return
            if active.response_started:
                self.transport.abort()
                return
        kind = "server_error" if status == 503 else "invalid_request_error"
        body = error_body(message, kind, None, _CODES.get(status, "bad_http"))
        head = f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}\r\ncontent-type: application/json\r\n"
        head += f"content-length: {len(body)}\r\nconnection: close\r\n"
        head += "retry-after: 1\r\n\r\n" if status == 503 else "\r\n"
        self._write_last(head.encode() + body, status)

    def _write_last(self, answer: bytes, status: int) -> None:
        """Write and half-close. Closing with unread bytes would reset the connection and lose the response."""
        active = self._active
        if active is None or active.response_complete:
            ACCESS.info(ACCESS_LINE, "-", "-", status, 0, len(answer), "-", "-", "-")
            self.transport.write(answer)
        else:
            active.transport.write(answer)
            active.transport.flush()  # type: ignore[attr-defined]
            active.disconnected = True  # its handler sees a client that has left
            active.message_event.set()
            self._hang_up.notify()
        if status == 503 or not self.transport.can_write_eof():
            self.transport.close()  # frees its place at once
        else:
            self.transport.write_eof()


def _log(cycle: RequestResponseCycle) -> None:
    if not ACCESS.isEnabledFor(logging.INFO):
        return
    scope = cycle.scope
    written: HeadWithBody = cycle.transport  # type: ignore[assignment]
    raw: bytes = scope.get("raw_path") or b"-"
    request: RequestContext = scope.get(CONTEXT, NO_REQUEST)  # type: ignore[assignment]
    path, status = raw[:MOST_PATH_CHARS].decode("ascii", "backslashreplace"), int(written.head[9:12] or 0) or "-"
    sizes = (int(1e3 * written.age_s), written.n_bytes)
    ACCESS.info(
        ACCESS_LINE, scope["method"], path, status, *sizes, request.route, request.episode_id, request.request_id
    )


async def _unchunked(cycle: RequestResponseCycle, app: Any, scope: Scope, receive: Receive, send: Send) -> None:
    """Serve an HTTP/1.0 client, which knows no chunks: the end of the connection ends a body without a length."""
    is_unsized = False

    async def plain(message: Message) -> None:
        nonlocal is_unsized
        if message["type"] == "http.response.start":
            is_unsized = not any(name.lower() == b"content-length" for name, _ in message["headers"])
            cycle.chunked_encoding = False if is_unsized else None
        elif is_unsized:
            cycle.expected_content_length = len(message.get("body", b""))  # of this part
        await send(message)

    await app(scope, receive, plain)


def _write_now(of: ref[RequestResponseCycle], data: bytes) -> bool:
    """Write a part of a stream as the cycle's `send` would. Return False if that would wait."""
    cycle = of()
    if cycle is None:
        return False
    blocked = cycle.flow.write_paused or cycle.disconnected or not cycle.chunked_encoding or cycle.response_complete
    if blocked or not data or cycle.scope["method"] == "HEAD":
        return False
    cycle.transport.write(b"%x\r\n%b\r\n" % (len(data), data))
    return True


class HangUp:
    """Notifies handlers that their client has left, without a reference cycle for each connection."""

    __slots__ = ("_callbacks", "_lost", "_read_on")

    def __init__(self, read_on: Callable[[], None]) -> None:
        self._read_on, self._lost = read_on, False
        self._callbacks: set[Callable[[], None]] = set()

    def subscribe(self, gone: Callable[[], None]) -> Callable[[], None]:
        """Call `gone` when the client leaves, or now if it has left. Return a function that cancels this."""
        if self._lost:
            gone()
        else:
            self._callbacks.add(gone)
            self._read_on()  # without reading, the end of the connection goes unnoticed
        return partial(self._callbacks.discard, gone)

    def notify(self) -> None:
        self._lost = True
        for gone in tuple(self._callbacks):
            gone()


class HeadWithBody:
    """A transport that delays the head until the next write in the same turn of the event loop, to save a packet."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._held = b""
        self._is_begun = False
        self._began_s = loop.time()
        self.head, self.n_bytes = b"", 0  # sent so far, for the access log
        self.is_closing = transport.is_closing

    @property
    def age_s(self) -> float:
        return self._loop.time() - self._began_s

    def write(self, data: bytes) -> None:
        self.n_bytes += len(data)
        if self._is_begun:
            self._transport.write(data)
        elif self._held:
            self._held += data
            self.flush()
        else:
            self.head = self._held = data
            self._loop.call_soon(self.flush)

    def close(self) -> None:
        self.flush()
        self._transport.close()

    def flush(self) -> None:
        held, self._held = self._held, b""
        self._is_begun = True
        if held and not self._transport.is_closing():
            self._transport.write(held)

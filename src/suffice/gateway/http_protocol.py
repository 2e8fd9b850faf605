"""HTTP/1.1 on uvicorn's server: strict parsing, limits for slow clients, direct writes and an access log.

bytes ──▶ LimitedHttp: heads, bodies, limits ──▶ RequestCycle: the application's `receive` and `send` ──▶ bytes
"""

from __future__ import annotations

import asyncio
import http
import logging
import socket
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from enum import IntEnum
from functools import partial
from math import inf
from typing import Any
from urllib.parse import unquote

from httptools import HttpParserError, HttpParserUpgrade, parse_url
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT, FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from suffice.asgi import Message, Scope
from suffice.gateway.exchange import CONTEXT, HANG_UP, MAX_HEADERS, WRITE_NOW
from suffice.settings import Server
from suffice.telemetry import ACCESS, ACCESS_LINE, LOG, NO_REQUEST, RequestContext
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
    cycle: RequestCycle | None  # type: ignore[assignment] # of the newest request, which may wait behind others
    pipeline: deque[tuple[RequestCycle, Any]]  # type: ignore[assignment] # requests that wait, the newest first
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
        self._active: RequestCycle | None = None  # of the current or last handler
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
        try:
            self.parser.feed_data(data)
        except HttpParserError:  # also where one of our callbacks rejects the request
            self._refuse(*(self._refusal or (400, "Invalid HTTP request received.")))
        except HttpParserUpgrade:
            pass  # it is answered as any other request, and is the last one
        if self._ends():
            return
        if n_read == self._n_read:  # otherwise the bytes belong to a complete request
            self._n_bytes += len(data)
        if self._in_head and self._n_bytes > UNFINISHED_HEAD_BYTES:
            self._refuse(431, f"the request's head is longer than {UNFINISHED_HEAD_BYTES} bytes")
        else:
            self._enter()

    def connection_lost(self, exc: Exception | None) -> None:
        self.connections.discard(self)
        self.connections_open.forget(self)
        if self._active is not None and not self._active.response_complete:
            _log(self._active)
        for cycle in (self._active, self.cycle):
            if cycle is not None:
                cycle.disconnect()
        self.cycle = self._active = None  # they refer to this object: breaks the reference cycle
        self.flow.resume_writing()
        if exc is None:
            self.transport.close()
        self.parser = None  # type: ignore[assignment] # it refers to this object: breaks the reference cycle
        self._hang_up.notify()

    # ---- called by the parser

    def on_message_begin(self) -> None:
        self.url = b""
        self.headers = []
        self._has_begun = True

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))
        if len(self.headers) > MAX_HEADERS:
            self._reject(431, f"headers: at most {MAX_HEADERS} are accepted")

    def on_headers_complete(self) -> None:
        version, expects = self._check_head()
        self._in_head = False
        self._n_bytes = 0
        self._n_requests = self._n_requests + 1
        parts = parse_url(self.url)
        path = parts.path.decode("ascii")
        scope: Scope = {
            "type": "http",
            "asgi": {"version": self.asgi_version, "spec_version": "2.3"},
            "http_version": version,
            "server": self.server,
            "client": self.client,
            "scheme": self.scheme,
            "root_path": "",
            "method": self.parser.get_method().decode("ascii"),
            "path": unquote(path) if "%" in path else path,
            "raw_path": parts.path,
            "query_string": parts.query or b"",
            "headers": self.headers,
            "state": {},
        }
        # The parser stops after a request for an upgrade.
        keeps = version == "1.1" and self.parser.should_keep_alive() and not self.parser.should_upgrade()
        before, cycle = self.cycle, RequestCycle(self, scope, keep_alive=keeps, expects=expects)
        scope["extensions"] = {HANG_UP: self._hang_up.subscribe, WRITE_NOW: cycle.write_now}
        self.cycle = cycle
        if before is None or before.response_complete:
            self._start(cycle)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((cycle, self.app))

    def _check_head(self) -> tuple[str, bool]:
        """Return the version, and whether the client waits for an interim response. Refuse ambiguous heads."""
        version, names = self.parser.get_http_version(), [name for name, _ in self.headers]
        if version not in ("1.0", "1.1"):
            self._reject(505, "HTTP version: must be 1.1 or 1.0")
        if version == "1.0":
            if b"transfer-encoding" in names:
                self._reject(400, "transfer-encoding: is not accepted with HTTP/1.0")
        elif names.count(b"host") != 1:
            self._reject(400, f"Host header: must come once; got {names.count(b'host')}")
        if len(self.pipeline) >= MOST_PIPELINED:
            self._reject(400, f"pipelining: at most {MOST_PIPELINED} requests may wait on one connection")
        expects = b"expect" in names and any(k == b"expect" and v.lower() == b"100-continue" for k, v in self.headers)
        return version, expects and version == "1.1"  # 1.0 has no interim responses

    def on_body(self, body: bytes) -> None:
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            cycle.body += body
            if len(cycle.body) > HIGH_WATER_LIMIT:
                self.flow.pause_reading()
            cycle.wake()

    def on_message_complete(self) -> None:
        self._in_head = True
        self._has_begun = False
        self._n_bytes = 0
        self._n_read = self._n_read + 1
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.more_body = False
            self.cycle.wake()

    def _start(self, cycle: RequestCycle) -> None:
        self._active = cycle
        task = self.loop.create_task(cycle.run(self.app))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def answered(self, cycle: RequestCycle) -> None:
        _log(cycle)
        if not self.transport.is_closing():
            self.flow.resume_reading()
            if self.pipeline:
                self._start(self.pipeline.pop()[0])
        self._enter()

    # ---- limits

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
            if active.status:
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
            active.hold(answer, status)
            active.flush()
            active.disconnect()  # its handler sees a client that has left
            self._hang_up.notify()
        if status == 503 or not self.transport.can_write_eof():
            self.transport.close()  # frees its place at once
        else:
            self.transport.write_eof()


def _log(cycle: RequestCycle) -> None:
    if not ACCESS.isEnabledFor(logging.INFO):
        return
    scope = cycle.scope
    raw: bytes = scope["raw_path"] or b"-"
    request: RequestContext = scope.get(CONTEXT, NO_REQUEST)
    path, sizes = raw[:MOST_PATH_CHARS].decode("ascii", "backslashreplace"), (int(1e3 * cycle.age_s), cycle.n_bytes)
    named = request.route, request.episode_id, request.request_id
    ACCESS.info(ACCESS_LINE, scope["method"], path, cycle.status or "-", *sizes, *named)


class RequestCycle:
    """One request and its response, for the application.

    The head of a response leaves with the first part of its body, if that follows in the same turn of the event loop.
    """

    def __init__(self, connection: LimitedHttp, scope: Scope, *, keep_alive: bool, expects: bool) -> None:
        self.scope = scope
        self.keep_alive = keep_alive
        self.body, self.more_body = bytearray(), True  # of the request: not yet received, and whether more comes
        self.disconnected = False
        self.response_complete = False
        self.status, self.n_bytes = 0, 0  # of the response, for the access log
        self._connection, self._began_s = connection, connection.loop.time()
        self._expects = expects  # the client waits for an interim response before it sends the body
        self._held = b""  # the head, until it leaves
        self._left_bytes: float | None = None  # of a response with a length; None: it comes in chunks
        self._is_read = False  # the end of the request was received
        self._waiter: asyncio.Future[None] | None = None  # of `receive`

    @property
    def age_s(self) -> float:
        return self._connection.loop.time() - self._began_s

    async def run(self, app: Any) -> None:
        try:
            await app(self.scope, self.receive, self.send)
        except BaseException as error:  # noqa: BLE001 - the last resort: an answer, and the end of the connection
            LOG.error("a request's handler failed (%s)", type(error).__name__)
            LOG.debug("the same, with its traceback", exc_info=True)
        if not (self.response_complete or self.disconnected):
            if not self.status:
                self._begin(500, [(b"content-length", b"0"), (b"connection", b"close")])
            self.flush()
            self._connection.transport.close()
        self.scope.pop("extensions")  # they refer to this object: breaks the reference cycle

    # ---- for the application

    async def receive(self) -> Message:
        connection = self._connection
        if self._expects and not connection.transport.is_closing():
            connection.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self._expects = False
        connection.flow.resume_reading()
        while not (self.disconnected or self.response_complete):
            if self.body or not (self.more_body or self._is_read):
                body = bytes(self.body)
                self.body = bytearray()
                self._is_read = not self.more_body
                return {"type": "http.request", "body": body, "more_body": self.more_body}
            self._waiter = connection.loop.create_future()
            await self._waiter
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        flow: FlowControl = self._connection.flow
        if flow.write_paused and not self.disconnected:
            await flow.drain()
        if self.disconnected:
            return
        if message["type"] == "http.response.start" and not self.status:
            self._begin(message["status"], message["headers"])
        elif self.status and not self.response_complete:
            self._write_part(message.get("body", b""), is_last=not message.get("more_body", False))
        else:
            raise RuntimeError(f"{message['type']} is out of order")

    def write_now(self, data: bytes) -> bool:
        """Write a part of a stream as `send` would. Return False if that would wait."""
        is_stream = self._left_bytes is None and self.status and not self.response_complete
        if not is_stream or self.disconnected or not data or self._connection.flow.write_paused:
            return False
        self._write(b"%x\r\n%b\r\n" % (len(data), data))
        return True

    # ---- for the connection

    def wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def disconnect(self) -> None:
        self.disconnected = True
        self.wake()

    def hold(self, head: bytes, status: int) -> None:
        self.status = status
        self._held = head
        self.n_bytes = len(head)

    def flush(self) -> None:
        if self._held:
            self._write(b"")

    # ---- the response

    def _begin(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Write the head. Raise RuntimeError for a line break in a header."""
        lines = list[bytes]()
        says_close = False
        is_head = self.scope["method"] == "HEAD"
        for name, value in headers:
            if name == b"content-length":
                self._left_bytes = int(value)
            elif name == b"connection" and b"close" in value.lower():
                self.keep_alive, says_close = False, True
            lines.append(name + b": " + value)
        if not (self.keep_alive or says_close):
            lines.append(b"connection: close")
        if is_head or status in (204, 304):
            self._left_bytes = 0
        elif self._left_bytes is None and self.scope["http_version"] == "1.0":
            self._left_bytes = inf  # a client that knows no chunks: the end of the connection ends the body
        elif self._left_bytes is None:
            lines.append(b"transfer-encoding: chunked")
        head = STATUS_LINE[status] + b"\r\n".join([*lines, b"\r\n"])
        if not head.count(b"\n") == head.count(b"\r") == len(lines) + 2 or b"\0" in head:
            raise RuntimeError("a header of the response contains a control character")
        self.hold(head, status)
        self._connection.loop.call_soon(self.flush)

    def _write_part(self, data: bytes, *, is_last: bool) -> None:
        if self._left_bytes is None:
            part = b"%x\r\n%b\r\n" % (len(data), data) if data else b""
            self._write(part + b"0\r\n\r\n" if is_last else part)
        elif self.scope["method"] != "HEAD":
            self._left_bytes -= len(data)
            if self._left_bytes < 0:
                raise RuntimeError("the response is longer than its content-length")
            self._write(data)
        if is_last:
            if self._left_bytes not in (None, 0, inf):
                raise RuntimeError("the response is shorter than its content-length")
            self.response_complete = True
            self.wake()
            if not self.keep_alive:
                self.flush()
                self._connection.transport.close()
            self._connection.answered(self)

    def _write(self, data: bytes) -> None:
        self.n_bytes += len(data)
        transport = self._connection.transport
        held = self._held
        self._held = b""
        if not (held and transport.is_closing()):
            transport.write(held + data if held else data)


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

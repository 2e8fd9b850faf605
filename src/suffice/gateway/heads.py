"""What uvicorn's parser of requests does not do by itself.

    a head has an end   bytes are counted until then; what a complete head may hold is `intake.check_head`'s
    one write           an answer's head goes out together with its first bytes, where these follow at once
    hang-ups            a handler is called when its client leaves, without a task that waits for it
    writes at once      a part of a begun stream is written where it arrives, while its client takes what it gets

It knows the connection, and refuses to know what goes over it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from suffice.gateway.exchange import HANG_UP, MAX_HEADERS, WRITE_NOW

UNFINISHED_HEAD_BYTES = 2**20


class LimitedHttp(HttpToolsProtocol):
    """uvicorn's protocol that closes a connection whose request's head does not come to an end."""

    _in_head = True
    _head_bytes = 0
    _hang_up: HangUp

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has come."""
        super().connection_made(transport)
        self._hang_up = HangUp(self.flow.resume_reading)

    def data_received(self, data: bytes) -> None:
        """Take the next bytes."""
        was_in_head = self._in_head
        super().data_received(data)
        if not (was_in_head and self._in_head) or self.transport.is_closing():
            return
        self._head_bytes += len(data)
        if self._head_bytes > UNFINISHED_HEAD_BYTES:
            self.send_400_response("Request head too large.")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep one header more than `intake.check_head` accepts, and none behind it."""
        if len(self.headers) <= MAX_HEADERS:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head has ended."""
        self._in_head, self._head_bytes = False, 0
        before = self.cycle
        super().on_headers_complete()
        if self.cycle is not before:
            self.cycle.transport = HeadWithBody(self.transport, self.loop)  # type: ignore[assignment]
            ours: dict[str, Any] = {HANG_UP: self._hang_up.tell, WRITE_NOW: partial(_write_now, self.cycle)}
            self.scope["extensions"] = ours

    def on_message_complete(self) -> None:
        """The next bytes are another head."""
        self._in_head = True
        super().on_message_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has left."""
        super().connection_lost(exc)
        self._hang_up.happened()


def _write_now(cycle: RequestResponseCycle, data: bytes) -> bool:
    """Write a part of a stream as the cycle's own `send` would; False: it would wait, or write it otherwise."""
    if cycle.flow.write_paused or cycle.disconnected or not cycle.chunked_encoding or cycle.response_complete:
        return False
    if not data or cycle.scope["method"] == "HEAD":
        return False
    cycle.transport.write(b"%x\r\n%b\r\n" % (len(data), data))
    return True


class HangUp:
    """Tells handlers that their client has left.

    It does not know the connection, which knows it: that would be a circle for every client, and the
    garbage collector comes seldom here.
    """

    __slots__ = ("_lost", "_read_on", "_to_tell")

    def __init__(self, read_on: Callable[[], None]) -> None:
        self._read_on, self._lost = read_on, False
        self._to_tell: set[Callable[[], None]] = set()

    def tell(self, gone: Callable[[], None]) -> Callable[[], None]:
        """Call `gone` when the client leaves, at once when it has left already. Returns what ends that."""
        if self._lost:
            gone()
        else:
            self._to_tell.add(gone)
            self._read_on()  # who does not read does not see it leave
        return partial(self._to_tell.discard, gone)

    def happened(self) -> None:
        """The client has left."""
        self._lost = True
        for gone in tuple(self._to_tell):
            gone()


class HeadWithBody:
    """An answer's way out that lets the head wait for what follows it in the same turn of the event loop.

    Each write of its own is a call into the kernel, a packet, and a wake-up of the client.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._held = b""
        self.is_closing = transport.is_closing

    def write(self, data: bytes) -> None:
        """Send bytes; the first ones with the next, or soon."""
        if self._held:
            self._held += data
            self._flush()
        else:
            self._held = data
            self._loop.call_soon(self._flush)

    def close(self) -> None:
        """Send what waits, and close."""
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        held, self._held = self._held, b""
        self.write = self._transport.write   # type: ignore[method-assign]  # from here on nothing waits
        if held and not self._transport.is_closing():
            self._transport.write(held)

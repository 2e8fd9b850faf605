"""One HTTP exchange over bare ASGI: the request, what was sent to the client, and whether it is still connected."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager
from functools import lru_cache
from typing import Any

from suffice.asgi import Receive, Scope, Send, read_body
from suffice.episode.apis.events import ChatEvents
from suffice.episode.stream_relay import Delivery, RepeatedFrame
from suffice.errors import BadRequest, OverloadError, UpstreamProtocol
from suffice.gateway.auth import ANYONE
from suffice.telemetry import REQUEST_ID, RequestContext, is_request_id
from suffice.upstream.assemble import Assembler
from suffice.upstream.wire import DONE_DATA, PING, Frame, SseSplitter, encode_json, error_body, error_frame

Headers = Iterable[tuple[str, str]]
OnHangUp = Callable[[Callable[[], None]], Callable[[], object]]  # registers a callback; returns its removal

WriteNow = Callable[[bytes], bool]  # writes a part of a body; False: send it the usual way

HANG_UP = "suffice.hang_up"  # ASGI extensions of our server: a callback when the client leaves …
WRITE_NOW = "suffice.write_now"  # … and a write to a begun body without waiting
MAX_HEADERS = 256
CONTEXT = "suffice.request"  # the `RequestContext`, in the scope
_HEADERS = "suffice.headers"  # caches decoded headers in the scope
_REFUSAL_KINDS = {401: "authentication_error", 429: "rate_limit_error"}
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")  # not allowed in a header's value
MOST_UNREAD_S = 600.0  # for which work goes on after its client has left
SSE_HEADERS = [("content-type", "text/event-stream; charset=utf-8")]

# Sent with every response. Its bytes come from the upstream, and the console has the same origin, so browsers must not
# execute, frame, embed or cache them.
_ISOLATION = (
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", b"sandbox; default-src 'none'; frame-ancestors 'none'"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
)
_BY_US = frozenset({"content-type", *(name.decode() for name, _ in _ISOLATION)})
# Types of APIs, none of which a browser executes. Parameters are restricted, so that they cannot hide a second type.
_API_TYPE = re.compile(
    r"(application/(json|problem\+json|x-ndjson|ndjson|jsonl|octet-stream)|text/(event-stream|plain)"
    r"|audio/[a-z0-9.+-]{1,60}|image/(png|jpeg|webp|gif|avif)|video/(mp4|webm))"
    r"([ \t]*;[ \t]*[a-z0-9_-]{1,40}=([a-z0-9._:/+-]{1,80}|\"[a-z0-9 ._:/+-]{0,80}\"))*",
    re.IGNORECASE,
)


@lru_cache(maxsize=256)
def inert_type(value: str) -> str:
    """Return a content type that no browser executes: API types unchanged, other text as plain text, the rest as bytes.

    >>> [inert_type(x) for x in ("application/json; charset=utf-8", "text/html", "image/svg+xml")]
    ['application/json; charset=utf-8', 'text/plain; charset=utf-8', 'application/octet-stream']
    """
    if _API_TYPE.fullmatch(value):
        return value
    return "text/plain; charset=utf-8" if value.strip().lower().startswith("text/") else "application/octet-stream"


def headers_of(scope: Scope) -> list[tuple[str, str]]:
    """Return the request headers with names in lower case. Cached; do not change the list."""
    headers: list[tuple[str, str]] | None = scope.get(_HEADERS)
    if headers is None:
        raw = scope["headers"][: MAX_HEADERS + 1]  # more are refused by `request_parsing.check_head`
        headers = scope[_HEADERS] = [(k.decode("latin-1"), v.decode("latin-1")) for k, v in raw]
    return headers


class Exchange:
    def __init__(self, scope: Scope, receive: Receive, send: Send, monotonic_s: Callable[[], float]) -> None:
        self.scope = scope
        self.receive = receive
        self._send = send
        self._now = monotonic_s
        self.hang_up: OnHangUp = scope["extensions"][HANG_UP]
        self._write_now: WriteNow = scope["extensions"][WRITE_NOW]
        self.request: RequestContext = scope.get(CONTEXT) or RequestContext()
        self.caller = ANYONE
        self.foreign_page: BadRequest | None = None  # why this request from another site's page may be refused
        self.stored_id: str | None = None  # the id in the path
        self.last = b""  # part of the body that was sent; of a stream, whole events
        self.own_headers: list[tuple[str, str]] = []
        self.status = 0  # 0: nothing sent
        self.events = False  # the body is a stream of server-sent events
        self.complete = False
        self.is_unread = False  # the client has left, and the work goes on: nothing more is sent
        self.first_byte_s: float | None = None
        self.last_sent_s = monotonic_s()

    @property
    def headers(self) -> list[tuple[str, str]]:
        return headers_of(self.scope)

    def forward(self, name: str, value: str) -> None:
        """Replace a header of the request, as the upstream will see it."""
        self.scope[_HEADERS] = [*((k, v) for k, v in self.headers if k != name), (name, value)]

    async def read_body(self, limit_bytes: int) -> bytes:
        """Raise TooLarge beyond the limit and ClientGone if the client disconnects."""
        return await read_body(self.receive, limit_bytes)

    async def start(self, status: int, headers: Headers, *, events: bool = False) -> None:
        if self.is_unread:
            return
        ours = {k for k, _ in self.own_headers}
        sent = [(k.lower(), v) for k, v in headers if k.lower() not in ours] + self.own_headers
        self.status, self.events = status, events
        if _CONTROL.search("\t".join([v for _, v in sent])):
            sent = [(k, v) for k, v in sent if not _CONTROL.search(v)]
        raw, kinds = list[tuple[bytes, bytes]](), list[str]()
        for name, value in self._with_request_id(sent):
            if name not in _BY_US:
                raw.append((name.encode("latin-1", "replace"), value.encode("latin-1", "replace")))
            elif name == "content-type":
                kinds.append(value)
        if status not in (204, 304):
            raw.append((b"content-type", inert_type(", ".join(kinds)[:400]).encode("latin-1")))
        raw += _ISOLATION
        await self._send({"type": "http.response.start", "status": status, "headers": raw})

    def _with_request_id(self, headers: list[tuple[str, str]]) -> list[tuple[str, str]]:
        """Answer with the client's id, or else the upstream's, or else ours; no id of the upstream is lost."""
        request, theirs = self.request, next((v for k, v in headers if k == REQUEST_ID), None)
        if theirs is None:
            return [*headers, (REQUEST_ID, request.request_id)]
        if request.is_given:
            kept = [("x-upstream-request-id" if k == REQUEST_ID else k, v) for k, v in headers]
            return [*kept, (REQUEST_ID, request.request_id)]
        if is_request_id(theirs):
            request.request_id = theirs
        return headers

    async def body(self, data: bytes, *, more: bool = True) -> None:
        if not more:
            self.complete = True
        if self.is_unread:
            return
        if data and self.first_byte_s is None:
            self.first_byte_s = self._now()
        self.last = data or self.last
        await self._send({"type": "http.response.body", "body": data, "more_body": more})
        self.last_sent_s = self._now()

    def body_now(self, data: bytes) -> bool:
        """Send a part of a begun body without waiting. Return False if `body` must be awaited instead."""
        if self.is_unread:
            return True
        if self.complete or not self._write_now(data):
            return False
        self.last, self.last_sent_s = data, self._now()
        if self.first_byte_s is None:
            self.first_byte_s = self.last_sent_s
        return True

    async def json(self, status: int, body: bytes, headers: Headers = ()) -> None:
        sized = [("content-type", "application/json"), ("content-length", str(len(body))), *headers]
        await self.start(status, sized)
        await self.body(body, more=False)

    def error_body(self, status: int, message: str, kind: str, param: str | None, code: str) -> bytes:  # noqa: ARG002
        return error_body(message, kind, param, code)

    def error_frame(self, status: int, message: str, kind: str, code: str) -> bytes:  # noqa: ARG002
        return error_frame(message, kind, code)

    async def refuse(self, error: BadRequest, headers: Headers = ()) -> None:
        kind = _REFUSAL_KINDS.get(error.status, "invalid_request_error")
        if isinstance(error, OverloadError):
            headers = [*headers, ("retry-after", str(error.retry_after_s))]
        await self.json(error.status, self.error_body(error.status, str(error), kind, error.param, error.code), headers)

    async def fail(self, status: int, message: str, code: str, *, kind: str = "upstream_error") -> None:
        """Send a status before the first byte and an error frame after it. A begun plain body stays incomplete."""
        if self.complete:
            return
        if not self.status:
            await self.json(status, self.error_body(status, message, kind, None, code))
        elif self.events:
            await self.body(self.error_frame(status, message, kind, code), more=False)


@asynccontextmanager
async def kept_alive(exchange: Exchange, every_s: float, monotonic_s: Callable[[], float]) -> AsyncIterator[None]:
    """Send a comment line whenever a stream is silent for `every_s`, beginning the stream if necessary."""
    sender: asyncio.Task[None] | None = None

    async def send_comments() -> None:
        while not (exchange.complete or exchange.is_unread):
            left_s = every_s - (monotonic_s() - exchange.last_sent_s)
            if left_s > 0:
                await asyncio.sleep(max(0.01, left_s))
                continue
            if not exchange.status:
                await exchange.start(200, SSE_HEADERS, events=True)
            await exchange.body(PING)

    def begin() -> None:
        nonlocal sender
        sender = asyncio.create_task(send_comments())

    timer = asyncio.get_running_loop().call_later(max(0.01, every_s), begin)  # most streams end before it
    try:
        yield
    finally:
        timer.cancel()
        if sender is not None:
            sender.cancel()
            await asyncio.gather(sender, return_exceptions=True)


class _Departure:
    """What happens when the client of a running task leaves."""

    def __init__(self, exchange: Exchange, task: asyncio.Task[Any], reads_on: Callable[[], bool]) -> None:
        self._exchange = exchange
        self._task = task
        self._reads_on = reads_on
        self._timer: asyncio.TimerHandle | None = None
        self.has_left = self.is_cut = False

    def note(self) -> None:
        if self._exchange.complete or self.has_left:
            return
        self.has_left, self._exchange.is_unread = True, self._reads_on()
        if self._exchange.is_unread:
            self._timer = asyncio.get_running_loop().call_later(MOST_UNREAD_S, self._cut)
        else:
            self._cut()

    def _cut(self) -> None:
        if not self._exchange.complete:
            self.is_cut = True
            self._task.cancel()

    def settle(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self.is_cut:
            self._task.uncancel()


async def supervise(
    work: Coroutine[Any, Any, None], exchange: Exchange, reads_on: Callable[[], bool] = lambda: False
) -> bool:
    """Run `work` in the caller's task to its end; return True if the client left, which cancels it.

    reads_on  asked when the client leaves: whether the work goes on unread, for MOST_UNREAD_S at most
    """
    task = asyncio.current_task()
    assert task is not None
    departure = _Departure(exchange, task, reads_on)
    end_watch = exchange.hang_up(departure.note)
    try:
        await work
    except asyncio.CancelledError:
        if not departure.is_cut and not task.cancelling():
            raise RuntimeError("a request was cancelled although nobody ended it") from None
        if not departure.is_cut or task.cancelling() > 1:
            raise  # the server is shutting down
    except Exception:
        if not departure.has_left:
            raise  # else the client is gone and needs no error
    finally:
        end_watch()
        departure.settle()
    return departure.has_left


BODY_LIMIT_BYTES = 32 * 2**20  # of an assembled response


class StreamDelivery(Delivery):
    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self.frame_now = exchange.body_now  # type: ignore[assignment, method-assign] # without a layer in between

    def frames(self, frames: Sequence[Frame]) -> Coroutine[Any, Any, None]:
        """Return the coroutine of the send itself, which saves a layer per read."""
        return self._exchange.body(frames[0].raw if len(frames) == 1 else b"".join([f.raw for f in frames]))

    async def end(self) -> None:
        if not self._exchange.complete:
            await self._exchange.body(b"", more=False)


class BodyDelivery(Delivery):
    """Delivers one body, equal to the upstream's direct response."""

    def __init__(
        self, exchange: Exchange, status: int, headers: Sequence[tuple[str, str]], events: ChatEvents | None = None
    ) -> None:
        self._exchange = exchange
        self._status = status
        self._events = events or ChatEvents()
        dropped = {"content-type", "content-length", "content-encoding"}
        self._headers = [(k, v) for k, v in headers if k.lower() not in dropped]
        self._assembler = Assembler(BODY_LIMIT_BYTES)

    def texts_now(self, template: bytes, field: str, texts: list[str]) -> bool:
        """Add repeated chunks by their texts, much faster than by parsing each."""
        try:
            return self._events.is_native or self._assembler.add_repeated(template, field, texts)
        except UpstreamProtocol:
            return False  # over the limit; `frames` raises it again

    async def frames(self, frames: Sequence[Frame]) -> None:
        for frame in () if self._events.is_native else frames:  # other APIs' events keep their response themselves
            if isinstance(frame, RepeatedFrame):
                if not self._assembler.add_repeated(frame.template, frame.field, frame.texts):
                    await self.frames(SseSplitter(limit_bytes=len(frame.raw)).feed(frame.raw))
            elif frame.data is not None and frame.data != DONE_DATA:
                self._assembler.add(frame.data)

    def can_rerun(self) -> bool:
        return not self._exchange.status

    async def end(self) -> None:
        if not self._exchange.complete:
            body = encode_json(self._events.body() if self._events.is_native else self._assembler.result())
            await self._exchange.json(self._status, body, self._headers)

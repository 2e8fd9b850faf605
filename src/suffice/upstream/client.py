"""HTTP out: one connection pool, calls that can be abandoned at any moment.

It knows sockets, headers and time-outs, and refuses to know what the bytes mean: that is `wire`.
A call that is left early closes its connection, so that the model server stops generating.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from functools import cached_property
from types import TracebackType
from typing import Self

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from suffice.errors import UpstreamBusy, UpstreamDown, UpstreamError, UpstreamTimeout
from suffice.settings import Upstream
from suffice.types import Findings
from suffice.upstream.allowance import Allowance, Refusal

Headers = Iterable[tuple[str, str]]

HOP_BY_HOP = frozenset({
    "connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection",
    "te", "trailer", "transfer-encoding", "upgrade",
})  # fmt: skip
NEVER_SENT_UP = HOP_BY_HOP | {"host", "content-length", "expect", "cookie"}
NEVER_SENT_DOWN = HOP_BY_HOP | {"set-cookie", "set-cookie2", "server", "date"}
KEY_HEADERS = ("authorization", "x-api-key", "api-key")  # where clients of the APIs put a key
GENERATES = ("completions", "/responses", "/messages")  # ends of the paths whose calls occupy a slot
KEPT_URLS = 32                  # paths with ids and queries are many: they are not all kept
SETTLE_S = 0.05                 # how long a finished answer may take to say that it is
SHORT_ANSWER_BYTES = 16 * 2**20
LONG_BODY_BYTES = 256 * 1024
HEADER_LIMIT_BYTES = 32 * 1024  # an upstream's header line beyond this is its fault, not ours


class Call:
    """One open response of the upstream. Leaving the block closes or returns the connection.

    idle_timeout_s  how long `read` waits for the next bytes; 0: for ever
    """

    def __init__(self, response: aiohttp.ClientResponse, idle_timeout_s: float = 0.0) -> None:
        self._response = response
        self._idle = IdleWatch(response, idle_timeout_s)
        self.status = response.status
        self.content_type = response.content_type
        self.is_encoded = response.headers.get("content-encoding", "identity").lower() != "identity"
        self.closed = False
        self.asks_for_less = False  # the upstream wants fewer calls: 429, or 503 with a time to come back

    @cached_property
    def headers(self) -> list[tuple[str, str]]:
        """End-to-end headers of the response, in order, without cookies."""
        return [(k, v) for k, v in self._response.headers.items() if k.lower() not in NEVER_SENT_DOWN]

    @property
    def at_end(self) -> bool:
        """Is it known already that nothing more will come?"""
        return self._response.content.at_eof()

    async def read(self) -> bytes:
        """The next bytes as they came, b"" at the end.

        Raises UpstreamDown if the connection breaks and UpstreamTimeout after `idle_timeout_s` of
        silence.
        """
        self._idle.wait()
        try:
            data = await self._response.content.readany()
            self._idle.waits = False
            return data
        except TimeoutError:
            raise UpstreamTimeout("the upstream was silent for longer than idle_timeout_s") from None
        except (aiohttp.ClientError, ConnectionError) as error:
            raise UpstreamDown(f"the upstream broke off its answer ({type(error).__name__})") from None

    async def read_all(self, limit_bytes: int = 64 * 2**20) -> bytes:
        """The whole rest of the body. Raises UpstreamDown when it is longer than `limit_bytes`."""
        parts, size = [], 0
        while data := await self.read():
            parts.append(data)
            size += len(data)
            if size > limit_bytes:
                raise UpstreamDown(f"the upstream's answer is longer than {limit_bytes} bytes")
        return b"".join(parts)

    async def settle(self, within_s: float = SETTLE_S) -> None:
        """Let an answer whose last word was read come to its formal end: its connection can be used again.

        An upstream that leaves it open is not waited for.
        """
        if self.at_end:
            return
        with contextlib.suppress(TimeoutError, UpstreamError):
            async with asyncio.timeout(within_s):
                while await self.read():
                    pass

    def close(self) -> None:
        """Stop the call now. A finished response goes back to the pool, any other is cut."""
        if not self.closed:
            self.closed = True
            self._idle.close()
            self._response.close()


class IdleWatch:
    """Ends a read that waits too long, with one timer a call.

    aiohttp's own `sock_read` sets a new timer for every packet, which costs more than all that Suffice does
    with it. Here a read notes when it began to wait, and the timer looks at that when it fires.
    """

    def __init__(self, response: aiohttp.ClientResponse, idle_timeout_s: float) -> None:
        self.waits = False
        self._since_s = 0.0
        self._content, self._idle_s = response.content, idle_timeout_s
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        connection = response.connection
        if idle_timeout_s and connection is not None and connection.protocol is not None:
            connection.protocol.read_timeout = None  # else the whole answer has come already
            self._timer = self._loop.call_later(idle_timeout_s, self._look)

    def wait(self) -> None:
        """A read begins to wait now."""
        self.waits, self._since_s = True, self._loop.time()

    def _look(self) -> None:
        now_s = self._loop.time()
        left_s = self._since_s + self._idle_s - now_s if self.waits else self._idle_s
        if left_s > 0:
            self._timer = self._loop.call_later(left_s, self._look)
        else:
            self._content.set_exception(TimeoutError())

    def close(self) -> None:
        """Watch no longer."""
        if self._timer is not None:
            self._timer.cancel()


class UpstreamClient:
    """Calls to one model server, over one pool."""

    def __init__(
        self,
        name: str,
        settings: Upstream,
        api_key: str | None,
        findings: Findings | None = None,
        *,
        monotonic_s: Callable[[], float] = time.monotonic,
        wall_s: Callable[[], float] = time.time,
    ) -> None:
        self.name, self.settings = name, settings
        self.findings = findings  # what doctor saw this server do; None: nothing is known
        self._api_key, self._now_s, self._wall_s = api_key, monotonic_s, wall_s
        self.allowance = Allowance(settings.extra, settings.slots)
        self._urls: dict[str, URL] = {}
        self._base = str(URL(settings.url.rstrip("/").removesuffix("/v1"))).rstrip("/")
        self._session: aiohttp.ClientSession | None = None
        self.n_open = 0                     # completions asked of it and not yet over, whoever asked
        self._fresh: aiohttp.ClientSession | None = None  # a connection of its own for each call
        self.refuses: set[str] = set()      # fields of ours that it answered with an error

    async def __aenter__(self) -> Self:
        self._session = self._opened(
            aiohttp.TCPConnector(limit=0, keepalive_timeout=self.settings.keepalive_s)
        )
        self._fresh = self._opened(aiohttp.TCPConnector(limit=0, force_close=True))
        return self

    def _opened(self, connector: aiohttp.TCPConnector) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(
                total=None,
                sock_connect=self.settings.connect_timeout_s,
                sock_read=self.settings.idle_timeout_s,
            ),
            auto_decompress=False,  # what passes through stays as it came
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=("User-Agent", "Accept-Encoding", "Accept", "Content-Type"),
            max_line_size=HEADER_LIMIT_BYTES,
            max_field_size=HEADER_LIMIT_BYTES,
        )

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for session in (self._session, self._fresh):
            if session is not None:
                await session.close()

    def _headers(self, headers: Headers, key_header: str = "authorization") -> CIMultiDict[str]:
        sent = CIMultiDict([
            (k, v) for k, v in headers
            if (name := k.lower()) not in NEVER_SENT_UP and not name.startswith("x-suffice-")
        ])  # fmt: skip
        if self._api_key is not None:
            for name in KEY_HEADERS:  # the caller's own credentials do not go beside ours
                sent.popall(name, None)
            sent[key_header] = f"Bearer {self._api_key}" if key_header == "authorization" else self._api_key
        return sent

    @asynccontextmanager
    async def open(
        self,
        path: str,
        body: bytes | None,
        headers: Headers = (),
        *,
        method: str = "POST",
        key_header: str = "authorization",
        extra: bool = False,
    ) -> AsyncIterator[Call]:
        """Send one request and give the open response; tries again only while nothing came back.

        path        with its query, as it is to be sent: nothing in it is changed
        key_header  where the upstream wants its key: `authorization` or `x-api-key`
        extra       a call that the client did not ask for itself: it is never tried again, so that a
                    request causes at most 1 + `retries` + its route's `max_extra_calls` attempts
        Raises UpstreamDown when no connection can be made and UpstreamTimeout when no answer begins.
        """
        takes_slot = path.partition("?")[0].endswith(GENERATES)
        self.n_open += takes_slot
        try:
            retries = 0 if extra else self.settings.retries
            response = await self._send(method, path, body, self._headers(headers, key_header), retries)
            call = Call(response, self.settings.idle_timeout_s)
            try:
                call.asks_for_less = self.allowance.note(
                    call.status, call.headers, extra=extra, now_s=self._now_s(), wall_s=self._wall_s()
                )
                yield call
            finally:
                call.close()
        finally:
            self.n_open -= takes_slot

    def extra_refusal(self) -> Refusal | None:
        """Why no probe may be sent now; None: one may."""
        n_other = self.n_open - self.allowance.n_open
        return self.allowance.refusal(now_s=self._now_s(), n_other=n_other)

    @property
    def is_paused(self) -> bool:
        """Has the upstream asked for fewer calls? Then none is made that the client did not ask for."""
        return self.allowance.is_paused(self._now_s())

    @contextlib.contextmanager
    def extra_call(self, spent: Callable[[], int], *, may_be_refused: bool) -> Iterator[None]:
        """Hold the place of one extra call. Raises UpstreamBusy when there is none for it now.

        spent           tokens that were read anew and generated, asked for at the end
        may_be_refused  False: only a pause refuses it
        """
        reason = self.extra_refusal() if may_be_refused else "paused" if self.is_paused else None
        if reason is not None:
            raise UpstreamBusy(reason)
        self.allowance.begin(self._now_s())
        try:
            yield
        finally:
            self.allowance.end(spent(), self._now_s())

    async def _send(
        self, method: str, path: str, body: bytes | None, headers: CIMultiDict[str], retries: int
    ) -> aiohttp.ClientResponse:
        session = self._session
        if session is None or self._fresh is None:
            raise UpstreamDown("the upstream client is not open")
        for attempt in range(retries + 1):
            try:
                return await session.request(
                    method, self._url(path), data=_payload(body), headers=headers, allow_redirects=False
                )
            except TimeoutError:
                raise UpstreamTimeout(f"upstream {self.name!r} did not begin to answer in time") from None
            except (aiohttp.ClientConnectionError, ConnectionError) as error:
                # Most often a pooled connection that the server was just closing: the request was never answered.
                # The others in the pool may be as stale, so the next attempt has a connection of its own.
                if attempt == retries or _began(error):
                    raise self._down("no connection to", error) from None
                session = self._fresh
            except aiohttp.ClientError as error:
                raise self._down("no answer from", error) from None
        raise AssertionError("unreachable")

    def _url(self, path: str) -> URL:
        """The address of a path; the few paths without ids and queries are taken apart only once."""
        url = self._urls.get(path)
        if url is None:
            url = URL(self._base + path, encoded=True)
            if len(self._urls) < KEPT_URLS:
                self._urls[path] = url
        return url

    def _down(self, what: str, error: Exception) -> UpstreamDown:
        # The error's own text may name an address or quote a header; its class says enough.
        return UpstreamDown(f"{what} upstream {self.name!r} ({type(error).__name__})")

    async def post_json(
        self, path: str, body: bytes, *, timeout_s: float, headers: Headers = ()
    ) -> tuple[int, bytes]:
        """A short call: (status, body). Raises UpstreamError; never takes longer than `timeout_s`."""
        return await self._short("POST", path, body, _json_headers(headers), timeout_s)

    async def get(self, path: str, *, timeout_s: float, headers: Headers = ()) -> tuple[int, bytes]:
        """A short read: (status, body). Raises UpstreamError."""
        return await self._short("GET", path, None, headers, timeout_s)

    async def _short(
        self, method: str, path: str, body: bytes | None, headers: Headers, timeout_s: float
    ) -> tuple[int, bytes]:
        try:
            async with asyncio.timeout(timeout_s), self.open(path, body, headers, method=method) as call:
                return call.status, await call.read_all(SHORT_ANSWER_BYTES)
        except TimeoutError:
            message = f"upstream {self.name!r} took longer than {timeout_s:g} s for {path}"
            raise UpstreamTimeout(message) from None


def _began(error: Exception) -> bool:
    """Had the server begun to answer when the connection broke? Then it is not asked again."""
    return isinstance(error, aiohttp.ServerDisconnectedError) and not isinstance(error.message, str)


def _payload(body: bytes | None) -> bytes | io.BytesIO | None:
    """A long body is sent in pieces, so that other requests are served meanwhile."""
    return body if body is None or len(body) < LONG_BODY_BYTES else io.BytesIO(body)


def _json_headers(headers: Headers) -> Headers:
    """The caller's headers, made fit for a JSON body that Suffice wrote itself."""
    dropped = {"content-type", "accept", "accept-encoding", "content-encoding"}
    kept = [(k, v) for k, v in headers if k.lower() not in dropped]
    return [*kept, ("content-type", "application/json"), ("accept-encoding", "identity")]


def governed_headers(headers: Headers, nth: int = 1) -> list[tuple[str, str]]:
    """Headers for a body that Suffice rewrote and an answer that it must be able to read.

    nth  which call of the request it is. Behind the first, an idempotency key gets this number, or a
         server that honours keys would answer with the first call's answer.
    """
    sent = list(_json_headers(headers))
    if nth == 1:
        return sent
    return [(k, f"{v}-{nth}" if k.lower() == "idempotency-key" else v) for k, v in sent]


__all__ = ["Call", "Headers", "UpstreamClient", "UpstreamError", "governed_headers"]

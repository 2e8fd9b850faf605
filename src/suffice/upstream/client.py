"""HTTP client for one model server. Leaving a call early closes its connection, so that the server stops generating."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import re
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator
from functools import lru_cache
from typing import Any, Final, Self, TypeAlias

from yarl import URL

from suffice.errors import UpstreamBusy, UpstreamDown, UpstreamError, UpstreamTimeout
from suffice.settings import Upstream
from suffice.telemetry import LOG
from suffice.types import Findings
from suffice.upstream.allowance import Allowance, Refusal
from suffice.upstream.connection import ArrivalCallback, Connection, ConnectionBroken, ConnectionPool

Headers = Iterable[tuple[str, str]]

KNOWN_S: Final = 5.0  # how long a response or a failure counts as current
LOG_EVERY_S: Final = 30.0  # between two lines in the log about the same server
HOP_BY_HOP = frozenset(
    {"connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection"}
    | {"te", "trailer", "transfer-encoding", "upgrade"}
)
NEVER_SENT_UP = HOP_BY_HOP | {"host", "content-length", "expect", "cookie"}
# Response headers that the client may see: how to read the body, when to retry, and the request's name in other
# systems' logs; none that a browser or a proxy acts on.
_RELAYED = re.compile(
    r"content-(type|length|encoding)|retry-after(-ms)?|x-should-retry|x-accel-buffering|cf-ray"
    r"|(openai|anthropic)-[a-z0-9-]+|[a-z0-9-]*ratelimit[a-z0-9-]*|([a-z0-9-]+-)?(request|correlation|trace)-?id"
)
KEY_HEADERS = ("authorization", "x-api-key", "api-key")  # where clients of the APIs put a key
_ONE_CALL = frozenset({"idempotency-key", "x-request-id"})  # headers that name one call
GENERATES = ("completions", "/responses", "/messages")  # ends of the paths whose calls occupy a slot
SETTLE_S = 0.05  # how long a finished response may take to end formally
CROWDED_S = (60.0, 600.0)  # how long a lost slot is remembered, doubling
SHORT_ANSWER_BYTES = 16 * 2**20
PROBE_PATH = "/v1/models"
PROBE_S = 2.0  # how long a probe for reachability may take
REFUSED_S = 300.0  # for which `paired_fields` are not sent after a call with them failed


class Reachability:
    """Whether one server responds. Any HTTP response counts, also an error's."""

    def __init__(self, name: str, address: str) -> None:
        self._name, self._address = name, address
        self._answers: bool | None = None  # None: not called yet
        self._answered_s = self._probed_s = self._logged_s = float("-inf")
        self._n_unlogged = 0  # failures since the last line in the log
        self._outage_logged = False
        self._probing: asyncio.Task[None] | None = None

    def note_answer(self) -> None:
        self._answers, self._answered_s = True, time.monotonic()
        if self._outage_logged:
            self._outage_logged = False
            LOG.warning("upstream %s (%s) is reachable again", self._name, self._address)

    def note_failure(self, reason: str) -> None:
        self._answers, now_s = False, time.monotonic()
        self._n_unlogged += 1
        if now_s - self._logged_s < LOG_EVERY_S:
            return
        n = self._n_unlogged
        failed = "a call failed" if n == 1 else f"{n} calls failed since the last log line, most recently"
        LOG.warning("upstream %s (%s): %s: %s", self._name, self._address, failed, reason)
        self._logged_s = now_s
        self._n_unlogged = 0
        self._outage_logged = True

    async def known(self, probe: Callable[[], Coroutine[Any, Any, None]]) -> bool:
        """Return whether the server responds; without a recent call, `probe` at most once in `KNOWN_S`."""
        now_s = time.monotonic()
        if self._answers and now_s - self._answered_s < KNOWN_S:
            return True
        if self._probing is None or (self._probing.done() and now_s - self._probed_s >= KNOWN_S):
            self._probing, self._probed_s = asyncio.create_task(probe()), now_s
        await asyncio.shield(self._probing)
        return self._answers is not False


class Call:
    """One open response of the upstream. Leaving the block closes or returns the connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._is_behind = False  # more had arrived than the last read returned
        self.status = connection.response.status
        self.headers: list[tuple[str, str]] = []  # those that the client may see, in order
        self.limit_headers: list[tuple[str, str]] = []  # those about rate limits
        self.is_gateway = False  # of Suffice
        self.content_type, encoding = "application/octet-stream", "identity"
        head = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in connection.response.head]
        nominated = hop_by_hop(head)
        for name, value in head:
            lower = name.lower()
            if lower == "content-type":
                self.content_type = value.partition(";")[0].strip().lower()
            elif lower == "content-encoding":
                encoding = value.strip().lower()
            self.is_gateway = self.is_gateway or lower == "x-suffice-episode-id"
            if lower not in nominated and _is_relayed(lower):
                self.headers.append((name, value))
            if "ratelimit" in lower or lower.startswith("retry-after"):
                self.limit_headers.append((lower, value))
        self.is_encoded = encoding != "identity"
        self.asks_for_less = False  # the upstream requested fewer calls: 429, or 503 with a retry time

    @property
    def at_end(self) -> bool:
        return self._connection.at_end

    async def read(self, on_arrival: ArrivalCallback | None = None) -> bytes:
        """Return the next bytes that `on_arrival` left, b"" at the end. Raise UpstreamDown or UpstreamTimeout."""
        connection = self._connection
        if self._is_behind:
            await asyncio.sleep(0)  # this reader never waits while bytes are there, so let others run
        try:
            while (data := connection.take()) is None:
                await connection.more(on_arrival)
        except TimeoutError:
            raise UpstreamTimeout("the upstream was silent for longer than idle_timeout_s") from None
        except ConnectionBroken as error:
            raise UpstreamDown(f"the upstream closed the connection before its answer was complete ({error})") from None
        self._is_behind = bool(connection.response.parts)
        return data

    async def read_all(self, limit_bytes: int = 64 * 2**20) -> bytes:
        parts, size = [], 0
        while data := await self.read():
            parts.append(data)
            size += len(data)
            if size > limit_bytes:
                raise UpstreamDown(f"the upstream's answer is longer than {limit_bytes} bytes")
        return b"".join(parts)

    async def settle(self, within_s: float = SETTLE_S) -> None:
        """Read a response to its formal end, if that comes soon, so that its connection can be reused."""
        if self.at_end:
            return
        with contextlib.suppress(TimeoutError, UpstreamError):
            async with asyncio.timeout(within_s):
                while await self.read():
                    pass

    def close(self) -> None:
        if not self.at_end:
            self._connection.cut()


ShortResponse: TypeAlias = tuple[int, bytes, list[tuple[str, str]]]  # status, body, headers that a client may see


class UpstreamClient:
    def __init__(
        self, name: str, settings: Upstream, api_key: str | None, findings: Findings | None = None, *, via: str = ""
    ) -> None:
        """Make a client; `via` is the name by which a gateway knows its own calls, "": of no gateway."""
        self.name, self.settings = name, settings
        self._via = f"via: 1.1 {via}" if via else ""
        self.api_key = api_key  # sent with each call; may be replaced
        self.findings = findings  # what doctor observed of this server; None: doctor has not run
        self.allowance = Allowance(settings.extra, self.slots)
        self._login = _login_header(settings.url)
        self._pool = ConnectionPool(settings)
        self._address = self._pool.address
        self.n_open = 0  # completions open on the server, of all requests
        self.refuses: set[str] = set()  # fields of ours that it rejected
        self._paired_fields_from_s = float("-inf")  # when they may be sent again
        self._crowded_s = CROWDED_S[0]  # how long the next lost slot is remembered
        self._crowded_until_s = float("-inf")
        self.reachability = Reachability(name, self._address.name)

    @property
    def slots(self) -> int:
        """The requests that the server runs at once; where the settings name none, as many as doctor found."""
        n_slots = None if self.findings is None else self.findings.n_slots
        return n_slots if n_slots is not None and self.settings.slots == 1 else self.settings.slots

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._pool.close()

    def _head(self, method: str, path: str, headers: Headers, n_bytes: int | None, *, x_api_key: bool = False) -> str:
        """Return the request's head without its end. Raise ValueError for a line break in any of its parts."""
        headers = list(headers)
        nominated = hop_by_hop(headers)
        lines = [f"{method} {self._address.path}{path} HTTP/1.1", f"host: {self._address.authority}"]
        has_login = False
        for name, value in headers:
            lower = name.lower()
            if lower in NEVER_SENT_UP or lower in nominated or lower.startswith("x-suffice-"):
                continue
            if lower in KEY_HEADERS:
                if self.api_key is not None:
                    continue  # the caller's own credentials are not sent beside ours
                has_login = has_login or lower == "authorization"
            lines.append(f"{name}: {value}")
        if self.api_key is not None:
            is_plain = x_api_key and self.settings.driver != "vllm"  # which checks `authorization` only
            lines.append(f"x-api-key: {self.api_key}" if is_plain else f"authorization: Bearer {self.api_key}")
        elif self._login is not None and not has_login:
            lines.append(f"authorization: {self._login}")
        if self._via:
            lines.append(self._via)
        if n_bytes is not None:
            lines.append(f"content-length: {n_bytes}")
        head = "\r\n".join(lines)
        if head.count("\n") != len(lines) - 1 or head.count("\r") != len(lines) - 1:
            raise ValueError("a request header for the upstream contains a line break")
        return head

    def open(
        self,
        path: str,
        body: bytes | None,
        headers: Headers = (),
        *,
        method: str = "POST",
        x_api_key: bool = False,
        extra: bool = False,
        own_tier: bool = False,
    ) -> OpenCall:
        """Return a block that sends one request and holds the open response; retry only while nothing came back.

        x_api_key  whether hosted servers of this API take the key in that header
        own_tier   a 429 says nothing of other calls, because this one is of another service tier

        An `extra` call is never retried, so that a request causes at most 1 + `retries` + its route's `max_extra_calls`
        attempts. Raise UpstreamDown if no connection can be made, UpstreamTimeout if no response begins.
        """
        head = self._head(method, path, headers, None if body is None else len(body), x_api_key=x_api_key)
        return OpenCall(
            self, head, body, takes_slot=path.partition("?")[0].endswith(GENERATES), extra=extra, own_tier=own_tier
        )

    def begin(self, connection: Connection, *, extra: bool, own_tier: bool) -> Call:
        """Return the response that has begun."""
        self.reachability.note_answer()
        call = Call(connection)
        limits = list(call.limit_headers)
        if not own_tier and (limits or extra or call.status != 200):  # most servers send none
            call.asks_for_less = self.allowance.note(
                call.status, limits, extra=extra, now_s=time.monotonic(), wall_s=time.time()
            )
        return call

    def give_back(self, connection: Connection) -> None:
        self._pool.give_back(connection)

    async def send(self, head: str, body: bytes | None, *, retries: int) -> Connection:
        for attempt in range(retries + 1):
            # Most often a kept connection that the server was just closing: the request never got a response.
            # The others in the pool may be as stale, so the next attempt uses a new connection.
            fresh = attempt > 0
            end = "\r\nconnection: close\r\n\r\n" if fresh else "\r\n\r\n"
            try:
                connection = None if fresh else self._pool.take_kept()
                connection = connection or await self._pool.connect(keep=not fresh)
                try:
                    await connection.ask((head + end).encode("latin-1", "replace"), body)
                except BaseException:
                    self._pool.give_back(connection)
                    raise
                return connection
            except TimeoutError:
                raise self._failed(UpstreamTimeout(f"upstream {self.name!r} did not begin to answer in time")) from None
            except (ConnectionBroken, OSError) as error:
                if attempt < retries and not (isinstance(error, ConnectionBroken) and error.began):
                    continue
                # The text of an OSError may name an address; its class says enough.
                why = str(error) if isinstance(error, ConnectionBroken) else type(error).__name__
                message = f"no connection to upstream {self.name!r}, or the upstream did not answer on it ({why})"
                raise self._failed(UpstreamDown(message)) from None
        raise AssertionError("unreachable")

    def _failed(self, error: UpstreamError) -> UpstreamError:
        self.reachability.note_failure(str(error))
        return self._with_address(error)

    def _with_address(self, error: UpstreamError) -> UpstreamError:
        error.address = self._address.name
        return error

    async def fetch(
        self,
        path: str,
        body: bytes | None = None,
        headers: Headers = (),
        *,
        timeout_s: float,
        method: str = "POST",
        most_bytes: int = SHORT_ANSWER_BYTES,
    ) -> ShortResponse:
        """Make a short call and read its whole response; redirects are not followed. Raise UpstreamError.

        timeout_s   for the whole call
        most_bytes  of the response; a longer one is an error
        """
        try:
            async with asyncio.timeout(timeout_s), self.open(path, body, _json_headers(headers), method=method) as call:
                return call.status, await call.read_all(most_bytes), call.headers
        except TimeoutError:
            message = f"upstream {self.name!r} took longer than {timeout_s:g} s for {path}"
            raise self._with_address(UpstreamTimeout(message)) from None

    async def is_reachable(self) -> bool:
        return await self.reachability.known(self._probe)

    async def _probe(self) -> None:
        try:
            await self.fetch(PROBE_PATH, method="GET", timeout_s=PROBE_S)
        except UpstreamTimeout as error:
            if not self.n_open:  # a server busy with our calls may be late
                self.reachability.note_failure(str(error))
        except UpstreamError:
            pass

    # ---- room for extra calls

    def extra_refusal(self) -> Refusal | None:
        n_other = self.n_open - self.allowance.n_open
        return self.allowance.refusal(now_s=time.monotonic(), n_other=n_other)

    @property
    def is_paused(self) -> bool:
        """Whether the upstream requested fewer calls; then only the client's own calls are made."""
        return self.allowance.is_paused(time.monotonic())

    @contextlib.contextmanager
    def extra_call(self, spent: Callable[[], int], *, is_probe: bool) -> Iterator[None]:
        """Reserve room for a call, or raise UpstreamBusy; `spent` returns the tokens read anew and generated."""
        reason = self.extra_refusal() if is_probe else "paused" if self.is_paused else None
        if reason is not None:
            raise UpstreamBusy(reason)
        self.allowance.begin(time.monotonic(), is_probe=is_probe)
        try:
            yield
        finally:
            self.allowance.end(spent(), time.monotonic(), is_probe=is_probe)

    @property
    def sends_paired_fields(self) -> bool:
        return bool(self.settings.paired_fields) and time.monotonic() >= self._paired_fields_from_s

    def note_paired_fields_failed(self, why: str) -> None:
        """Make paired calls as other calls for a while."""
        self._paired_fields_from_s = time.monotonic() + REFUSED_S
        fields = ", ".join(sorted(self.settings.paired_fields))
        message = "upstream %s: a paired call with %s failed (%s); for %d s they are made at the full price"
        LOG.warning(message, self.name, fields, why, REFUSED_S)

    def note_lost_slot(self) -> None:
        """Record that a call gave up its slot to its continuation, which then got none in time: another was waiting."""
        now_s = time.monotonic()
        if now_s >= self._crowded_until_s:
            self._crowded_until_s, self._crowded_s = now_s + self._crowded_s, min(2 * self._crowded_s, CROWDED_S[1])

    @property
    def is_crowded(self) -> bool:
        """Whether a call that gives up its slot would have to wait for another.

        `slots = 1` may be an unset default, so then only a recently lost slot counts.
        """
        slots = self.slots
        waits = slots > 1 and self.n_open >= 2 * slots
        return self.n_open > slots and (waits or time.monotonic() < self._crowded_until_s)


class OpenCall(contextlib.AbstractAsyncContextManager[Call]):
    """The block of `UpstreamClient.open`."""

    __slots__ = ("_body", "_client", "_connection", "_extra", "_head", "_own_tier", "_takes_slot")

    def __init__(
        self, client: UpstreamClient, head: str, body: bytes | None, *, takes_slot: bool, extra: bool, own_tier: bool
    ) -> None:
        self._client = client
        self._head = head
        self._body = body
        self._takes_slot = takes_slot
        self._extra = extra
        self._own_tier = own_tier
        self._connection: Connection | None = None

    async def __aenter__(self) -> Call:
        client = self._client
        client.n_open += self._takes_slot
        try:
            retries = 0 if self._extra else client.settings.retries
            self._connection = connection = await client.send(self._head, self._body, retries=retries)
            return client.begin(connection, extra=self._extra, own_tier=self._own_tier)
        except BaseException:
            await self.__aexit__()
            raise

    async def __aexit__(self, *_: object) -> None:
        if self._connection is not None:
            self._client.give_back(self._connection)
        self._client.n_open -= self._takes_slot


def helper_client(
    name: str, url: str, *, timeout_s: float, api_key: str | None = None, retries: int = 0
) -> UpstreamClient:
    """Return a client for a server that is no route's upstream, such as a judge. Set `retries` for idempotent calls."""
    settings = Upstream(
        url=url, connect_timeout_s=timeout_s, first_byte_timeout_s=timeout_s, idle_timeout_s=timeout_s, retries=retries
    )
    return UpstreamClient(name, settings, api_key)


def hop_by_hop(headers: Headers) -> frozenset[str]:
    """Return the headers that `Connection` names for this hop, without those that describe the body."""
    listed = ",".join([value for name, value in headers if name.lower() == "connection"])
    if listed in ("", "close", "keep-alive"):
        return frozenset()
    names = (name.strip().lower() for name in listed.split(","))
    return frozenset(name for name in names if not name.startswith("content-"))


@lru_cache(maxsize=512)
def _is_relayed(name: str) -> bool:
    return not name.startswith("x-suffice-") and _RELAYED.fullmatch(name) is not None


def _login_header(url: str) -> str | None:
    parsed = URL(url)
    if parsed.user is None:
        return None
    return "Basic " + base64.b64encode(f"{parsed.user}:{parsed.password or ''}".encode()).decode()


def _json_headers(headers: Headers) -> list[tuple[str, str]]:
    dropped = {"content-type", "accept", "accept-encoding", "content-encoding"}
    kept = [(k, v) for k, v in headers if k.lower() not in dropped]
    return [*kept, ("content-type", "application/json"), ("accept-encoding", "identity")]


def governed_headers(headers: Headers, nth: int = 1) -> list[tuple[str, str]]:
    """Return headers for a rewritten body.

    Each later call gets its own idempotency key, or the server repeats itself, and its own request id, which vLLM
    uses as the name of the running request.
    """
    sent = _json_headers(headers)
    if nth == 1:
        return sent
    return [(k, f"{v}-{nth}" if k.lower() in _ONE_CALL else v) for k, v in sent]


def mark_run(headers: Headers, name: str, run: str) -> list[tuple[str, str]]:
    """Add the header by which a router keeps a run's calls together, unless the client sent its own.

    llama.cpp's `id_slot` is never sent: a server that keeps a cache of prompts (its default) loads a cached prompt into
    that slot before it checks whether the slot is busy, and the running call goes on in another conversation. Seen with
    xllamacpp 2026.10, and read in `get_available_slot` of tools/server/server-context.cpp.
    """
    kept = list(headers)
    if not name or any(k.lower() == name.lower() for k, _ in kept):
        return kept
    return [*kept, (name, run)]

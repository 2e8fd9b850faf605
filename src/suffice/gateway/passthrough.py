"""Endpoints that are never governed: their bytes are relayed, and each request gets one outcome."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias

from suffice.episode.apis import messages, responses
from suffice.episode.apis.events import CHAT, ApiFormat
from suffice.episode.ledger import CallAccount, Ledger
from suffice.errors import BadRequest, UpstreamProtocol
from suffice.gateway.admitted import AdmittedRequest, serve_request
from suffice.gateway.auth import MOST_ID_CHARS, object_in
from suffice.gateway.context import GatewayState
from suffice.gateway.exchange import Exchange
from suffice.gateway.lifecycle import Arrival, admit, append, find_route
from suffice.gateway.request_parsing import (
    ParsedRequest,
    check_body_headers,
    parse_json,
    read_aside,
    read_chat,
    read_unparsed,
)
from suffice.store.rows.events import StoredObject
from suffice.types import Purpose
from suffice.upstream.assemble import AnswerFacts, read_answer
from suffice.upstream.client import Call, Headers, UpstreamClient
from suffice.upstream.wire import encode_json

HEAD_BYTES = 16 * 1024
TAIL_BYTES = 64 * 1024
HELD_BYTES = 64 * 1024  # a longer event is relayed in parts
_EVENT_ENDS = (b"\n\n", b"\r\n\r\n", b"\r\r")


NoteId: TypeAlias = Callable[[str | None], bool]


async def pass_through(
    exchange: Exchange,
    client: UpstreamClient,
    path: str,
    body: bytes | None,
    headers: Headers,
    ledger: Ledger,
    *,
    purpose: Purpose = "main",
    method: str = "POST",
    x_api_key: bool = False,
    mark: bytes = b'"delta"',
    reads_head: bool = False,
    note_id: NoteId | None = None,
) -> None:
    """Relay one call byte for byte, events whole. Raise UpstreamError if there is no response to relay.

    x_api_key   as for `UpstreamClient.open`
    mark        occurs once in each event with text
    reads_head  whether the first events tell what the last ones do not
    note_id     is called with the id in a stream's first events, before they are sent, until it returns True
    """
    account = ledger.open_call(purpose)
    extra = purpose == "rerun"
    kept = Excerpt(reads_head=reads_head)
    try:
        async with client.open(path, body, headers, method=method, x_api_key=x_api_key, extra=extra) as call:
            if not (200 <= call.status < 300 or 400 <= call.status < 600):
                raise UpstreamProtocol(f"the upstream answered {call.status}; redirects are not followed")
            account.began = True
            # Compressed events cannot be told apart, so no error may be written among them.
            events = call.content_type == "text/event-stream" and not call.is_encoded
            await exchange.start(call.status, call.headers, events=events)
            if events:
                await _relay_events(exchange, call, account, mark, kept, note_id)
            while not (events or exchange.complete) and (data := await call.read()):
                kept.add(data)
                await exchange.body(data, more=not call.at_end)  # a short response is one write
            if not exchange.complete:
                await exchange.body(b"", more=False)
            account.cancelled = False
            if call.status >= 400:
                ledger.end_reason = "upstream_error"
            _note_end(account, ledger, read_answer(kept.head, bytes(kept.tail), events=events))
            await call.settle()
    finally:
        if account.cancelled and exchange.events:
            _note_opening(account, ledger, read_answer(kept.head, b"", events=True))


def _note_end(account: CallAccount, ledger: Ledger, facts: AnswerFacts) -> None:
    _note_opening(account, ledger, facts)
    account.reported_tokens = facts.completion_tokens
    account.reasoning_tokens = facts.reasoning_tokens or 0
    ledger.reply.finish_reason = "length" if facts.truncated else None
    if facts.failed:
        ledger.end_reason = "upstream_error"


def _note_opening(account: CallAccount, ledger: Ledger, facts: AnswerFacts) -> None:
    account.prompt_tokens, account.cached_tokens = facts.prompt_tokens, facts.cached_tokens or 0
    ledger.reply.response_id = facts.response_id or ledger.reply.response_id


class Excerpt:
    """The last bytes of a response, and its first ones, which may overlap them, where they are read."""

    def __init__(self, *, reads_head: bool) -> None:
        self.tail = bytearray()
        self._head: bytes | None = None if reads_head else b""  # None: the tail begins with it

    @property
    def head(self) -> bytes:
        return bytes(self.tail[:HEAD_BYTES]) if self._head is None else self._head

    def add(self, data: bytes) -> None:
        self.tail += data
        if len(self.tail) > 2 * TAIL_BYTES:
            self._head = self.head
            del self.tail[:-TAIL_BYTES]


async def _relay_events(
    exchange: Exchange, call: Call, account: CallAccount, mark: bytes, kept: Excerpt, note_id: NoteId | None
) -> None:
    held, n_deltas = bytearray(), 0

    def at_once(data: bytes) -> bool:
        nonlocal n_deltas
        if held or note_id is not None or not _is_whole(data) or not exchange.body_now(data):
            return False
        kept.add(data)
        n_deltas += data.count(mark)
        account.received_tokens = max(0, n_deltas - 1)
        return True

    while data := await call.read(at_once):
        kept.add(data)
        if note_id is not None:
            is_noted = note_id(read_answer(kept.head, b"", events=True).response_id)
            note_id = None if is_noted or len(kept.head) == HEAD_BYTES else note_id
        if whole := take_whole_events(held, data):
            # One event per token, less the one that opens the message, is a lower bound; the upstream's own
            # count replaces it at the end.
            n_deltas += whole.count(mark)
            account.received_tokens = max(0, n_deltas - 1)
            await exchange.body(whole)
    if held:
        await exchange.body(bytes(held))


def take_whole_events(held: bytearray, data: bytes) -> bytes:
    """Append `data` to `held`, and remove and return all whole events; at most HELD_BYTES stay in `held`."""
    if not held and _is_whole(data):
        return data
    held += data
    ends = [at + len(mark) for mark in _EVENT_ENDS if (at := held.rfind(mark)) >= 0]
    cut = len(held) if len(held) > HELD_BYTES else max(ends, default=0)
    whole = bytes(held[:cut])
    del held[:cut]
    return whole


def _is_whole(data: bytes) -> bool:
    return data.endswith(b"\n\n") and len(data) <= HELD_BYTES


_QUERY = re.compile(rb"[!$-~]{0,8192}")  # allowed in a request line, without a fragment
_SEQUENCE = re.compile(rb'"sequence_number":\s*(\d{1,15})')
_MESSAGES_KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


class ResponsesExchange(Exchange):
    items: list[Any] | None = None  # the conversation, if the response may be kept
    on_part: Callable[[], None] | None = None  # called before a part is sent, except for repeated events

    async def body(self, data: bytes, *, more: bool = True) -> None:
        if self.on_part is not None and not self.is_unread:
            self.on_part()
        await super().body(data, more=more)

    def error_frame(self, status: int, message: str, kind: str, code: str) -> bytes:  # noqa: ARG002
        """Flat, as in the API reference, and nested, as OpenAI's clients expect."""
        seen = _SEQUENCE.findall(self.last)
        error = {"type": kind, "code": code, "message": message, "param": None}
        event = error | {"type": "error", "sequence_number": int(seen[-1]) + 1 if seen else 0, "error": error}
        return b"event: error\ndata: " + encode_json(event) + b"\n\n"


class MessagesExchange(Exchange):
    def error_body(self, status: int, message: str, kind: str, param: str | None, code: str) -> bytes:  # noqa: ARG002
        kind = _MESSAGES_KINDS.get(status, "invalid_request_error" if status < 500 else "api_error")
        return encode_json({"type": "error", "error": {"type": kind, "message": message}})

    def error_frame(self, status: int, message: str, kind: str, code: str) -> bytes:
        return b"event: error\ndata: " + self.error_body(status, message, kind, None, code) + b"\n\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Api:
    exchange: type[Exchange] = Exchange
    mark: bytes = b'"delta"'  # occurs once in each event with text
    x_api_key: bool = False  # clients may send their key in `x-api-key`
    is_json: bool = True  # the body is parsed
    format: ApiFormat = CHAT  # where it is governed


COMPLETIONS = Api(mark=b'"text"')
EMBEDDINGS = Api()
RESPONSES = Api(exchange=ResponsesExchange, format=responses.RESPONSES)
MESSAGES = Api(exchange=MessagesExchange, x_api_key=True, format=messages.MESSAGES)
ENGINE = Api(mark=b'"content"', is_json=False)


@dataclass(frozen=True, slots=True)
class Passthrough:
    api: Api
    method: str
    path: str

    async def __call__(self, gw: GatewayState, exchange: Exchange) -> None:
        await serve_request(gw, exchange, partial(self._admit, gw, exchange), self._answer, endpoint=self.path)

    @property
    def creates(self) -> bool:
        return self.method == "POST" and object_in(self.path) == (True, None)

    async def _admit(self, gw: GatewayState, exchange: Exchange, episode_id: str) -> AdmittedRequest:
        caller, named = exchange.caller, dict(exchange.headers)
        parsed = await self._read_allowed(gw, exchange)
        stored = await self._stored(gw, exchange)
        try:
            route = find_route(gw, parsed.model, named, caller)
        except BadRequest:  # the creator of an object may reach it without a route of its own
            if "x-suffice-route" in named or stored is None or stored.sender != caller.id:
                raise
            route = None
        arrival = Arrival(
            episode_id=episode_id, endpoint=self.path, caller=caller, model=parsed.model, stream=parsed.stream
        )
        served, request, _ = admit(gw, arrival, route, "no_route" if route is None else "endpoint")
        upstream = (route.settings.upstream if route is not None else "") or gw.fallback_upstream()
        if stored is not None and "x-suffice-route" not in named and stored.upstream in gw.upstreams:
            upstream = stored.upstream
        if self.api.is_json and route is not None:
            parsed = parsed.for_model(route.settings.model)
        return AdmittedRequest(
            gw=gw, exchange=exchange, parsed=parsed, route=served, upstream=upstream, request=request
        )

    async def _read_allowed(self, gw: GatewayState, exchange: Exchange) -> ParsedRequest:
        """Read the body. Raise BadRequest also for one that names what another key has made."""
        if not _QUERY.fullmatch(_query_of(exchange)):
            raise BadRequest("query: must be printable ASCII of at most 8192 characters", code="bad_query")
        parsed = await self._read(gw, exchange)
        if gw.clients.keys.isolates(exchange.caller):
            await gw.clients.objects.check_body(exchange.caller, parsed.raw, parsed.body)
        return parsed

    async def _stored(self, gw: GatewayState, exchange: Exchange) -> StoredObject | None:
        objects, (is_object, object_id) = gw.clients.objects, object_in(self.path)
        object_id, is_shared = exchange.stored_id or object_id, gw.clients.keys.isolates(exchange.caller)
        if object_id is None:
            if is_object and self.method != "POST" and is_shared:
                message = "this list shows what other keys have made; a key with all_objects may see it"
                raise BadRequest(message, status=403, code="scope")
            return None
        if is_shared:
            await objects.check(exchange.caller, object_id, "id")
        return await objects.of(object_id) if gw.clients.keys.asks_for_keys else objects.recent(object_id)

    async def _read(self, gw: GatewayState, exchange: Exchange) -> ParsedRequest:
        limits, headers = gw.settings.server, exchange.headers
        has_body = self.api.is_json and self.method == "POST" and exchange.stored_id is None
        check_body_headers(headers, limits.max_body_bytes, is_json=has_body)
        raw = await exchange.read_body(limits.max_body_bytes)
        if has_body:
            return await read_aside(read_chat, raw, limits)
        kind = dict(headers).get("content-type")
        if raw and kind is None:
            message = "content-type: got none; must say what the body is"
            raise BadRequest(message, status=415, code="unsupported_media_type")
        is_form = (kind or "").lower().startswith("multipart/") and raw[:2] == b"--"
        if raw and not is_form and gw.clients.keys.has_tenants and object_in(self.path)[0]:
            body = await read_aside(parse_json, raw, limits)  # references must be unambiguous
            return replace(read_unparsed(raw.strip()), body=body)
        return read_unparsed(raw)

    async def _answer(self, admitted: AdmittedRequest, ledger: Ledger) -> None:
        try:
            await self._respond(admitted, ledger)
        finally:
            self._note_created(admitted, ledger, ledger.reply.response_id)

    def _note_created(self, admitted: AdmittedRequest, ledger: Ledger, object_id: str | None) -> bool:
        """Record who made an object, if the request did; return whether there is nothing left to record."""
        if not self.creates:
            return True
        gw, caller = admitted.gw, admitted.exchange.caller
        if object_id is None or len(object_id) > MOST_ID_CHARS or not 200 <= admitted.exchange.status < 300:
            return False
        made = StoredObject(
            object_id=object_id, sender=caller.id, upstream=admitted.upstream, tenant=caller.permits.tenant
        )
        if gw.clients.objects.note(made) and made.sender:
            append(gw, made, ledger)
        return True

    async def _respond(self, admitted: AdmittedRequest, ledger: Ledger) -> None:
        await self.relay(admitted, ledger)

    async def relay(self, admitted: AdmittedRequest, ledger: Ledger, purpose: Purpose = "main") -> None:
        gw = admitted.gw
        exchange = admitted.exchange
        request = admitted.request
        client = admitted.client
        if purpose == "main":
            gw.metrics.inc("suffice_ungoverned_total", request.route, request.ungoverned or "endpoint")
        path, query = self.path.replace("{id}", exchange.stored_id or ""), _query_of(exchange)
        await pass_through(
            exchange,
            client,
            f"{path}?{query.decode('ascii')}" if query else path,
            admitted.parsed.forwarded or (None if self.method in ("GET", "DELETE") else b""),
            gw.clients.keys.without_keys(exchange.headers),
            ledger,
            purpose=purpose,
            method=self.method,
            x_api_key=self.api.x_api_key,
            mark=self.api.mark,
            reads_head=True,
            note_id=partial(self._note_created, admitted, ledger) if self.creates else None,
        )


def _query_of(exchange: Exchange) -> bytes:
    query: bytes = exchange.scope.get("query_string", b"")
    return query

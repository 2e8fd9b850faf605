"""Endpoints that are never governed: their bytes go through, and each request has its one outcome.

Plain completions, responses, messages, embeddings, and further paths of the engine that the owner has
listed. It knows how each API writes errors and where it wants its key; it refuses to know what the
answers mean: `upstream/tally.py` reads their tokens, and nothing else is read.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import msgspec

from suffice.episode.ledger import CallAccount, Ledger
from suffice.errors import BadRequest, TooLarge
from suffice.gateway import request_log
from suffice.gateway.auth import Caller, caller_of
from suffice.gateway.chat import (
    AdmittedRequest,
    blank,
    check_objects,
    count_stripped,
    find_route,
    for_route,
    one_request,
)
from suffice.gateway.context import Gateway
from suffice.gateway.exchange import Exchange, Receive, Scope, Send, headers_of, read_body, tells_hang_up, writes_now
from suffice.gateway.objects import MOST_ID_CHARS, object_in
from suffice.gateway.relay import Foreign, forwarded, pass_through
from suffice.gateway.request_parsing import (
    MOST_NAME_CHARS,
    Intake,
    check_body_headers,
    parse_json,
    read_aside,
    read_chat,
)
from suffice.gateway.route import BuiltRoute
from suffice.store.rows.records import StoredObject
from suffice.types import Request
from suffice.upstream.tally import AnswerFacts, read_answer
from suffice.upstream.wire import encode_json

HEAD_BYTES = 16 * 1024
_QUERY = re.compile(rb"[!$-~]{0,8192}")  # what may stand in a request line, and no fragment
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


class PassingExchange(Exchange):
    """The client's side of a relayed answer; errors in OpenAI's shape."""

    head: bytes = b""  # the first bytes of the answer
    last: bytes = b""  # the last part that was sent, whole events of a stream
    on_head: Callable[[bytes], bool] | None = None  # gets the head of a stream as it grows, until it says True

    async def body(self, data: bytes, *, more: bool = True) -> None:
        """Send a part of the body, and keep the first bytes of it all."""
        self._keep(data)
        await super().body(data, more=more)

    def body_now(self, data: bytes) -> bool:
        """The same without waiting."""
        if not super().body_now(data):
            return False
        self._keep(data)
        return True

    def _keep(self, data: bytes) -> None:
        self.last = data or self.last
        if len(self.head) >= HEAD_BYTES:
            return
        self.head += data[: HEAD_BYTES - len(self.head)]
        if self.on_head is not None and self.events and self.on_head(self.head):
            self.on_head = None


class ResponsesExchange(PassingExchange):
    """The same for responses: a failure inside a stream is an event `error` of that API."""

    def error_frame(self, status: int, message: str, kind: str, code: str) -> bytes:  # noqa: ARG002
        """Flat, as the API's reference has it, and nested, as OpenAI's clients look for it."""
        seen = _SEQUENCE.findall(self.last)
        error = {"type": kind, "code": code, "message": message, "param": None}
        event = error | {"type": "error", "sequence_number": int(seen[-1]) + 1 if seen else 0, "error": error}
        return b"event: error\ndata: " + encode_json(event) + b"\n\n"


class MessagesExchange(PassingExchange):
    """The same for Anthropic's messages, whose errors have a shape of their own."""

    def error_body(self, status: int, message: str, kind: str, param: str | None, code: str) -> bytes:  # noqa: ARG002
        """`{"type": "error", "error": {"type", "message"}}`."""
        kind = _MESSAGES_KINDS.get(status, "invalid_request_error" if status < 500 else "api_error")
        return encode_json({"type": "error", "error": {"type": kind, "message": message}})

    def error_frame(self, status: int, message: str, kind: str, code: str) -> bytes:
        """The same as the event `error`."""
        return b"event: error\ndata: " + self.error_body(status, message, kind, None, code) + b"\n\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Api:
    """What differs between the APIs that pass through."""

    exchange: type[PassingExchange] = PassingExchange
    mark: bytes = b'"delta"'  # stands once in each event that carries text
    x_api_key: bool = False  # this API's clients bring their key in `x-api-key`
    is_json: bool = True  # the body is read as far as model and stream; otherwise it is not read


COMPLETIONS = Api(mark=b'"text"')
EMBEDDINGS = Api()
RESPONSES = Api(exchange=ResponsesExchange)
MESSAGES = Api(exchange=MessagesExchange, x_api_key=True)
ENGINE = Api(mark=b'"content"', is_json=False)


@dataclass(frozen=True, slots=True)
class Passthrough:
    """The handler of one endpoint. `path` is the upstream's, and may hold `{id}`."""

    api: Api
    method: str
    path: str

    async def __call__(self, gw: Gateway, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        exchange = self.api.exchange(send, [], gw.monotonic_s, tells_hang_up(scope), writes_now(scope))
        stored_id = scope.get("path_params", {}).get("id")
        ask = _Ask(
            api=self.api, method=self.method, endpoint=self.path, stored_id=stored_id, gw=gw, caller=caller_of(scope)
        )
        await one_request(gw, receive, exchange, partial(ask.admitted, scope, receive), ask.answer, endpoint=self.path)


@dataclass(slots=True, kw_only=True)
class _Ask:
    """One request on its way through."""

    api: Api
    method: str
    endpoint: str
    stored_id: str | None
    gw: Gateway
    caller: Caller
    query: bytes = b""

    async def admitted(self, scope: Scope, receive: Receive, episode_id: str) -> AdmittedRequest:
        """Read what has to be read, and find the route and the upstream. Raises BadRequest."""
        gw, headers = self.gw, headers_of(scope)
        self.query = scope.get("query_string", b"")
        if not _QUERY.fullmatch(self.query):
            raise BadRequest("query: must be printable ASCII of at most 8192 characters", code="bad_query")
        intake = await self._read(headers, receive)
        named = dict(headers)
        kept = await self._stored()
        await check_objects(gw, self.caller, intake)
        found = self._route(intake, named, kept)
        count_stripped(gw, intake)
        return AdmittedRequest(
            intake=for_route(intake, found) if self.api.is_json else intake,
            headers=gw.keys.without_keys(headers),
            route=found,
            upstream=self._upstream(found, named, kept),
            request=self._request(episode_id, intake, found),
        )

    def _route(self, intake: Intake, named: dict[str, str], kept: StoredObject | None) -> BuiltRoute | None:
        """The request's route. An object is its owner's, whatever the routes that its key may use match."""
        try:
            return find_route(self.gw, intake.model, named, self.caller)
        except BadRequest:
            if "x-suffice-route" in named or kept is None or kept.sender != self.caller.id:
                raise
            return None

    async def _stored(self) -> StoredObject | None:
        """The object that the path names, as far as it is known. Raises BadRequest for one that is not the caller's."""
        gw, (is_object, object_id) = self.gw, object_in(self.endpoint)
        object_id = self.stored_id or object_id
        if object_id is None:
            if is_object and self.method != "POST" and gw.keys.has_tenants and not self.caller.sees_all:
                message = "this list shows what other keys have made; a key with all_objects may see it"
                raise BadRequest(message, status=403, code="scope")
            return None
        if gw.keys.has_tenants and not self.caller.sees_all:
            await gw.objects.check(self.caller, object_id, "id")
        return await gw.objects.of(object_id) if gw.keys.asks_for_keys else gw.objects.recent(object_id)

    @property
    def _makes(self) -> bool:
        """Does an answer name an object that this request has made?"""
        is_object, object_id = object_in(self.endpoint)
        return is_object and object_id is None and self.method == "POST"

    def _note_made(self, ledger: Ledger, upstream: str, status: int, object_id: str | None) -> bool:
        """Remember who made an object; True: its id is known."""
        if object_id is None or len(object_id) > MOST_ID_CHARS or not 200 <= status < 300:
            return False
        made = StoredObject(object_id=object_id, sender=self.caller.id, upstream=upstream)
        if self.gw.objects.note(made) and self.caller.id:
            request_log.append(self.gw, made, ledger)
        return True

    async def _read(self, headers: list[tuple[str, str]], receive: Receive) -> Intake:
        limits = self.gw.settings.server
        has_body = self.api.is_json and self.method == "POST" and self.stored_id is None
        if has_body:
            check_body_headers(headers, limits.max_body_bytes)
        else:
            _check_length(headers, limits.max_body_bytes)
        raw = await read_body(receive, limits.max_body_bytes)
        if raw and not any(name == "content-type" for name, _ in headers):
            message = "content-type: got none; must say what the body is"
            raise BadRequest(message, status=415, code="unsupported_media_type")
        if has_body:
            return await read_aside(read_chat, raw, limits)
        is_form = dict(headers).get("content-type", "").lower().startswith("multipart/") and raw[:2] == b"--"
        if raw and not is_form and self.gw.keys.has_tenants and object_in(self.endpoint)[0]:
            body = await read_aside(parse_json, raw, limits)  # what may name an object must mean one thing
            return replace(_unread(raw.strip()), body=body)
        return _unread(raw)

    def _upstream(self, found: BuiltRoute | None, named: Mapping[str, str], kept: StoredObject | None) -> str:
        """Where a stored answer lives, as far as it is known; else the route's upstream."""
        if kept is not None and "x-suffice-route" not in named and kept.upstream in self.gw.upstreams:
            return kept.upstream
        return (found.settings.upstream if found is not None else "") or self.gw.fallback_upstream()

    def _request(self, episode_id: str, intake: Intake, found: BuiltRoute | None) -> Request:
        gw = self.gw
        if found is None:
            return blank(gw, episode_id, intake, "no_route", self.endpoint, sender=self.caller.id)
        gw.n_requests[found.name] = gw.n_requests.get(found.name, 0) + 1
        return Request(
            episode_id=episode_id,
            route=found.name,
            kind=found.settings.kind,
            mode=found.settings.mode,
            model=intake.model,
            stream=intake.stream,
            n_samples=1,
            audit=False,
            propensity=1.0,
            policy_version=found.policy_version,
            certified=found.certified,
            question_key="",
            ungoverned="endpoint",
            received_at_s=gw.wall_s(),
            endpoint=self.endpoint,
            sender=self.caller.id,
        )

    async def answer(self, gw: Gateway, admitted: AdmittedRequest, ledger: Ledger, exchange: Exchange) -> None:
        """Relay the answer."""
        assert isinstance(exchange, PassingExchange)
        request, intake = admitted.request, admitted.intake
        gw.metrics.inc("suffice_ungoverned_total", request.route, request.ungoverned or "endpoint")
        client = gw.upstreams[admitted.upstream]
        body = forwarded(intake.raw, intake.body, changed=intake.changed)
        # vLLM's own check of keys reads `authorization` alone, whatever the API.
        wants_own = self.api.x_api_key and client.settings.driver != "vllm"
        foreign = Foreign(
            method=self.method,
            mark=self.api.mark,
            key_header="x-api-key" if wants_own else "authorization",
            note=partial(_note, exchange),
        )
        if self._makes:
            exchange.on_head = lambda head: self._note_made(
                ledger, admitted.upstream, exchange.status, read_answer(head, b"", events=True).response_id
            )
        try:
            await pass_through(
                exchange,
                client,
                self._target(),
                body or (None if self.method in ("GET", "DELETE") else b""),
                admitted.headers,
                ledger,
                foreign=foreign,
            )
        finally:
            _note_opening(exchange, ledger)
            if self._makes:
                self._note_made(ledger, admitted.upstream, exchange.status, ledger.response_id)

    def _target(self) -> str:
        path = self.endpoint.replace("{id}", self.stored_id or "")
        return f"{path}?{self.query.decode('ascii')}" if self.query else path


def _check_length(headers: list[tuple[str, str]], limit_bytes: int) -> None:
    length = next((v for k, v in headers if k == "content-length"), "0")
    if length.isdecimal() and int(length[:20]) > limit_bytes:
        raise TooLarge(f"body: longer than {limit_bytes} bytes")


def _unread(raw: bytes) -> Intake:
    """A body that goes on as it is; only the model in it is looked at, to find its route."""
    model, stream = "", False
    with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError, RecursionError):  # the engine judges it
        if raw[:1] == b"{":
            found = _decode_named(raw)
            model = msgspec.json.decode(found.model, type=str) if len(found.model) <= MOST_NAME_CHARS else ""
            stream = found.stream == b"true"
    return Intake(
        raw=raw,
        body={},
        changed=False,
        stripped=(),
        options={},
        has_options=False,
        model=model,
        stream=stream,
        wants_usage=False,
    )


class _Named(msgspec.Struct):
    """The fields of an engine's own call that are looked at; the others are skipped, which is quick."""

    model: msgspec.Raw = msgspec.Raw(b'""')
    stream: msgspec.Raw = msgspec.Raw(b"")


_decode_named = msgspec.json.Decoder(_Named).decode


def _note(exchange: PassingExchange, account: CallAccount, ledger: Ledger, tail: bytes, events: bool) -> None:
    """Take over what a complete answer says of itself."""
    told = read_answer(exchange.head, tail, events=events)
    _take_prompt(account, told)
    account.reported_tokens = told.completion_tokens
    account.reasoning_tokens = told.reasoning_tokens or 0
    ledger.response_id = told.response_id or ledger.response_id
    ledger.truncated = told.truncated
    if told.failed:
        ledger.end_reason = "upstream_error"


def _note_opening(exchange: PassingExchange, ledger: Ledger) -> None:
    """Of an answer that was cut off, what its first events said: its id, and in messages its prompt's tokens."""
    account = ledger.calls[-1] if ledger.calls else None
    if account is None or not account.cancelled or not exchange.events:
        return
    told = read_answer(exchange.head, b"", events=True)
    _take_prompt(account, told)
    ledger.response_id = told.response_id or ledger.response_id


def _take_prompt(account: CallAccount, told: AnswerFacts) -> None:
    account.prompt_tokens = told.prompt_tokens
    account.cached_tokens = told.cached_tokens or 0

"""The ASGI application: one table of paths, with authorisation on each. Paths match exactly as decoded."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from suffice.asgi import BrowserPolicy, ClientGone, Message, Receive, Scope, Send
from suffice.errors import BadRequest, ConfigError, UpstreamError, UpstreamProtocol
from suffice.gateway import feedback
from suffice.gateway.auth import ANYONE, Caller
from suffice.gateway.chat import chat
from suffice.gateway.clients import KeyLimitError
from suffice.gateway.context import GatewayState
from suffice.gateway.exchange import CONTEXT, Exchange, headers_of
from suffice.gateway.governed_apis import GovernedApi, StoredResponse
from suffice.gateway.lifecycle import usable_routes
from suffice.gateway.operations import (
    answer_now,
    list_runs,
    pull_switch,
    release_switch,
    reload_settings,
    show_switch,
    think_more,
)
from suffice.gateway.passthrough import COMPLETIONS, EMBEDDINGS, ENGINE, MESSAGES, RESPONSES, Api, Passthrough
from suffice.gateway.request_parsing import check_head
from suffice.gateway.rounds_service import decide_step
from suffice.settings import KeyScope, Settings
from suffice.telemetry import CURRENT_REQUEST, RequestContext
from suffice.upstream.client import UpstreamClient
from suffice.upstream.wire import error_body

MODELS_TIMEOUT_S = 10.0
_HEADER_NAMES = re.compile(r"[a-z0-9_-]{1,80}([ \t]*,[ \t]*[a-z0-9_-]{1,80}){0,50}", re.IGNORECASE)


async def list_models(gw: GatewayState, exchange: Exchange) -> None:
    headers, caller = gw.clients.keys.without_keys(exchange.headers), exchange.caller
    usable = {one.settings.upstream for one in usable_routes(gw.deployment.routes, caller, by_name=False)}
    clients = [client for name, client in gw.upstreams.items() if name in usable or not caller.is_restricted]
    if not clients:  # all its routes are caller-driven
        await exchange.json(200, b'{"object":"list","data":[]}')
        return
    answers = await asyncio.gather(*(_models_of(client, headers) for client in clients))
    good = [body for status, body in answers if status == 200]
    if len(answers) == 1 or not good:
        await exchange.json(*answers[0])
        return
    merged: dict[str, Any] = {}
    for body in good:
        try:
            for entry in msgspec.json.decode(body)["data"]:
                merged.setdefault(entry["id"], entry)
        except (ValueError, KeyError, TypeError):
            continue  # skip a list that cannot be read
    await exchange.json(200, msgspec.json.encode({"object": "list", "data": list(merged.values())}))


async def _models_of(client: UpstreamClient, headers: list[tuple[str, str]]) -> tuple[int, bytes]:
    try:
        status, body, _ = await client.fetch("/v1/models", None, headers, method="GET", timeout_s=MODELS_TIMEOUT_S)
        if not (200 <= status < 300 or 400 <= status < 600):
            raise UpstreamProtocol(f"the upstream answered {status}; redirects are not followed")
        return status, body
    except UpstreamError as error:
        return error.status, error_body(str(error), "upstream_error", None, error.code)


async def health(_: GatewayState, exchange: Exchange) -> None:
    await exchange.json(200, b'{"status":"ok"}')


async def ready(gw: GatewayState, exchange: Exchange) -> None:
    """`GET /readyz`: 200 while serving, with or without the log; upstreams count where the settings ask for one."""
    is_ready, body = gw.process.ready, {"status": "ready" if gw.process.ready else "not ready"}
    needs_upstream = gw.settings.server.ready_needs_upstream
    if is_ready and needs_upstream and not await _any_reachable(gw.upstreams.values()):
        is_ready, body = False, {"status": "not ready", "reason": "no upstream answers"}
    if gw.deployment.serves:
        body["without_log"] = gw.deployment.serves
    kill = gw.deployment.kill
    if kill.on:
        body |= {"killed_by": kill.held_by, "kill_reason": kill.reason}
    details = gw.deployment.leases.details(gw.deployment.routes)
    await exchange.json(200 if is_ready else 503, msgspec.json.encode(body | details))


async def _any_reachable(upstreams: Iterable[UpstreamClient]) -> bool:
    calls = [asyncio.ensure_future(client.is_reachable()) for client in upstreams]
    try:
        for answer in asyncio.as_completed(calls):
            if await answer:
                return True
        return False
    finally:
        for one in calls:
            one.cancel()


async def metrics(gw: GatewayState, exchange: Exchange) -> None:
    upstreams = dict(gw.upstreams)
    answers = await asyncio.gather(*(client.is_reachable() for client in upstreams.values()))
    for name, is_reachable in zip(upstreams, answers, strict=True):
        gw.metrics.set("suffice_upstream_reachable", is_reachable, name)
    body = await asyncio.to_thread(generate_latest, gw.metrics.registry)
    await exchange.start(200, [("content-type", CONTENT_TYPE_LATEST), ("content-length", str(len(body)))])
    await exchange.body(body, more=False)


Handler = Callable[[GatewayState, Any], Awaitable[None]]  # Any: the endpoint's subclass of Exchange
MountedApp = Callable[[Scope, Receive, Send], Awaitable[None]]  # another application on the same port


@dataclass(frozen=True, slots=True)
class Endpoint:
    path: str  # `{id}` stands for an id
    method: str
    handler: Handler
    public: bool = False  # without a key; only for endpoints that reveal nothing
    guarded_inside: bool = False  # its handler authenticates, by a key, token or signature
    exchange: type[Exchange] = Exchange  # formats this API's errors
    x_api_key: bool = False  # the key may come in `x-api-key` too
    takes_feedback: bool = False  # feedback keys are accepted
    takes_tokens: bool = False  # pages of other sites may call it with an answer's token
    spends: bool = False  # may cost tokens of its key's budget
    shows_all: bool = False  # shows data of all keys
    needs: KeyScope | None = None  # the scope that its key must have; None: as above
    operates: bool = False  # a key with the scope operate may call it, too
    works_open: bool = False  # without a key, where the gateway requires none


def _passed(method: str, path: str, api: Api, kind: type[Passthrough] = Passthrough) -> Endpoint:
    """`path` lacks the upstream's prefix /v1."""
    made = kind(api, method, f"/v1{path}" if api.is_json else path)
    spends = method == "POST" and "{id}" not in path
    return Endpoint(path, method, made, exchange=api.exchange, x_api_key=api.x_api_key, spends=spends)


# With and without /v1.
API = (
    Endpoint("/chat/completions", "POST", chat, spends=True),
    Endpoint("/models", "GET", list_models),
    Endpoint("/feedback", "POST", feedback.one, guarded_inside=True, takes_feedback=True, takes_tokens=True),
    Endpoint("/feedback/batch", "POST", feedback.batch, takes_feedback=True),
    Endpoint("/feedback/label-studio", "POST", feedback.from_label_studio, takes_feedback=True),
    Endpoint("/feedback/langfuse", "POST", feedback.from_langfuse, guarded_inside=True, takes_feedback=True),
    Endpoint("/decide", "POST", decide_step),
    Endpoint("/runs", "GET", list_runs, operates=True),
    Endpoint("/runs/{id}/answer-now", "POST", answer_now, operates=True),
    Endpoint("/runs/{id}/think-more", "POST", think_more, operates=True),
    Endpoint("/admin/reload", "POST", reload_settings, needs="admin"),
    _passed("POST", "/completions", COMPLETIONS),
    _passed("POST", "/embeddings", EMBEDDINGS),
    _passed("POST", "/responses", RESPONSES, GovernedApi),
    _passed("GET", "/responses/{id}", RESPONSES, StoredResponse),
    _passed("DELETE", "/responses/{id}", RESPONSES, StoredResponse),
    _passed("POST", "/responses/{id}/cancel", RESPONSES),
    _passed("GET", "/responses/{id}/input_items", RESPONSES),
    _passed("POST", "/messages", MESSAGES, GovernedApi),
    _passed("POST", "/messages/count_tokens", MESSAGES),
)
OWN = (
    Endpoint("/healthz", "GET", health, public=True),
    Endpoint("/readyz", "GET", ready, public=True),
    Endpoint("/metrics", "GET", metrics, shows_all=True),
    Endpoint("/v1/admin/kill", "GET", show_switch, needs="read", works_open=True),
    Endpoint("/v1/admin/kill", "POST", pull_switch, needs="operate", works_open=True),
    Endpoint("/v1/admin/kill", "DELETE", release_switch, needs="operate", works_open=True),
)
ENDPOINTS = (*(replace(e, path=f"/v1{e.path}") for e in API), *API, *OWN)


def endpoints(relay: Iterable[str] = ()) -> tuple[Endpoint, ...]:
    """Return all endpoints, listed engine paths included. Raise ConfigError for a path that Suffice answers."""
    listed = [_passed(method, path, ENGINE) for method, _, path in (entry.partition(" ") for entry in relay)]
    taken = {e.path for e in ENDPOINTS if not isinstance(e.handler, Passthrough)}
    for one in listed:
        if one.path in taken:
            raise ConfigError(f"server.relay: {one.path!r} is answered by Suffice itself; it cannot be relayed")
    replaced = {(e.method, e.path) for e in listed}
    return (*(e for e in ENDPOINTS if (e.method, e.path) not in replaced), *listed)


class App:
    """The ASGI application. Raise ConfigError for a path in `server.relay` that Suffice answers.

    `beside` maps the first part of a path to another application, which answers only on `console_port` if that is set.
    """

    def __init__(self, gateway: GatewayState) -> None:
        self.gateway = gateway
        self.beside: dict[str, MountedApp] = {}
        self.reloaded: Callable[[Settings], None] = lambda _: None  # called after each reload
        server = gateway.settings.server
        self.browsers = BrowserPolicy(hosts=server.names, origins=server.allowed_origins)
        self.console_port: int | None = None
        self.endpoints = endpoints(server.relay)
        self._exact: dict[str, dict[str, Endpoint]] = {}
        self._with_id: dict[re.Pattern[str], dict[str, Endpoint]] = {}
        for endpoint in self.endpoints:
            if "{id}" in endpoint.path:
                pattern = re.compile(re.escape(endpoint.path).replace(r"\{id\}", "([A-Za-z0-9_-]{1,200})"))
                self._with_id.setdefault(pattern, {})[endpoint.method] = endpoint
            else:
                self._exact.setdefault(endpoint.path, {})[endpoint.method] = endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise ValueError(f"scope {scope['type']!r}: only http is served")
        process, request = self.gateway.process, RequestContext.of(scope["headers"])
        scope[CONTEXT] = request
        CURRENT_REQUEST.set(request)
        process.n_live += 1
        try:
            # Close connections while draining, so that clients send their next request elsewhere.
            await self._answer(scope, receive, _with_headers(send, _CLOSE) if process.draining else send)
        finally:
            process.n_live -= 1

    def _find(self, path: str) -> tuple[Mapping[str, Endpoint], str | None]:
        if (exact := self._exact.get(path)) is not None:
            return exact, None
        for pattern, by_method in self._with_id.items():
            if matched := pattern.fullmatch(path):
                return by_method, matched.group(1)
        return {}, None

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_console = self.console_port == scope["server"][1]  # the listener's port, not the Host header's
        by_method, stored_id = ({}, None) if is_console else self._find(scope["path"])
        other = None if by_method else self.beside.get("/" + scope["path"][1:].partition("/")[0])
        if other is not None and (is_console or self.console_port is None):
            try:
                check_head(headers_of(scope))
            except BadRequest as error:
                await Exchange(scope, receive, send, self.gateway.monotonic_s).refuse(error)
            else:
                await other(scope, receive, send)
            return
        if by_method and self.browsers.origins:
            named = dict(headers_of(scope))
            if named.get("origin") in self.browsers.origins:
                # A page of this origin may read the response. Cookies are neither sent nor allowed.
                allowed = (b"access-control-allow-origin", named["origin"].encode("latin-1"))
                send = _with_headers(send, (allowed, (b"access-control-expose-headers", b"*"), (b"vary", b"origin")))
                if scope["method"] == "OPTIONS" and "access-control-request-method" in named:
                    await self._answer_preflight(Exchange(scope, receive, send, self.gateway.monotonic_s), by_method)
                    return
        endpoint = by_method.get(scope["method"]) or next(iter(by_method.values()), None)
        exchange = (endpoint.exchange if endpoint else Exchange)(scope, receive, send, self.gateway.monotonic_s)
        exchange.stored_id = stored_id
        try:
            handler = self._admit(exchange, by_method)
        except BadRequest as error:
            await exchange.refuse(error, [("allow", ", ".join(sorted(by_method)))] if error.status == 405 else [])
            return
        await self._handle(exchange, handler)

    async def _handle(self, exchange: Exchange, handler: Handler) -> None:
        try:
            await handler(self.gateway, exchange)
        except BadRequest as error:
            await exchange.refuse(error)
        except ClientGone:
            pass
        finally:
            if self.gateway.clients.limits.permits:
                self.gateway.clients.limits.leave(exchange.caller)

    async def _answer_preflight(self, exchange: Exchange, by_method: Mapping[str, Endpoint]) -> None:
        named = dict(exchange.headers)
        wanted = named.get("access-control-request-headers", "")
        headers = [("access-control-allow-methods", ", ".join(sorted(by_method))), ("access-control-max-age", "600")]
        if _HEADER_NAMES.fullmatch(wanted):
            headers.append(("access-control-allow-headers", wanted))
        if "access-control-request-private-network" in named:
            headers.append(("access-control-allow-private-network", "true"))
        await exchange.start(204, headers)
        await exchange.body(b"", more=False)

    def _admit(self, exchange: Exchange, by_method: Mapping[str, Endpoint]) -> Handler:
        scope, headers = exchange.scope, exchange.headers
        if not by_method:
            known = "allowed: the API below /v1, /healthz, /readyz, /metrics, and what [server] relay lists"
            if self.console_port == scope["server"][1]:
                known = "allowed on this port: the console and its API, below " + " and ".join(sorted(self.beside))
            raise BadRequest(f"no such path: {scope['path'][:200]}; {known}", status=404, code="not_found")
        endpoint = by_method.get(scope["method"])
        if endpoint is None:
            message = f"this path answers {', '.join(sorted(by_method))} only"
            raise BadRequest(message, status=405, code="method_not_allowed")
        check_head(headers, via=self.gateway.via)
        if endpoint.public:
            return endpoint.handler
        try:
            named = dict(headers)
            # Only an open gateway checks the host name: after DNS rebinding a page counts as ours, but it has no key.
            if not self.gateway.clients.keys.asks_for_keys and "host" in named:  # every browser sends it
                self.browsers.check_host(named["host"])
            self.browsers.check_page(named)
        except BadRequest as error:
            if not endpoint.takes_tokens:
                raise
            exchange.foreign_page = error
        exchange.caller = self._caller(endpoint, headers)
        return endpoint.handler

    def _caller(self, endpoint: Endpoint, headers: list[tuple[str, str]]) -> Caller:
        """Count the request against the limits of its key. Raise BadRequest."""
        gw, keys = self.gateway, self.gateway.clients.keys
        if endpoint.guarded_inside:
            caller = keys.find(headers) or ANYONE
        else:
            caller = keys.require(headers, feedback=endpoint.takes_feedback, x_api_key=endpoint.x_api_key)
        if endpoint.needs is not None:
            if not (caller.may_act(endpoint.needs) or (endpoint.works_open and not keys.asks_for_keys)):
                message = f"this needs a key with the scope {endpoint.needs!r} and without a tenant"
                raise BadRequest(message, status=403, code="scope")
        elif endpoint.shows_all:
            if not caller.sees_metrics:
                message = "this shows data of all keys; this key needs all_objects, or the scope 'read', and no tenant"
                raise BadRequest(message, status=403, code="scope")
        elif not (endpoint.takes_feedback or caller.may_ask or (endpoint.operates and caller.may_act("operate"))):
            raise BadRequest("this key may not ask a model", status=403, code="scope")
        try:
            if gw.clients.limits.permits:  # most gateways have no limits
                gw.clients.limits.enter(caller, spends=endpoint.spends, now_s=gw.monotonic_s(), wall_s=gw.wall_s())
        except KeyLimitError as error:
            gw.metrics.inc("suffice_keys_limited_total", caller.name, error.limit)
            raise
        return caller


_CLOSE = ((b"connection", b"close"),)


def _with_headers(send: Send, headers: Iterable[tuple[bytes, bytes]]) -> Send:
    async def send_with(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], *headers]
        await send(message)

    return send_with

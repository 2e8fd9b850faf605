"""The HTTP edge: one bare ASGI callable, one table of paths, authorisation on every one of them.

Paths match exactly, as the server decoded them; nothing is normalised, so nothing can be smuggled.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from suffice.errors import BadRequest
from suffice.gateway import auth, pages
from suffice.gateway.chat import chat
from suffice.gateway.context import Gateway
from suffice.gateway.exchange import Exchange, Message, Receive, Scope, Send, headers_of
from suffice.gateway.intake import check_host

Handler = Callable[[Gateway, Scope, Receive, Send], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One thing the gateway does, and who may ask for it."""

    method: str
    handler: Handler
    public: bool = False   # without a key; only for what says nothing


def _table() -> Mapping[str, Endpoint]:
    api = {
        "/chat/completions": Endpoint("POST", chat),
        "/models": Endpoint("GET", pages.models),
        "/feedback": Endpoint("POST", pages.feedback),
    }
    own = {
        "/healthz": Endpoint("GET", pages.health, public=True),
        "/readyz": Endpoint("GET", pages.ready, public=True),
        "/metrics": Endpoint("GET", pages.metrics),
    }
    return api | {f"/v1{path}": endpoint for path, endpoint in api.items()} | own


ENDPOINTS = _table()


class App:
    """The ASGI application."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection event; only HTTP is spoken (start-up and shutdown are the server's)."""
        if scope["type"] != "http":
            raise ValueError(f"scope {scope['type']!r}: only http is served")
        self.gateway.n_live += 1
        try:
            await self._answer(scope, receive, self._last(send) if self.gateway.draining else send)
        finally:
            self.gateway.n_live -= 1

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        endpoint = ENDPOINTS.get(scope["path"])
        error = self._verdict(scope, endpoint)
        if endpoint is None or error is not None:
            allow = [("allow", endpoint.method)] if endpoint and error and error.status == 405 else []
            exchange = Exchange(send, [], self.gateway.monotonic_s)
            await exchange.refuse(error or BadRequest("not found", status=404), allow)
            return
        await endpoint.handler(self.gateway, scope, receive, send)

    @staticmethod
    def _last(send: Send) -> Send:
        """The last answer on its connection says so: its client goes elsewhere with the next request."""

        async def send_last(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"connection", b"close")]
            await send(message)

        return send_last

    def _verdict(self, scope: Scope, endpoint: Endpoint | None) -> BadRequest | None:
        """Default: refused. Path, then method, then host, then key."""
        if endpoint is None:
            return BadRequest(f"no such path: {scope['path'][:200]}", status=404, code="not_found")
        if scope["method"] != endpoint.method:
            message = f"this path answers {endpoint.method} only"
            return BadRequest(message, status=405, code="method_not_allowed")
        headers = headers_of(scope)
        try:
            check_host(headers)
            if not endpoint.public:
                auth.check(headers, self.gateway.api_keys)
        except BadRequest as error:
            return error
        return None

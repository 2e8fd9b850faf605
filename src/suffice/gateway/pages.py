"""The small endpoints: models, health, metrics."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from suffice.errors import UpstreamError, UpstreamProtocol
from suffice.gateway.auth import caller_of
from suffice.gateway.context import Gateway
from suffice.gateway.exchange import Exchange, Receive, Scope, Send, headers_of
from suffice.upstream.client import UpstreamClient
from suffice.upstream.wire import error_body

MODELS_TIMEOUT_S = 10.0


async def list_models(gw: Gateway, scope: Scope, _receive: Receive, send: Send) -> None:
    """`GET /v1/models`: the upstream's own answer; with several upstreams, their lists joined."""
    exchange = Exchange(send, [], gw.monotonic_s)
    headers, caller = gw.keys.without_keys(headers_of(scope)), caller_of(scope)
    usable = {one.settings.upstream for one in gw.routes if caller.may_use(one.name, one.settings, by_name=False)}
    clients = [client for name, client in gw.upstreams.items() if name in usable or not caller.is_restricted]
    if not clients:  # its routes are loops of its own
        await exchange.json(200, b'{"object":"list","data":[]}')
        return
    found = await asyncio.gather(*(_models_of(client, headers) for client in clients))
    good = [body for status, body in found if status == 200]
    if len(found) == 1 or not good:
        status, body = found[0]
        await exchange.json(status, body)
        return
    merged: dict[str, Any] = {}
    for body in good:
        try:
            for entry in msgspec.json.decode(body)["data"]:
                merged.setdefault(entry["id"], entry)
        except (ValueError, KeyError, TypeError):
            continue  # a list that cannot be read is left out; the others still help
    await exchange.json(200, msgspec.json.encode({"object": "list", "data": list(merged.values())}))


async def _models_of(client: UpstreamClient, headers: list[tuple[str, str]]) -> tuple[int, bytes]:
    sent = [(k, v) for k, v in headers if k != "accept-encoding"]
    try:
        status, body = await client.get("/v1/models", timeout_s=MODELS_TIMEOUT_S, headers=sent)
        if not (200 <= status < 300 or 400 <= status < 600):
            raise UpstreamProtocol(f"the upstream answered {status}; redirects are not followed")
        return status, body
    except UpstreamError as error:
        return error.status, error_body(str(error), "upstream_error", None, error.code)


async def health(gw: Gateway, _scope: Scope, _receive: Receive, send: Send) -> None:
    """`GET /healthz`: the process answers."""
    await Exchange(send, [], gw.monotonic_s).json(200, b'{"status":"ok"}')


async def ready(gw: Gateway, _scope: Scope, _receive: Receive, send: Send) -> None:
    """`GET /readyz`: start-up is over, shutdown has not begun, and at least one upstream answers.

    Without its log a gateway serves, and says so.
    """
    is_ready, body = gw.ready, {"status": "ready" if gw.ready else "not ready"}
    if is_ready and not await _any_reachable(gw.upstreams.values()):
        is_ready, body = False, {"status": "not ready", "reason": "no upstream answers"}
    if gw.serves:
        body["without_log"] = gw.serves
    await Exchange(send, [], gw.monotonic_s).json(200 if is_ready else 503, msgspec.json.encode(body))


async def _any_reachable(upstreams: Iterable[UpstreamClient]) -> bool:
    """Does at least one answer? The first that does is enough: nobody waits for those that are silent."""
    asked = [asyncio.ensure_future(client.is_reachable()) for client in upstreams]
    try:
        for answered in asyncio.as_completed(asked):
            if await answered:
                return True
        return False
    finally:
        for one in asked:
            one.cancel()


async def metrics(gw: Gateway, _scope: Scope, _receive: Receive, send: Send) -> None:
    """`GET /metrics`: Prometheus text; rendered in a thread, because a large one takes time."""
    body = await asyncio.to_thread(generate_latest, gw.metrics.registry)
    exchange = Exchange(send, [], gw.monotonic_s)
    await exchange.start(200, [("content-type", CONTENT_TYPE_LATEST), ("content-length", str(len(body)))])
    await exchange.body(body, more=False)

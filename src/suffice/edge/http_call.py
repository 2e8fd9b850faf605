"""Short calls to servers other than a route's upstream: a judge, an embedder, a labelling tool."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from suffice.settings import Upstream
from suffice.upstream.client import Headers, UpstreamClient


def helper_client(
    name: str, url: str, *, timeout_s: float, api_key: str | None = None, retries: int = 0
) -> UpstreamClient:
    """Return a client for one server, for `async with`. Set `retries` only for idempotent calls."""
    settings = Upstream(
        url=url, connect_timeout_s=timeout_s, first_byte_timeout_s=timeout_s, idle_timeout_s=timeout_s, retries=retries
    )
    return UpstreamClient(name, settings, api_key)


async def call_json(
    client: UpstreamClient,
    path: str,
    body: Any,
    *,
    timeout_s: float,
    most_bytes: int,
    method: str = "POST",
    headers: Headers = (),
) -> tuple[int, bytes, dict[str, str]]:
    """Send JSON (None: no body) and return the status, the body and the headers, with names in lower case.

    Raise UpstreamError, also for a response above `most_bytes`, and TimeoutError. Redirects are not followed.
    """
    sent = None if body is None else json.dumps(body).encode()
    given = [("content-type", "application/json"), ("accept-encoding", "identity"), *headers]
    async with asyncio.timeout(timeout_s), client.open(path, sent, given, method=method) as call:
        return call.status, await call.read_all(most_bytes), {name.lower(): value for name, value in call.headers}

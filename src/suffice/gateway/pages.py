"""The small endpoints: models, feedback, health, metrics."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from suffice.errors import BadRequest, StoreError, StoreFull, UpstreamError
from suffice.gateway.auth import without_keys
from suffice.gateway.context import Gateway
from suffice.gateway.exchange import ClientGone, Exchange, Receive, Scope, Send, headers_of, read_body
from suffice.gateway.intake import check_body_headers, parse_json
from suffice.rollout.assign import sender_key
from suffice.store.events import FeedbackGiven
from suffice.types import Feedback
from suffice.upstream.client import UpstreamClient
from suffice.upstream.wire import error_body

MODELS_TIMEOUT_S = 10.0
COMMENT_LIMIT_CHARS = 10_000
FEEDBACK_LIMIT_BYTES = 256 * 1024


async def models(gw: Gateway, scope: Scope, _receive: Receive, send: Send) -> None:
    """`GET /v1/models`: the upstream's own answer; with several upstreams, their lists joined."""
    exchange = Exchange(send, [], gw.monotonic_s)
    headers = without_keys(headers_of(scope), gw.api_keys)
    found = await asyncio.gather(*(_models_of(c, headers) for c in gw.upstreams.values()))
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
        return await client.get("/v1/models", timeout_s=MODELS_TIMEOUT_S, headers=sent)
    except UpstreamError as error:
        return error.status, error_body(str(error), "upstream_error", None, error.code)


async def feedback(gw: Gateway, scope: Scope, receive: Receive, send: Send) -> None:
    """`POST /v1/feedback`: 2xx means that the label is on disk, and stays there."""
    exchange = Exchange(send, [], gw.monotonic_s)
    headers = headers_of(scope)
    try:
        check_body_headers(headers, FEEDBACK_LIMIT_BYTES)
        raw = await read_body(receive, FEEDBACK_LIMIT_BYTES)
        said = read_feedback(parse_json(raw, gw.settings.server))
        # A key that nobody checked could be another one for every label.
        key = dict(headers).get("authorization", "") if gw.api_keys else ""
        given = replace(said, sender=sender_key(key, salt=gw.salt))
        receipt = await gw.log.append_durable(FeedbackGiven(given))
    except ClientGone:
        return
    except BadRequest as error:
        gw.metrics.inc("suffice_feedback_total", "rejected")
        await exchange.refuse(error)
    except StoreError as error:
        gw.metrics.inc("suffice_feedback_total", "failed")
        status = 507 if isinstance(error, StoreFull) else 503
        message = f"feedback was not stored: {error}; send it again"
        body = error_body(message, "server_error", None, "store_error")
        await exchange.json(status, body, [("retry-after", "5")])
    else:
        gw.metrics.inc("suffice_feedback_total", "duplicate" if receipt.duplicate else "accepted")
        answer = {"accepted": True, "duplicate": receipt.duplicate, "joined": receipt.joined}
        await exchange.json(200, msgspec.json.encode(answer))


def read_feedback(body: dict[str, Any]) -> Feedback:
    """Check a feedback body. Raises BadRequest naming the field and what is allowed."""
    known = [name for name in Feedback.__dataclass_fields__ if name != "sender"]  # that one we know ourselves
    for key in body:
        if key not in known:
            raise BadRequest(f"{key[:80]}: unknown field; known: {', '.join(known)}", param=key[:80])
    given = {k: v for k, v in body.items() if v is not None}
    for key in ("feedback_id", "source"):
        if not given.get(key):
            raise BadRequest(f"{key}: is needed, a non-empty string", param=key)
    for key in ("feedback_id", "episode_id", "response_id", "gold", "answer", "comment", "source", "reason"):
        _check_text(given, key)
    if "episode_id" not in given and "response_id" not in given:
        raise BadRequest("episode_id or response_id: one of them must name the request", param="episode_id")
    _check_verdicts(given)
    return Feedback(**given)


def _check_verdicts(given: dict[str, Any]) -> None:
    if not isinstance(given.get("correct", True), bool):
        raise BadRequest("correct: must be true or false", param="correct")
    rating = given.get("rating", 1)
    if not isinstance(rating, int) or isinstance(rating, bool) or not 1 <= rating <= 5:
        raise BadRequest("rating: must be a whole number from 1 to 5", param="rating")
    if given.get("thumbs", "up") not in ("up", "down"):
        raise BadRequest("thumbs: must be 'up' or 'down'", param="thumbs")
    if not {"correct", "gold", "answer", "rating", "thumbs", "comment"} & set(given):
        raise BadRequest("feedback: says nothing; give correct, gold, answer, rating, thumbs or comment")


def _check_text(given: dict[str, Any], key: str) -> None:
    value = given.get(key, "")
    limit = 200 if key in ("feedback_id", "episode_id", "response_id", "source") else COMMENT_LIMIT_CHARS
    if not isinstance(value, str) or len(value) > limit:
        raise BadRequest(f"{key}: must be a string of at most {limit} characters", param=key)
    if "\x00" in value:
        raise BadRequest(f"{key}: must not hold NUL characters", param=key)


async def health(gw: Gateway, _scope: Scope, _receive: Receive, send: Send) -> None:
    """`GET /healthz`: the process answers."""
    await Exchange(send, [], gw.monotonic_s).json(200, b'{"status":"ok"}')


async def ready(gw: Gateway, _scope: Scope, _receive: Receive, send: Send) -> None:
    """`GET /readyz`: start-up is over and shutdown has not begun."""
    body = b'{"status":"ready"}' if gw.ready else b'{"status":"not ready"}'
    await Exchange(send, [], gw.monotonic_s).json(200 if gw.ready else 503, body)


async def metrics(gw: Gateway, _scope: Scope, _receive: Receive, send: Send) -> None:
    """`GET /metrics`: Prometheus text; rendered in a thread, because a large one takes time."""
    body = await asyncio.to_thread(generate_latest, gw.metrics.registry)
    exchange = Exchange(send, [], gw.monotonic_s)
    await exchange.start(200, [("content-type", CONTENT_TYPE_LATEST), ("content-length", str(len(body)))])
    await exchange.body(body, more=False)

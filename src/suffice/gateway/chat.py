"""`POST /v1/chat/completions`: from the client's bytes to one answer and one outcome.

    read and check → find the route → draw the lot, write the request down → govern or pass through
    → close the ledger: one outcome, whatever the end

The newcomer starts here and goes on in `episode/loop.py`.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace

import msgspec

from suffice.episode.ledger import Ledger
from suffice.episode.samples import Refusal
from suffice.errors import BadRequest, UpstreamError, UpstreamTimeout
from suffice.gateway import govern, route
from suffice.gateway.context import FullRuns, Gateway
from suffice.gateway.exchange import (
    ClientGone,
    Exchange,
    Receive,
    Scope,
    Send,
    headers_of,
    read_body,
    supervise,
)
from suffice.gateway.intake import Intake, check_content_type, check_headers, read_chat
from suffice.gateway.relay import forwarded, pass_through
from suffice.gateway.route import BuiltRoute
from suffice.rollout.assign import draw_audit, question_key
from suffice.store.events import RequestEnded, RequestSeen
from suffice.telemetry import LOG
from suffice.types import EndReason, Request

CHAT_PATH = "/v1/chat/completions"


@dataclass(frozen=True, slots=True, kw_only=True)
class Admitted:
    """A request that was understood: where it goes and under which lot."""

    intake: Intake
    headers: list[tuple[str, str]]   # fit to be sent upstream
    route: BuiltRoute | None
    upstream: str
    request: Request


async def chat(gw: Gateway, scope: Scope, receive: Receive, send: Send) -> None:
    """Serve one chat request."""
    started = gw.monotonic_s()
    episode_id = gw.new_id()
    exchange = Exchange(send, [("x-suffice-episode-id", episode_id)], gw.monotonic_s)
    headers = headers_of(scope)
    gw.metrics.inc("suffice_live_requests")
    ledger: Ledger | None = None
    end: EndReason = "done"
    try:
        try:
            check_headers(headers)
            check_content_type(headers)
            raw = await read_body(receive, gw.settings.server.max_body_bytes)
            admitted = admit(gw, episode_id, read_chat(raw, gw.settings.server), headers)
        except BadRequest as error:
            ledger, end = _unread(gw, episode_id, started), "rejected"
            await exchange.refuse(error)
            return
        except ClientGone:
            ledger, end = _unread(gw, episode_id, started), "client_left"
            return
        ledger = Ledger(admitted.request, started)
        exchange.own_headers += _reply_headers(admitted.request)
        gw.log.append(RequestSeen(admitted.request))
        end = await _serve(gw, admitted, ledger, receive, exchange)
    except asyncio.CancelledError:
        end = "lost"  # the server is going down with this request in it
        raise
    finally:
        gw.metrics.inc("suffice_live_requests", by=-1)
        if ledger is not None:
            ledger.status, ledger.first_byte_s = exchange.status, exchange.first_byte_s
            _close(gw, ledger, end)


async def _serve(
    gw: Gateway, admitted: Admitted, ledger: Ledger, receive: Receive, exchange: Exchange
) -> EndReason:
    """Run the request under the eye of its client; say how it ended."""
    work = _answer(gw, admitted, ledger, exchange)
    try:
        left = await supervise(work, receive, exchange)
    except Refusal as refusal:
        if exchange.status:
            await exchange.fail(502, str(refusal), refusal.code)
        else:
            kept = [("content-type", refusal.content_type), ("content-length", str(len(refusal.body)))]
            await exchange.start(refusal.http_status, [*kept, *refusal.headers])
            await exchange.body(refusal.body, more=False)
        return "upstream_error"
    except UpstreamError as error:
        gw.metrics.inc("suffice_upstream_errors_total", error.code)
        await exchange.fail(error.status, str(error), error.code)
        return "timeout" if isinstance(error, UpstreamTimeout) else "upstream_error"
    except Exception as error:  # noqa: BLE001 - the last fence: the client gets a clean error, we get a record
        LOG.error("episode %s: internal error (%s)", ledger.request.episode_id, type(error).__name__)
        LOG.debug("the same, with its traceback", exc_info=True)  # may quote what a client sent: debug only
        ledger.fail_open("gateway")
        await exchange.fail(500, "internal error of the gateway", "internal_error")
        return "internal_error"
    return "client_left" if left else "done"


async def _answer(gw: Gateway, admitted: Admitted, ledger: Ledger, exchange: Exchange) -> None:
    request, intake = admitted.request, admitted.intake
    client = gw.upstreams[admitted.upstream]
    if request.ungoverned is not None or admitted.route is None:
        gw.metrics.inc("suffice_ungoverned_total", request.route, request.ungoverned or "no_route")
        body = forwarded(intake.raw, intake.body, changed=intake.changed)
        await pass_through(exchange, client, CHAT_PATH, body, admitted.headers, ledger)
        return
    job = govern.Job(
        gw=gw, route=admitted.route, client=client, intake=intake, headers=admitted.headers,
        ledger=ledger, exchange=exchange,
    )  # fmt: skip
    if request.kind == "samples":
        await govern.samples(job)
    else:
        await govern.reasoning(job)


def admit(gw: Gateway, episode_id: str, intake: Intake, headers: list[tuple[str, str]]) -> Admitted:
    """Find the route and draw the lot. Raises BadRequest for a route or version that does not exist."""
    named = dict(headers)
    asked = named.get("x-suffice-route")
    found = route.find(gw.routes, model=intake.model, asked=asked)
    if asked is not None and found is None:
        known = ", ".join(r.name for r in gw.routes) or "none"
        raise BadRequest(f"x-suffice-route: unknown route {asked[:80]!r}; known: {known}", code="unknown_route")
    _check_version(intake, named, found)
    if found is not None and found.settings.model is not None and found.settings.model != intake.model:
        intake.body["model"] = found.settings.model
        intake = replace(intake, changed=True)
    for field in intake.stripped:
        gw.metrics.inc("suffice_stripped_fields_total", field)
    request = _request(gw, episode_id, intake, named, found)
    upstream = found.settings.upstream if found is not None else gw.fallback_upstream()
    kept = headers if not gw.api_keys else [(k, v) for k, v in headers if k != "authorization"]
    return Admitted(intake=intake, headers=kept, route=found, upstream=upstream, request=request)


def _check_version(intake: Intake, named: dict[str, str], found: BuiltRoute | None) -> None:
    asked = named.get("x-suffice-policy-version") or intake.options.get("policy_version")
    if asked is None:
        return
    known = found.policy_version if found is not None else "none"
    if asked != known:
        raise BadRequest(
            f"policy version {str(asked)[:80]!r} is not in force on this route; in force: {known}",
            param="policy_version", code="unknown_policy_version",
        )  # fmt: skip


def _request(
    gw: Gateway, episode_id: str, intake: Intake, named: dict[str, str], found: BuiltRoute | None
) -> Request:
    """Write down what was asked, and the lot with its odds."""
    if found is None:
        return _blank(gw, episode_id, intake, "no_route")
    samples = route.n_samples(found, intake.options)
    reason = route.ungoverned(found, intake.body, samples)
    unit = gw.lots.unit(
        named=intake.options.get("conversation_id") or named.get("x-conversation-id") or named.get("idempotency-key"),
        body=intake.raw, caller=named.get("authorization", ""), now_s=gw.monotonic_s(),
    )  # fmt: skip
    share = gw.share(found) if reason is None else 0.0
    lot = draw_audit(unit, share=share, salt=gw.salt)
    gw.n_requests[found.name] = gw.n_requests.get(found.name, 0) + 1
    if lot.audit:
        gw.metrics.inc("suffice_audits_total", found.name)
    return Request(
        episode_id=episode_id, route=found.name, kind=found.settings.kind, mode=found.settings.mode,
        model=intake.model, stream=intake.stream, n_samples=samples, audit=lot.audit,
        propensity=lot.propensity, policy_version=found.policy_version, certified=found.certified,
        question_key=question_key(msgspec.json.encode(intake.body.get("messages")).decode(), salt=gw.salt),
        ungoverned=reason, received_at_s=gw.wall_s(),
    )  # fmt: skip


def _blank(gw: Gateway, episode_id: str, intake: Intake | None, reason: str) -> Request:
    """The record of a request that no route claims, or that could not be read."""
    return Request(
        episode_id=episode_id, route="", kind="reasoning", mode="off",
        model=intake.model if intake else "", stream=bool(intake and intake.stream), n_samples=1,
        audit=False, propensity=1.0, policy_version="", certified=False, question_key="",
        ungoverned=reason, received_at_s=gw.wall_s(),
    )  # fmt: skip


def _unread(gw: Gateway, episode_id: str, started_s: float) -> Ledger:
    request = _blank(gw, episode_id, None, "unreadable")
    gw.log.append(RequestSeen(request))
    return Ledger(request, started_s)


def _reply_headers(request: Request) -> list[tuple[str, str]]:
    return [
        ("x-suffice-route", request.route),
        ("x-suffice-mode", request.mode),
        ("x-suffice-policy-version", request.policy_version),
    ]


def _close(gw: Gateway, ledger: Ledger, end: EndReason) -> None:
    """Write the one outcome, and count what it says."""
    if end in ("client_left", "timeout", "internal_error", "rejected", "upstream_error"):
        ledger.end_reason = end
    outcome = ledger.close(now_s=gw.monotonic_s(), default=end)
    if not gw.log.append(RequestEnded(outcome)):
        gw.metrics.inc("suffice_events_dropped_total")
    request, metrics = ledger.request, gw.metrics
    metrics.inc("suffice_requests_total", request.route, request.mode, outcome.end_reason)
    for call in outcome.calls:
        metrics.inc("suffice_upstream_calls_total", request.route, call.purpose)
    if outcome.usage is not None:
        metrics.inc("suffice_tokens_total", request.route, "input", by=outcome.usage.prompt_tokens)
        metrics.inc("suffice_tokens_total", request.route, "output", by=outcome.usage.completion_tokens)
    metrics.inc("suffice_tokens_total", request.route, "probe", by=outcome.overhead.probe_tokens)
    metrics.inc("suffice_tokens_total", request.route, "extra_input", by=outcome.overhead.extra_prompt_tokens)
    for site in outcome.degraded:
        metrics.inc("suffice_failopen_total", site)
    if outcome.stopped:
        method = outcome.finish_method or "none"
        metrics.inc("suffice_stops_total", request.route, outcome.stop_reason or "", method)
        if outcome.handover_ms is not None:
            metrics.observe("suffice_handover_seconds", outcome.handover_ms / 1e3, method)
    if outcome.ttft_s is not None:
        metrics.observe("suffice_ttft_seconds", outcome.ttft_s, request.route)
    if request.ungoverned is None and outcome.end_reason == "done" and outcome.usage is not None:
        full = gw.full_runs.setdefault(request.route, FullRuns())
        full.add(outcome.usage.completion_tokens)

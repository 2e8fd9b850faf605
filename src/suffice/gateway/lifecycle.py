"""The life of one request of any endpoint: it is admitted, written down, answered, and closed into one outcome.

    admit ──▶ open_ledger: request row, question ──▶ answer ──▶ close: outcome row or counts, metrics, route statistics

The library's runs are opened and closed here too. A log that fails costs the record, never the answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from typing import Any

from suffice.assurance.sampling import ended_badly
from suffice.episode.ledger import Ledger
from suffice.episode.samples import SampleRefusal
from suffice.errors import BadRequest, OverloadError, UpstreamError, UpstreamTimeout
from suffice.gateway.admission import AdmittedRequest, Arrival, blank_request
from suffice.gateway.context import GatewayState, runs_in_full
from suffice.gateway.exchange import ClientGone, Exchange, Receive, supervise
from suffice.gateway.load_control import SITES
from suffice.gateway.request_parsing import Intake
from suffice.gateway.route import BuiltRoute
from suffice.review.items import DAY_S, MOST_CHARS, Shelf, written_out
from suffice.rollout import feedback_token
from suffice.store.rows.events import Event
from suffice.store.rows.records import QuestionText, Sources
from suffice.telemetry import LOG, Metrics
from suffice.types import EndReason, Outcome, Request

Admit = Callable[[str], Awaitable[AdmittedRequest]]  # given the episode id
Answer = Callable[[GatewayState, AdmittedRequest, Ledger, Exchange], Coroutine[Any, Any, None]]


async def serve_request(
    gw: GatewayState, receive: Receive, exchange: Exchange, admit: Admit, answer: Answer, *, endpoint: str
) -> None:
    """Admit a request and answer it; whatever happens, write exactly one outcome."""
    started_s, episode_id = gw.monotonic_s(), gw.new_id()
    token = gw.feedback_token(episode_id)
    exchange.own_headers += [("x-suffice-episode-id", episode_id), *feedback_token.header(token)]
    gw.metrics.inc("suffice_live_requests")
    ledger: Ledger | None = None
    end: EndReason = "internal_error"
    try:
        admitted = await admit(episode_id)
        ledger = Ledger(admitted.request, started_s, prices=gw.upstreams[admitted.upstream].settings.prices)
        exchange.own_headers += reply_headers(admitted.request)
        open_ledger(gw, ledger, admitted.route, token, lambda: written_out(admitted.intake.body.get("messages") or ()))
        end = await _answer(gw, ledger, receive, exchange, answer(gw, admitted, ledger, exchange))
    except BadRequest as error:
        end = "rejected"
        await exchange.refuse(error)
    except ClientGone:
        end = "client_left"
    except asyncio.CancelledError:
        end = "shutdown"  # the server is going down with this request in it; this task ends here either way
        message = "the gateway is shutting down; ask again"
        await exchange.fail(503, message, "shutting_down", kind="server_error")
    except Exception as error:  # noqa: BLE001 - the last fence: the client gets a clean error, we get a record
        await _apologise(exchange, episode_id, error)
    finally:
        gw.metrics.inc("suffice_live_requests", by=-1)
        if ledger is None:
            ledger = Ledger(
                blank_request(gw, Arrival(episode_id=episode_id, endpoint=endpoint), "unreadable"), started_s
            )
            write_request(gw, ledger)
        ledger.status, ledger.first_byte_s = exchange.status, exchange.first_byte_s
        close(gw, ledger, end)


async def _answer(
    gw: GatewayState, ledger: Ledger, receive: Receive, exchange: Exchange, work: Coroutine[Any, Any, None]
) -> EndReason:
    """Answer a request while watching whether its client is still there; return how that ended."""
    try:
        left = await supervise(work, receive, exchange)
    except OverloadError as error:
        await exchange.refuse(error)
        return "rejected"
    except SampleRefusal as refusal:
        if exchange.status:
            await exchange.fail(502, str(refusal), refusal.code)
        else:
            kept = [("content-type", refusal.content_type), ("content-length", str(len(refusal.body)))]
            await exchange.start(refusal.http_status, [*kept, *refusal.headers])
            await exchange.body(refusal.body, more=False)
        return "upstream_error"
    except UpstreamError as error:
        # A run keeps its failure, whose traceback refers to the run: a circle that would keep what was read.
        error.with_traceback(None)
        gw.metrics.inc("suffice_upstream_errors_total", error.code)
        await exchange.fail(error.status, str(error), error.code)
        return "timeout" if isinstance(error, UpstreamTimeout) else "upstream_error"
    except Exception as error:  # noqa: BLE001 - as above, with what was spent so far on record
        ledger.fail_open("gateway")
        await _apologise(exchange, ledger.request.episode_id, error)
        return "internal_error"
    return "client_left" if left else "done"


async def _apologise(exchange: Exchange, episode_id: str, error: Exception) -> None:
    LOG.error("episode %s: internal error (%s)", episode_id, type(error).__name__)
    LOG.debug("the same, with its traceback", exc_info=True)  # may quote what a client sent: debug only
    await exchange.fail(500, "internal error of the gateway", "internal_error", kind="server_error")


def reply_headers(request: Request) -> list[tuple[str, str]]:
    return [
        ("x-suffice-route", request.route),
        ("x-suffice-mode", request.mode),
        ("x-suffice-policy-version", request.policy_version),
    ]


def count_stripped(gw: GatewayState, intake: Intake) -> None:
    for field in intake.stripped:
        gw.metrics.inc("suffice_stripped_fields_total", field)


# --------------------------------------------------------------------------- rows


def open_ledger(
    gw: GatewayState, ledger: Ledger, route: BuiltRoute | None, token: str, question: Callable[[], str]
) -> None:
    """Write down a request that was admitted, and its question where the route keeps it for reviewers."""
    ledger.feedback_token, ledger.promise = token, gw.promise_to(route)
    write_request(gw, ledger)
    keep_question(gw, route, ledger, question)


def append(gw: GatewayState, event: Event, ledger: Ledger | None) -> None:
    """Hand an event to the log; a log that refuses or fails costs the record, never the answer."""
    try:
        kept = gw.log.append(event)
    except Exception as error:  # noqa: BLE001 - see above
        LOG.error("the event log failed (%s)", type(error).__name__)
        if ledger is not None:
            ledger.fail_open("log")
        kept = False
    if not kept:
        gw.metrics.inc("suffice_events_dropped_total")


def write_request(gw: GatewayState, ledger: Ledger) -> None:
    """Write the request down, if it has rows: before its first step, because its lots are worthless afterwards."""
    ledger.request, ledger.has_rows = gw.sampling.drawn(ledger.request)
    if ledger.has_rows:
        append(gw, ledger.request, ledger)


def write_counts(gw: GatewayState, *, all_of_them: bool = False) -> None:
    """Write down what was counted of requests without rows, where that is due, and what keys with a budget used."""
    for used in gw.limits.unwritten():
        append(gw, replace(used, usage_id=gw.new_id()), None)
    for counted in gw.sampling.due(now_s=gw.monotonic_s(), all_of_them=all_of_them):
        append(gw, counted, None)


def write_outcome(gw: GatewayState, ledger: Ledger, outcome: Outcome) -> None:
    """The one outcome as a row, or in the counts. A request that ends badly has rows, drawn or not."""
    if not ledger.has_rows and ended_badly(outcome):
        ledger.request, ledger.has_rows = gw.sampling.with_rows(ledger.request), True
        append(gw, ledger.request, ledger)
    gw.sampling.remember(ledger.request, outcome, now_s=gw.wall_s())
    if ledger.has_rows:
        append(gw, outcome, ledger)
        return
    counted = gw.sampling.count(ledger.request, outcome, now_s=gw.monotonic_s())
    if counted is not None:
        append(gw, counted, ledger)


def close(gw: GatewayState, ledger: Ledger, end: EndReason) -> None:
    if end != "done":
        ledger.end_reason = end
    outcome = ledger.close(now_s=gw.monotonic_s(), default=end)
    write_outcome(gw, ledger, outcome)
    request, metrics = ledger.request, gw.metrics
    metrics.inc("suffice_requests_total", request.route, request.mode, outcome.end_reason)
    _count_tokens(metrics, request.route, outcome)
    if outcome.usage is not None and outcome.calls:  # a caller's own loop uses nothing of ours
        n_tokens = outcome.usage.prompt_tokens + outcome.usage.completion_tokens
        gw.limits.spend(request.sender, n_tokens, wall_s=gw.wall_s())
    _count_extra_calls(metrics, ledger)
    for site in ledger.degraded:
        metrics.inc("suffice_failopen_total", site)
    if outcome.stopped:
        method = outcome.finish_method or "none"
        metrics.inc("suffice_stops_total", request.route, outcome.stop_reason or "", method)
        if outcome.handover_ms is not None:
            metrics.observe("suffice_handover_seconds", outcome.handover_ms / 1e3, method)
    if outcome.ttft_s is not None:
        metrics.observe("suffice_ttft_seconds", outcome.ttft_s, request.route)
    cost = ledger.cost()
    if cost is not None:
        for kind, spent_usd in (
            ("input", cost.input_usd),
            ("cached_input", cost.cached_input_usd),
            ("output", cost.output_usd),
        ):
            metrics.inc("suffice_cost_usd_total", request.route, kind, by=spent_usd)
    _note_breaker(gw, ledger)
    gw.operating.note(request, outcome, now_s=gw.monotonic_s())
    gw.note_upstream(request, outcome)
    gw.learn(request, outcome)
    if runs_in_full(request):
        gw.note_full_run(request, outcome)


def _note_breaker(gw: GatewayState, ledger: Ledger) -> None:
    request = ledger.request
    breaker = gw.breakers.get(request.route)
    if breaker is None or request.ungoverned is not None:
        return
    if breaker.note(failed=not SITES.isdisjoint(ledger.degraded), now_s=gw.monotonic_s()):
        LOG.error("route %s: its controller failed again and again; requests pass through for a while", request.route)


def _count_extra_calls(metrics: Metrics, ledger: Ledger) -> None:
    for reason, n_skipped in ledger.skipped.items():
        metrics.inc("suffice_extra_calls_skipped_total", ledger.request.route, reason, by=n_skipped)
    if ledger.n_refused:
        metrics.inc("suffice_extra_calls_refused_total", ledger.request.route, by=ledger.n_refused)
    if ledger.n_embeddings:
        metrics.inc("suffice_upstream_calls_total", ledger.request.route, "embedding", by=ledger.n_embeddings)


def _count_tokens(metrics: Metrics, route_name: str, outcome: Outcome) -> None:
    for call in outcome.calls:
        metrics.inc("suffice_upstream_calls_total", route_name, call.purpose)
    if outcome.usage is not None:
        metrics.inc("suffice_tokens_total", route_name, "input", by=outcome.usage.prompt_tokens)
        metrics.inc("suffice_tokens_total", route_name, "output", by=outcome.usage.completion_tokens)
    overhead = outcome.overhead
    for kind, n_tokens in (("probe", overhead.probe_tokens), ("extra_input", overhead.extra_prompt_tokens)):
        if n_tokens:
            metrics.inc("suffice_tokens_total", route_name, kind, by=n_tokens)


def keep_question(gw: GatewayState, route: BuiltRoute | None, ledger: Ledger, text: Callable[[], str]) -> None:
    """Keep a governed request's question for reviewers, if its route says so, in a row that can be erased."""
    until_s = _until_s(route, ledger)
    if until_s is None:
        return
    request = ledger.request
    question = QuestionText(
        episode_id=request.episode_id, route=request.route, text=text()[:MOST_CHARS], expires_at_s=until_s
    )
    append(gw, question, ledger)


def open_shelf(route: BuiltRoute, ledger: Ledger) -> Shelf | None:
    """Where the texts of a run's steps are gathered; None: its route keeps none, and nobody holds on to them."""
    until_s = _until_s(route, ledger)
    return None if until_s is None else Shelf(until_s=until_s)


def keep_sources(gw: GatewayState, ledger: Ledger, shelf: Shelf | None) -> None:
    if shelf is None or not shelf.sources:
        return
    request = ledger.request
    kept = Sources(
        episode_id=request.episode_id,
        route=request.route,
        sources=tuple(shelf.sources),
        is_cut=shelf.is_cut,
        expires_at_s=shelf.until_s,
    )
    append(gw, kept, ledger)


def _until_s(route: BuiltRoute | None, ledger: Ledger) -> float | None:
    """Unix time until which texts of a request are shown; None: they are not kept."""
    request = ledger.request
    if route is None or request.ungoverned is not None or not route.settings.review.keep_text or not ledger.has_rows:
        return None
    return request.received_at_s + route.settings.review.text_days * DAY_S

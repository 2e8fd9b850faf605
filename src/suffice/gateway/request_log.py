"""What a request leaves behind: its rows in the log or a place in the counts, its metrics, what its route learns.

Shared by every endpoint and by the library. Knows ledgers and outcomes; refuses to know HTTP, and
never lets a log that fails cost more than the record.
"""

from __future__ import annotations

from dataclasses import replace

from suffice.assurance.sampling import ended_badly
from suffice.episode.ledger import Ledger
from suffice.gateway.breaker import SITES
from suffice.gateway.context import Gateway, runs_in_full
from suffice.store.rows.events import Event
from suffice.telemetry import LOG, Metrics
from suffice.types import EndReason, Outcome


def append(gw: Gateway, event: Event, ledger: Ledger | None) -> None:
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


def write_request(gw: Gateway, ledger: Ledger) -> None:
    """Write the request down, if it has rows: before its first step, because its lots are worthless afterwards."""
    ledger.request, ledger.has_rows = gw.sampling.drawn(ledger.request)
    if ledger.has_rows:
        append(gw, ledger.request, ledger)


def write_counts(gw: Gateway, *, all_of_them: bool = False) -> None:
    """Write down what was counted of requests without rows, where that is due, and what keys with a budget used."""
    for used in gw.limits.unwritten():
        append(gw, replace(used, usage_id=gw.new_id()), None)
    for counted in gw.sampling.due(now_s=gw.monotonic_s(), all_of_them=all_of_them):
        append(gw, counted, None)


def write_outcome(gw: Gateway, ledger: Ledger, outcome: Outcome) -> None:
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


def close(gw: Gateway, ledger: Ledger, end: EndReason) -> None:
    """Write the one outcome, and count what it says."""
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


def _note_breaker(gw: Gateway, ledger: Ledger) -> None:
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

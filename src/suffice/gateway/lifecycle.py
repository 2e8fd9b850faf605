"""The life of one request of any endpoint, and of the library's runs; each gets exactly one outcome.

Arrival ──▶ admit: route, kill switch, load, audit assignment, variants ──▶ open_ledger: request row, question
        ──▶ answer (`admitted`) ──▶ close: outcome row or counts, metrics, route statistics
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase

from suffice.assurance.load_level import Admission
from suffice.assurance.runs import describe_left
from suffice.assurance.sampling import ended_badly
from suffice.episode.ledger import Ledger, RunTrace
from suffice.errors import BadRequest
from suffice.gateway.auth import ANYONE, Caller, RequestKey
from suffice.gateway.context import GatewayState, runs_in_full
from suffice.gateway.exchange import Exchange
from suffice.gateway.kill import REASON
from suffice.gateway.load_control import SITES, Breaker
from suffice.records import frozen_struct
from suffice.review.items import DAY_S, MOST_CHARS, SourceBuffer
from suffice.rollout.assign import UNASSIGNED, AuditAssignment, conversation_key, point_of, question_key
from suffice.rollout.experiment import Units, units_of
from suffice.serving.route import BuiltRoute
from suffice.signals.query import class_of
from suffice.store.rows.events import Event, QuestionText, Sources
from suffice.store.rows.watching import WatchLapse
from suffice.telemetry import LOG, random_hex
from suffice.types import ArmDraw, EndReason, Outcome, Query, ReplyForm, Request


@frozen_struct
class Arrival:
    episode_id: str
    endpoint: str
    caller: Caller = ANYONE
    model: str = ""
    stream: bool = False
    n_samples: int = 1  # of a full run
    seeded: bool = False  # the body has a seed
    form: ReplyForm = "text"
    is_callers_loop: bool = False  # the caller calls the model itself, so there is nothing to shed
    question: Callable[[], str] = str  # hashed to group repeats
    query: Callable[[], Query | None] = lambda: None
    body: bytes = b""  # identifies repeated deliveries
    conversation: str | None = None
    idempotency_key: str | None = None
    user: str | None = None
    tenant: str | None = None

    def key(self, route: str) -> RequestKey:
        return RequestKey(route, self.caller.namespace, self.body, self.conversation, self.idempotency_key)

    def conversation_key(self, salt: str) -> str:
        return conversation_key(self.caller.id, self.conversation, salt=salt) if self.conversation else ""

    def units(self, assigned: AuditAssignment) -> Units:
        known = {"conversation": self.conversation, "user": self.user, "tenant": self.tenant}
        return units_of(self.caller.id, request=assigned.unit, **known, key_tenant=self.caller.permits.tenant)


def begin_trace(gw: GatewayState, exchange: Exchange) -> RunTrace | None:
    """Begin the request's span, if it has one, and let its calls to the upstream continue the trace."""
    tracer = gw.process.tracer
    trace = None if tracer is None else tracer.begin(dict(exchange.headers), exchange.scope["method"])
    if trace is not None:
        exchange.forward("traceparent", trace.header)
        exchange.request.trace_id = f"{trace.trace_id:032x}"
    return trace


def new_id() -> str:
    return f"ep_{int(time.time() * 1e3):011x}{random_hex()}"


def reply_headers(request: Request) -> list[tuple[str, str]]:
    return [
        ("x-suffice-route", request.route),
        ("x-suffice-mode", request.mode),
        ("x-suffice-policy-version", request.policy_version),
    ]


# --------------------------------------------------------------------------- admission


def admit(
    gw: GatewayState, arrival: Arrival, route: BuiltRoute | None, reason: str | None
) -> tuple[BuiltRoute | None, Request, int | None]:
    """Draw the audit and arms of a request and create its record; `reason`: why it must pass through, if it must.

    Return the route for this request, the record, and after how many seconds to retry if it is shed.
    """
    if route is None:
        return None, blank_request(gw, arrival, reason or "no_route"), None
    place, kill, now_s = None, gw.deployment.kill, gw.wall_s()
    if kill.on:
        route = kill.apply(route)
        if reason is None and not arrival.is_callers_loop and route.settings.kind == "reasoning":
            reason = REASON  # with the switch on, all samples are drawn
    route = gw.deployment.leases.apply(route)
    if reason is None:
        reason, place = _place(gw, arrival, route)
    question, query, assigned, arms = "", None, UNASSIGNED, tuple[ArmDraw, ...]()
    if place is not None:
        question = question_key(arrival.question(), salt=gw.salt) if reason is None else ""
        query = arrival.query() if reason is None or route.active.classes or route.holding.classes else None
        route = route.for_request(question, arrival.model, class_of(query))
        own = route.placed(place)
        if reason is None:  # the audit is drawn for the route itself; arms then vary what the request gets
            key, caller = arrival.key(own.name), arrival.caller.id
            assigned = gw.assign(own, key, arrival.episode_id, caller=caller, wall_s=now_s)
            varied, arms = gw.deployment.varied(route, lambda: arrival.units(assigned), question)
            own = own if varied is route else varied.placed(place)
        route = own
    gw.statistics[route.name].n_requests += 1
    settings = route.settings
    request = Request(
        episode_id=arrival.episode_id,
        route=route.name,
        kind=settings.kind,
        mode=settings.mode,
        model=arrival.model or (settings.model or "" if arrival.is_callers_loop else ""),
        stream=arrival.stream,
        n_samples=arrival.n_samples,
        audit=assigned.audit,
        propensity=assigned.propensity,
        policy_version=route.serving.version,
        certified=route.certified and not route.unwatched,
        question_key=question,
        ungoverned=reason,
        received_at_s=now_s,
        endpoint=arrival.endpoint,
        query=query if reason is None else None,
        unit=assigned.unit,
        setup=route.setup,
        promise=route.promise,
        arms=arms,
        sender=arrival.caller.id,
        tenant=arrival.caller.permits.tenant,
        delivery=assigned.delivery,
        conversation=arrival.conversation_key(gw.salt),
        seeded=arrival.seeded,
        form=arrival.form if reason is None else "text",
    )
    return route, request, place.retry_after_s if place is not None and place.level is None else None


def blank_request(gw: GatewayState, arrival: Arrival, reason: str) -> Request:
    return Request(
        episode_id=arrival.episode_id,
        route="",
        kind="reasoning",
        mode="off",
        model=arrival.model,
        stream=arrival.stream,
        n_samples=1,
        audit=False,
        propensity=1.0,
        policy_version="",
        certified=False,
        question_key="",
        ungoverned=reason,
        received_at_s=gw.wall_s(),
        endpoint=arrival.endpoint,
        sender=arrival.caller.id,
        tenant=arrival.caller.permits.tenant,
    )


def _place(gw: GatewayState, arrival: Arrival, route: BuiltRoute) -> tuple[str | None, Admission]:
    """Return why the request is not governed (None: it is), and its admission."""

    def draw() -> float:  # a new draw for each retry
        return point_of(arrival.episode_id, salt=gw.salt, purpose=b"shed")

    now_s = gw.monotonic_s()
    place = gw.deployment.load.admit(route, now_s=now_s, draw=None if arrival.is_callers_loop else draw)
    if place.level is None:
        return "shed", place
    if route.settings.kind == "samples" and not arrival.is_callers_loop:
        return None, place  # without a policy all samples are drawn, so the breaker is not needed
    statistics = gw.statistics[route.name]
    statistics.breaker = statistics.breaker or Breaker()
    return None if statistics.breaker.allows(now_s) else "breaker", place


def write_lapses(gw: GatewayState) -> list[WatchLapse]:
    """End the leases of certificates that are over, and write which have ended or begun anew."""
    rows = gw.deployment.check_leases()
    for row in rows:
        append(gw, row)
    return rows


def find_route(gw: GatewayState, model: str, named: Mapping[str, str], caller: Caller) -> BuiltRoute | None:
    """Return the first route whose conditions all hold, or None.

    Raise BadRequest for a named route that does not exist or that the caller's key may not use.
    """
    name, routes = named.get("x-suffice-route"), gw.deployment.routes
    for route in usable_routes(routes, caller, by_name=name is not None):
        match = route.settings.match
        if name is not None and name not in (route.name, match.header):
            continue
        if name is None and (match.header or not route.settings.upstream):
            continue  # a caller-driven route may have no upstream, so no request matches it
        if not match.model or fnmatchcase(model, match.model):
            return route
    if name is not None:
        raise route_refusal(routes, caller, name, where="x-suffice-route")
    if caller.is_restricted:
        message = "this key may use only routes that it lists, and none of them takes this request"
        raise BadRequest(message, status=403, param="model", code="scope")
    return None


def usable_routes(routes: tuple[BuiltRoute, ...], caller: Caller, *, by_name: bool) -> tuple[BuiltRoute, ...]:
    if not caller.id:
        return routes
    return tuple(one for one in routes if caller.may_use(one.name, one.settings, by_name=by_name))


def route_refusal(routes: tuple[BuiltRoute, ...], caller: Caller, name: str, *, where: str) -> BadRequest:
    names = ", ".join(one.name for one in usable_routes(routes, caller, by_name=True)) or "none"
    param = None if where.startswith("x-") else where
    if caller.is_restricted or any(name in (one.name, one.settings.match.header) for one in routes):
        message = f"{where}: this key may not use the route {name[:80]!r}; it may name: {names}"
        return BadRequest(message, status=403, param=param, code="scope")
    return BadRequest(f"{where}: unknown route {name[:80]!r}; known: {names}", param=param, code="unknown_route")


# --------------------------------------------------------------------------- rows


def open_ledger(
    gw: GatewayState, ledger: Ledger, route: BuiltRoute | None, token: str, question: Callable[[], str]
) -> None:
    disclosure = ledger.disclosure
    disclosure.feedback_token, disclosure.promise = token, gw.deployment.promise_to(route)
    disclosure.tells_stops = gw.settings.server.tells_stops
    write_request(gw, ledger)
    until_s = _text_until_s(route, ledger)
    if until_s is not None:  # a row of its own can be erased
        request, text = ledger.request, question()[:MOST_CHARS]
        row = QuestionText(episode_id=request.episode_id, route=request.route, text=text, expires_at_s=until_s)
        append(gw, row, ledger)


def append(gw: GatewayState, event: Event, ledger: Ledger | None = None) -> None:
    """Append an event to the log. A log that refuses or fails costs the record, never the response."""
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
    """Log the request if it has rows, before its first step: a draw recorded afterwards is worthless."""
    ledger.request, ledger.has_rows = gw.sampling.drawn(ledger.request)
    if ledger.has_rows:
        append(gw, ledger.request, ledger)


def write_counts(gw: GatewayState, *, all_of_them: bool = False) -> None:
    for used in gw.clients.limits.take_unwritten():
        append(gw, replace(used, usage_id=gw.new_id()))
    now_s = gw.monotonic_s()
    for counted in gw.sampling.due(now_s=now_s, all_of_them=all_of_them):
        append(gw, counted)
    for moved in gw.deployment.load.take_moves(now_s=now_s, all_of_them=all_of_them):
        append(gw, replace(moved, move_id=gw.new_id()))


def estimate_full_run(
    gw: GatewayState, ledger: Ledger, tokens_used: int, *, longer: str = " that thought longer", ratio: float = 1.0
) -> None:
    """Estimate what the run would have taken in full, by the full runs of the route that were longer than so far.

    tokens_used  -1: all full runs of its query class count, as for a run with less effort
    ratio        of what such stops cut off to what those runs had left
    """
    costs, query_class = ledger.costs, class_of(ledger.request.query) if tokens_used < 0 else None
    remaining = gw.statistics[ledger.request.route].full_runs.remaining(tokens_used, query_class)
    if remaining is not None and (tokens_used < 0 or not costs.has_less_effort):
        costs.full_tokens = tokens_used + remaining.tokens * ratio
        costs.estimate_method = f"mean of {remaining.n} full runs of this route{longer}"


def close(gw: GatewayState, ledger: Ledger, end: EndReason, *, ended_s: float | None = None) -> None:
    """Close the ledger into its outcome, once. `ended_s`: end of the reply, where the request had one."""
    if end != "done":
        ledger.end_reason = end
    outcome = ledger.close(now_s=gw.monotonic_s(), default=end)
    write_outcome(gw, ledger, outcome)
    _count(gw, ledger, outcome)
    _count_extra_calls(gw, ledger)
    request = ledger.request
    now_s = gw.monotonic_s()
    statistics = gw.statistics[ledger.request.route]
    if ended_s is not None:
        gw.metrics.observe("suffice_request_duration_seconds", ended_s - ledger.started_s, request.route)
    if ledger.trace is not None and gw.process.tracer is not None:
        gw.process.tracer.finish(ledger.trace, ledger, outcome, ended_s=now_s if ended_s is None else ended_s)
    if gw.clients.limits.permits and outcome.usage is not None and outcome.calls:  # a caller's loop makes no calls here
        n_tokens = outcome.usage.prompt_tokens + outcome.usage.completion_tokens
        gw.clients.limits.spend(request.sender, n_tokens, usd=outcome.cost_usd or 0.0, wall_s=gw.wall_s())
    breaker, failed = statistics.breaker, not SITES.isdisjoint(ledger.degraded)
    if breaker is not None and request.ungoverned is None and breaker.note(failed=failed, now_s=now_s):
        LOG.error("route %s: its controller failed repeatedly; requests pass through for a while", request.route)
    gw.deployment.load.note(request, outcome, now_s=now_s)
    gw.deployment.note_upstream(request, outcome)
    statistics.learn(request, outcome)
    if runs_in_full(request) and statistics.note_full_run(outcome):
        gw.deployment.check_answers(request.route, tuple(statistics.extracted))


def write_outcome(gw: GatewayState, ledger: Ledger, outcome: Outcome) -> None:
    """Write the outcome as a row or into the counts. A request that ends badly always gets rows."""
    if not ledger.has_rows and ended_badly(outcome):
        ledger.request = replace(ledger.request, keep_rate=gw.sampling.rate_of(ledger.request), kept_by="end")
        ledger.has_rows = True
        append(gw, ledger.request, ledger)
    gw.sampling.remember(ledger.request, outcome, now_s=gw.wall_s())
    if ledger.has_rows:
        append(gw, outcome, ledger)
    elif (counted := gw.sampling.count(ledger.request, outcome, now_s=gw.monotonic_s())) is not None:
        append(gw, counted, ledger)


def _count(gw: GatewayState, ledger: Ledger, outcome: Outcome) -> None:
    request, inc = ledger.request, gw.metrics.inc
    route = request.route
    usage = outcome.usage
    overhead = outcome.overhead
    cost = ledger.cost()
    inc("suffice_requests_total", route, request.mode, outcome.end_reason)
    for call in outcome.calls:
        inc("suffice_upstream_calls_total", route, call.purpose)
    if usage is not None:
        inc("suffice_tokens_total", route, "input", by=usage.prompt_tokens)
        inc("suffice_tokens_total", route, "output", by=usage.completion_tokens)
    for kind, n_tokens in (("probe", overhead.probe_tokens), ("extra_input", overhead.extra_prompt_tokens)):
        if n_tokens:
            inc("suffice_tokens_total", route, kind, by=n_tokens)
    if outcome.stopped:
        method = outcome.finish_method or "none"
        inc("suffice_stops_total", route, outcome.stop_reason or "", method)
        if outcome.handover_ms is not None:
            gw.metrics.observe("suffice_handover_seconds", outcome.handover_ms / 1e3, method)
    if outcome.ttft_s is not None:
        gw.metrics.observe("suffice_ttft_seconds", outcome.ttft_s, route)
    if outcome.end_reason != "done" and (left := describe_left(request, outcome)) is not None:
        inc("suffice_audits_left_total", route, left)
    if cost is not None:
        inc("suffice_cost_usd_total", route, "input", by=cost.input_usd)
        inc("suffice_cost_usd_total", route, "cached_input", by=cost.cached_input_usd)
        inc("suffice_cost_usd_total", route, "output", by=cost.output_usd)


def _count_extra_calls(gw: GatewayState, ledger: Ledger) -> None:
    route, inc = ledger.request.route, gw.metrics.inc
    for reason, n_skipped in ledger.extra.skipped.items():
        inc("suffice_extra_calls_skipped_total", route, reason, by=n_skipped)
    if ledger.extra.n_refused:
        inc("suffice_extra_calls_refused_total", route, by=ledger.extra.n_refused)
    if ledger.extra.n_embeddings:
        inc("suffice_upstream_calls_total", route, "embedding", by=ledger.extra.n_embeddings)
    for site in ledger.degraded:
        inc("suffice_failopen_total", site)


def open_shelf(route: BuiltRoute, ledger: Ledger) -> SourceBuffer | None:
    until_s = _text_until_s(route, ledger)
    return None if until_s is None else SourceBuffer(until_s=until_s)


def keep_sources(gw: GatewayState, ledger: Ledger, shelf: SourceBuffer | None) -> None:
    if shelf is None or not shelf.sources:
        return
    kept = Sources(
        episode_id=ledger.request.episode_id,
        route=ledger.request.route,
        sources=tuple(shelf.sources),
        is_cut=shelf.is_cut,
        expires_at_s=shelf.until_s,
    )
    append(gw, kept, ledger)


def _text_until_s(route: BuiltRoute | None, ledger: Ledger) -> float | None:
    request = ledger.request
    if route is None or request.ungoverned is not None or not route.settings.review.keep_text or not ledger.has_rows:
        return None
    return request.received_at_s + route.settings.review.text_days * DAY_S

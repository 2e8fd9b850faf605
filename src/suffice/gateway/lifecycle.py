"""The life of one request of any endpoint, and of the library's runs; each gets exactly one outcome.

Arrival ──▶ admit: route, kill switch, load, audit assignment, variants ──▶ open_ledger: request row, question
        ──▶ answer ──▶ close: outcome row or counts, metrics, route statistics
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from suffice.asgi import ClientGone
from suffice.assurance.load_level import Admission
from suffice.assurance.sampling import ended_badly
from suffice.episode.apis.events import CHAT, ApiFormat, ChatEvents
from suffice.episode.checkpoints import LISTED_TOKENS
from suffice.episode.extra_calls import Continuer, HeldCall
from suffice.episode.ledger import CostBasis, Ledger, RunTrace
from suffice.episode.samples import SampleRefusal
from suffice.episode.stream_relay import LiveRun
from suffice.errors import BadRequest, OverloadError, UpstreamError, UpstreamTimeout
from suffice.gateway.auth import ANYONE, Caller, RequestKey, token_header
from suffice.gateway.context import GatewayState, is_read_on, runs_in_full
from suffice.gateway.exchange import Exchange, kept_alive, supervise
from suffice.gateway.kill import REASON
from suffice.gateway.load_control import SITES, Breaker, place_route
from suffice.gateway.request_parsing import ParsedRequest
from suffice.gateway.route import BuiltRoute
from suffice.records import frozen_struct
from suffice.review.items import DAY_S, MOST_CHARS, SourceBuffer, format_conversation
from suffice.rollout.assign import UNASSIGNED, AuditAssignment, conversation_key, point_of, question_key
from suffice.rollout.experiment import Units, units_of
from suffice.settings import Probe
from suffice.signals.query import class_of
from suffice.store.rows.events import Event, QuestionText, Sources
from suffice.store.rows.watching import WatchLapse
from suffice.telemetry import LOG, random_hex
from suffice.types import ArmDraw, EndReason, Outcome, Query, ReplyForm, Request
from suffice.upstream.client import UpstreamClient
from suffice.upstream.continuation import probe_of_form
from suffice.upstream.drivers import DRIVERS, find_verdict, has_field, honoured

if TYPE_CHECKING:
    from suffice.gateway.turns import Turn


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


@frozen_struct
class AdmittedRequest:
    gw: GatewayState
    exchange: Exchange
    parsed: ParsedRequest
    route: BuiltRoute | None
    upstream: str
    request: Request
    retry_after_s: int | None = None  # set if the request is shed
    turn: Turn | None = None  # of an agent's run, if its route governs turns

    @property
    def client(self) -> UpstreamClient:
        return self.gw.upstreams[self.upstream]


@frozen_struct
class GovernedRequest:
    gw: GatewayState
    route: BuiltRoute
    client: UpstreamClient
    parsed: ParsedRequest
    headers: list[tuple[str, str]]
    ledger: Ledger
    exchange: Exchange
    api: ApiFormat
    events: ChatEvents
    held: HeldCall | None = None  # the reply, where it has been read already

    @property
    def probe(self) -> Probe:
        probe, form = self.route.settings.probe or Probe(), self.ledger.request.form
        return probe if form == "text" else probe_of_form(probe, form)

    @property
    def may_act(self) -> bool:
        return self.gw.stop_right(self.route, self.ledger).refusal() is None

    @property
    def signal_fields(self) -> dict[str, Any]:
        """Fields that read signals from the model's tokens; a client that wants log-probabilities gets its own."""
        asks = self.api is CHAT and self.route.reads("end-of-thought") and not has_field(self.parsed.body, "logprobs")
        reads_stream = asks and honoured(self.client.findings, "logprobs_stream")
        return self.line_fields or ({"logprobs": True, "top_logprobs": LISTED_TOKENS} if reads_stream else {})

    @property
    def line_fields(self) -> dict[str, Any]:
        """Fields by which the engine reads these signals at the ends of lines; a proposer needs them in the stream."""
        ask, route = DRIVERS[self.client.settings.driver].line_signals, self.route
        reads = (route.reads("end-of-thought") or route.reads("wording")) and route.proposer is None
        if ask is None or not reads or self.api is not CHAT or not honoured(self.client.findings, "line_signals"):
            return {}
        return ask(self.ledger.request.episode_id, self.client.settings.think_close)

    @property
    def max_tokens(self) -> int | None:
        cap = self.parsed.chat.get("max_completion_tokens") or self.parsed.chat.get("max_tokens")
        return cap if isinstance(cap, int) and cap > 0 else None

    @property
    def forces_answers(self) -> bool:
        """Whether a run that would end inside its thought gets an answer; stop words may have ended it on purpose."""
        wants = self.route.acts and self.route.settings.finish_unclosed and not self.gw.deployment.kill.on
        return wants and not has_field(self.parsed.chat, "stop")

    def answer_reserve(self, continuer: Continuer) -> int | None:
        """Return after how many tokens a thought is closed, so that the cap leaves room for a call or JSON."""
        cap = self.max_tokens
        if cap is None or not self.forces_answers or not continuer.methods or self.ledger.request.form == "text":
            return None
        return cap - min(continuer.probe.max_tokens, cap // 2)

    @property
    def upstream_body(self) -> dict[str, Any]:
        """The client's body as a stream, with usage unless `suffice doctor` saw that the upstream refuses it."""
        with_usage = self.api is CHAT and find_verdict(self.client.findings, "stream_usage") != "no"
        return self.parsed.streamed(with_usage=with_usage, in_chunks=self.counts_chunks)

    @property
    def counts_chunks(self) -> bool:
        """Whether the engine is asked for its own counts in every chunk: exact ones of a call that may be cut off.

        A vote that is decided cuts its last samples off in every mode.
        """
        kind = self.ledger.request.kind
        may_be_cut = kind == "samples" or (self.may_act and kind == "reasoning")
        return may_be_cut and self.api is CHAT and DRIVERS[self.client.settings.driver].counts_chunks

    def keep_alive(self) -> AbstractAsyncContextManager[None]:
        if not self.parsed.stream:
            return nullcontext()
        return kept_alive(self.exchange, self.gw.settings.server.ping_s, self.gw.monotonic_s)


Admit = Callable[[str], Awaitable[AdmittedRequest]]  # takes the episode id
Answer = Callable[[AdmittedRequest, Ledger], Coroutine[Any, Any, None]]


async def serve_request(gw: GatewayState, exchange: Exchange, admit: Admit, answer: Answer, *, endpoint: str) -> None:
    started_s, episode_id = gw.monotonic_s(), gw.new_id()
    token = gw.feedback_token(episode_id)
    exchange.own_headers += [("x-suffice-episode-id", episode_id), *token_header(token)]
    gw.metrics.inc("suffice_live_requests")
    exchange.request.episode_id, trace = episode_id, begin_trace(gw, exchange)
    ledger: Ledger | None = None
    end: EndReason = "internal_error"
    try:
        admitted = await admit(episode_id)
        for field in admitted.parsed.stripped:
            gw.metrics.inc("suffice_stripped_fields_total", field)
        upstream, messages = gw.upstreams[admitted.upstream].settings, admitted.parsed.chat.get("messages")
        ledger = Ledger(admitted.request, started_s, costs=CostBasis(prices=upstream.prices), trace=trace)
        exchange.request.route = admitted.request.route or "-"
        if trace is not None:
            trace.attributes["suffice.upstream"], trace.provider = admitted.upstream, upstream.driver
        exchange.own_headers += reply_headers(admitted.request)
        open_ledger(gw, ledger, admitted.route, token, lambda: format_conversation(messages or ()))
        gw.process.live_runs[episode_id] = LiveRun(ledger)
        end = await _answer(admitted, ledger, answer)
    except BadRequest as error:
        end = "rejected"
        await exchange.refuse(error)
    except ClientGone:
        end = "client_left"
    except asyncio.CancelledError:
        end = "shutdown"  # the server is shutting down; this task ends here either way
        message = "the gateway is shutting down; retry the request"
        await exchange.fail(503, message, "shutting_down", kind="server_error")
    except Exception as error:  # noqa: BLE001 - the last resort: a clean error for the client, and a record
        await _report_internal_error(exchange, episode_id, error)
    finally:
        gw.metrics.inc("suffice_live_requests", by=-1)
        gw.process.live_runs.pop(episode_id, None)
        if ledger is None:
            unread = Arrival(episode_id=episode_id, endpoint=endpoint)
            ledger = Ledger(_blank_request(gw, unread, "unreadable"), started_s, trace=trace)
            write_request(gw, ledger)
        ledger.reply.status, ledger.reply.first_byte_s = exchange.status, exchange.first_byte_s
        if trace is not None:
            trace.attributes["suffice.request_id"] = exchange.request.request_id
        close(gw, ledger, end, ended_s=exchange.last_sent_s if exchange.status else gw.monotonic_s())


def begin_trace(gw: GatewayState, exchange: Exchange) -> RunTrace | None:
    """Begin the request's span, if it has one, and let its calls to the upstream continue the trace."""
    tracer = gw.process.tracer
    trace = None if tracer is None else tracer.begin(dict(exchange.headers), exchange.scope["method"])
    if trace is not None:
        exchange.forward("traceparent", trace.header)
        exchange.request.trace_id = f"{trace.trace_id:032x}"
    return trace


async def _answer(admitted: AdmittedRequest, ledger: Ledger, answer: Answer) -> EndReason:
    exchange, request, gw = admitted.exchange, admitted.request, admitted.gw

    def reads_on() -> bool:
        may_go_on = is_read_on(request, admitted.route) and admitted.turn is None
        return may_go_on and gw.process.unread.enter(request.sender, most=gw.settings.control.unread_audits)

    try:
        left = await supervise(answer(admitted, ledger), exchange, reads_on)
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
        # The run refers to this error and its traceback to the run: a cycle that would keep the data read.
        error.with_traceback(None)
        gw.metrics.inc("suffice_upstream_errors_total", admitted.upstream, error.code)
        await exchange.fail(error.status, str(error), error.code)
        return "timeout" if isinstance(error, UpstreamTimeout) else "upstream_error"
    except Exception as error:  # noqa: BLE001 - as above, with the tokens spent so far on record
        ledger.fail_open("gateway")
        await _report_internal_error(exchange, ledger.request.episode_id, error)
        return "internal_error"
    finally:
        if exchange.is_unread:
            gw.process.unread.leave(request.sender)
    ledger.audit.finished_unread = exchange.is_unread and exchange.complete and ledger.end_reason is None
    return "client_left" if left else "done"


async def _report_internal_error(exchange: Exchange, episode_id: str, error: Exception) -> None:
    LOG.error("episode %s: internal error (%s)", episode_id, type(error).__name__)
    LOG.debug("the same, with its traceback", exc_info=True)  # may quote the client's data: debug only
    await exchange.fail(500, "internal error of the gateway", "internal_error", kind="server_error")


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
        return None, _blank_request(gw, arrival, reason or "no_route"), None
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
        own = place_route(route, place)
        if reason is None:  # the audit is drawn for the route itself; arms then vary what the request gets
            key, caller = arrival.key(own.name), arrival.caller.id
            assigned = gw.assign(own, key, arrival.episode_id, caller=caller, wall_s=now_s)
            varied, arms = gw.deployment.variants.place(route, lambda: arrival.units(assigned), question)
            own = own if varied is route else place_route(varied, place)
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
        policy_version=route.policy_version,
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


def _blank_request(gw: GatewayState, arrival: Arrival, reason: str) -> Request:
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
    request, now_s, statistics = ledger.request, gw.monotonic_s(), gw.statistics[ledger.request.route]
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
    route, usage, overhead, cost = request.route, outcome.usage, outcome.overhead, ledger.cost()
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

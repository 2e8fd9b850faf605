"""Opens and closes runs whose loop the caller drives, for `POST /v1/decide` and for the library."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from math import inf
from typing import Any, Final

import msgspec

from suffice.asgi import ClientGone
from suffice.episode.ledger import Ledger
from suffice.episode.loop import GuardedPolicy
from suffice.episode.rounds import RoundsRun, StepReport
from suffice.episode.stream_relay import LiveRun
from suffice.errors import BadRequest
from suffice.gateway import lifecycle
from suffice.gateway.auth import ANYONE, Caller, token_header
from suffice.gateway.context import GatewayState
from suffice.gateway.exchange import Exchange
from suffice.gateway.lifecycle import Arrival
from suffice.gateway.request_parsing import check_body_headers, check_known, parse_json, read_aside, read_text
from suffice.review.items import MOST_SOURCES
from suffice.rollout.assign import joined
from suffice.serving.route import BuiltRoute
from suffice.signals.query import query_signals
from suffice.telemetry import LOG
from suffice.types import Decision, EndReason

LIMIT_BYTES: Final = 2 * 2**20
LOOK_S: Final = 15.0  # between two checks for abandoned runs and obeyed stops
ID_CHARS: Final = 200
MAX_METADATA: Final = 32
MAX_LOGPROBS: Final = 10_000

RUN_FIELDS: Final = ("key", "model", "metadata", "query_class", "planned_steps")
FIELDS: Final = ("route", "episode_id", "question", "step", "done", "aborted", *RUN_FIELDS)
STEP_FIELDS: Final = ("index", "answer", "tokens", "signals", "sources")
SIGNAL_FIELDS: Final = tuple(one.name for one in fields(StepReport) if one.name not in STEP_FIELDS)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStart:
    question: str
    key: str | None = None  # the conversation that the run belongs to
    model: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    query_class: str = ""  # declared; "": none
    planned_steps: int | None = None


def open_run(
    gw: GatewayState,
    route: BuiltRoute,
    start: RunStart,
    *,
    caller: Caller = ANYONE,
    idempotency_key: str | None = None,
    endpoint: str = "/v1/decide",
    body: bytes | None = None,
) -> RoundsRun:
    """Draw the audit, log the request and return the run that takes its steps.

    body  identifies repeated deliveries; None: the question does
    """
    gw.deployment.refresh()
    route = gw.deployment.route(route.name) or route
    arrival = Arrival(
        episode_id=gw.new_id(),
        endpoint=endpoint,
        caller=caller,
        model=start.model,
        n_samples=route.settings.samples if route.settings.kind == "samples" else 1,
        is_callers_loop=True,
        question=lambda: start.question,
        query=lambda: query_signals(
            start.question, metadata=start.metadata, query_class=start.query_class, planned_steps=start.planned_steps
        ),
        body=joined(start.model, start.question).encode("utf-8", "surrogatepass") if body is None else body,
        conversation=start.key,
        idempotency_key=idempotency_key,
        user=start.metadata.get("user"),
        tenant=start.metadata.get("tenant"),
    )
    served, request, _ = lifecycle.admit(gw, arrival, route, "off" if route.settings.mode == "off" else None)
    assert served is not None
    ledger = Ledger(request, gw.monotonic_s())
    lifecycle.open_ledger(gw, ledger, served, gw.feedback_token(request.episode_id), lambda: start.question)
    gw.metrics.inc("suffice_open_episodes")
    if request.ungoverned is not None:
        gw.metrics.inc("suffice_ungoverned_total", request.route, request.ungoverned)
    return RoundsRun(
        ledger=ledger,
        scorer=served.scorer,
        policy=GuardedPolicy(served.serving.policy, served.serving.needs, ledger, gw.monotonic_s),
        right=gw.stop_right(served, ledger),
        returning=served.returning,
        vectors=gw.vectors(served, ledger),
        shelf=lifecycle.open_shelf(served, ledger),
    )


def close_run(gw: GatewayState, run: RoundsRun, end: EndReason = "done") -> None:
    """Write the run's outcome. Idempotent. An aborted run ends as "client_left"."""
    if run.is_over:
        return
    gw.process.live_runs.pop(run.id, None)
    run.finish()
    ledger = run.ledger
    if end != "done":
        ledger.stop.acted = False
    elif ledger.stop.acted:
        ledger.stop.finish_method = "caller"
        if ledger.reply.caller_usage is not None:
            n_tokens = ledger.reply.caller_usage.completion_tokens
            lifecycle.estimate_full_run(gw, ledger, n_tokens, longer=" that were longer")
    gw.metrics.inc("suffice_open_episodes", by=-1)
    lifecycle.keep_sources(gw, ledger, run.shelf)
    lifecycle.close(gw, ledger, end)
    ledger.steps = []  # logged; the run stays in memory for repeated calls


def close_old(gw: GatewayState, *, at_shutdown: bool = False) -> None:
    """Close the runs that were told to stop and went silent, as stopped, and the abandoned ones; all at shutdown."""
    now_s = inf if at_shutdown else gw.monotonic_s()
    for run in gw.runs.pop_stopped(now_s=now_s):
        close_run(gw, run)
    for run in gw.runs.pop_old(now_s=now_s):
        end: EndReason = "shutdown" if at_shutdown else "client_left"
        close_run(gw, run, "done" if run.has_stop else end)


@dataclass(frozen=True, slots=True, kw_only=True)
class DecideRequest:
    route: str
    episode_id: str | None
    start: RunStart | None  # None: the body has no question
    step: tuple[int, StepReport] | None  # its index from 1; None: no step is reported
    done: bool
    aborted: bool


async def decide_step(gw: GatewayState, exchange: Exchange) -> None:
    """`POST /v1/decide`: a client's loop asks after each step whether to continue. Repeated steps get equal decisions.

    Open runs are kept in memory, bounded in number and time; an abandoned run gets an outcome too.
    """
    try:
        check_body_headers(exchange.headers, LIMIT_BYTES)
        raw = await exchange.read_body(LIMIT_BYTES)
        body = await read_aside(parse_json, raw, gw.settings.server)
        call = read_decide(body, dict(exchange.headers).get("x-conversation-id"))
        close_old(gw)
        run = _run(gw, call, exchange)
        vector = () if call.step is None else await run.vector_of(*call.step)
        # No await from here to the decision, so concurrent calls cannot interleave.
        reason = "the run is over" if run.is_over or call.done else "the run is open"
        decision = Decision(action="continue", reason=reason)
        if call.step is not None:
            decision = run.take(*call.step, vector)
            gw.runs.note_decision(run, now_s=gw.monotonic_s())
        if call.done or call.aborted:
            close_run(gw, run, "client_left" if call.aborted else "done")
    except ClientGone:
        return
    except BadRequest as error:
        gw.metrics.inc("suffice_decisions_total", "", "refused")
        await exchange.refuse(error)
        return
    except Exception as error:  # noqa: BLE001 - the caller's loop goes on, and its response must say so
        LOG.error("decide: internal error (%s)", type(error).__name__)
        gw.metrics.inc("suffice_failopen_total", "decide")
        await exchange.fail(500, "internal error; continue without Suffice", "internal_error", kind="server_error")
        return
    request = run.ledger.request
    exchange.request.route, exchange.request.episode_id = request.route, run.id
    gw.metrics.inc("suffice_decisions_total", request.route, decision.action)
    token = token_header(run.ledger.disclosure.feedback_token)
    exchange.own_headers += [("x-suffice-episode-id", run.id), *lifecycle.reply_headers(request), *token]
    answer = {
        "episode_id": run.id,
        "feedback_token": run.ledger.disclosure.feedback_token or None,
        "action": decision.action,
        "stop_reason": decision.stop_reason,
        "reason": decision.reason,
        "return_step": run.return_step,
        "policy_version": request.policy_version,
        "propensity": decision.propensity,
        "mode": request.mode,
        "certified": request.certified,
        "promise": run.ledger.disclosure.promise() or None,
        "degraded": list(run.ledger.degraded),
    }
    await exchange.json(200, msgspec.json.encode(answer))


def list_run(gw: GatewayState, run: RoundsRun, *, can_end: bool = True) -> None:
    """Let a person ask something of the run."""
    is_governed = can_end and run.ledger.request.ungoverned is None
    gw.process.live_runs[run.id] = LiveRun(run.ledger, cut=_at_next_step if is_governed else None)


def _at_next_step() -> None:
    """A loop that was asked for its answer learns it from its next decision."""


def _run(gw: GatewayState, call: DecideRequest, exchange: Exchange) -> RoundsRun:
    caller, key = exchange.caller, dict(exchange.headers).get("idempotency-key")
    routes = gw.deployment.routes
    route = next((r for r in lifecycle.usable_routes(routes, caller, by_name=True) if r.name == call.route), None)
    if route is None:
        raise lifecycle.route_refusal(routes, caller, call.route, where="route")
    # Lets the opening call be repeated; unique to the caller.
    opening = joined(caller.namespace, key) if key else None
    episode_id = call.episode_id or (gw.runs.opened.get(opening) if opening else None)
    if episode_id is None:
        if call.start is None:
            raise BadRequest("question: is needed when a run begins, and episode_id after that", param="question")
        if call.step is not None and call.step[0] != 1:
            message = f"step.index: got {call.step[0]}; the first step of a run is 1, and episode_id names one that"
            raise BadRequest(f"{message} is open", status=409, param="step.index", code="step_gap")
        run = open_run(gw, route, call.start, caller=caller, idempotency_key=key)
        run.ledger.trace = lifecycle.begin_trace(gw, exchange)
        gw.runs.put(run, key=opening, now_s=gw.monotonic_s())
        list_run(gw, run)
        close_old(gw)
        return run
    known = gw.runs.get(episode_id, sender=caller.id, now_s=gw.monotonic_s())
    if known is None:
        message = f"episode_id: {episode_id[:80]!r} is not open here; it has ended, timed out, or never existed"
        raise BadRequest(message, status=404, param="episode_id", code="unknown_episode")
    if known.ledger.request.route != call.route:
        message = f"route: this episode belongs to the route {known.ledger.request.route!r}"
        raise BadRequest(message, status=409, param="route", code="route_conflict")
    return known


def read_decide(body: dict[str, Any], conversation: str | None = None) -> DecideRequest:
    """Raise BadRequest, naming the field and what is allowed. `conversation` comes from the headers."""
    check_known(body, FIELDS)
    route = read_text(body, "route", ID_CHARS)
    if not route:
        raise BadRequest("route: is needed, the name of a route", param="route")
    step = _step(body["step"]) if body.get("step") is not None else None
    for name in ("done", "aborted"):
        if not isinstance(body.get(name), bool | None):
            raise BadRequest(f"{name}: must be true or false", param=name)
    episode_id, question = read_text(body, "episode_id", ID_CHARS), read_text(body, "question", LIMIT_BYTES)
    start = RunStart(
        question=question or "",
        key=read_text(body, "key", 1_000) or conversation,
        model=read_text(body, "model", ID_CHARS) or "",
        metadata=_metadata(body.get("metadata")),
        query_class=read_text(body, "query_class", ID_CHARS) or "",
        planned_steps=body.get("planned_steps"),
    )
    if start.planned_steps is not None and not _is_count(start.planned_steps):
        raise BadRequest("planned_steps: must be a whole number, at least 1", param="planned_steps")
    if step is None and episode_id is None and question is None:
        raise BadRequest("step: is needed, or question to begin a run, or episode_id with done", param="step")
    return DecideRequest(
        route=route,
        episode_id=episode_id,
        start=None if question is None else start,
        step=step,
        done=body.get("done") is True,
        aborted=body.get("aborted") is True,
    )


def _step(step: Any) -> tuple[int, StepReport]:
    if not isinstance(step, dict):
        raise BadRequest("step: must be an object", param="step")
    check_known(step, STEP_FIELDS, "step.")
    index: Any = step.get("index")
    if not _is_count(index):
        raise BadRequest("step.index: is needed, a whole number from 1", param="step.index")
    if "tokens" not in step:
        raise BadRequest("step.tokens: is needed, the tokens generated in this step", param="step.tokens")
    signals = step.get("signals") or {}
    if not isinstance(signals, dict):
        raise BadRequest("step.signals: must be an object", param="step.signals")
    check_known(signals, SIGNAL_FIELDS, "step.signals.")
    logprobs, sources = signals.get("logprobs") or [], step.get("sources") or []
    if not isinstance(logprobs, list) or len(logprobs) > MAX_LOGPROBS:
        message = f"step.signals.logprobs: must be a list of at most {MAX_LOGPROBS} numbers"
        raise BadRequest(message, param="step.signals.logprobs")
    if not isinstance(sources, list) or len(sources) > MOST_SOURCES:
        message = f"step.sources: must be a list of at most {MOST_SOURCES} strings"
        raise BadRequest(message, param="step.sources")
    known = {k: v for k, v in signals.items() if v is not None} | {"logprobs": tuple(logprobs)}
    return index, StepReport(answer=step.get("answer"), tokens=step["tokens"], sources=tuple(sources), **known)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _metadata(value: Any) -> dict[str, str]:
    table = {} if value is None else value
    fits = isinstance(table, dict) and len(table) <= MAX_METADATA
    if not fits or not all(isinstance(v, str) and len(k) + len(v) <= 1_000 for k, v in table.items()):
        raise BadRequest(f"metadata: must be an object of at most {MAX_METADATA} short strings", param="metadata")
    return table

"""Opens and closes runs whose loop the caller drives: the audit draw before the first step, one outcome at the end.

Shared by `/v1/decide` and by the library, which differ only in how a step reaches them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import msgspec

from suffice.episode.guarded_policy import GuardedPolicy
from suffice.episode.ledger import Ledger
from suffice.episode.probe import Vectors
from suffice.episode.rounds import RoundsRun, StepReport
from suffice.errors import BadRequest
from suffice.gateway.auth import ANYONE, Caller, caller_of, token_header
from suffice.gateway.context import GatewayState, may_stop
from suffice.gateway.exchange import ClientGone, Exchange, Receive, Scope, Send, headers_of, read_body
from suffice.gateway.lifecycle import (
    Arrival,
    admit,
    close,
    keep_sources,
    open_ledger,
    open_shelf,
    reply_headers,
    route_refusal,
    usable_routes,
)
from suffice.gateway.request_parsing import check_body_headers, parse_json, read_aside
from suffice.gateway.route import BuiltRoute
from suffice.review.items import MOST_SOURCES
from suffice.rollout.assign import joined
from suffice.signals.query import query_signals
from suffice.telemetry import LOG
from suffice.types import Decision, EndReason


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundsRequest:
    question: str
    key: str | None = None  # the conversation that the run belongs to
    caller: Caller = ANYONE  # whose question it is
    idempotency_key: str | None = None  # of the call that begins the run
    model: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    query_class: str = ""  # declared; "": none
    planned_steps: int | None = None
    endpoint: str = "/v1/decide"


def open_run(gw: GatewayState, route: BuiltRoute, asked: RoundsRequest) -> RoundsRun:
    """Draw the audit, write the request down, and give the run that takes its steps."""
    gw.deployment.refresh()
    route = next((one for one in gw.deployment.routes if one.name == route.name), route)
    arrival = Arrival(
        episode_id=gw.new_id(),
        endpoint=asked.endpoint,
        caller=asked.caller,
        model=asked.model,
        n_samples=route.settings.samples if route.settings.kind == "samples" else 1,
        is_callers_loop=True,
        question=lambda: asked.question,
        query=lambda: query_signals(
            asked.question, metadata=asked.metadata, query_class=asked.query_class, planned_steps=asked.planned_steps
        ),
        body=joined(asked.model, asked.question).encode("utf-8", "surrogatepass"),
        conversation=asked.key,
        idempotency_key=asked.idempotency_key,
        user=asked.metadata.get("user"),
        tenant=asked.metadata.get("tenant"),
    )
    served, request, _ = admit(gw, arrival, route, "off" if route.settings.mode == "off" else None)
    assert served is not None
    ledger = Ledger(request, gw.monotonic_s())
    open_ledger(gw, ledger, served, gw.feedback_token(request.episode_id), lambda: asked.question)
    gw.metrics.inc("suffice_open_episodes")
    if request.ungoverned is not None:
        gw.metrics.inc("suffice_ungoverned_total", request.route, request.ungoverned)
    embedder, most = gw.embedders.get(served.name), served.settings.max_extra_calls
    return RoundsRun(
        ledger=ledger,
        scorer=served.scorer,
        policy=GuardedPolicy(served.policy, served.needs, ledger, gw.monotonic_s),
        may_act=may_stop(request, served),
        returning=served.returning,
        is_resting=lambda: gw.deployment.kill.on,
        vectors=None if embedder is None else Vectors(embedder=embedder, ledger=ledger, max_calls=most),
        shelf=open_shelf(served, ledger),
    )


def close_run(gw: GatewayState, run: RoundsRun, end: EndReason = "done") -> None:
    """Write the run's one outcome; closing it again does nothing.

    end  "done": the caller's loop came to its end, by a stop or by itself. "client_left": it was broken
         off, which in an audit counts as a disagreement
    """
    if run.is_over:
        return
    run.finish()
    ledger = run.ledger
    if end != "done":
        ledger.stopped = False
    elif ledger.stopped:
        ledger.finish_method = "caller"
        _estimate_saved(gw, run)
    gw.metrics.inc("suffice_open_episodes", by=-1)
    keep_sources(gw, ledger, run.shelf)
    close(gw, ledger, end)
    ledger.steps = []  # they are in the log; the run stays for calls that come again


def close_old(gw: GatewayState) -> None:
    """End the runs that nobody has touched for too long: their callers have left."""
    for run in gw.runs.pop_old(now_s=gw.monotonic_s()):
        close_run(gw, run, "client_left")


def close_all(gw: GatewayState) -> None:
    for run in gw.runs.pop_all():
        close_run(gw, run, "shutdown")


def _estimate_saved(gw: GatewayState, run: RoundsRun) -> None:
    """What the loop would have gone on to generate, from the full runs of this route; unknown if few."""
    full, usage = gw.statistics[run.ledger.request.route].full_runs, run.ledger.told_usage
    remaining = None if usage is None else full.remaining(usage.completion_tokens)
    if remaining is None:
        return
    run.ledger.tokens_saved_estimate = round(remaining.thought_tokens)
    run.ledger.estimate_method = f"mean of {remaining.n} full runs of this route that were longer"


LIMIT_BYTES = 2 * 2**20
LOOK_S = 60.0  # how often runs that were left are looked for
ID_CHARS = 200
MAX_METADATA = 32
MAX_LOGPROBS = 10_000

FIELDS = (
    "route",
    "episode_id",
    "question",
    "step",
    "done",
    "aborted",
    "key",
    "model",
    "metadata",
    "query_class",
    "planned_steps",
)
STEP_FIELDS = ("index", "answer", "tokens", "signals", "sources")
SIGNAL_FIELDS = (
    "text",
    "confidence",
    "logprobs",
    "entropy",
    "logprob",
    "stated_confidence",
    "said_done",
    "action",
    "ctx_tokens",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DecideRequest:
    route: str
    episode_id: str | None
    question: str | None
    index: int | None  # None: no step is told
    told: StepReport | None
    done: bool
    aborted: bool
    key: str | None  # as the header x-conversation-id
    model: str
    metadata: Mapping[str, str]
    query_class: str
    planned_steps: int | None


async def decide_step(gw: GatewayState, scope: Scope, receive: Receive, send: Send) -> None:
    """`POST /v1/decide`: a loop that runs at the client asks after each of its steps whether to go on.

    {route, question, step} ──▶ the run is opened: audit draw, request row ──▶ {episode_id, action, …}
    {route, episode_id, step} ──▶ the next step; the same step again, the same decision
    {route, episode_id, done | aborted} ──▶ its one outcome

    Open runs are kept in memory, bounded in number and time; one that is left gets its outcome all the same.
    """
    exchange = Exchange(send, [], gw.monotonic_s)
    headers = headers_of(scope)
    try:
        check_body_headers(headers, LIMIT_BYTES)
        raw = await read_body(receive, LIMIT_BYTES)
        step = read_decide(await read_aside(parse_json, raw, gw.settings.server))
        close_old(gw)
        run = _run(gw, step, caller_of(scope), dict(headers))
        vector = () if step.told is None or step.index is None else await run.vector_of(step.index, step.told)
        # From here to the answer nothing waits: clients that ask at once are served one after the other.
        decision = _advance(gw, run, step, vector)
    except ClientGone:
        return
    except BadRequest as error:
        gw.metrics.inc("suffice_decisions_total", "", "refused")
        await exchange.refuse(error)
        return
    except Exception as error:  # noqa: BLE001 - the caller's loop goes on; it only must be told so
        LOG.error("decide: internal error (%s)", type(error).__name__)
        gw.metrics.inc("suffice_failopen_total", "decide")
        await exchange.fail(500, "internal error; go on without us", "internal_error", kind="server_error")
        return
    request = run.ledger.request
    gw.metrics.inc("suffice_decisions_total", request.route, decision.action)
    exchange.own_headers += [
        ("x-suffice-episode-id", run.id),
        *reply_headers(request),
        *token_header(run.ledger.feedback_token),
    ]
    _watch(gw)
    await exchange.json(200, msgspec.json.encode(_answer(run, decision)))


def _run(gw: GatewayState, step: DecideRequest, caller: Caller, headers: Mapping[str, str]) -> RoundsRun:
    """The run that is meant: one that is open, or a new one."""
    route = next((r for r in usable_routes(gw.deployment.routes, caller, by_name=True) if r.name == step.route), None)
    if route is None:
        raise route_refusal(gw.deployment.routes, caller, step.route, where="route")
    key = _opening_key(caller, headers)
    episode_id = step.episode_id or (gw.runs.opened_by(key) if key else None)
    if episode_id is not None:
        run = gw.runs.get(episode_id, sender=caller.id, now_s=gw.monotonic_s())
        if run is None:
            message = f"episode_id: {episode_id[:80]!r} is not open here; it has ended, was left too long, or never was"
            raise BadRequest(message, status=404, param="episode_id", code="unknown_episode")
        if run.ledger.request.route != step.route:
            message = f"route: this episode belongs to the route {run.ledger.request.route!r}"
            raise BadRequest(message, status=409, param="route", code="route_conflict")
        return run
    return _open(gw, route, step, caller, headers)


def _opening_key(caller: Caller, headers: Mapping[str, str]) -> str | None:
    """Under which a run is kept, so that its opening call may be repeated; two callers never share one."""
    key = headers.get("idempotency-key")
    return joined(caller.namespace, key) if key else None


def _open(
    gw: GatewayState, route: BuiltRoute, step: DecideRequest, caller: Caller, headers: Mapping[str, str]
) -> RoundsRun:
    if step.question is None:
        raise BadRequest("question: is needed when a run begins, and episode_id after that", param="question")
    if step.index not in (None, 1):
        message = f"step.index: got {step.index}; the first step of a run is 1, and episode_id names one that is open"
        raise BadRequest(message, status=409, param="step.index", code="step_gap")
    asked = RoundsRequest(
        question=step.question,
        key=step.key or headers.get("x-conversation-id"),
        caller=caller,
        idempotency_key=headers.get("idempotency-key"),
        model=step.model,
        metadata=step.metadata,
        query_class=step.query_class,
        planned_steps=step.planned_steps,
    )
    run = open_run(gw, route, asked)
    gw.runs.put(run, key=_opening_key(caller, headers), now_s=gw.monotonic_s())
    close_old(gw)
    return run


def _advance(gw: GatewayState, run: RoundsRun, step: DecideRequest, vector: tuple[float, ...]) -> Decision:
    decision = Decision(action="continue", reason="the run is over" if run.is_over or step.done else "the run is open")
    if step.told is not None and step.index is not None:
        decision = run.take(step.index, step.told, vector)
    if step.done or step.aborted:
        close_run(gw, run, "client_left" if step.aborted else "done")
    return decision


def _answer(run: RoundsRun, decision: Decision) -> dict[str, Any]:
    request = run.ledger.request
    return {
        "episode_id": run.id,
        "feedback_token": run.ledger.feedback_token or None,
        "action": decision.action,
        "stop_reason": decision.stop_reason,
        "reason": decision.reason,
        "return_step": run.return_step,
        "policy_version": request.policy_version,
        "propensity": decision.propensity,
        "mode": request.mode,
        "certified": request.certified,
        "promise": run.ledger.promise() or None,
        "degraded": list(run.ledger.degraded),
    }


def _watch(gw: GatewayState) -> None:
    """Look for runs that were left, for as long as there are any."""
    if gw.runs.is_watched or not len(gw.runs):
        return
    gw.runs.is_watched = True

    def look() -> None:
        gw.runs.is_watched = False
        if gw.process.draining:
            return
        close_old(gw)
        _watch(gw)

    asyncio.get_running_loop().call_later(LOOK_S, look)


def read_decide(body: dict[str, Any]) -> DecideRequest:
    """Check a body. Raises BadRequest naming the field and what is allowed."""
    _known(body, FIELDS, "")
    route = _text(body, "route", ID_CHARS)
    if not route:
        raise BadRequest("route: is needed, the name of a route", param="route")
    index, told = _step(body["step"]) if body.get("step") is not None else (None, None)
    for name in ("done", "aborted"):
        if not isinstance(body.get(name), bool | None):
            raise BadRequest(f"{name}: must be true or false", param=name)
    request = DecideRequest(
        route=route,
        episode_id=_text(body, "episode_id", ID_CHARS),
        question=_text(body, "question", LIMIT_BYTES),
        index=index,
        told=told,
        key=_text(body, "key", 1_000),
        done=body.get("done") is True,
        aborted=body.get("aborted") is True,
        model=_text(body, "model", ID_CHARS) or "",
        metadata=_metadata(body.get("metadata")),
        query_class=_text(body, "query_class", ID_CHARS) or "",
        planned_steps=_planned(body.get("planned_steps")),
    )
    if request.told is None and request.episode_id is None and request.question is None:
        raise BadRequest("step: is needed, or question to begin a run, or episode_id with done", param="step")
    return request


def _step(step: Any) -> tuple[int, StepReport]:
    if not isinstance(step, dict):
        raise BadRequest("step: must be an object", param="step")
    _known(step, STEP_FIELDS, "step.")
    index = step.get("index")
    if not isinstance(index, int) or isinstance(index, bool) or index < 1:
        raise BadRequest("step.index: is needed, a whole number from 1", param="step.index")
    if "tokens" not in step:
        raise BadRequest("step.tokens: is needed, the tokens generated in this step", param="step.tokens")
    signals = step.get("signals") or {}
    if not isinstance(signals, dict):
        raise BadRequest("step.signals: must be an object", param="step.signals")
    _known(signals, SIGNAL_FIELDS, "step.signals.")
    logprobs = signals.get("logprobs") or []
    if not isinstance(logprobs, list) or len(logprobs) > MAX_LOGPROBS:
        message = f"step.signals.logprobs: must be a list of at most {MAX_LOGPROBS} numbers"
        raise BadRequest(message, param="step.signals.logprobs")
    sources = step.get("sources") or []
    if not isinstance(sources, list) or len(sources) > MOST_SOURCES:
        message = f"step.sources: must be a list of at most {MOST_SOURCES} strings"
        raise BadRequest(message, param="step.sources")
    given = {k: v for k, v in signals.items() if v is not None and k != "logprobs"}
    told = StepReport(
        answer=step.get("answer"), tokens=step["tokens"], logprobs=tuple(logprobs), sources=tuple(sources), **given
    )
    return index, told


def _known(table: dict[str, Any], known: tuple[str, ...], where: str) -> None:
    for key in table:
        if key not in known:
            raise BadRequest(f"{where}{key[:80]}: unknown field; known: {', '.join(known)}", param=f"{where}{key[:80]}")


def _text(body: dict[str, Any], key: str, limit: int) -> str | None:
    value = body.get(key)
    if value is not None and (not isinstance(value, str) or len(value) > limit):
        raise BadRequest(f"{key}: must be a string of at most {limit} characters", param=key)
    return value


def _metadata(given: Any) -> Mapping[str, str]:
    fits = given is None or (
        isinstance(given, dict)
        and len(given) <= MAX_METADATA
        and all(isinstance(v, str) and len(k) + len(v) <= 1_000 for k, v in given.items())
    )
    if not fits:
        raise BadRequest(f"metadata: must be an object of at most {MAX_METADATA} short strings", param="metadata")
    return cast("dict[str, str]", given or {})


def _planned(given: Any) -> int | None:
    if given is not None and (not isinstance(given, int) or isinstance(given, bool) or given < 1):
        raise BadRequest("planned_steps: must be a whole number, at least 1", param="planned_steps")
    return given

"""Opens and closes runs whose loop the caller drives: the audit draw before the first step, one outcome at the end.

Shared by `/v1/decide` and by the library, which differ only in how a step reaches them. Knows routes,
audit draws and the log; refuses to know HTTP and threads: one caller at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from suffice.episode.ledger import Ledger
from suffice.episode.rounds import RoundsRun
from suffice.episode.vectors import Vectors
from suffice.gateway import questions, request_log
from suffice.gateway.auth import ANYONE, Caller
from suffice.gateway.breaker import Breaker
from suffice.gateway.context import Gateway, may_stop
from suffice.gateway.deliveries import RequestKey
from suffice.gateway.load_control import placed
from suffice.gateway.route import BuiltRoute
from suffice.rollout.assign import UNASSIGNED, AuditAssignment, joined, question_key
from suffice.rollout.experiment import UnitIds, units_of
from suffice.signals.query import class_of, query_signals
from suffice.types import ArmDraw, EndReason, Query, Request


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundsRequest:
    """What a caller says when its loop begins."""

    question: str
    key: str | None = None  # the conversation that the run belongs to
    caller: Caller = ANYONE  # whose question it is
    idempotency_key: str | None = None  # of the call that begins the run
    model: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    query_class: str = ""  # declared; "": none
    planned_steps: int | None = None
    endpoint: str = "/v1/decide"


def open_run(gw: Gateway, route: BuiltRoute, asked: RoundsRequest) -> RoundsRun:
    """Draw the audit, write the request down, and give the run that takes its steps."""
    gw.refresh()
    route = gw.kill.resting(next((one for one in gw.routes if one.name == route.name), route))
    question = question_key(asked.question, salt=gw.salt)
    place = gw.operating.admit(route, now_s=gw.monotonic_s())
    route = route.for_request(question, asked.model, class_of(_query(asked)))
    reason = _ungoverned(gw, route)
    own, assigned, arms = placed(route, place), UNASSIGNED, tuple[ArmDraw, ...]()
    episode_id = gw.new_id()
    if reason is None:
        assigned = gw.assign(own, _request_key(own, asked), episode_id)
        varied, arms = gw.variants.place(route, lambda: _units(asked, assigned), question)
        own = own if varied is route else placed(varied, place)
    route = own
    request = _request(gw, episode_id, route, asked, question, reason, assigned, arms)
    ledger = Ledger(request, gw.monotonic_s())
    ledger.feedback_token = gw.feedback_token(request.episode_id)
    ledger.promise = gw.promise_to(route)
    request_log.write_request(gw, ledger)
    questions.keep(gw, route, ledger, lambda: asked.question)
    gw.metrics.inc("suffice_open_episodes")
    if request.ungoverned is not None:
        gw.metrics.inc("suffice_ungoverned_total", request.route, request.ungoverned)
    embedder, most = gw.embedders.get(route.name), route.settings.max_extra_calls
    return RoundsRun(
        ledger=ledger,
        route=route,
        may_act=may_stop(request, route),
        returning=route.returning,
        monotonic_s=gw.monotonic_s,
        resting=lambda: gw.kill.on,
        vectors=None if embedder is None else Vectors(embedder=embedder, ledger=ledger, max_calls=most),
        shelf=questions.shelf(route, ledger),
    )


def close_run(gw: Gateway, run: RoundsRun, end: EndReason = "done") -> None:
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
    questions.keep_sources(gw, ledger, run.shelf)
    request_log.close(gw, ledger, end)
    ledger.steps = []  # they are in the log; the run stays for calls that come again


def close_old(gw: Gateway) -> None:
    """End the runs that nobody has touched for too long: their callers have left."""
    for run in gw.runs.pop_old(now_s=gw.monotonic_s()):
        close_run(gw, run, "client_left")


def close_all(gw: Gateway) -> None:
    """End every run: the process ends, and no caller can come back to them."""
    for run in gw.runs.pop_all():
        close_run(gw, run, "shutdown")


def _ungoverned(gw: Gateway, route: BuiltRoute) -> str | None:
    if route.settings.mode == "off":
        return "off"
    return None if gw.breakers.setdefault(route.name, Breaker()).allows(gw.monotonic_s()) else "breaker"


def _request_key(route: BuiltRoute, asked: RoundsRequest) -> RequestKey:
    body = joined(asked.model, asked.question).encode("utf-8", "surrogatepass")
    return RequestKey(
        route=route.name,
        caller=asked.caller.namespace,
        body=body,
        conversation=asked.key,
        idempotency_key=asked.idempotency_key,
    )


def _units(asked: RoundsRequest, assigned: AuditAssignment) -> UnitIds:
    """What the run belongs to, by what its caller declared."""
    told = asked.metadata
    return units_of(
        asked.caller.id, request=assigned.unit, conversation=asked.key, user=told.get("user"), tenant=told.get("tenant")
    )


def _request(
    gw: Gateway,
    episode_id: str,
    route: BuiltRoute,
    asked: RoundsRequest,
    question: str,
    reason: str | None,
    assigned: AuditAssignment,
    arms: tuple[ArmDraw, ...],
) -> Request:
    settings = route.settings
    gw.n_requests[route.name] = gw.n_requests.get(route.name, 0) + 1
    return Request(
        episode_id=episode_id,
        route=route.name,
        kind=settings.kind,
        mode=settings.mode,
        model=asked.model or settings.model or "",
        stream=False,
        n_samples=settings.samples if settings.kind == "samples" else 1,
        audit=assigned.audit,
        propensity=assigned.propensity,
        policy_version=route.policy_version,
        certified=route.certified,
        question_key=question if reason is None else "",
        ungoverned=reason,
        received_at_s=gw.wall_s(),
        endpoint=asked.endpoint,
        query=_query(asked) if reason is None else None,
        unit=assigned.unit,
        setup=route.setup,
        promise=route.promise,
        arms=arms,
        sender=asked.caller.id,
        delivery=assigned.delivery,
        conversation=gw.conversation(asked.caller.id, asked.key),
    )


def _query(asked: RoundsRequest) -> Query:
    """What the question tells before the first step; it may be stored, the question may not."""
    return query_signals(
        asked.question, metadata=asked.metadata, query_class=asked.query_class, planned_steps=asked.planned_steps
    )


def _estimate_saved(gw: Gateway, run: RoundsRun) -> None:
    """What the loop would have gone on to generate, from the full runs of this route; unknown if few."""
    full, usage = gw.full_runs.get(run.ledger.request.route), run.ledger.told_usage
    remaining = full.remaining(usage.completion_tokens) if full is not None and usage is not None else None
    if remaining is None:
        return
    run.ledger.tokens_saved_estimate = round(remaining.thought_tokens)
    run.ledger.estimate_method = f"mean of {remaining.n} full runs of this route that were longer"

"""Admits a request, whichever way it comes: its route, its level, its audit assignment and its arms, in one order.

chat, /v1/decide, library, pass-through ──▶ Arrival ──▶ admit ──▶ the route as this request gets it, and its record
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from suffice.assurance.load_level import Admission
from suffice.errors import BadRequest
from suffice.gateway import kill
from suffice.gateway.auth import ANYONE, Caller
from suffice.gateway.context import GatewayState, RequestKey
from suffice.gateway.load_control import Breaker, place_route
from suffice.gateway.request_parsing import Intake
from suffice.gateway.route import BuiltRoute
from suffice.rollout.assign import UNASSIGNED, AuditAssignment, assign_audit, question_key
from suffice.rollout.experiment import UnitIds, units_of
from suffice.signals.query import class_of
from suffice.types import ArmDraw, Query, Request


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    episode_id: str
    endpoint: str
    caller: Caller = ANYONE
    model: str = ""
    stream: bool = False
    n_samples: int = 1  # of a full run
    is_callers_loop: bool = False  # the caller makes the calls to the model: there is nothing to turn away
    question: Callable[[], str] = str  # hashed, to group repeats
    query: Callable[[], Query | None] = lambda: None
    body: bytes = b""  # by which a repeated delivery is recognised
    conversation: str | None = None
    idempotency_key: str | None = None
    user: str | None = None
    tenant: str | None = None

    def key(self, route: str) -> RequestKey:
        return RequestKey(
            route=route,
            caller=self.caller.namespace,
            body=self.body,
            conversation=self.conversation,
            idempotency_key=self.idempotency_key,
        )

    def units(self, assigned: AuditAssignment) -> UnitIds:
        """What the request belongs to; repeated deliveries are one request."""
        return units_of(
            self.caller.id,
            request=assigned.unit,
            conversation=self.conversation,
            user=self.user,
            tenant=self.tenant,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmittedRequest:
    intake: Intake
    headers: list[tuple[str, str]]  # fit to be sent upstream
    route: BuiltRoute | None
    upstream: str
    request: Request
    retry_after_s: int | None = None  # the upstream has no room for it, and may have after so long


def admit(
    gw: GatewayState, arrival: Arrival, route: BuiltRoute | None, reason: str | None
) -> tuple[BuiltRoute | None, Request, int | None]:
    """Give a request its route, draw its audit and write its record.

    reason  why it passes through, whatever the load; None: it may be governed

    Returns the route as this request gets it, the record, and when to come again if there is no room now.
    """
    if route is None:
        return None, blank_request(gw, arrival, reason or "no_route"), None
    place = None
    if gw.kill.on:
        route = gw.kill.rest_route(route)
        if reason is None and not arrival.is_callers_loop and route.settings.kind == "reasoning":
            reason = kill.REASON  # samples are all drawn while it is on
    if reason is None:
        reason, place = _place(gw, arrival, route)
    question, query, assigned, arms = "", None, UNASSIGNED, tuple[ArmDraw, ...]()
    if place is not None:
        question = question_key(arrival.question(), salt=gw.salt) if reason is None else ""
        query = arrival.query() if reason is None or route.in_force.classes or route.holding.classes else None
        route = route.for_request(question, arrival.model, class_of(query))
        own = place_route(route, place)
        if reason is None:  # the audit is drawn for the route as it is; the arms then say what the request gets
            assigned = gw.assign(own, arrival.key(own.name), arrival.episode_id)
            varied, arms = gw.variants.place(route, lambda: arrival.units(assigned), question)
            own = own if varied is route else place_route(varied, place)
        route = own
    gw.n_requests[route.name] = gw.n_requests.get(route.name, 0) + 1
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
        certified=route.certified,
        question_key=question,
        ungoverned=reason,
        received_at_s=gw.wall_s(),
        endpoint=arrival.endpoint,
        query=query if reason is None else None,
        unit=assigned.unit,
        setup=route.setup,
        promise=route.promise,
        arms=arms,
        sender=arrival.caller.id,
        delivery=assigned.delivery,
        conversation=gw.conversation(arrival.caller.id, arrival.conversation),
    )
    return route, request, place.retry_after_s if place is not None and place.level is None else None


def _place(gw: GatewayState, arrival: Arrival, route: BuiltRoute) -> tuple[str | None, Admission]:
    """Why the request is not governed (None: it is), and at which level its route operates."""

    def draw() -> float:  # anew for each try: who was turned away comes again
        return assign_audit(arrival.episode_id, share=0.0, salt=f"{gw.salt}/shed").point

    place = gw.operating.admit(route, now_s=gw.monotonic_s(), draw=None if arrival.is_callers_loop else draw)
    if place.level is None:
        return "shed", place
    if route.settings.kind == "samples" and not arrival.is_callers_loop:
        return None, place  # samples without a policy are all drawn: harmless
    breaker = gw.breakers.setdefault(route.name, Breaker())
    return None if breaker.allows(gw.monotonic_s()) else "breaker", place


def blank_request(gw: GatewayState, arrival: Arrival, reason: str) -> Request:
    """The record of a request that no route claims, or that could not be read."""
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
    )


# --------------------------------------------------------------------------- which route


def find_route(gw: GatewayState, model: str, named: Mapping[str, str], caller: Caller) -> BuiltRoute | None:
    """The first route whose conditions all hold; None: none takes the request.

    Raises BadRequest for a route that does not exist, or that the caller's key may not use.
    """
    asked = named.get("x-suffice-route")
    for route in usable_routes(gw.routes, caller, by_name=asked is not None):
        match = route.settings.match
        if asked is not None and asked not in (route.name, match.header):
            continue
        if asked is None and (match.header or not route.settings.upstream):
            continue  # a loop of the caller's own may have no upstream here: no request is meant for it
        if not match.model or fnmatchcase(model, match.model):
            return route
    if asked is not None:
        raise route_refusal(gw.routes, caller, asked, where="x-suffice-route")
    if caller.is_restricted:
        message = "this key may use only routes that it lists, and none of them takes this request"
        raise BadRequest(message, status=403, param="model", code="scope")
    return None


def usable_routes(routes: tuple[BuiltRoute, ...], caller: Caller, *, by_name: bool) -> tuple[BuiltRoute, ...]:
    """The routes that a caller's requests may go to.

    by_name  the request names its route, instead of being matched
    """
    if not caller.id:
        return routes
    return tuple(one for one in routes if caller.may_use(one.name, one.settings, by_name=by_name))


def route_refusal(routes: tuple[BuiltRoute, ...], caller: Caller, asked: str, *, where: str) -> BadRequest:
    """Why a request may not go to the route that it names: there is none, or the caller's key may not use it."""
    known = usable_routes(routes, caller, by_name=True)
    names, param = ", ".join(one.name for one in known) or "none", None if where.startswith("x-") else where
    if caller.is_restricted or any(asked in (one.name, one.settings.match.header) for one in routes):
        message = f"{where}: this key may not use the route {asked[:80]!r}; it may name: {names}"
        return BadRequest(message, status=403, param=param, code="scope")
    message = f"{where}: unknown route {asked[:80]!r}; known: {names}"
    return BadRequest(message, param=param, code="unknown_route")

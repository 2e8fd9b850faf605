"""`POST /v1/chat/completions`: from the client's bytes to one answer and one outcome.

    read and check → find the route → draw the audit, write the request down → govern or pass through
    → close the ledger: one outcome, whatever the end

The newcomer starts here and goes on in `episode/loop.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, replace
from typing import Any

from suffice.assurance.load_level import Admission
from suffice.episode.ledger import Ledger
from suffice.episode.samples import SampleRefusal
from suffice.errors import BadRequest, OverloadError, UpstreamError, UpstreamTimeout
from suffice.gateway import govern, kill, questions, request_log, route
from suffice.gateway.auth import Caller, caller_of
from suffice.gateway.breaker import Breaker
from suffice.gateway.context import Gateway
from suffice.gateway.deliveries import RequestKey
from suffice.gateway.exchange import (
    ClientGone,
    Exchange,
    Receive,
    Scope,
    Send,
    headers_of,
    read_body,
    supervise,
    tells_hang_up,
    writes_now,
)
from suffice.gateway.load_control import placed
from suffice.gateway.query_features import query_of
from suffice.gateway.relay import forwarded, pass_through
from suffice.gateway.request_parsing import Intake, check_body_headers, read_aside, read_chat
from suffice.gateway.route import BuiltRoute
from suffice.review.question import written_out
from suffice.rollout import feedback_token
from suffice.rollout.assign import UNASSIGNED, AuditAssignment, assign_audit, question_key
from suffice.rollout.experiment import UnitIds, units_of
from suffice.signals.query import class_of
from suffice.telemetry import LOG
from suffice.types import ArmDraw, EndReason, Request
from suffice.upstream.affinity import marked
from suffice.upstream.wire import encode_json

CHAT_PATH = "/v1/chat/completions"


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmittedRequest:
    """A request that was understood: where it goes, and whether it is an audit."""

    intake: Intake
    headers: list[tuple[str, str]]  # fit to be sent upstream
    route: BuiltRoute | None
    upstream: str
    request: Request
    turned_away: Admission | None = None  # there is no room for it, and when there may be


Admit = Callable[[str], Awaitable[AdmittedRequest]]  # given the episode id
Answer = Callable[[Gateway, AdmittedRequest, Ledger, Exchange], Coroutine[Any, Any, None]]


async def chat(gw: Gateway, scope: Scope, receive: Receive, send: Send) -> None:
    """Serve one chat request."""
    headers = headers_of(scope)
    exchange = Exchange(send, [], gw.monotonic_s, tells_hang_up(scope), writes_now(scope))
    caller = caller_of(scope)
    await one_request(
        gw, receive, exchange, lambda episode_id: _admitted(gw, episode_id, caller, headers, receive), _answer
    )


async def one_request(
    gw: Gateway, receive: Receive, exchange: Exchange, admit: Admit, answer: Answer, *, endpoint: str = CHAT_PATH
) -> None:
    """The life of one request of any endpoint; whatever happens, write exactly one outcome."""
    started = gw.monotonic_s()
    episode_id = gw.new_id()
    token = gw.feedback_token(episode_id)
    exchange.own_headers += [("x-suffice-episode-id", episode_id), *feedback_token.header(token)]
    gw.metrics.inc("suffice_live_requests")
    ledger: Ledger | None = None
    end: EndReason = "internal_error"
    try:
        admitted = await admit(episode_id)
        ledger = Ledger(admitted.request, started, prices=gw.upstreams[admitted.upstream].settings.prices)
        ledger.feedback_token = token
        ledger.promise = gw.promise_to(admitted.route)
        exchange.own_headers += _reply_headers(admitted.request)
        request_log.write_request(gw, ledger)
        questions.keep(gw, admitted.route, ledger, lambda: written_out(admitted.intake.body.get("messages") or ()))
        end = await _serve(gw, ledger, receive, exchange, answer(gw, admitted, ledger, exchange))
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
            request = blank(gw, episode_id, None, "unreadable", endpoint)
            ledger = Ledger(request, started)
            request_log.write_request(gw, ledger)
        ledger.status, ledger.first_byte_s = exchange.status, exchange.first_byte_s
        request_log.close(gw, ledger, end)


async def _admitted(
    gw: Gateway, episode_id: str, caller: Caller, headers: list[tuple[str, str]], receive: Receive
) -> AdmittedRequest:
    limits = gw.settings.server
    check_body_headers(headers, limits.max_body_bytes)
    raw = await read_body(receive, limits.max_body_bytes)
    intake = await read_aside(read_chat, raw, limits)
    await check_objects(gw, caller, intake)
    return admit(gw, episode_id, intake, caller, headers)


async def check_objects(gw: Gateway, caller: Caller, intake: Intake) -> None:
    """Raises BadRequest 404 where a body names an object that its caller has not made, and may not use."""
    if gw.keys.has_tenants and not caller.sees_all:
        await gw.objects.check_body(caller, intake.raw, intake.body)


async def _apologise(exchange: Exchange, episode_id: str, error: Exception) -> None:
    LOG.error("episode %s: internal error (%s)", episode_id, type(error).__name__)
    LOG.debug("the same, with its traceback", exc_info=True)  # may quote what a client sent: debug only
    await exchange.fail(500, "internal error of the gateway", "internal_error", kind="server_error")


async def _serve(
    gw: Gateway, ledger: Ledger, receive: Receive, exchange: Exchange, work: Coroutine[Any, Any, None]
) -> EndReason:
    """Run the request under the eye of its client; say how it ended."""
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


async def _answer(gw: Gateway, admitted: AdmittedRequest, ledger: Ledger, exchange: Exchange) -> None:
    request, intake = admitted.request, admitted.intake
    if admitted.turned_away is not None:
        gw.metrics.inc("suffice_shed_total", request.route)
        raise OverloadError(
            "this route has to run everything in full for a while, and its model server has no room for more;"
            " come again",
            retry_after_s=admitted.turned_away.retry_after_s,
        )
    client = gw.upstreams[admitted.upstream]
    body = forwarded(intake.raw, intake.body, changed=intake.changed)
    if request.ungoverned is not None or admitted.route is None:
        gw.metrics.inc("suffice_ungoverned_total", request.route, request.ungoverned or "no_route")
        await pass_through(exchange, client, CHAT_PATH, body, admitted.headers, ledger)
        return
    run = request.conversation or request.episode_id
    headers = admitted.headers
    if admitted.route.acts or request.kind == "samples":
        # llama.cpp takes this header as a wish to generate on after its caller has left: a stop would save nothing.
        headers = [(k, v) for k, v in headers if k != "x-conversation-id"]
    headers = marked(headers, client.settings.affinity_header, run)
    job = govern.GovernedRequest(
        gw=gw,
        route=admitted.route,
        client=client,
        intake=intake,
        headers=headers,
        ledger=ledger,
        exchange=exchange,
    )
    try:
        await (govern.govern_samples if request.kind == "samples" else govern.govern_reasoning)(job)
    except UpstreamError:
        raise
    except Exception as error:
        if exchange.status:
            raise  # something was sent: a second answer cannot follow it
        # A broken optimiser costs tokens, never an answer: ask again, without any of our own code.
        LOG.error("episode %s: governing failed (%s)", request.episode_id, type(error).__name__)
        ledger.forget_run("govern")
        await pass_through(exchange, client, CHAT_PATH, body, admitted.headers, ledger, purpose="rerun")


def admit(
    gw: Gateway, episode_id: str, intake: Intake, caller: Caller, headers: list[tuple[str, str]]
) -> AdmittedRequest:
    """Find the route and draw the audit. Raises BadRequest for a route or version that is not there or not allowed."""
    named = dict(headers)
    found = find_route(gw, intake.model, named, caller)
    _check_version(intake, named, found)
    found = gw.kill.resting(found) if found is not None else None
    intake = for_route(intake, found)
    count_stripped(gw, intake)
    reason, place = _reason(gw, episode_id, intake, found)
    question = _question(gw, intake) if found is not None and reason is None else ""
    assigned, arms = UNASSIGNED, tuple[ArmDraw, ...]()
    if found is not None and place is not None:
        kind, samples = found.settings.kind, route.n_samples(found, intake.options)
        query = query_of(intake.body, kind, samples) if found.in_force.classes or found.holding.classes else None
        found = found.for_request(question, intake.model, class_of(query))
        own = placed(found, place)
        if reason is None:  # the audit is drawn for the route as it is; the arms then say what the request gets
            assigned = gw.assign(own, _request_key(own, intake, caller, named), episode_id)
            varied, arms = gw.variants.place(found, lambda: _units(intake, caller, named, assigned), question)
            own = own if varied is found else placed(varied, place)
        found = own
    request = _request(gw, episode_id, intake, caller, named, found, reason, question, assigned, arms)
    upstream = (found.settings.upstream if found is not None else "") or gw.fallback_upstream()
    kept = gw.keys.without_keys(headers)
    return AdmittedRequest(
        intake=intake,
        headers=kept,
        route=found,
        upstream=upstream,
        request=request,
        turned_away=place if place is not None and place.level is None else None,
    )


def find_route(gw: Gateway, model: str, named: dict[str, str], caller: Caller) -> BuiltRoute | None:
    """The request's route. Raises BadRequest for one that is not there, or that the caller's key may not use."""
    asked = named.get("x-suffice-route")
    found = route.find_route(route.usable(gw.routes, caller, by_name=asked is not None), model=model, asked=asked)
    if found is not None or (asked is None and not caller.is_restricted):
        return found
    if asked is None:
        message = "this key may use only routes that it lists, and none of them takes this request"
        raise BadRequest(message, status=403, param="model", code="scope")
    raise route.named_route_refused(gw.routes, caller, asked, where="x-suffice-route")


def for_route(intake: Intake, found: BuiltRoute | None) -> Intake:
    """The request with the route's own model name, where it has one."""
    if found is None or found.settings.model is None or found.settings.model == intake.model:
        return intake
    intake.body["model"] = found.settings.model
    return replace(intake, changed=True)


def count_stripped(gw: Gateway, intake: Intake) -> None:
    """Count the override fields that were taken out of a body."""
    for field in intake.stripped:
        gw.metrics.inc("suffice_stripped_fields_total", field)


def _check_version(intake: Intake, named: dict[str, str], found: BuiltRoute | None) -> None:
    asked = named.get("x-suffice-policy-version") or intake.options.get("policy_version")
    if asked is None:
        return
    known = found.policy_version if found is not None else "none"
    if str(asked).partition("@")[0] != known:  # where it operates between its levels is no choice of a client
        raise BadRequest(
            f"policy version {str(asked)[:80]!r} is not in force on this route; in force: {known}",
            param="policy_version",
            code="unknown_policy_version",
        )


def _reason(
    gw: Gateway, episode_id: str, intake: Intake, found: BuiltRoute | None
) -> tuple[str | None, Admission | None]:
    """Why the request is not governed (None: it is), and where its route operates (None: that does not matter)."""
    if found is None:
        return "no_route", None
    samples = route.n_samples(found, intake.options)
    if found.settings.kind == "samples":
        _check_samples(samples, found)
    reason = route.ungoverned(found, intake.body, samples)
    if reason is None and gw.kill.on and found.settings.kind == "reasoning":  # samples: all of them are drawn
        reason = kill.REASON
    if reason is not None:
        return reason, None

    def draw() -> float:  # anew for each try: who was turned away comes again
        return assign_audit(episode_id, share=0.0, salt=f"{gw.salt}/shed").point

    place = gw.operating.admit(found, now_s=gw.monotonic_s(), draw=draw)
    if place.level is None:
        return "shed", place
    if found.settings.kind == "reasoning":  # samples without a policy are all drawn: harmless
        allowed = gw.breakers.setdefault(found.name, Breaker()).allows(gw.monotonic_s())
        reason = None if allowed else "breaker"
    return reason, place


def _request(
    gw: Gateway,
    episode_id: str,
    intake: Intake,
    caller: Caller,
    named: dict[str, str],
    found: BuiltRoute | None,
    reason: str | None,
    question: str,
    assigned: AuditAssignment,
    arms: tuple[ArmDraw, ...],
) -> Request:
    """Write down what was asked, and the audit draw with its odds."""
    if found is None:
        return blank(gw, episode_id, intake, reason or "no_route", sender=caller.id)
    samples = route.n_samples(found, intake.options)
    gw.n_requests[found.name] = gw.n_requests.get(found.name, 0) + 1
    return Request(
        episode_id=episode_id,
        route=found.name,
        kind=found.settings.kind,
        mode=found.settings.mode,
        model=intake.model,
        stream=intake.stream,
        n_samples=samples,
        audit=assigned.audit,
        propensity=assigned.propensity,
        policy_version=found.policy_version,
        certified=found.certified,
        question_key=question,
        ungoverned=reason,
        received_at_s=gw.wall_s(),
        query=query_of(intake.body, found.settings.kind, samples) if reason is None else None,
        unit=assigned.unit,
        setup=found.setup,
        promise=found.promise,
        arms=arms,
        sender=caller.id,
        delivery=assigned.delivery,
        conversation=gw.conversation(caller.id, _conversation(named, intake)),
    )


def _request_key(found: BuiltRoute, intake: Intake, caller: Caller, named: dict[str, str]) -> RequestKey:
    return RequestKey(
        route=found.name,
        caller=caller.namespace,
        body=intake.identity,
        conversation=_conversation(named, intake),
        idempotency_key=named.get("idempotency-key"),
    )


def _units(intake: Intake, caller: Caller, named: dict[str, str], assigned: AuditAssignment) -> UnitIds:
    """What the request belongs to, by the names that it came with; repeated deliveries are one request."""
    user = intake.body.get("user") or intake.body.get("safety_identifier")
    return units_of(
        caller.id,
        request=assigned.unit,
        conversation=_conversation(named, intake),
        user=named.get("x-suffice-user") or (user if isinstance(user, str) else None),
        tenant=named.get("x-suffice-tenant"),
    )


def _question(gw: Gateway, intake: Intake) -> str:
    return question_key(intake.prompt or encode_json(intake.body.get("messages")).decode(), salt=gw.salt)


def _check_samples(n_samples: int, found: BuiltRoute) -> None:
    limit = found.settings.max_extra_calls + 1
    if n_samples > limit:
        message = f"suffice.samples: got {n_samples}; at most {limit} on this route"
        raise BadRequest(message, param="suffice.samples", code="too_many_samples")


def _conversation(named: dict[str, str], intake: Intake) -> str | None:
    return intake.options.get("conversation_id") or named.get("x-conversation-id")


def blank(
    gw: Gateway, episode_id: str, intake: Intake | None, reason: str, endpoint: str = CHAT_PATH, *, sender: str = ""
) -> Request:
    """The record of a request that no route claims, or that could not be read."""
    return Request(
        episode_id=episode_id,
        route="",
        kind="reasoning",
        mode="off",
        model=intake.model if intake else "",
        stream=bool(intake and intake.stream),
        n_samples=1,
        audit=False,
        propensity=1.0,
        policy_version="",
        certified=False,
        question_key="",
        ungoverned=reason,
        received_at_s=gw.wall_s(),
        endpoint=endpoint,
        sender=sender,
    )


def _reply_headers(request: Request) -> list[tuple[str, str]]:
    return [
        ("x-suffice-route", request.route),
        ("x-suffice-mode", request.mode),
        ("x-suffice-policy-version", request.policy_version),
    ]

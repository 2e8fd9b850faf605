"""`POST /v1/chat/completions`: from the client's bytes to one answer and one outcome.

    read and check → find the route → admit: level, audit, arms → govern or pass through → one outcome

A newcomer starts here and goes on in `episode/loop.py`.
"""

from __future__ import annotations

from suffice.episode.ledger import Ledger
from suffice.errors import BadRequest, OverloadError, UpstreamError
from suffice.gateway.auth import Caller
from suffice.gateway.context import GatewayState
from suffice.gateway.exchange import Exchange
from suffice.gateway.govern import govern_request
from suffice.gateway.lifecycle import AdmittedRequest, Arrival, admit, count_stripped, find_route, serve_request
from suffice.gateway.passthrough import pass_through
from suffice.gateway.request_parsing import Intake, check_body_headers, query_of, read_aside, read_chat
from suffice.gateway.route import n_samples, ungoverned
from suffice.telemetry import LOG
from suffice.upstream.drivers import CHAT_PATH
from suffice.upstream.wire import encode_json


async def chat(gw: GatewayState, exchange: Exchange) -> None:
    headers, caller, limits = exchange.headers, exchange.caller, gw.settings.server

    async def admitted(episode_id: str) -> AdmittedRequest:
        check_body_headers(headers, limits.max_body_bytes)
        intake = await read_aside(read_chat, await exchange.read_body(limits.max_body_bytes), limits)
        if gw.clients.keys.has_tenants and not caller.sees_all:
            await gw.clients.objects.check_body(caller, intake.raw, intake.body)
        return admit_chat(gw, episode_id, intake, caller, headers)

    await serve_request(gw, exchange, admitted, _answer, endpoint=CHAT_PATH)


def admit_chat(
    gw: GatewayState, episode_id: str, intake: Intake, caller: Caller, headers: list[tuple[str, str]]
) -> AdmittedRequest:
    """Find the route and draw the audit. Raises BadRequest for one that may not be used."""
    named, options, samples, reason = dict(headers), intake.options, 1, None
    route = find_route(gw, intake.model, named, caller)
    version = named.get("x-suffice-policy-version") or options.get("policy_version")
    known = "none" if route is None else route.policy_version
    # A client cannot choose where the route operates between its levels.
    if version is not None and str(version).partition("@")[0] != known:
        message = f"policy version {str(version)[:80]!r} is not in force on this route; in force: {known}"
        raise BadRequest(message, param="policy_version", code="unknown_policy_version")
    if route is not None:
        intake = intake.for_model(route.settings.model)
        samples, reason = n_samples(route, options), ungoverned(route, intake.body, options)
    count_stripped(gw, intake)
    user = intake.body.get("user") or intake.body.get("safety_identifier")
    arrival = Arrival(
        episode_id=episode_id,
        endpoint=CHAT_PATH,
        caller=caller,
        model=intake.model,
        stream=intake.stream,
        n_samples=samples,
        question=lambda: intake.prompt or encode_json(intake.body.get("messages")).decode(),
        query=lambda: None if route is None else query_of(intake.body, route.settings.kind, samples),
        body=intake.identity,
        conversation=options.get("conversation_id") or named.get("x-conversation-id"),
        idempotency_key=named.get("idempotency-key"),
        user=named.get("x-suffice-user") or (user if isinstance(user, str) else None),
        tenant=named.get("x-suffice-tenant"),
    )
    served, request, retry_after_s = admit(gw, arrival, route, reason)
    return AdmittedRequest(
        intake=intake,
        headers=gw.clients.keys.without_keys(headers),
        route=served,
        upstream=(served.settings.upstream if served is not None else "") or gw.fallback_upstream(),
        request=request,
        retry_after_s=retry_after_s,
    )


async def _answer(gw: GatewayState, admitted: AdmittedRequest, ledger: Ledger, exchange: Exchange) -> None:
    request, client, body = admitted.request, gw.upstreams[admitted.upstream], admitted.intake
    if admitted.retry_after_s is not None:
        gw.metrics.inc("suffice_shed_total", request.route)
        message = "this route has to run everything in full for a while, and its model server has no room for more;"
        raise OverloadError(f"{message} come again", retry_after_s=admitted.retry_after_s)
    if request.ungoverned is not None or admitted.route is None:
        gw.metrics.inc("suffice_ungoverned_total", request.route, request.ungoverned or "no_route")
        await pass_through(exchange, client, CHAT_PATH, body.forwarded, admitted.headers, ledger)
        return
    try:
        await govern_request(gw, admitted, admitted.route, ledger, exchange)
    except UpstreamError:
        raise
    except Exception as error:
        if exchange.status:
            raise  # something was sent: a second answer cannot follow it
        # A broken optimiser costs tokens, never an answer: call again, without any of our own code.
        LOG.error("episode %s: governing failed (%s)", request.episode_id, type(error).__name__)
        ledger.forget_run("govern")
        await pass_through(exchange, client, CHAT_PATH, body.forwarded, admitted.headers, ledger, purpose="rerun")

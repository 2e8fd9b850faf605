"""`POST /v1/chat/completions`. Start reading here, and continue in `episode/loop.py`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import aclosing, asynccontextmanager
from functools import partial
from typing import Any, TypeAlias

from suffice.agent.plan import with_settings
from suffice.assurance.money import full_vote_tokens
from suffice.assurance.saving import LESS_EFFORT
from suffice.episode.apis.events import CHAT, ApiFormat, ChatEvents
from suffice.episode.chain_reader import ChainReader, EngineBudget, Segmenter, StreamState, build_segmenter
from suffice.episode.checkpoints import CheckpointGate, Proposer
from suffice.episode.extra_calls import KEPT_CALLS, Continuer, Prober, ask_paired_call
from suffice.episode.ledger import CallAccount, Ledger, suffice_object, usage_json
from suffice.episode.line_signals import LineSignals
from suffice.episode.loop import GuardedPolicy, StopCost, run_episode
from suffice.episode.samples import SampleRun, as_chunks, sample_refusal
from suffice.episode.stop_transition import StopTransition
from suffice.episode.stream_relay import ClientView, ReasoningRun, StreamRelay
from suffice.errors import BadRequest, OverloadError, UpstreamError, UpstreamProtocol
from suffice.gateway.admitted import AdmittedRequest, GovernedRequest, serve_request
from suffice.gateway.context import GatewayState, is_measured
from suffice.gateway.exchange import SSE_HEADERS, BodyDelivery, Exchange, StreamDelivery
from suffice.gateway.lifecycle import Arrival, admit, estimate_full_run, find_route
from suffice.gateway.passthrough import pass_through
from suffice.gateway.request_parsing import (
    ParsedRequest,
    check_body_headers,
    n_samples,
    query_of,
    read_aside,
    read_chat,
    ungoverned,
)
from suffice.gateway.turns import STOPPED, Turn, TurnRequest, begin_turn
from suffice.policy.rules import FixedBudget
from suffice.rollout.assign import REPEAT_SHARE, point_of
from suffice.serving.route import BuiltRoute
from suffice.settings import FinishMethod
from suffice.telemetry import LOG
from suffice.types import Decision, Purpose, Request, Signals, Step
from suffice.upstream.client import Call, UpstreamClient, governed_headers, mark_run
from suffice.upstream.drivers import (
    CHAT_PATH,
    NO_FIELDS,
    ReasoningFields,
    cancel_saves,
    choose_reasoning_fields,
    has_field,
    honoured,
    merge_fields,
    reply_form,
    thinking_is_off,
)
from suffice.upstream.wire import DONE, encode_json

REFUSALS = frozenset({400, 422})  # statuses for fields that a server does not accept
RelayCall: TypeAlias = Callable[[Purpose], Awaitable[None]]  # passes the request through


async def chat(gw: GatewayState, exchange: Exchange) -> None:
    caller, limits = exchange.caller, gw.settings.server

    async def admitted(episode_id: str) -> AdmittedRequest:
        check_body_headers(exchange.headers, limits.max_body_bytes)
        parsed = await read_aside(read_chat, await exchange.read_body(limits.max_body_bytes), limits)
        if gw.clients.keys.isolates(caller):
            await gw.clients.objects.check_body(caller, parsed.raw, parsed.body)
        return await admit_chat(gw, exchange, episode_id, parsed)

    await serve_request(gw, exchange, admitted, _answer, endpoint=CHAT_PATH)


async def admit_chat(
    gw: GatewayState,
    exchange: Exchange,
    episode_id: str,
    parsed: ParsedRequest,
    *,
    api: ApiFormat = CHAT,
    refusal: Callable[[BuiltRoute], str | None] = lambda _: None,
) -> AdmittedRequest:
    """Find the route and draw the audit. Raise BadRequest for a route that the caller may not use.

    Before that, end the run of an agent of which the request is a turn, if its route says so.

    refusal  why the route cannot govern this request for reasons of its API
    """
    named, options, samples, reason, turn = dict(exchange.headers), parsed.options, 1, None, None
    conversation = options.get("conversation_id") or named.get("x-conversation-id")
    route = find_route(gw, parsed.model, named, exchange.caller)
    _check_version(named.get("x-suffice-policy-version") or options.get("policy_version"), route)
    if route is not None:
        parsed = parsed.for_model(route.settings.model)
        client = gw.upstreams.get(route.settings.upstream)
        samples = n_samples(route, options)
        reason = ungoverned(route, parsed.chat, options, None if client is None else client.settings)
        if reason != "off":
            reason = refusal(route) or reason
        turn = await _begin_turn(gw, exchange, route, parsed, conversation, api)
        reason = STOPPED if turn is not None and turn.held is not None else reason
    user = parsed.chat.get("user") or parsed.chat.get("safety_identifier")
    arrival = Arrival(
        episode_id=episode_id,
        endpoint=api.path,
        caller=exchange.caller,
        model=parsed.model,
        stream=parsed.stream,
        n_samples=samples,
        seeded=parsed.chat.get("seed") is not None,
        form=reply_form(parsed.chat),
        question=lambda: parsed.prompt or encode_json(parsed.chat.get("messages")).decode(),
        query=lambda: None if route is None else query_of(parsed.chat, route.settings.kind, samples),
        body=parsed.identity,
        conversation=conversation,
        idempotency_key=named.get("idempotency-key"),
        user=named.get("x-suffice-user") or (user if isinstance(user, str) else None),
        tenant=named.get("x-suffice-tenant"),
    )
    served, request, retry_after_s = admit(gw, arrival, route, reason)
    return AdmittedRequest(
        gw=gw,
        exchange=exchange,
        parsed=parsed,
        route=served,
        upstream=(served.settings.upstream if served is not None else "") or gw.fallback_upstream(),
        request=request,
        retry_after_s=retry_after_s,
        turn=turn,
    )


def _check_version(version: str | None, route: BuiltRoute | None) -> None:
    """Raise BadRequest for a policy version that is not active. A client cannot choose the level."""
    known = "none" if route is None else route.serving.version
    if version is not None and version.partition("@")[0] != known:
        message = f"policy version {version[:80]!r} is not active on this route; active: {known}"
        raise BadRequest(message, param="policy_version", code="unknown_policy_version")


async def _begin_turn(
    gw: GatewayState,
    exchange: Exchange,
    route: BuiltRoute,
    parsed: ParsedRequest,
    conversation: str | None,
    api: ApiFormat,
) -> Turn | None:
    own = gw.deployment.route(route.settings.turns) if route.settings.turns else None
    client = gw.upstreams.get(route.settings.upstream)
    if own is None or own.settings.mode == "off" or client is None:
        return None
    request = TurnRequest(
        caller=exchange.caller,
        conversation=conversation,
        route=own,
        client=client,
        parsed=parsed,
        headers=mark_run(
            gw.clients.keys.without_keys(exchange.headers), client.settings.affinity_header, conversation or ""
        ),
        api=api,
    )
    return await begin_turn(gw, request)


async def _answer(admitted: AdmittedRequest, ledger: Ledger) -> None:
    gw, exchange, request, client = admitted.gw, admitted.exchange, admitted.request, admitted.client

    async def relay(purpose: Purpose) -> None:
        if purpose == "main":
            gw.metrics.inc("suffice_ungoverned_total", request.route, request.ungoverned or "no_route")
        headers = gw.clients.keys.without_keys(exchange.headers)
        await pass_through(exchange, client, CHAT_PATH, admitted.parsed.forwarded, headers, ledger, purpose=purpose)

    await answer(admitted, ledger, CHAT, relay)


async def answer(
    admitted: AdmittedRequest,
    ledger: Ledger,
    api: ApiFormat,
    relay: RelayCall,
    *,
    began: Callable[[ChatEvents], None] = lambda _: None,
) -> None:
    """Answer a request of any API, governed where it may be. `began` gets what follows the client's stream."""
    gw, exchange, request, turn = admitted.gw, admitted.exchange, admitted.request, admitted.turn
    route, parsed = admitted.route, admitted.parsed
    if admitted.retry_after_s is not None:
        gw.metrics.inc("suffice_shed_total", request.route)
        message = "this route must run every request in full for now, and its model server is at capacity; retry later"
        raise OverloadError(message, retry_after_s=admitted.retry_after_s)
    held, ledger.turn = None if turn is None else turn.held, turn
    try:
        if route is None or (request.ungoverned is not None and held is None):
            await relay("main")
        else:
            client, created_s = admitted.client, int(request.received_at_s)
            began(events := api.new_events(model=parsed.model, created_s=created_s, is_body=not parsed.stream))
            job = GovernedRequest(
                gw=gw,
                route=route,
                client=client,
                parsed=parsed,
                headers=_governed_headers(route, request, client, gw.clients.keys.without_keys(exchange.headers)),
                ledger=ledger,
                exchange=exchange,
                api=api,
                events=events,
                held=held,
            )
            await _govern(job, relay)
        if turn is not None:
            await turn.end(ledger)
    finally:
        if turn is not None:
            turn.cancel()


def _governed_headers(
    route: BuiltRoute, request: Request, client: UpstreamClient, headers: list[tuple[str, str]]
) -> list[tuple[str, str]]:
    if route.acts or request.kind == "samples":
        # With this header llama.cpp continues after its caller has left, so a stop would save nothing.
        headers = [(k, v) for k, v in headers if k != "x-conversation-id"]
    return mark_run(headers, client.settings.affinity_header, request.conversation or request.episode_id)


# --------------------------------------------------------------------------- governed


async def _govern(job: GovernedRequest, relay: RelayCall) -> None:
    """Answer a governed request. A broken optimiser costs tokens, never an answer: the request is then passed through.

    Raise UpstreamError, and any other error once a part of the response was sent.
    """
    ledger = job.ledger
    try:
        if job.held is not None:
            await _deliver_held(job)
        else:
            await (_govern_samples if ledger.request.kind == "samples" else _govern_reasoning)(job)
    except UpstreamError:
        raise
    except Exception as error:
        if job.exchange.status:
            raise
        LOG.error("episode %s: governing failed (%s)", ledger.request.episode_id, type(error).__name__)
        ledger.forget_run("govern")
        await relay("rerun")


async def _govern_reasoning(job: GovernedRequest) -> None:
    route, ledger, gw = job.route.settings, job.ledger, job.gw
    ledger.disclosure.includes_probes = job.route.may_stop or route.probe is None
    continuer = _continuer(job, max_extra_calls=route.max_extra_calls)
    fields, events = _reasoning_fields(job, continuer).with_fields(job.signal_fields), job.events
    serving, cost = job.route.serving, _stop_cost(job, continuer)
    policy = GuardedPolicy(serving.policy, serving.needs, ledger, gw.monotonic_s, cost=cost)
    async with job.keep_alive(), _open_relay(job, fields, continuer, events, rerun_of=None) as relay:
        reader = relay.reader
        live = job.live_run()
        live.reader, live.cut = reader, reader.close_now if continuer.methods else None

        def record(step: Step, signals: Signals, decision: Decision) -> bool:
            late_tokens = reader.account.received_tokens - ledger.step_tokens - step.tokens
            ledger.record_step(step, signals, decision, late_tokens=late_tokens if late_tokens > 0 else None)
            # There is a way to finish, the thought is open, and the engine does not enforce the policy's budget itself.
            is_possible = decision.stop and bool(continuer.methods) and not reader.leaves_stop_to_engine
            return is_possible and job.may_act and reader.can_cut_at(step.index)

        transition = StopTransition(
            relay=relay,
            continuer=continuer,
            rerun=lambda before: _open_relay(job, fields, continuer, events.rerun(), rerun_of=before),
            max_tokens=job.max_tokens,
            route=route,
            monotonic_s=gw.monotonic_s,
            cut_at=partial(estimate_full_run, gw, ledger, ratio=job.route.remaining_ratio or 1.0),
            began_s=gw.monotonic_s(),
        )
        prober = Prober(continuer, job.route.scorer) if _probes(job) else None
        vectors, lines = gw.vectors(job.route, ledger, keep=KEPT_CALLS), LineSignals(continuer)
        additions = [one for one in (lines if job.line_fields else None, vectors) if one is not None]
        run = ReasoningRun(relay, prober=prober, additions=additions, drain=is_measured(ledger.request))
        # In audits too: their clients get the same as those of any run that goes to its end.
        relay.own_end.wanted, reader.close_at_tokens = job.forces_answers, job.answer_reserve(continuer)
        stop = await run_episode(run.steps(), policy.observe, policy, record)
        reader.note_ignored_effort()
        if stop is not None:
            relay.own_end.wanted = False
            if reader.is_over_budget:
                ledger.fail_open("budget")  # the engine did not enforce it
            await transition.carry_out(*reader.thought_at(stop.step))
            return
        if reader.must_close:
            await transition.carry_out(reader.thought, reader.account.reasoning_tokens, is_stop=False)
        if relay.own_end.kept is not None:
            await transition.finish_unclosed(continuer.probe.max_tokens)
        elif ledger.reply.unclosed and prober is not None and continuer.may_call(keep=0):
            # Otherwise record a probed answer, so that the full and the stopped arm are closed in the same way.
            ledger.reply.answer = await prober.answer_to(reader.thought, reader.account.reasoning_tokens)
        if is_measured(ledger.request) and ledger.stop.wish is None:
            await _never_failing(ledger, _measure_finish(job, reader, prober))
    if is_measured(ledger.request) and ledger.stop.wish is None:
        await _never_failing(ledger, _ask_paired_call(job, continuer))


async def _deliver_held(job: GovernedRequest) -> None:
    continuer = _continuer(job, max_extra_calls=0)
    async with job.keep_alive(), _open_relay(job, NO_FIELDS, continuer, job.events, rerun_of=None) as relay:
        await relay.rest()


def _continuer(job: GovernedRequest, *, max_extra_calls: int) -> Continuer:
    return Continuer(
        client=job.client,
        probe=job.probe,
        body=job.parsed.chat,
        headers=job.headers,
        ledger=job.ledger,
        max_extra_calls=max_extra_calls,
        excluded=job.api.excluded_methods(job.client.settings.driver),
    )


async def _never_failing(ledger: Ledger, measurement: Coroutine[Any, Any, None]) -> None:
    try:
        await measurement
    except Exception:  # noqa: BLE001 - a failed measurement never costs an answer
        ledger.fail_open("probe")


def _stop_cost(job: GovernedRequest, continuer: Continuer) -> StopCost:
    def count_skipped() -> None:
        if job.may_act:  # in shadow there is no stop to skip
            job.gw.metrics.inc("suffice_stops_skipped_total", job.route.name, "not_worth_it")

    statistics = job.gw.statistics[job.route.name]
    return StopCost(
        ledger=job.ledger,
        method=next(iter(continuer.methods), None),
        cancel_saves=cancel_saves(job.client.settings, job.client.findings),
        full_runs=statistics.full_runs,
        hand_overs=statistics.hand_overs,
        skipped=count_skipped,
    )


async def _measure_finish(job: GovernedRequest, reader: ChainReader, prober: Prober | None) -> None:
    """In an audit of a route that certifies itself, measure once whether a forced finish changes the trial answer.

    Half of the audits finish where the policy would have stopped, the others at any probed step, so that inactive
    levels are measured too. A failed finish is no evidence, because a stop whose finish fails is not made.
    """
    ledger, cap = job.ledger, job.max_tokens
    if prober is None or not job.route.settings.is_replayed:
        return
    probed = [step for step in ledger.steps if step.answer_source == "probe" and step.answer is not None]
    if not probed:
        return
    point = 2 * point_of(ledger.request.episode_id, salt=job.gw.salt, purpose=b"finish")
    stop = next((step for step in probed if step.index == ledger.stop.step), None)
    chosen = stop if stop is not None and point < 1 else probed[int(point % 1 * len(probed))]
    thought, tokens = reader.thought_at(chosen.index)
    left = None if cap is None else max(1, cap - tokens)
    await prober.finish_at(chosen.index, thought, tokens, max_tokens=left)


async def _ask_paired_call(job: GovernedRequest, continuer: Continuer) -> None:
    """In an audit of a route with effort or budget arms, call a second time, with one of them or in full."""
    efforts = job.route.settings.efforts
    point = point_of(job.ledger.request.episode_id, salt=job.gw.salt, purpose=b"paired-call")
    place = (point - REPEAT_SHARE) / (1 - REPEAT_SHARE)  # of the arm among all; below 0: a second full run
    effort = efforts[int(max(0.0, place) * len(efforts))] if efforts else ""
    fields = NO_FIELDS if job.route.settings.probe is None else _chosen_fields(job, effort=effort)
    if not fields.fields or not continuer.may_call(keep=0):
        return
    body, arm, propensity = job.upstream_body, "full", REPEAT_SHARE
    if place >= 0:
        body, arm = merge_fields(body, fields.fields), fields.arm
        propensity = (1 - REPEAT_SHARE) / max(1, len(efforts))
    await ask_paired_call(continuer, job.route.scorer, body, api=job.api, arm=arm, propensity=propensity)


@asynccontextmanager
async def _open_relay(
    job: GovernedRequest,
    fields: ReasoningFields,
    continuer: Continuer,
    events: ChatEvents,
    *,
    rerun_of: StreamState | None,
) -> AsyncIterator[StreamRelay]:
    settings, ledger, exchange, parsed = job.client.settings, job.ledger, job.exchange, job.parsed
    async with _accepted(job, fields, "main" if rerun_of is None else "rerun") as (call, account, sent):
        if call.status != 200 or call.content_type != "text/event-stream":
            raise await sample_refusal(call)
        if call.is_encoded:
            raise UpstreamProtocol("the upstream compressed a stream that was requested uncompressed")
        account.began = True
        budget = None
        if sent.budget_tokens is not None:
            is_policy, closing = isinstance(job.route.serving.policy, FixedBudget), continuer.probe.closing
            budget = EngineBudget(tokens=sent.budget_tokens, is_policy=is_policy, closing=closing)
        reader = ChainReader(
            account,
            ledger,
            segmenter=_segmenter(job),
            scorer=job.route.scorer,
            tags=(settings.think_open, settings.think_close),
            opened=settings.think_opened and not thinking_is_off(merge_fields(parsed.chat, sent.fields)),
            budget=budget,
            gate=_gate(job, settings.think_close),
        )
        view = ClientView(
            logprobs="logprobs" not in sent.fields,
            usage=parsed.wants_usage or not parsed.stream or events.is_native,
            chunk_usage=not job.counts_chunks or parsed.wants_chunk_usage,
            object=parsed.has_options or job.held is not None,
            joined=True,
            alias=rerun_of if parsed.stream or not events.is_native else None,
            hides_thought=rerun_of is not None and parsed.stream,
            events=events,
        )
        delivery = StreamDelivery(exchange) if parsed.stream else BodyDelivery(exchange, 200, call.headers, events)
        continuer.thinks_inline = lambda: reader.state.inline
        if sent.effort is not None:
            estimate_full_run(job.gw, ledger, -1, longer="")
            ledger.costs.has_less_effort = True
            ledger.stop.finish_method, reader.is_thought_off = LESS_EFFORT, sent.effort == "none"
        async with aclosing(StreamRelay(call, reader, delivery, view)) as relay:
            # Begin only now: until something is sent, a failure can be retried.
            if parsed.stream and not exchange.status:
                kept = [(k, v) for k, v in call.headers if k.lower() != "content-length"]
                await exchange.start(200, kept, events=True)
            yield relay


@asynccontextmanager
async def _accepted(
    job: GovernedRequest, fields: ReasoningFields, purpose: Purpose
) -> AsyncIterator[tuple[Call, CallAccount, ReasoningFields]]:
    """Yield the call, its account and the fields sent. If the upstream refuses our fields, call again without them."""
    if job.held is not None:
        yield job.held, job.ledger.open_call(purpose), NO_FIELDS
        return
    body, headers, client, refused = job.upstream_body, governed_headers(job.headers), job.client, False
    is_offered = bool(fields.fields) and fields.name not in client.refuses
    for sent in (fields, NO_FIELDS) if is_offered else (NO_FIELDS,):
        account, content = job.ledger.open_call(purpose), encode_json(merge_fields(body, sent.fields))
        # The call after a refusal is an extra call, which is not retried.
        extra = refused or purpose == "rerun"
        async with client.open(job.api.path, content, headers, extra=extra, x_api_key=job.api.has_own_key) as call:
            if sent.fields and call.status in REFUSALS:
                account.discarded = refused = True
                if sent.effort is not None:
                    job.ledger.report_effort(f"effort: the upstream refused {sent.effort!r} ({call.status})")
                continue
            if fields.fields and not sent.fields and call.status == 200:
                job.ledger.fail_open(fields.site)
                if refused:
                    client.refuses.add(fields.name)
            yield call, account, sent
            return


def _probes(job: GovernedRequest) -> bool:
    """Return whether to probe: where the answer can change the run, and in audits where probes are known to work.

    On a route that certifies itself, live runs that may be stopped must see the same signals as its audits.
    """
    route, measured = job.route, is_measured(job.ledger.request)
    if route.settings.probe is None or route.settings.is_paired:
        return False  # paired evidence is a second call; no run is stopped
    if route.settings.is_replayed:
        return route.may_probe and (route.may_stop or measured)
    return route.acts or (measured and route.may_probe)


def _reasoning_fields(job: GovernedRequest, continuer: Continuer) -> ReasoningFields:
    """Return the effort or budget fields, if the route may act and could call again should the server refuse them."""
    route, policy = job.route.settings, job.route.serving.policy
    if not job.may_act or not (job.client.settings.retries or route.max_extra_calls):
        return NO_FIELDS
    budget = policy.max_tokens if isinstance(policy, FixedBudget) else None
    effort = job.route.serving.arm.removeprefix("effort=") if isinstance(route.effort, tuple) else ""
    fields = _chosen_fields(job, effort=effort, methods=continuer.methods, policy_budget_tokens=budget)
    if job.route.serving.arm and fields.arm not in ("", job.route.serving.arm):
        return NO_FIELDS  # the driver has changed, and its fields are not certified
    if fields.budget_tokens is not None:
        estimate_full_run(job.gw, job.ledger, fields.budget_tokens)  # reported only after a stop
    if fields.refusal is not None:
        job.ledger.report_effort(fields.refusal)
    return fields


def _chosen_fields(
    job: GovernedRequest,
    *,
    effort: str = "",
    methods: tuple[FinishMethod, ...] = (),
    policy_budget_tokens: int | None = None,
) -> ReasoningFields:
    """Return the fields with an effort of the route's; "": its most expensive one."""
    route = job.route.settings
    fields = choose_reasoning_fields(
        with_settings(route, f"effort={effort}") if effort else route,
        job.client.settings,
        job.parsed.chat,
        methods=methods,
        policy_budget_tokens=policy_budget_tokens,
        run=job.ledger.request.episode_id,
    )
    return job.api.fields(fields, job.client.settings.driver)


def _segmenter(job: GovernedRequest) -> Segmenter:
    try:
        return build_segmenter(job.route.settings.steps)
    except Exception:  # noqa: BLE001 - a broken segmenter costs tokens, never an answer
        job.ledger.fail_open("segment")
        return Segmenter(job.route.settings.steps)


def _gate(job: GovernedRequest, close_tag: str) -> CheckpointGate | None:
    """Return what chooses the checkpoints to probe; None: each of them is a step."""
    policy, probe = job.route.proposer, job.route.settings.probe
    if policy is None or probe is None:
        return CheckpointGate(close_tag=close_tag) if job.route.reads("end-of-thought") else None
    proposer = Proposer(policy, every=probe.propose_every)
    return CheckpointGate(close_tag=close_tag, proposer=proposer, skipped=job.ledger.extra.skipped)


# --------------------------------------------------------------------------- samples


async def _govern_samples(job: GovernedRequest) -> None:
    ledger, n = job.ledger, job.ledger.request.n_samples
    if job.parsed.body.get("temperature") == 0:
        n = 1
        ledger.disclosure.warnings.append("temperature is 0: every sample would be the same, one was drawn")
    reads_first = job.route.reads("wording")
    asks = reads_first and honoured(job.client.findings, "logprobs_stream")
    run = SampleRun(
        client=job.client,
        body=job.upstream_body | ({"logprobs": True} if asks else {}),
        headers=job.headers,
        ledger=ledger,
        scorer=job.route.scorer,
        n_samples=n,
        wave=job.route.settings.wave,
        first_alone=reads_first,
        max_bytes=job.gw.settings.server.max_sample_bytes,
        continues_after_failure=not job.may_act,
    )
    policy = GuardedPolicy(job.route.serving.policy, job.route.serving.needs, ledger, job.gw.monotonic_s)

    def record(step: Step, signals: Signals, decision: Decision) -> bool:
        ledger.record_step(step, signals, decision)
        return job.may_act and not run.is_decided()

    async with job.keep_alive():
        live = job.live_run()
        live.cut = run.cut
        stop = await run_episode(run.steps(), policy.observe, policy, record)
        live.cut, body = None, run.result()
        if stop is not None:
            ledger.stop.acted, ledger.stop.finish_method = True, "vote"
            drawn = [s.tokens for s in run.seen]
            ledger.costs.full_tokens = full_vote_tokens(drawn, n)
            ledger.costs.estimate_method = "mean tokens of the samples drawn, times the samples not drawn"
        await _deliver_vote(job, body)


async def _deliver_vote(job: GovernedRequest, body: dict[str, Any]) -> None:
    ledger, exchange = job.ledger, job.exchange
    usage = ledger.usage()
    body.pop("timings", None)  # of one sample
    if not has_field(job.parsed.body, "logprobs"):
        body["choices"][0].pop("logprobs", None)  # requested for us
    if usage is not None:
        body["usage"] = usage_json(usage)
    if ledger.tells_stop or job.parsed.has_options or (ledger.disclosure.warnings and ledger.disclosure.tells_stops):
        body["suffice"] = suffice_object(ledger)
    if not job.parsed.stream:
        await exchange.json(200, encode_json(body))
        return
    if not exchange.status:
        await exchange.start(200, SSE_HEADERS, events=True)
    for frame in as_chunks(body, wants_usage=job.parsed.wants_usage):
        await exchange.body(frame)
    await exchange.body(DONE, more=False)

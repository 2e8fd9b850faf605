"""`POST /v1/chat/completions`. Start reading here, and continue in `episode/loop.py`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from suffice.assurance.money import full_vote_tokens
from suffice.episode.apis.events import CHAT, ApiFormat, ChatEvents
from suffice.episode.chain_reader import ChainReader, EngineBudget, Segmenter, StreamState, build_segmenter
from suffice.episode.extra_calls import KEPT_CALLS, Continuer, Prober, ask_paired_call
from suffice.episode.ledger import CallAccount, Ledger, suffice_object, usage_json
from suffice.episode.loop import GuardedPolicy, StopCost, run_episode
from suffice.episode.proposer import LISTED_TOKENS, CheckpointGate, Proposer
from suffice.episode.samples import SampleRun, as_chunks, sample_refusal
from suffice.episode.stop_transition import StopTransition
from suffice.episode.stream_relay import ClientView, ReasoningRun, StreamRelay
from suffice.errors import BadRequest, OverloadError, UpstreamError, UpstreamProtocol
from suffice.gateway.context import GatewayState, is_measured, may_stop
from suffice.gateway.exchange import SSE_HEADERS, BodyDelivery, Exchange, StreamDelivery, kept_alive
from suffice.gateway.lifecycle import AdmittedRequest, Arrival, admit, estimate_saved, find_route, serve_request
from suffice.gateway.passthrough import pass_through
from suffice.gateway.request_parsing import ParsedRequest, check_body_headers, query_of, read_aside, read_chat
from suffice.gateway.route import BuiltRoute, n_samples, ungoverned
from suffice.policy.rules import FixedBudget
from suffice.rollout.assign import REPEAT_SHARE, assign_audit
from suffice.settings import Probe
from suffice.telemetry import LOG
from suffice.types import Decision, Purpose, Request, Signals, Step
from suffice.upstream.client import Call, UpstreamClient, governed_headers, mark_run
from suffice.upstream.continuation import probe_of_form
from suffice.upstream.drivers import (
    CHAT_PATH,
    DRIVERS,
    NO_FIELDS,
    ReasoningFields,
    cancel_saves,
    choose_reasoning_fields,
    find_verdict,
    has_field,
    honoured,
    key_header,
    merge_fields,
    reply_form,
    thinking_is_off,
)
from suffice.upstream.wire import DONE, encode_json

REFUSALS = frozenset({400, 422})  # statuses for fields that a server does not accept


async def chat(gw: GatewayState, exchange: Exchange) -> None:
    caller, limits = exchange.caller, gw.settings.server

    async def admitted(episode_id: str) -> AdmittedRequest:
        check_body_headers(exchange.headers, limits.max_body_bytes)
        parsed = await read_aside(read_chat, await exchange.read_body(limits.max_body_bytes), limits)
        if gw.clients.keys.has_tenants and not caller.sees_all:
            await gw.clients.objects.check_body(caller, parsed.raw, parsed.body)
        return admit_chat(gw, exchange, episode_id, parsed)

    await serve_request(gw, exchange, admitted, _answer, endpoint=CHAT_PATH)


def admit_chat(
    gw: GatewayState,
    exchange: Exchange,
    episode_id: str,
    parsed: ParsedRequest,
    *,
    endpoint: str = CHAT_PATH,
    refusal: Callable[[BuiltRoute], str | None] = lambda _: None,
) -> AdmittedRequest:
    """Find the route and draw the audit. Raise BadRequest for a route that the caller may not use.

    refusal  why the route cannot govern this request for reasons of its API
    """
    named, options, samples, reason = dict(exchange.headers), parsed.options, 1, None
    route = find_route(gw, parsed.model, named, exchange.caller)
    version = named.get("x-suffice-policy-version") or options.get("policy_version")
    known = "none" if route is None else route.policy_version
    # A client cannot choose the level.
    if version is not None and str(version).partition("@")[0] != known:
        message = f"policy version {str(version)[:80]!r} is not active on this route; active: {known}"
        raise BadRequest(message, param="policy_version", code="unknown_policy_version")
    if route is not None:
        parsed = parsed.for_model(route.settings.model)
        client = gw.upstreams.get(route.settings.upstream)
        samples = n_samples(route, options)
        reason = ungoverned(route, parsed.chat, options, None if client is None else client.settings)
        if reason != "off":
            reason = refusal(route) or reason
    user = parsed.chat.get("user") or parsed.chat.get("safety_identifier")
    arrival = Arrival(
        episode_id=episode_id,
        endpoint=endpoint,
        caller=exchange.caller,
        model=parsed.model,
        stream=parsed.stream,
        n_samples=samples,
        seeded=parsed.chat.get("seed") is not None,
        form=reply_form(parsed.chat),
        question=lambda: parsed.prompt or encode_json(parsed.chat.get("messages")).decode(),
        query=lambda: None if route is None else query_of(parsed.chat, route.settings.kind, samples),
        body=parsed.identity,
        conversation=options.get("conversation_id") or named.get("x-conversation-id"),
        idempotency_key=named.get("idempotency-key"),
        user=named.get("x-suffice-user") or (user if isinstance(user, str) else None),
        tenant=named.get("x-suffice-tenant"),
    )
    served, request, retry_after_s = admit(gw, arrival, route, reason)
    return AdmittedRequest(
        parsed=parsed,
        route=served,
        upstream=(served.settings.upstream if served is not None else "") or gw.fallback_upstream(),
        request=request,
        retry_after_s=retry_after_s,
    )


async def _answer(gw: GatewayState, admitted: AdmittedRequest, ledger: Ledger, exchange: Exchange) -> None:
    request, client = admitted.request, gw.upstreams[admitted.upstream]

    async def relay(purpose: Purpose) -> None:
        if purpose == "main":
            gw.metrics.inc("suffice_ungoverned_total", request.route, request.ungoverned or "no_route")
        headers = gw.clients.keys.without_keys(exchange.headers)
        await pass_through(exchange, client, CHAT_PATH, admitted.parsed.forwarded, headers, ledger, purpose=purpose)

    await answer(gw, admitted, ledger, exchange, CHAT, relay)


async def answer(
    gw: GatewayState,
    admitted: AdmittedRequest,
    ledger: Ledger,
    exchange: Exchange,
    api: ApiFormat,
    relay: Callable[[Purpose], Awaitable[None]],
    *,
    began: Callable[[ChatEvents], None] = lambda _: None,
) -> None:
    """Answer a request of any API, governed where it may be.

    relay  passes it through
    began  is called with what follows the client's stream
    """
    request, client = admitted.request, gw.upstreams[admitted.upstream]
    if admitted.retry_after_s is not None:
        gw.metrics.inc("suffice_shed_total", request.route)
        message = "this route must run every request in full for now, and its model server is at capacity; retry later"
        raise OverloadError(message, retry_after_s=admitted.retry_after_s)
    if request.ungoverned is not None or admitted.route is None:
        await relay("main")
        return
    headers = gw.clients.keys.without_keys(exchange.headers)
    parsed, created_s = admitted.parsed, int(request.received_at_s)
    began(events := api.new_events(model=parsed.model, created_s=created_s, is_body=not parsed.stream))
    job = GovernedRequest(
        gw=gw,
        route=admitted.route,
        client=client,
        parsed=parsed,
        headers=_governed_headers(admitted.route, request, client, headers),
        ledger=ledger,
        exchange=exchange,
        api=api,
        events=events,
    )
    try:
        await (govern_samples if request.kind == "samples" else govern_reasoning)(job)
    except UpstreamError:
        raise
    except Exception as error:
        if exchange.status:
            raise  # part of a response was sent
        # A broken optimiser costs tokens, never an answer: call again without governing.
        LOG.error("episode %s: governing failed (%s)", request.episode_id, type(error).__name__)
        ledger.forget_run("govern")
        await relay("rerun")


# --------------------------------------------------------------------------- governed


@dataclass(frozen=True, slots=True, kw_only=True)
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

    @property
    def probe(self) -> Probe:
        probe, form = self.route.settings.probe or Probe(), self.ledger.request.form
        return probe if form == "text" else probe_of_form(probe, form)

    @property
    def may_act(self) -> bool:
        return may_stop(self.ledger.request, self.route) and not self.gw.deployment.kill.on

    @property
    def reads_end_of_thought(self) -> bool:
        """Whether to request log-probabilities for its signal; a client that wants some gets its own."""
        asks = self.api is CHAT and self.route.reads("end-of-thought") and not has_field(self.parsed.body, "logprobs")
        return asks and honoured(self.client.findings, "logprobs_stream")

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
        body = self.parsed.body | {"stream": True}
        if self.api is not CHAT or find_verdict(self.client.findings, "stream_usage") == "no":
            return body
        options = body.get("stream_options")
        options = options if isinstance(options, dict) else {}
        # A run that is cut off reports no usage at its end.
        in_chunks = {"continuous_usage_stats": True} if self.counts_chunks else {}
        return body | {"stream_options": options | {"include_usage": True} | in_chunks}

    @property
    def counts_chunks(self) -> bool:
        """Whether the engine is asked for its own counts in every chunk: exact ones of a run that may be stopped."""
        is_cut = self.may_act and self.ledger.request.kind == "reasoning"
        return is_cut and self.api is CHAT and DRIVERS[self.client.settings.driver].counts_chunks

    def keep_alive(self) -> AbstractAsyncContextManager[None]:
        if not self.parsed.stream:
            return nullcontext()
        return kept_alive(self.exchange, self.gw.settings.server.ping_s, self.gw.monotonic_s)


def _governed_headers(
    route: BuiltRoute, request: Request, client: UpstreamClient, headers: list[tuple[str, str]]
) -> list[tuple[str, str]]:
    if route.acts or request.kind == "samples":
        # With this header llama.cpp continues after its caller has left, so a stop would save nothing.
        headers = [(k, v) for k, v in headers if k != "x-conversation-id"]
    return mark_run(headers, client.settings.affinity_header, request.conversation or request.episode_id)


# --------------------------------------------------------------------------- reasoning


async def govern_reasoning(job: GovernedRequest) -> None:
    route, ledger, gw = job.route.settings, job.ledger, job.gw
    ledger.disclosure.includes_probes = job.route.acts or route.probe is None
    continuer = Continuer(
        client=job.client,
        probe=job.probe,
        body=job.parsed.chat,
        headers=job.headers,
        ledger=ledger,
        max_extra_calls=route.max_extra_calls,
        excluded=job.api.excluded_methods(job.client.settings.driver),
    )
    fields, events = _reasoning_fields(job, continuer), job.events
    if job.reads_end_of_thought:
        fields = fields.with_logprobs(LISTED_TOKENS)
    needs, cost = job.route.needs, _stop_cost(job, continuer)
    policy = GuardedPolicy(job.route.policy, needs, ledger, gw.monotonic_s, cost=cost)
    async with job.keep_alive(), _open_relay(job, fields, continuer, events, rerun_of=None) as relay:
        reader = relay.reader

        def record(step: Step, signals: Signals, decision: Decision) -> bool:
            ledger.record_step(step, signals, decision)
            # The one place that decides whether a stop acts: this run may be stopped, there is a way to
            # finish, the thought is open, and the engine does not enforce the policy's budget itself.
            is_possible = decision.stop and job.may_act and bool(continuer.methods) and not reader.leaves_stop_to_engine
            return is_possible and reader.can_cut_at(step.index)

        transition = StopTransition(
            relay=relay,
            continuer=continuer,
            rerun=lambda before: _open_relay(job, fields, continuer, events.rerun(), rerun_of=before),
            max_tokens=job.max_tokens,
            route=route,
            monotonic_s=gw.monotonic_s,
            began_s=gw.monotonic_s(),
        )
        prober = Prober(continuer, job.route.scorer, ledger) if _probes(job) else None
        vectors = gw.vectors(job.route, ledger, keep=KEPT_CALLS)
        run = ReasoningRun(relay, prober=prober, vectors=vectors, drain=is_measured(ledger.request))
        # In audits too: their clients get the same as those of any run that goes to its end.
        relay.own_end.wanted, reader.close_at_tokens = job.forces_answers, job.answer_reserve(continuer)
        stop = await run_episode(run.steps(), policy.observe, policy, record)
        reader.note_ignored_effort()
        if stop is not None:
            relay.own_end.wanted = False
            reader.note_exceeded_budget()
            estimate_saved(gw, ledger, stop.tokens_used)
            await transition.carry_out(*reader.thought_at(stop.step))
            return
        if reader.must_close:
            await transition.carry_out(reader.thought, reader.account.reasoning_tokens, is_stop=False)
        if relay.own_end.kept is not None:
            await transition.finish_unclosed(continuer.probe.max_tokens)
        elif ledger.reply.unclosed and prober is not None and continuer.may_call(keep=0):
            # Otherwise record a probed answer, so that the full and the stopped arm are closed in the same way.
            ledger.reply.answer = await prober.answer_to(reader.thought, reader.account.reasoning_tokens)
        if is_measured(ledger.request):
            await _never_failing(ledger, _measure_finish(job, reader, prober))
    if is_measured(ledger.request):
        await _never_failing(ledger, _ask_paired_call(job, continuer))


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
    point = 2 * assign_audit(ledger.request.episode_id, share=0.0, salt=f"{job.gw.salt}/finish").point
    stop = next((step for step in probed if step.index == ledger.stop.step), None)
    chosen = stop if stop is not None and point < 1 else probed[int(point % 1 * len(probed))]
    thought, tokens = reader.thought_at(chosen.index)
    left = None if cap is None else max(1, cap - tokens)
    await prober.finish_at(chosen.index, thought, tokens, max_tokens=left)


async def _ask_paired_call(job: GovernedRequest, continuer: Continuer) -> None:
    """In an audit of a route with an effort or budget arm, call a second time, with the arm or in full."""
    ledger, route = job.ledger, job.route.settings
    if route.probe is None:
        return
    fields = choose_reasoning_fields(route, job.client.settings, job.parsed.chat, methods=(), policy_budget_tokens=None)
    fields = job.api.fields(fields, job.client.settings.driver)
    if not fields.fields or not continuer.may_call(keep=0):
        return
    point = assign_audit(ledger.request.episode_id, share=0.0, salt=f"{job.gw.salt}/pair").point
    body, scorer = job.upstream_body, job.route.scorer
    if point < REPEAT_SHARE:
        await ask_paired_call(continuer, ledger, scorer, body, api=job.api, arm="full", propensity=REPEAT_SHARE)
    else:
        body = merge_fields(body, fields.fields)
        arm, propensity = fields.arm(route), 1 - REPEAT_SHARE
        await ask_paired_call(continuer, ledger, scorer, body, api=job.api, arm=arm, propensity=propensity)


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
            is_policy, closing = isinstance(job.route.policy, FixedBudget), continuer.probe.closing
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
            object=parsed.has_options,
            joined=True,
            alias=rerun_of if parsed.stream or not events.is_native else None,
            hides_thought=rerun_of is not None and parsed.stream,
            events=events,
        )
        delivery = StreamDelivery(exchange) if parsed.stream else BodyDelivery(exchange, 200, call.headers, events)
        continuer.thinks_inline = lambda: reader.state.inline
        if sent.has_effort:
            ledger.stop.finish_method, reader.is_thought_off = "effort", sent.effort == "none"
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
    body, headers, client, refused = job.upstream_body, governed_headers(job.headers), job.client, False
    is_offered = bool(fields.fields) and fields.name not in client.refuses
    for sent in (fields, NO_FIELDS) if is_offered else (NO_FIELDS,):
        account, content = job.ledger.open_call(purpose), encode_json(merge_fields(body, sent.fields))
        # The call after a refusal is an extra call, which is not retried.
        extra, header = refused or purpose == "rerun", key_header(client.settings.driver, has_own=job.api.has_own_key)
        async with client.open(job.api.path, content, headers, extra=extra, key_header=header) as call:
            if sent.fields and call.status in REFUSALS:
                account.discarded = refused = True
                if sent.has_effort:
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

    On a route that certifies itself, live runs must see the same signals as its audits.
    """
    route, measured = job.route, is_measured(job.ledger.request)
    if route.settings.probe is None or route.settings.is_paired:
        return False  # paired evidence is a second call; no run is stopped
    if route.settings.is_replayed:
        return route.may_probe and (route.acts or measured)
    return route.acts or (measured and route.may_probe)


def _reasoning_fields(job: GovernedRequest, continuer: Continuer) -> ReasoningFields:
    """Return the effort or budget fields, if the route may act and could call again should the server refuse them."""
    route, policy = job.route.settings, job.route.policy
    if not job.may_act or not (job.client.settings.retries or route.max_extra_calls):
        return NO_FIELDS
    budget = policy.max_tokens if isinstance(policy, FixedBudget) else None
    fields = choose_reasoning_fields(
        route,
        job.client.settings,
        job.parsed.chat,
        methods=continuer.methods,
        policy_budget_tokens=budget,
        run=job.ledger.request.episode_id,
    )
    fields = job.api.fields(fields, job.client.settings.driver)
    if job.route.arm and fields.arm(route) not in ("", job.route.arm):
        return NO_FIELDS  # the driver has changed, and its fields are not certified
    if fields.budget_tokens is not None:
        estimate_saved(job.gw, job.ledger, fields.budget_tokens)  # reported only after a stop
    if fields.refusal is not None:
        job.ledger.report_effort(fields.refusal)
    return fields


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


async def govern_samples(job: GovernedRequest) -> None:
    """Draw samples until the vote is decided or the policy stops, and deliver the winner as one completion."""
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
    policy = GuardedPolicy(job.route.policy, job.route.needs, ledger, job.gw.monotonic_s)

    def record(step: Step, signals: Signals, decision: Decision) -> bool:
        ledger.record_step(step, signals, decision)
        return job.may_act and not run.is_decided()

    async with job.keep_alive():
        stop = await run_episode(run.steps(), policy.observe, policy, record)
        body = run.result()
        if stop is not None:
            ledger.stop.acted, ledger.stop.finish_method = True, "vote"
            drawn = [s.tokens for s in run.seen]
            ledger.costs.full_tokens = full_vote_tokens(drawn, n)
            ledger.costs.tokens_saved = round(ledger.costs.full_tokens - sum(drawn))
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
    if ledger.stop.acted or job.parsed.has_options or ledger.disclosure.warnings:
        body["suffice"] = suffice_object(ledger)
    if not job.parsed.stream:
        await exchange.json(200, encode_json(body))
        return
    if not exchange.status:
        await exchange.start(200, SSE_HEADERS, events=True)
    for frame in as_chunks(body, wants_usage=job.parsed.wants_usage):
        await exchange.body(frame)
    await exchange.body(DONE, more=False)

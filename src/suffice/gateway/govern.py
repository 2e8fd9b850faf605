"""A governed request: builds the run of its kind, lets the loop decide, carries the decision out."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from suffice.assurance.money import full_vote_tokens
from suffice.episode.answer_forcing import Continuer
from suffice.episode.cost_guard import Price, WorthIt
from suffice.episode.held_tail import Delivery, data_frame
from suffice.episode.latency_guard import Pace
from suffice.episode.ledger import CallAccount, Ledger
from suffice.episode.loop import FailOpen, run_episode
from suffice.episode.paired_call import CallArm, ask_twice
from suffice.episode.probe import KEPT_CALLS, Prober
from suffice.episode.reasoning import ReasoningRun
from suffice.episode.reasoning_budget import NOTHING, Ahead, choose
from suffice.episode.report import suffice_object, usage_json
from suffice.episode.samples import SampleRun, sample_refusal
from suffice.episode.segment import Segmenter, StepCutter, build_segmenter
from suffice.episode.stop_transition import HandOver
from suffice.episode.stream_state import Wants
from suffice.episode.vectors import Vectors
from suffice.errors import UpstreamProtocol
from suffice.gateway.context import Gateway, is_measured, may_stop
from suffice.gateway.deliver import BodyDelivery, StreamDelivery
from suffice.gateway.exchange import SSE_HEADERS, Exchange, KeptAlive
from suffice.gateway.request_parsing import Intake
from suffice.gateway.route import BuiltRoute
from suffice.policy.rules import FixedBudget
from suffice.rollout.assign import assign_audit
from suffice.rollout.effects import draw_pair
from suffice.settings import Probe
from suffice.signals.observe import Observer
from suffice.types import Decision, Purpose, Signals, Step
from suffice.upstream.client import Call, UpstreamClient, governed_headers
from suffice.upstream.drivers import CHAT_PATH, merge_fields, thinking_is_off
from suffice.upstream.findings import find_verdict
from suffice.upstream.wire import DONE, REASONING_FIELDS, encode_json

REFUSALS = frozenset({400, 422})  # what servers answer to a field that they do not take


@dataclass(frozen=True, slots=True, kw_only=True)
class GovernedRequest:
    """One governed request."""

    gw: Gateway
    route: BuiltRoute
    client: UpstreamClient
    intake: Intake
    headers: list[tuple[str, str]]
    ledger: Ledger
    exchange: Exchange

    @property
    def may_act(self) -> bool:
        """May the policy end this run now? Not where `may_stop` says no, nor while the kill switch is pulled."""
        return may_stop(self.ledger.request, self.route) and not self.gw.kill.on


def observer(job: GovernedRequest) -> Callable[[Step], Signals]:
    """The route's signals, guarded: when they fail, nothing is known and the run goes on."""
    folds: Observer | None = None

    def observe(step: Step) -> Signals:
        nonlocal folds
        try:
            request = job.ledger.request
            folds = folds or Observer(job.route.needs, request.kind, query=request.query)
            return folds.observe(step)
        except Exception:  # noqa: BLE001 - broken signals cost tokens, never an answer
            job.ledger.fail_open("signals")
            return Signals(step=step.index, tokens_used=0)

    return observe


def recorder(job: GovernedRequest, may_stop: Callable[[], bool]) -> Callable[[Step, Signals, Decision], bool]:
    """Writes each step down and says whether a stop may be carried out."""

    def record(step: Step, signals: Signals, decision: Decision) -> bool:
        job.ledger.record_step(step, signals, decision)
        return job.may_act and may_stop()

    return record


# --------------------------------------------------------------------------- reasoning


async def govern_reasoning(job: GovernedRequest) -> None:
    """One chain of thought, relayed, watched, and closed when the policy says so."""
    route, ledger = job.route.settings, job.ledger
    ledger.tells_probes = job.route.acts or route.probe is None
    continuer = Continuer(
        client=job.client,
        probe=route.probe or Probe(),
        body=job.intake.body,
        headers=job.headers,
        ledger=ledger,
        max_extra_calls=route.max_extra_calls,
    )
    ahead = _ahead(job, continuer)
    price = Price(
        ledger=ledger,
        method=next(iter(continuer.methods), None),
        full_runs=job.gw.full_runs.get(job.route.name),
        hand_overs=job.gw.hand_overs.get(job.route.name),
    )
    worth_it = WorthIt(job.route.policy, price.against, lambda: _skipped(job))
    pace = Pace(lambda: ledger.fail_open("slow"), job.gw.monotonic_s)
    policy = pace.deciding(FailOpen(worth_it, ledger.fail_open))
    async with _pinged(job), _open_run(job, ahead, continuer, purpose="main") as run:

        def may_stop() -> bool:
            return bool(continuer.methods) and run.may_stop() and not run.leaves_stop_to_engine

        cap = job.intake.body.get("max_completion_tokens") or job.intake.body.get("max_tokens")
        hand_over = HandOver(
            run=run,
            continuer=continuer,
            ledger=ledger,
            rerun=lambda: _open_run(job, ahead, continuer, purpose="rerun"),
            max_tokens=cap if isinstance(cap, int) and cap > 0 else None,
            handover_ms=route.handover_ms,
            buffer_bytes=route.handover_buffer_bytes,
            monotonic_s=job.gw.monotonic_s,
        )
        # An audit as well: its client gets what the client of any run gets that goes to its end.
        run.own_end.wanted = job.route.acts and not job.gw.kill.on and route.finish_unclosed
        verdict = await run_episode(run.steps(), pace.observing(observer(job)), policy, recorder(job, may_stop))
        if verdict is None:
            await _after_full_run(job, run, continuer, hand_over)
            await _measure_finish(job, run, continuer, hand_over.max_tokens)
        else:
            run.own_end.wanted = False
            if run.is_over_budget:
                ledger.fail_open("budget")  # the engine was told to end the thought by itself, and did not
            _estimate_saved(job, verdict.signals.tokens_used)
            await hand_over.carry_out(*run.thought_at(verdict.step.index))
    if verdict is None:
        await _ask_twice(job, continuer)


async def _after_full_run(job: GovernedRequest, run: ReasoningRun, continuer: Continuer, hand_over: HandOver) -> None:
    """A run that was cut inside its thought is answered: for the client if the route says so, else on record.

    The record asks as a probe does, so that the full arm and the stopped arm are closed in one way.
    """
    ledger = job.ledger
    if run.own_end.kept is not None:
        forced = hand_over.finish_unclosed(continuer.trial_tokens) if ledger.unclosed else None
        await (forced or run.own_end.deliver(run.delivery))
    elif not ledger.unclosed:
        return
    elif job.route.settings.probe is not None and _probes(job) and continuer.may_call(keep=0):
        prober = Prober(continuer, job.route.scorer, ledger)
        ledger.answer = await prober.answer_to(run.thought, run.account.reasoning_tokens)


async def _measure_finish(job: GovernedRequest, run: ReasoningRun, continuer: Continuer, cap: int | None) -> None:
    """In an audit of a route that certifies itself, finish once for the record: does it change the trial answer?

    Half of the audits at the step where the policy would have stopped, the others at any that was probed: so levels
    that are not in force are measured too. A finish that fails says nothing: a stop whose finish fails is not made.
    """
    ledger, route = job.ledger, job.route.settings
    if not (is_measured(ledger.request) and route.is_replayed and route.probe is not None and _probes(job)):
        return
    probed = [step for step in ledger.steps if step.answer_source == "probe" and step.answer is not None]
    if not probed:
        return
    point = 2 * assign_audit(ledger.request.episode_id, share=0.0, salt=f"{job.gw.salt}/finish").point
    stop = next((step for step in probed if step.index == ledger.stop_step), None)
    chosen = stop if stop is not None and point < 1 else probed[int(point % 1 * len(probed))]
    thought, tokens = run.thought_at(chosen.index)
    left = None if cap is None else max(1, cap - tokens)
    try:
        await Prober(continuer, job.route.scorer, ledger).finish_at(chosen.index, thought, tokens, max_tokens=left)
    except Exception:  # noqa: BLE001 - a measurement that fails costs itself, never an answer
        ledger.fail_open("probe")


async def _ask_twice(job: GovernedRequest, continuer: Continuer) -> None:
    """In an audit of a route that chooses effort or budget before the call, ask with it too, for the record alone."""
    if not is_measured(job.ledger.request) or job.route.settings.probe is None:
        return
    try:
        await _ask_with_arm(job, continuer)
    except Exception:  # noqa: BLE001 - a measurement that fails costs itself, never an answer
        job.ledger.fail_open("probe")


async def _ask_with_arm(job: GovernedRequest, continuer: Continuer) -> None:
    """The second call of an audit: with the route's own effort or budget, or in full once more."""
    ledger, route = job.ledger, job.route.settings
    ahead = choose(route, job.client.settings, job.intake.body, methods=(), policy_budget_tokens=None)
    if not ahead.fields or not continuer.may_call(keep=0):
        return
    draw = draw_pair(assign_audit(ledger.request.episode_id, share=0.0, salt=f"{job.gw.salt}/pair").point, n_arms=2)
    arm = CallArm(name=ahead.arm(route), fields=ahead.fields, propensity=draw.propensity)
    if draw.arm == 0:
        arm = CallArm(name="full", fields={}, propensity=draw.propensity)
    await ask_twice(job.client, ledger, job.route.scorer, arm, body=_upstream_body(job), headers=job.headers)


@asynccontextmanager
async def _open_run(
    job: GovernedRequest, ahead: Ahead, continuer: Continuer, *, purpose: Purpose
) -> AsyncIterator[ReasoningRun]:
    """Open the client's request upstream and begin the client's answer."""
    settings, ledger, exchange = job.client.settings, job.ledger, job.exchange
    async with _accepted(job, ahead, purpose) as (call, account, took):
        if call.status != 200 or call.content_type != "text/event-stream":
            raise await sample_refusal(call)
        if call.is_encoded:
            raise UpstreamProtocol("the upstream compressed a stream that was asked for as it is")
        account.began = True
        delivery: Delivery = (
            StreamDelivery(exchange) if job.intake.stream else BodyDelivery(exchange, 200, call.headers)
        )
        probing = job.route.settings.probe is not None and _probes(job)
        run = ReasoningRun(
            call,
            account,
            ledger=ledger,
            delivery=delivery,
            segmenter=_segmenter(job),
            scorer=job.route.scorer,
            prober=Prober(continuer, job.route.scorer, ledger) if probing else None,
            vectors=_vectors(job),
            tags=(settings.think_open, settings.think_close),
            wants=Wants(
                usage=job.intake.wants_usage or not job.intake.stream,
                object=job.intake.has_options,
                joined=job.intake.stream,
            ),
            drain=is_measured(ledger.request),
            opened=settings.think_opened and not thinking_is_off(merge_fields(job.intake.body, took.fields)),
        )
        continuer.thinks_inline = lambda: run.seen.inline
        run.hidden_thought = purpose == "rerun" and job.intake.stream
        run.budget, run.budget_is_policy = took.budget_tokens, isinstance(job.route.policy, FixedBudget)
        run.budget_slack_tokens += len(continuer.closing)  # the closing text is a part of the thought, too
        if took.has_effort:
            ledger.finish_method = "effort"
        async with aclosing(run):
            # Begun only now: until something is sent, a failure of ours can still be made good.
            if job.intake.stream and not exchange.status:
                kept = [(k, v) for k, v in call.headers if k.lower() != "content-length"]
                await exchange.start(200, kept, events=True)
            yield run


@asynccontextmanager
async def _accepted(
    job: GovernedRequest, ahead: Ahead, purpose: Purpose
) -> AsyncIterator[tuple[Call, CallAccount, Ahead]]:
    """The open call, and which of our fields it took: an upstream that refuses them is asked without.

    Fields that it has refused once, and whose absence made it answer, are not tried again.
    """
    body, headers, refused = _upstream_body(job), governed_headers(job.headers), False
    if ahead.fields and ahead.name not in job.client.refuses:
        account = job.ledger.open_call(purpose)
        asked = encode_json(merge_fields(body, ahead.fields))
        async with job.client.open(CHAT_PATH, asked, headers, extra=purpose == "rerun") as call:
            refused = call.status in REFUSALS
            if not refused:
                yield call, account, ahead
                return
        account.discarded = True
    account = job.ledger.open_call(purpose)
    # Asked for the second time, it is an extra call, and as such not tried again.
    again = refused or purpose == "rerun"
    async with job.client.open(CHAT_PATH, encode_json(body), headers, extra=again) as call:
        if refused and call.status == 200:
            job.client.refuses.add(ahead.name)
        if ahead.fields and call.status == 200:
            job.ledger.fail_open(ahead.site)
        yield call, account, NOTHING


def _probes(job: GovernedRequest) -> bool:
    """Probes are sent where their answer can change what happens, and in audits where they are known to work.

    On a route that certifies itself live runs see what its audits have seen, and nothing else.
    """
    if job.route.settings.is_paired:
        return False  # its evidence is a second call, and nothing there is stopped
    if job.route.settings.is_replayed:
        return job.route.may_probe and (job.route.acts or is_measured(job.ledger.request))
    return job.route.acts or (is_measured(job.ledger.request) and job.route.may_probe)


def _vectors(job: GovernedRequest) -> Vectors | None:
    """Who gives the steps their vectors; a stop keeps the calls that it needs."""
    embedder = job.gw.embedders.get(job.route.name)
    if embedder is None:
        return None
    most = job.route.settings.max_extra_calls
    return Vectors(embedder=embedder, ledger=job.ledger, max_calls=most, keep=KEPT_CALLS)


def _upstream_body(job: GovernedRequest) -> dict[str, Any]:
    """The client's body, asked for as a stream with usage; their traces are removed again.

    Where doctor saw usage refused, it is not asked for: tokens are counted by pieces instead.
    """
    body = dict(job.intake.body)
    if find_verdict(job.client.findings, "stream_usage") == "no":
        return body | {"stream": True}
    given = body.get("stream_options")
    options = dict(given) if isinstance(given, dict) else {}
    return body | {"stream": True, "stream_options": options | {"include_usage": True}}


def _ahead(job: GovernedRequest, continuer: Continuer) -> Ahead:
    """What the engine is told before the call; nothing where the route may not act.

    Nor where no second call is allowed: a server that refuses our fields could not be asked without them.
    """
    if not job.may_act or not (job.client.settings.retries or job.route.settings.max_extra_calls):
        return NOTHING
    policy = job.route.policy
    ahead = choose(
        job.route.settings,
        job.client.settings,
        job.intake.body,
        methods=continuer.methods,
        policy_budget_tokens=policy.max_tokens if isinstance(policy, FixedBudget) else None,
    )
    if job.route.arm and ahead.arm(job.route.settings) not in ("", job.route.arm):
        return NOTHING  # the driver is another one since: what it would ask for now was never proved
    if ahead.budget_tokens is not None:
        _estimate_saved(job, ahead.budget_tokens)  # told only if it comes to that
    return ahead


def _segmenter(job: GovernedRequest) -> StepCutter:
    """What cuts the thought; another package's that cannot be built is replaced by the length alone."""
    steps = job.route.settings.steps
    try:
        return build_segmenter(steps)
    except Exception:  # noqa: BLE001 - a broken segmenter costs tokens, never an answer
        job.ledger.fail_open("segment")
        return Segmenter(steps)


def _skipped(job: GovernedRequest) -> None:
    """Count a stop that was too dear; in shadow it would not have been made anyway."""
    if job.may_act:
        job.gw.metrics.inc("suffice_stops_skipped_total", job.route.name, "not_worth_it")


def _estimate_saved(job: GovernedRequest, tokens_used: int) -> None:
    """What the run would have gone on to cost, from the full runs of this route; unknown if few."""
    full = job.gw.full_runs.get(job.route.name)
    remaining = full.remaining(tokens_used) if full is not None else None
    if remaining is None:
        return
    # The answer is written either way, so the thought alone is saved.
    job.ledger.tokens_saved_estimate = round(remaining.thought_tokens)
    job.ledger.full_tokens_estimate = tokens_used + remaining.tokens
    job.ledger.estimate_method = f"mean of {remaining.n} full runs of this route that thought longer"


def _pinged(job: GovernedRequest) -> AbstractAsyncContextManager[None]:
    """Comment lines while a governed stream is silent."""
    if not job.intake.stream:
        return nullcontext()
    return KeptAlive(job.exchange, job.gw.settings.server.ping_s, job.gw.monotonic_s)


# --------------------------------------------------------------------------- samples


async def govern_samples(job: GovernedRequest) -> None:
    """Draw samples until the vote is decided or the policy stops; deliver the winner as one completion."""
    ledger, request = job.ledger, job.ledger.request
    n = request.n_samples
    if job.intake.body.get("temperature") == 0:
        n = 1
        ledger.warnings.append("temperature is 0: every sample would be the same, one was drawn")
    run = SampleRun(
        client=job.client,
        path=CHAT_PATH,
        body=_upstream_body(job),
        headers=job.headers,
        ledger=ledger,
        scorer=job.route.scorer,
        n_samples=n,
        wave=job.route.settings.wave,
        max_bytes=job.gw.settings.server.max_sample_bytes,
        continues_after_failure=not job.may_act,
    )
    pace = Pace(lambda: ledger.fail_open("slow"), job.gw.monotonic_s)
    policy = pace.deciding(FailOpen(job.route.policy, ledger.fail_open))
    async with _pinged(job):
        record = recorder(job, lambda: not run.is_decided())
        verdict = await run_episode(run.steps(), pace.observing(observer(job)), policy, record)
        body = run.result()
        if verdict is not None:
            ledger.stopped, ledger.finish_method = True, "vote"
            drawn = [s.tokens for s in run.seen]
            ledger.full_tokens_estimate = full_vote_tokens(drawn, n)
            ledger.tokens_saved_estimate = round(ledger.full_tokens_estimate - sum(drawn))
            ledger.estimate_method = "mean tokens of the samples drawn, times the samples not drawn"
        await _deliver_vote(job, body)


async def _deliver_vote(job: GovernedRequest, body: dict[str, Any]) -> None:
    """One completion: the winner's text, the usage of everything that was drawn."""
    ledger, exchange = job.ledger, job.exchange
    usage = ledger.usage()
    body.pop("timings", None)  # of one sample only
    if usage is not None:
        body["usage"] = usage_json(usage)
    if ledger.stopped or job.intake.has_options or ledger.warnings:
        body["suffice"] = suffice_object(ledger)
    if not job.intake.stream:
        await exchange.json(200, encode_json(body))
        return
    if not exchange.status:
        await exchange.start(200, SSE_HEADERS, events=True)
    for frame in as_chunks(body, wants_usage=job.intake.wants_usage):
        await exchange.body(frame)
    await exchange.body(DONE, more=False)


def as_chunks(body: dict[str, Any], *, wants_usage: bool) -> list[bytes]:
    """A finished completion as an ordinary stream: role, message, finish reason, usage if asked for."""
    head: dict[str, Any] = {k: body[k] for k in ("id", "created", "model", "system_fingerprint") if k in body}
    head["object"] = "chat.completion.chunk"
    choice = body["choices"][0]
    message = dict(choice["message"])
    role = message.pop("role", "assistant")
    deltas: list[dict[str, Any]] = [{"role": role, "content": ""}]
    # A thought goes before its answer: clients that show both in the order of arrival would turn them round.
    said = sorted(message.items(), key=lambda item: item[0] not in REASONING_FIELDS)
    deltas += [{k: v} for k, v in said if v not in (None, "")]
    frames = [head | {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
    last = head | {"choices": [{"index": 0, "delta": {}, "finish_reason": choice.get("finish_reason")}]}
    if "suffice" in body:
        last["suffice"] = body["suffice"]
    frames.append(last)
    if wants_usage:
        frames.append(head | {"choices": [], "usage": body.get("usage")})
    return [data_frame(f).raw for f in frames]

"""The accounts of one request: calls, steps, decisions and failures, closed once into its `Outcome`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from suffice.assurance import money
from suffice.assurance.money import TokenCost
from suffice.assurance.saving import spent_tokens
from suffice.scoring.reply import written_reply
from suffice.scoring.scorer import Scorer
from suffice.settings import Prices
from suffice.signals.folds.answers import confidence_of
from suffice.types import (
    CountSource,
    Decision,
    EndReason,
    Outcome,
    Overhead,
    Purpose,
    Request,
    Signals,
    Step,
    StepRecord,
    StopReason,
    UpstreamCall,
    Usage,
    Wish,
)
from suffice.upstream.wire import WireUsage

DELIVERED: frozenset[Purpose] = frozenset({"main", "sample", "continuation", "rerun"})
MOST_TRACE_EVENTS = 128  # of one span, the SDK's usual limit
NAME_CHARS = 200  # kept of an upstream's own names
_NO_OVERHEAD = Overhead()
_STEP_FIELDS = (  # shared by a step and its record
    *("index", "tokens", "answer", "answer_source", "entropy", "probe_tokens", "logprobs", "ctx_tokens", "logprob"),
    *("stated_confidence", "reported_done", "margin", "mass", "closed_entropy", "end_margin", "missing"),
)
_SIGNAL_FIELDS = ("draft_distance", "hedge_rate", "loop_share", "known_words", "pattern_code")  # kept of a step


@dataclass(slots=True)
class RunTrace:
    """A sampled request's place in its trace, and what happened when, for its span."""

    trace_id: int
    span_id: int
    parent_id: int | None  # None: the trace begins here
    state: str  # the caller's `tracestate`
    monotonic_s: Callable[[], float]
    began_s: float  # monotonic
    began_ns: int  # Unix time
    attributes: dict[str, Any]  # of the span, known so far
    provider: str = ""  # driver of the upstream
    events: list[tuple[float, str, dict[str, str | int]]] = field(default_factory=list)  # (monotonic, name, attributes)

    @property
    def header(self) -> str:
        """Return the `traceparent` for calls to the upstream."""
        return f"00-{self.trace_id:032x}-{self.span_id:016x}-01"

    def note(self, name: str, **attributes: str | int) -> None:
        if len(self.events) < MOST_TRACE_EVENTS:
            self.events.append((self.monotonic_s(), name, attributes))


@dataclass(slots=True)
class CallAccount:
    purpose: Purpose
    context_tokens: int = 0  # of an earlier thought, sent after the client's prompt
    began: bool = False  # an answer began, so the prompt was read and is billed
    prompt_tokens: int | None = None
    cached_tokens: int = 0
    received_tokens: int = 0  # counted from the stream
    reasoning_tokens: int = 0  # of those, before the thought closed
    reported_tokens: int | None = None  # by the upstream; takes precedence over our count
    cancelled: bool = True  # until the end of the stream has been read
    discarded: bool = False  # paid for, but not part of the delivered answer
    is_open: bool = False  # its reply is still being read
    price_share: float = 1.0  # of the full price

    @property
    def is_delivered(self) -> bool:
        return self.purpose in DELIVERED and not self.discarded

    @property
    def completion_tokens(self) -> int:
        """Return the tokens that the upstream reports, or those received if the call was cut off."""
        return self.received_tokens if self.reported_tokens is None else self.reported_tokens

    @property
    def fresh_tokens(self) -> int:
        """Return the tokens that the engine computed: the uncached prompt and the completion."""
        return max(0, (self.prompt_tokens or 0) - self.cached_tokens) + self.completion_tokens

    def note_usage(self, usage: WireUsage | None) -> None:
        if usage is None or not (usage.prompt_tokens or usage.completion_tokens):
            return
        self.prompt_tokens, self.reported_tokens = usage.prompt_tokens, usage.completion_tokens
        self.cached_tokens = usage.cached_tokens
        if usage.reasoning_tokens is not None:
            self.reasoning_tokens = usage.reasoning_tokens

    def close(self, client_prompt_tokens: int | None = None) -> UpstreamCall:
        """Return the record. Without reported usage, the prompt is the client's plus the thought sent along."""
        source: CountSource = "provider" if self.reported_tokens is not None else "counted"
        prompt = self.prompt_tokens
        if prompt is None and self.began and client_prompt_tokens is not None:
            prompt, source = client_prompt_tokens + self.context_tokens, "estimated"
        return UpstreamCall(
            purpose=self.purpose,
            prompt_tokens=prompt,
            cached_tokens=self.cached_tokens,
            completion_tokens=self.completion_tokens,
            source=source,
            cancelled=self.cancelled,
            price_share=self.price_share,
        )


@dataclass(slots=True)
class StopState:
    step: int | None = None  # the first one with a stop decision; None: no stop
    reason: StopReason | None = None
    would_answer: str | None = None
    decision: str = ""
    acted: bool = False  # the run was stopped
    finish_method: str | None = None
    handover_ms: float | None = None
    wish: Wish | None = None  # what a person asked of the run; then its policy stops it no more


@dataclass(slots=True)
class ReplyState:
    answer: str | None = None
    response_id: str | None = None
    model: str | None = None  # as the upstream names itself
    system_fingerprint: str | None = None
    status: int = 0
    first_byte_s: float | None = None  # monotonic
    finish_reason: str | None = None  # as the client got it; None: not read
    unclosed: bool = False
    vote: tuple[tuple[str, int], ...] = ()
    caller_usage: Usage | None = None  # of a caller's own loop, as it reports it; our calls are beside it

    @property
    def truncated(self) -> bool:
        return self.finish_reason == "length"

    def note_upstream(self, model: object, system_fingerprint: object) -> None:
        if self.model is None and isinstance(model, str):
            self.model = model[:NAME_CHARS]
        if self.system_fingerprint is None and isinstance(system_fingerprint, str):
            self.system_fingerprint = system_fingerprint[:NAME_CHARS]


@dataclass(slots=True)
class AuditState:
    """Results of an audit's extra calls; they are recorded and never delivered."""

    finish_step: int | None = None
    finish_answer: str | None = None
    pair_call: CallAccount | None = None  # the paired call with an arm; None: there was none
    pair_arm: str | None = None
    pair_propensity: float | None = None
    pair_answer: str | None = None
    finished_unread: bool = False  # its client had left


@dataclass(slots=True)
class CostBasis:
    prices: Prices | None = None  # of the upstream, when the request arrived
    estimate_method: str | None = None
    full_tokens: float | None = None  # expected tokens of the full run, given how far its thought came
    has_less_effort: bool = False  # than the full run
    closing_usd: float | None = None  # expected cost of closing the thought at `StopState.step`


@dataclass(slots=True)
class ExtraCalls:
    skipped: Counter[str] = field(default_factory=Counter)  # probes that were not sent, by reason
    n_refused: int = 0  # answered with 429, or with 503 and a time to come back
    n_embeddings: int = 0  # to the route's embedder, which is not the client's upstream


@dataclass(slots=True)
class Disclosure:
    warnings: list[str] = field(default_factory=list)
    includes_probes: bool = True  # False: the reply mentions no probe, because only audits send any
    promise: Callable[[], str] = str  # wording of the guarantee; "" if no route took the request
    feedback_token: str = ""  # "": none
    tells_stops: bool = True  # False: the reply has only what is the same in stopped runs and audits


class TurnObserver(Protocol):
    """See `gateway.turns.Turn`."""

    @property
    def stop_certified(self) -> bool | None: ...

    def note(self, text: str, calls: Sequence[Mapping[str, Any]], ledger: Ledger) -> None: ...

    def report(self) -> dict[str, Any]: ...


@dataclass(slots=True)
class Ledger:
    request: Request
    started_s: float  # monotonic
    has_rows: bool = True  # False: its rows were left out by sampling
    calls: list[CallAccount] = field(default_factory=list)
    steps: list[StepRecord] = field(default_factory=list)
    step_tokens: int = 0  # of all that were recorded
    degraded: list[str] = field(default_factory=list)
    end_reason: EndReason | None = None
    stop: StopState = field(default_factory=StopState)
    reply: ReplyState = field(default_factory=ReplyState)
    audit: AuditState = field(default_factory=AuditState)
    costs: CostBasis = field(default_factory=CostBasis)
    extra: ExtraCalls = field(default_factory=ExtraCalls)
    disclosure: Disclosure = field(default_factory=Disclosure)
    trace: RunTrace | None = None  # None: not sampled
    turn: TurnObserver | None = None  # None: the request is no turn of an agent's run

    @property
    def tells_stop(self) -> bool:
        """Whether the reply says that the run was stopped."""
        return self.stop.acted and self.disclosure.tells_stops

    @property
    def n_extra_calls(self) -> int:
        return max(0, len(self.calls) - 1) + self.extra.n_embeddings

    def open_call(self, purpose: Purpose) -> CallAccount:
        account = CallAccount(purpose)
        self.add_call(account)
        return account

    def add_call(self, account: CallAccount) -> None:
        self.calls.append(account)
        if self.trace is not None:
            self.trace.note("suffice.call", purpose=account.purpose)

    def forget_run(self, site: str) -> None:
        """Mark all calls so far as discarded: they are paid for, and another run replaces them."""
        self.fail_open(site)
        for account in self.calls:
            account.discarded = True
        self.stop.acted = False
        self.stop.finish_method = None
        self.stop.handover_ms = None
        self.reply.vote = ()
        self.costs.estimate_method = None
        self.costs.full_tokens = None
        self.costs.has_less_effort = False

    def fail_open(self, site: str) -> None:
        if site not in self.degraded:
            self.degraded.append(site)

    def report_effort(self, problem: str) -> None:
        """Note that an effort was not sent, refused or ignored, for the client and for the log."""
        self.fail_open("effort")
        if problem not in self.disclosure.warnings:
            self.disclosure.warnings.append(problem)

    @property
    def is_starved(self) -> bool:
        """Whether every probe lacked a slot, so that nothing could stop."""
        is_skipped = not self.extra.skipped.keys().isdisjoint(("slots", "concurrency"))
        return is_skipped and not any(call.purpose == "probe" for call in self.calls)

    @property
    def failed_open(self) -> tuple[str, ...]:
        """The places where Suffice failed open; "slots" also if the run was starved."""
        is_new = self.is_starved and "slots" not in self.degraded
        return (*self.degraded, "slots") if is_new else tuple(self.degraded)

    @property
    def disclosed_degraded(self) -> list[str]:
        """Those of `failed_open` that tell no audit apart: an audit makes no stop that could lack a slot."""
        about_slots = self.is_starved and self.disclosure.includes_probes
        return [
            site
            for site in self.failed_open
            if (site != "slots" or about_slots) and (site != "probe" or self.disclosure.includes_probes)
        ]

    def extract(self, scorer: Scorer, text: str, calls: Sequence[Mapping[str, Any]] = ()) -> str | None:
        """Return the normalised answer in a reply; None, with a note, if the scorer fails."""
        try:
            written = written_reply(text, calls, self.request.form)
            return None if written is None else scorer.extract(written)
        except Exception:  # noqa: BLE001 - a broken scorer costs a measurement, never an answer
            self.fail_open("scorer")
            return None

    def note_reply(self, scorer: Scorer, text: str, calls: Sequence[Mapping[str, Any]] = ()) -> None:
        self.reply.answer = self.extract(scorer, text, calls)
        if self.turn is not None:
            self.turn.note(text, calls, self)

    def record_step(self, step: Step, signals: Signals, decision: Decision, *, late_tokens: int | None = None) -> None:
        same: dict[str, Any] = {name: getattr(step, name) for name in _STEP_FIELDS}
        same |= {name: getattr(signals, name) for name in _SIGNAL_FIELDS}
        self.steps.append(
            StepRecord(
                **same,
                confidence=confidence_of(step),
                action=decision.action,
                reason=decision.reason,
                hedges=None if signals.hedges is None else int(signals.hedges),
                caller_action=step.action,
                late_tokens=late_tokens,
            )
        )
        self.step_tokens += step.tokens
        if decision.action == "stop" and self.stop.step is None:
            self.stop.step, self.stop.reason = step.index, decision.stop_reason
            self.stop.would_answer, self.stop.decision = signals.answer, decision.reason
            if self.trace is not None:
                self.trace.note("suffice.stop_decision", step=step.index, reason=decision.stop_reason or "")

    def client_prompt_tokens(self) -> int | None:
        """Return the client's own prompt tokens, estimated if every call sent a thought; None if none was reported."""
        counted = self.calls
        if len(counted) > 1:
            counted = [c for c in counted if c.prompt_tokens is not None]
            counted.sort(key=lambda c: c.context_tokens)
        best = counted[0] if counted else None
        if best is None or best.prompt_tokens is None:
            return None
        return max(0, best.prompt_tokens - best.context_tokens)

    def usage(self) -> Usage | None:
        """Return the client's usage: its prompt once, and all tokens generated for its answer."""
        if self.reply.caller_usage is not None:
            return self.reply.caller_usage
        delivered = [c for c in self.calls if c.is_delivered]
        if not delivered:
            return None
        return Usage(
            prompt_tokens=self.client_prompt_tokens() or 0,
            completion_tokens=sum(c.completion_tokens for c in delivered),
            reasoning_tokens=sum(c.reasoning_tokens for c in delivered),
            cached_tokens=delivered[0].cached_tokens,
        )

    def overhead(self) -> Overhead:
        """Return what was spent beyond the client's usage; the two sum to everything that was spent."""
        first = self.calls[0] if len(self.calls) == 1 else None
        if first is not None and first.is_delivered and not first.context_tokens and not self.extra.n_embeddings:
            return _NO_OVERHEAD
        usage, known = self.usage() or Usage(prompt_tokens=0, completion_tokens=0), self.client_prompt_tokens()
        if self.reply.caller_usage is not None:
            usage = Usage(prompt_tokens=0, completion_tokens=0)  # of other calls
        prompts = sum(c.close(known).prompt_tokens or 0 for c in self.calls)
        cached = sum(c.cached_tokens for c in self.calls)
        return Overhead(
            probe_tokens=sum(c.completion_tokens for c in self.calls if c.purpose == "probe"),
            extra_prompt_tokens=max(0, prompts - usage.prompt_tokens),
            cached_prompt_tokens=max(0, cached - usage.cached_tokens),
            discarded_tokens=sum(c.completion_tokens for c in self.calls if c.discarded and c.purpose != "probe"),
            n_extra_calls=self.n_extra_calls,
        )

    def priced_calls(self) -> list[tuple[CallAccount, TokenCost]] | None:
        """Return all calls so far with their costs; None if there are no prices or a prompt was never counted."""
        prices = self.costs.prices
        if prices is None:
            return None
        known, priced = self.client_prompt_tokens(), list[tuple[CallAccount, TokenCost]]()
        for call in self.calls:
            is_paid = call.began or call.prompt_tokens is not None
            cost = money.cost_of_call(prices, call.close(known)) if is_paid else TokenCost()
            if cost is None:
                return None
            priced.append((call, cost))
        return priced

    def cost(self) -> TokenCost | None:
        """Return the cost of all calls so far; None if it is unknown."""
        priced = self.priced_calls()
        return None if priced is None else sum((cost for _, cost in priced), TokenCost())

    def overhead_usd(self) -> float | None:
        """Return the cost of governing the run: probes, discarded calls, thoughts read again."""
        priced, spent = self.priced_calls(), 0.0
        if priced is None:
            return None
        for call, cost in priced:
            if call.purpose == "probe" or call.discarded:
                spent += cost.total_usd
            elif call.purpose == "continuation":
                spent += cost.prompt_usd
        return spent

    @property
    def is_shortened(self) -> bool:
        """Whether the run was stopped, or asked for with less effort, so that its full length can only be estimated."""
        return self.stop.acted or self.costs.has_less_effort

    def saved_tokens(self) -> int | None:
        """Return the expected tokens of the full run less all that were generated; None if unknown or not shortened."""
        full, usage = self.costs.full_tokens, self.usage()
        if not self.is_shortened or full is None or usage is None:
            return None
        return round(full) - spent_tokens(usage, self.overhead())

    def saved_usd(self) -> float | None:
        """Return the expected cost of the full run less all that was spent; None if unknown or not shortened."""
        full, prices = self.costs.full_tokens, self.costs.prices
        if not self.is_shortened or full is None or prices is None:
            return None
        priced, cost = self.priced_calls(), self.cost()
        if priced is None or cost is None:
            return None
        prompts = [one.prompt_usd for call, one in priced if call.began and call.purpose in ("main", "sample")]
        if not prompts:
            return None
        prompts_usd = self.request.n_samples * sum(prompts) / len(prompts)
        return prompts_usd + money.cost_of(prices, completion_tokens=full).total_usd - cost.total_usd

    def would_cost_usd(self) -> float | None:
        prices, pair = self.costs.prices, self.audit.pair_call
        if self.stop.acted or self.stop.step is None or prices is None:
            return None
        priced, cost = self.priced_calls(), self.cost()
        if priced is None or cost is None:
            return None
        later = [step for step in self.steps if step.index > self.stop.step]
        if self.request.kind == "samples":
            drawn = [one for call, one in priced if call.purpose == "sample"]
            return cost.total_usd - sum(one.total_usd for one in drawn[self.stop.step :])
        if self.costs.closing_usd is None:
            return None
        probes = [one for call, one in priced if call.purpose == "probe" and call is not pair and not call.discarded]
        n_later = sum(step.answer_source == "probe" for step in later)
        avoided_usd = next((one.total_usd for call, one in priced if call is pair), 0.0)
        avoided_usd += sum(one.total_usd for one in probes[len(probes) - n_later :])
        avoided_usd += money.cost_of(prices, completion_tokens=sum(step.tokens for step in later)).total_usd
        return cost.total_usd - avoided_usd + self.costs.closing_usd

    def close(self, *, now_s: float, default: EndReason) -> Outcome:
        stop = self.stop
        reply = self.reply
        audit = self.audit
        known, cost = self.client_prompt_tokens(), self.cost()
        return Outcome(
            episode_id=self.request.episode_id,
            status=reply.status,
            answer=reply.answer,
            response_id=reply.response_id,
            vote=reply.vote,
            unclosed=reply.unclosed,
            model=reply.model,
            system_fingerprint=reply.system_fingerprint,
            end_reason=self.end_reason or ("stopped" if stop.acted else "truncated" if reply.truncated else default),
            usage=self.usage(),
            overhead=self.overhead(),
            calls=tuple(c.close(known) for c in self.calls),
            stopped=stop.acted,
            stop_reason=stop.reason,
            stop_step=stop.step,
            would_answer=stop.would_answer,
            decision=stop.decision,
            finish_method=stop.finish_method,
            handover_ms=stop.handover_ms,
            tokens_saved_estimate=self.saved_tokens(),
            estimate_method=self.costs.estimate_method if self.is_shortened else None,
            cost_usd=None if cost is None else cost.total_usd,
            overhead_usd=self.overhead_usd(),
            would_cost_usd=self.would_cost_usd(),
            saved_usd_estimate=self.saved_usd(),
            degraded=self.failed_open,
            steps=tuple(self.steps),
            duration_s=now_s - self.started_s,
            ttft_s=None if reply.first_byte_s is None else reply.first_byte_s - self.started_s,
            finish_step=audit.finish_step,
            finish_answer=audit.finish_answer,
            pair_arm=audit.pair_arm,
            pair_propensity=audit.pair_propensity,
            pair_answer=audit.pair_answer,
            pair_tokens=None if audit.pair_call is None else audit.pair_call.completion_tokens,
            finished_unread=audit.finished_unread,
            has_less_effort=self.costs.has_less_effort,
        )


def usage_json(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }


def _same_fields(ledger: Ledger) -> dict[str, Any]:
    request, disclosure = ledger.request, ledger.disclosure
    return {
        "episode_id": request.episode_id,
        "feedback_token": disclosure.feedback_token or None,
        "mode": request.mode,
        "certified": request.certified,
        "promise": disclosure.promise() or None,
        "policy_version": request.policy_version,
    }


def suffice_object(ledger: Ledger) -> dict[str, Any]:
    """Return the reply's extra top-level object. Beyond whether the run was stopped, it says nothing of audits.

    So what a run with less effort saved is in the log alone.

    If only audits send probes, it leaves out the probes, the number of steps (which depends on them) and a probe that
    is still running. The log has them all.
    """
    stop = ledger.stop
    costs = ledger.costs
    disclosure = ledger.disclosure
    fields = _same_fields(ledger)
    if not disclosure.tells_stops:
        turn = {} if ledger.turn is None else ledger.turn.report()
        return fields | ({"turns": {k: v for k, v in turn.items() if k != "stopped"}} if turn else {})
    includes_probes = disclosure.includes_probes
    calls = [call for call in ledger.calls if call.purpose != "probe" or (includes_probes and not call.is_open)]
    degraded = ledger.disclosed_degraded
    ledger = replace(ledger, calls=calls, degraded=degraded)
    overhead = ledger.overhead()
    cost = ledger.cost()
    saved_usd = ledger.saved_usd() if stop.acted else None
    fields |= {
        "stopped": stop.acted,
        "stop_reason": stop.reason if stop.acted else None,
        "steps": len(ledger.steps) if includes_probes else None,
        "probe_tokens": overhead.probe_tokens,
        "extra_prompt_tokens": overhead.extra_prompt_tokens,
        "cached_prompt_tokens": overhead.cached_prompt_tokens,
        "tokens_saved_estimate": ledger.saved_tokens() if stop.acted else None,
        "estimate_method": costs.estimate_method if stop.acted else None,
        # Rounded to remove binary noise; no price is small enough for this to show.
        "cost_usd": None if cost is None else round(cost.total_usd, 12),
        "saved_usd_estimate": None if saved_usd is None else round(saved_usd, 12),
        "degraded": degraded,
        "vote": dict(ledger.reply.vote) if ledger.reply.vote else None,
    }
    if ledger.turn is not None:
        fields["turns"] = ledger.turn.report()
        if ledger.turn.stop_certified is not None:
            fields["certified"] = ledger.turn.stop_certified
    return fields | {"warnings": list(disclosure.warnings)} if disclosure.warnings else fields

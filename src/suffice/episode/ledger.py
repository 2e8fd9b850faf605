"""The account of one request: calls, steps, decisions and failures, closed into one outcome.

Mutable for the life of a request and owned by it alone; `close` may be called once, and the
outcome that it returns is the only record of how the request ended.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from suffice.assurance import money
from suffice.assurance.money import TokenCost
from suffice.settings import Prices
from suffice.signals.folds.confidence import confidence_of
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
)

DELIVERED: frozenset[Purpose] = frozenset({"main", "sample", "continuation", "rerun"})
NAME_CHARS = 200  # of an upstream's own names, kept
_NO_OVERHEAD = Overhead()


@dataclass(slots=True)
class CallAccount:
    """What one upstream call has cost so far. It becomes an `UpstreamCall` when the books are closed."""

    purpose: Purpose
    context_tokens: int = 0  # of an earlier thought, sent along behind the client's prompt
    began: bool = False  # an answer began, so the prompt was read and is paid for
    prompt_tokens: int | None = None
    cached_tokens: int = 0
    received_tokens: int = 0  # counted from the stream
    reasoning_tokens: int = 0  # … before the thought closed
    reported_tokens: int | None = None  # what the upstream said; wins over our count
    cancelled: bool = True  # until its end has been seen
    discarded: bool = False  # paid for, but no part of what the client got
    is_open: bool = False  # its reply is still being read

    @property
    def is_delivered(self) -> bool:
        return self.purpose in DELIVERED and not self.discarded

    @property
    def completion_tokens(self) -> int:
        """What the upstream said that it generated; of a call that was cut off, what was received."""
        return self.received_tokens if self.reported_tokens is None else self.reported_tokens

    @property
    def fresh_tokens(self) -> int:
        """What the engine had to work through: the prompt outside of its cache, and what it generated."""
        return max(0, (self.prompt_tokens or 0) - self.cached_tokens) + self.completion_tokens

    def close(self, client_prompt_tokens: int | None = None) -> UpstreamCall:
        """The record of this call.

        client_prompt_tokens  of the client's own prompt: where the upstream was cut off before it
                              counted, the call read that many and the thought sent along
        """
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
        )


@dataclass(slots=True)
class Ledger:
    """Everything that one request leaves behind."""

    request: Request
    started_s: float  # monotonic
    has_rows: bool = True  # False: the lottery of rows left it out, as far as its beginning tells
    calls: list[CallAccount] = field(default_factory=list)
    steps: list[StepRecord] = field(default_factory=list)
    degraded: list[str] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)  # probes that were not sent, by reason
    n_refused: int = 0  # extra calls that the upstream answered with "fewer, please"
    n_embeddings: int = 0  # calls to the route's embedder, which is no upstream of the client's
    warnings: list[str] = field(default_factory=list)  # told to the client in the `suffice` object
    stop_step: int | None = None  # the first stop that the policy asked for
    stop_reason: StopReason | None = None
    would_answer: str | None = None
    decision: str = ""
    stopped: bool = False
    finish_method: str | None = None
    handover_ms: float | None = None
    answer: str | None = None
    response_id: str | None = None
    model: str | None = None  # as the upstream names itself
    system_fingerprint: str | None = None
    finish_step: int | None = None
    finish_answer: str | None = None
    pair_call: CallAccount | None = None  # of an audit's second call with an arm; None: it was asked once
    pair_arm: str | None = None
    pair_propensity: float | None = None
    pair_answer: str | None = None
    status: int = 0
    first_byte_s: float | None = None  # monotonic
    truncated: bool = False
    unclosed: bool = False
    vote: tuple[tuple[str, int], ...] = ()
    tokens_saved_estimate: int | None = None
    estimate_method: str | None = None
    full_tokens_estimate: float | None = None  # generated by the full run, as expected at the stop
    closing_usd: float | None = None  # what handing the thought over at `stop_step` takes, as expected
    prices: Prices | None = None  # of the upstream, as they stood when the request came
    end_reason: EndReason | None = None
    told_usage: Usage | None = None  # of a caller's own loop: what its owner says it spent; no call was ours
    tells_probes: bool = True  # False: the client hears of no probe, because only an audit is sent any
    promise: Callable[[], str] = str  # the sentence that the reply has; "" where no route took the request
    feedback_token: str = ""  # told to the client in the `suffice` object; "": none

    @property
    def n_extra_calls(self) -> int:
        return max(0, len(self.calls) - 1) + self.n_embeddings

    def open_call(self, purpose: Purpose) -> CallAccount:
        account = CallAccount(purpose)
        self.calls.append(account)
        return account

    def forget_run(self, site: str) -> None:
        """Note that the run so far came to nothing: it is paid for, and another one takes its place."""
        self.fail_open(site)
        for account in self.calls:
            account.discarded = True
        self.stopped, self.finish_method, self.handover_ms, self.vote = False, None, None, ()
        self.tokens_saved_estimate = self.estimate_method = self.full_tokens_estimate = None

    def note_upstream(self, model: object, system_fingerprint: object) -> None:
        """Remember how the upstream named itself, where it did: at the first call that says so."""
        if self.model is None and isinstance(model, str):
            self.model = model[:NAME_CHARS]
        if self.system_fingerprint is None and isinstance(system_fingerprint, str):
            self.system_fingerprint = system_fingerprint[:NAME_CHARS]

    def fail_open(self, site: str) -> None:
        if site not in self.degraded:
            self.degraded.append(site)

    def record_step(self, step: Step, signals: Signals, decision: Decision) -> None:
        self.steps.append(
            StepRecord(
                index=step.index,
                tokens=step.tokens,
                answer=step.answer,
                answer_source=step.answer_source,
                confidence=confidence_of(step),
                entropy=step.entropy,
                probe_tokens=step.probe_tokens,
                action=decision.action,
                reason=decision.reason,
                logprobs=step.logprobs,
                hedges=None if signals.hedges is None else int(signals.hedges),
                ctx_tokens=step.ctx_tokens,
                logprob=step.logprob,
                stated_confidence=step.stated_confidence,
                said_done=step.said_done,
                caller_action=step.action,
                draft_distance=signals.draft_distance,
                hedge_rate=signals.hedge_rate,
                loop_share=signals.loop_share,
                margin=step.margin,
                mass=step.mass,
                closed_entropy=step.closed_entropy,
                missing=step.missing,
            )
        )
        if decision.action == "stop" and self.stop_step is None:
            self.stop_step, self.stop_reason = step.index, decision.stop_reason
            self.would_answer, self.decision = signals.answer, decision.reason

    def client_prompt_tokens(self) -> int | None:
        """Tokens of the client's own prompt; None while no call has told.

        Read off a call that sent nothing else where there is one; else estimated from one that sent a
        thought along, whose closing text is then counted as prompt.
        """
        if len(self.calls) == 1:
            best: CallAccount | None = self.calls[0]
        else:
            told = [c for c in self.calls if c.prompt_tokens is not None]
            best = min(told, key=lambda c: c.context_tokens, default=None)
        if best is None or best.prompt_tokens is None:
            return None
        return max(0, best.prompt_tokens - best.context_tokens)

    def usage(self) -> Usage | None:
        """What the client is told: its prompt once, and all that was generated for its answer."""
        if self.told_usage is not None:
            return self.told_usage
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
        """What was spent beside the client's usage; both together are all that was spent."""
        first = self.calls[0] if len(self.calls) == 1 else None
        if first is not None and first.is_delivered and not first.context_tokens and not self.n_embeddings:
            return _NO_OVERHEAD
        usage, known = self.usage(), self.client_prompt_tokens()
        probes = [c for c in self.calls if c.purpose == "probe"]
        discarded = [c for c in self.calls if c.discarded and c.purpose != "probe"]
        prompts = sum(c.close(known).prompt_tokens or 0 for c in self.calls)
        cached = sum(c.cached_tokens for c in self.calls)
        return Overhead(
            probe_tokens=sum(c.completion_tokens for c in probes),
            extra_prompt_tokens=max(0, prompts - (usage.prompt_tokens if usage else 0)),
            cached_prompt_tokens=max(0, cached - (usage.cached_tokens if usage else 0)),
            discarded_tokens=sum(c.completion_tokens for c in discarded),
            n_extra_calls=self.n_extra_calls,
        )

    def cost(self) -> TokenCost | None:
        """What all calls have cost so far; None: there are no prices, or a prompt was never counted."""
        return None if self.prices is None else money.total(self._costs())

    def _costs(self) -> list[TokenCost | None]:
        """The cost of every call; one that never began has cost nothing."""
        if self.prices is None:
            return [None]
        known = self.client_prompt_tokens()
        return [
            money.cost_of_call(self.prices, c.close(known)) if c.began or c.prompt_tokens is not None else TokenCost()
            for c in self.calls
        ]

    def overhead_usd(self) -> float | None:
        """The part of the cost that the run alone would not have had: probes, waste, thoughts read again."""
        if self.cost() is None:
            return None
        spent = 0.0
        for call, cost in zip(self.calls, self._costs(), strict=True):
            if cost is None:
                return None
            if call.purpose == "probe" or call.discarded:
                spent += cost.total_usd
            elif call.purpose == "continuation":
                spent += cost.prompt_usd
        return spent

    def saved_usd(self) -> float | None:
        """What the full run is expected to have cost, less all that was spent; None: unknown, or no stop."""
        cost, full = self.cost(), self.full_tokens_estimate
        if not self.stopped or full is None or cost is None or self.prices is None:
            return None
        read = [
            one.prompt_usd
            for call, one in zip(self.calls, self._costs(), strict=True)
            if one is not None and call.began and call.purpose in ("main", "sample")
        ]
        if not read:
            return None
        prompts = self.request.n_samples * sum(read) / len(read)
        return prompts + money.remaining_cost(self.prices, full).total_usd - cost.total_usd

    def would_cost_usd(self) -> float | None:
        """What the run would have cost with its shadow stop; None: it has none, or something is unknown.

        Without what came later: tokens of later steps, later probes and later samples.
        """
        cost = self.cost()
        if self.stopped or self.stop_step is None or cost is None or self.prices is None:
            return None
        later = [step for step in self.steps if step.index > self.stop_step]
        costs = [one for one in self._costs() if one is not None]
        if self.request.kind == "samples":
            drawn = [one for call, one in zip(self.calls, costs, strict=True) if call.purpose == "sample"]
            return cost.total_usd - sum(one.total_usd for one in drawn[self.stop_step :])
        if self.closing_usd is None:
            return None
        second = next((one for call, one in zip(self.calls, costs, strict=True) if call is self.pair_call), TokenCost())
        probes = [
            one
            for call, one in zip(self.calls, costs, strict=True)
            if call.purpose == "probe" and call is not self.pair_call
        ]
        n_later = sum(step.answer_source == "probe" for step in later)
        unmade = second.total_usd + sum(one.total_usd for one in probes[len(probes) - n_later :])
        unmade += money.remaining_cost(self.prices, sum(step.tokens for step in later)).total_usd
        return cost.total_usd - unmade + self.closing_usd

    def close(self, *, now_s: float, default: EndReason) -> Outcome:
        end = self.end_reason or ("stopped" if self.stopped else "truncated" if self.truncated else default)
        known, cost = self.client_prompt_tokens(), self.cost()
        return Outcome(
            episode_id=self.request.episode_id,
            end_reason=end,
            status=self.status,
            answer=self.answer,
            response_id=self.response_id,
            usage=self.usage(),
            overhead=self.overhead(),
            calls=tuple(c.close(known) for c in self.calls),
            stopped=self.stopped,
            stop_reason=self.stop_reason,
            stop_step=self.stop_step,
            would_answer=self.would_answer,
            decision=self.decision,
            finish_method=self.finish_method,
            handover_ms=self.handover_ms,
            tokens_saved_estimate=self.tokens_saved_estimate if self.stopped else None,
            estimate_method=self.estimate_method if self.stopped else None,
            cost_usd=None if cost is None else cost.total_usd,
            overhead_usd=self.overhead_usd(),
            would_cost_usd=self.would_cost_usd(),
            saved_usd_estimate=self.saved_usd(),
            degraded=tuple(self.degraded),
            vote=self.vote,
            steps=tuple(self.steps),
            unclosed=self.unclosed,
            duration_s=now_s - self.started_s,
            ttft_s=None if self.first_byte_s is None else self.first_byte_s - self.started_s,
            model=self.model,
            system_fingerprint=self.system_fingerprint,
            finish_step=self.finish_step,
            finish_answer=self.finish_answer,
            pair_arm=self.pair_arm,
            pair_propensity=self.pair_propensity,
            pair_answer=self.pair_answer,
            pair_tokens=None if self.pair_call is None else self.pair_call.completion_tokens,
        )


def usage_json(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }


def suffice_object(ledger: Ledger) -> dict[str, Any]:
    """The extra top-level object of a reply. It never says whether the request was an audit.

    Where only an audit is sent probes, they are left out, with the number of steps, which waits for them. So is a probe
    that is still running when the object is written. The log has them all.
    """
    tells = ledger.tells_probes
    calls = [call for call in ledger.calls if call.purpose != "probe" or (tells and not call.is_open)]
    degraded = [site for site in ledger.degraded if tells or site != "probe"]
    ledger = replace(ledger, calls=calls, degraded=degraded)
    request, overhead, cost = ledger.request, ledger.overhead(), ledger.cost()
    told = {
        "episode_id": request.episode_id,
        "feedback_token": ledger.feedback_token or None,
        "mode": request.mode,
        "stopped": ledger.stopped,
        "stop_reason": ledger.stop_reason if ledger.stopped else None,
        "certified": request.certified,
        "promise": ledger.promise() or None,
        "policy_version": request.policy_version,
        "steps": len(ledger.steps) if tells else None,
        "probe_tokens": overhead.probe_tokens,
        "extra_prompt_tokens": overhead.extra_prompt_tokens,
        "cached_prompt_tokens": overhead.cached_prompt_tokens,
        "tokens_saved_estimate": ledger.tokens_saved_estimate if ledger.stopped else None,
        "estimate_method": ledger.estimate_method if ledger.stopped else None,
        "cost_usd": _rounded(None if cost is None else cost.total_usd),
        "saved_usd_estimate": _rounded(ledger.saved_usd()),
        "degraded": list(ledger.degraded),
        "vote": dict(ledger.vote) if ledger.vote else None,
    }
    return told | {"warnings": list(ledger.warnings)} if ledger.warnings else told


def _rounded(amount_usd: float | None) -> float | None:
    """Money without the noise of binary fractions; no price is so small that this could be seen."""
    return None if amount_usd is None else round(amount_usd, 12)

"""The account of one request: calls, steps, decisions and failures, closed into one outcome.

Mutable for the life of a request and owned by it alone; `close` may be called once, and the
outcome that it returns is the only record of how the request ended.
"""

from __future__ import annotations

from dataclasses import dataclass, field

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


@dataclass(slots=True)
class CallAccount:
    """What one upstream call has cost so far. It becomes an `UpstreamCall` when the books are closed."""

    purpose: Purpose
    context_tokens: int = 0         # of an earlier thought, sent along behind the client's prompt
    began: bool = False             # an answer began, so the prompt was read and is paid for
    prompt_tokens: int | None = None
    cached_tokens: int = 0
    received_tokens: int = 0        # counted from the stream
    reasoning_tokens: int = 0       # … before the thought closed
    reported_tokens: int | None = None  # what the upstream said; wins over our count
    cancelled: bool = True          # until its end has been seen
    discarded: bool = False         # paid for, but no part of what the client got

    @property
    def completion_tokens(self) -> int:
        """What the upstream said that it generated; of a call that was cut off, what was received."""
        return self.received_tokens if self.reported_tokens is None else self.reported_tokens

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
    started_s: float                    # monotonic
    calls: list[CallAccount] = field(default_factory=list)
    steps: list[StepRecord] = field(default_factory=list)
    degraded: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)   # told to the client in the `suffice` object
    stop_step: int | None = None        # the first stop that the policy asked for
    stop_reason: StopReason | None = None
    would_answer: str | None = None
    decision: str = ""
    stopped: bool = False
    finish_method: str | None = None
    handover_ms: float | None = None
    answer: str | None = None
    response_id: str | None = None
    status: int = 0
    first_byte_s: float | None = None   # monotonic
    truncated: bool = False
    unclosed: bool = False
    vote: tuple[tuple[str, int], ...] = ()
    tokens_saved_estimate: int | None = None
    estimate_method: str | None = None
    end_reason: EndReason | None = None

    def open_call(self, purpose: Purpose) -> CallAccount:
        """Start the account of one more upstream call."""
        account = CallAccount(purpose)
        self.calls.append(account)
        return account

    def forget_run(self, site: str) -> None:
        """Note that the run so far came to nothing: it is paid for, and another one takes its place."""
        self.fail_open(site)
        for account in self.calls:
            account.discarded = True
        self.stopped, self.finish_method, self.handover_ms, self.vote = False, None, None, ()
        self.tokens_saved_estimate = self.estimate_method = None

    def fail_open(self, site: str) -> None:
        """Note that Suffice failed at `site` and carried on without itself."""
        if site not in self.degraded:
            self.degraded.append(site)

    def record_step(self, step: Step, signals: Signals, decision: Decision) -> None:
        """Write one step and its decision down; remember the first stop."""
        self.steps.append(
            StepRecord(
                index=step.index,
                tokens=step.tokens,
                answer=step.answer,
                answer_source=step.answer_source,
                confidence=signals.confidence,
                entropy=step.entropy,
                probe_tokens=step.probe_tokens,
                action=decision.action,
                reason=decision.reason,
                logprobs=step.logprobs,
                hedges=signals.hedges,
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
        told = [c for c in self.calls if c.prompt_tokens is not None]
        best = min(told, key=lambda c: c.context_tokens, default=None)
        if best is None or best.prompt_tokens is None:
            return None
        return max(0, best.prompt_tokens - best.context_tokens)

    def usage(self) -> Usage | None:
        """What the client is told: its prompt once, and all that was generated for its answer."""
        delivered = [c for c in self.calls if c.purpose in DELIVERED and not c.discarded]
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
            n_extra_calls=max(0, len(self.calls) - 1),
        )

    def close(self, *, now_s: float, default: EndReason) -> Outcome:
        """The one outcome of this request."""
        end = self.end_reason or ("stopped" if self.stopped else "truncated" if self.truncated else default)
        known = self.client_prompt_tokens()
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
            tokens_saved_estimate=self.tokens_saved_estimate,
            estimate_method=self.estimate_method,
            degraded=tuple(self.degraded),
            vote=self.vote,
            steps=tuple(self.steps),
            unclosed=self.unclosed,
            duration_s=now_s - self.started_s,
            ttft_s=None if self.first_byte_s is None else self.first_byte_s - self.started_s,
        )

"""The core loop: read a step, fold it into signals, call the policy, maybe stop. Behind it, the guard of policies."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Literal, Protocol, TypeAlias

from suffice.assurance import money
from suffice.assurance.money import Finish, RunLengths, TransitionCosts
from suffice.episode.ledger import Ledger
from suffice.settings import CancelSaves, FinishMethod
from suffice.signals.observe import Observer
from suffice.types import Decision, Signals, Step

CLOSING_TOKENS = 4  # a line end and a tag in common tokenizers; an approximation that never decides
STEP_BUDGET_S = 0.05  # of signals and policy together; a usual step takes well under a millisecond
SLOW_STEPS = 3  # so many over the budget in a row switch signals and policy off
HANG_S = 0.5  # a single step that takes so long switches them off at once


class Decider(Protocol):
    def decide(self, s: Signals) -> Decision: ...


StopRefusal: TypeAlias = Literal["ungoverned", "in full", "an audit", "a repeat", "a person asked", "ended"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StopRight:
    """The one place that decides whether a policy may stop a run, be it a chain, a vote or a loop.

    What is left to each kind is whether a stop can be carried out at this step.
    """

    ledger: Ledger
    acts: bool  # the route, as it serves this request
    has_ended: Callable[[], bool]  # the kill switch was pulled, or the lease of the certificate is over, since then

    def refusal(self) -> StopRefusal | None:
        """Return why no stop may act now; None: one may."""
        request = self.ledger.request
        if request.ungoverned is not None:
            return "ungoverned"
        if not self.acts:
            return "in full"
        if request.audit:
            return "an audit"
        if request.delivery > 1:
            return "a repeat"
        if self.ledger.stop.wish is not None:
            return "a person asked"
        return "ended" if self.has_ended() else None


async def run_episode(
    steps: AsyncGenerator[Step, None],
    observe: Callable[[Step], Signals],
    policy: Decider,
    record: Callable[[Step, Signals, Decision], bool],
) -> Signals | None:
    """Read steps until the policy stops the run or the run ends by itself.

    `record` stores the step and returns whether a stop may act here; where it may not, the run goes on. Return the
    signals at the stop, or None if the run ended in full.
    """
    async with aclosing(steps):
        async for step in steps:
            signals = observe(step)
            decision = policy.decide(signals)
            may_stop = record(step, signals, decision)
            if decision.action == "stop" and may_stop:
                return signals
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class StopCost:
    ledger: Ledger
    method: FinishMethod | None  # the first to try; None: there is none
    full_runs: RunLengths  # of the route
    hand_overs: TransitionCosts
    cancel_saves: CancelSaves = "unknown"  # whether a call that is cancelled is generated and billed no further
    skipped: Callable[[], None] = lambda: None  # called for each stop that costs too much

    def objection(self, s: Signals) -> str | None:
        """Return why a stop would cost more than going on, or None. The first None records the stop's expected cost."""
        if self.cancel_saves == "no" and self.method not in ("native", None):
            return "not worth it: the upstream generates and bills the rest of a call that is cancelled"
        prices, remaining = self.ledger.costs.prices, self.full_runs.remaining(s.tokens_used)
        if prices is None or remaining is None or self.method is None:
            return None
        known = self.ledger.client_prompt_tokens()
        finish = Finish(
            method=self.method,
            prompt_tokens=self.full_runs.mean_prompt_tokens if known is None else known,
            thought_tokens=s.tokens_used,
            answer_tokens=remaining.answer_tokens,
            overlap_tokens=self.hand_overs.overlap_tokens,
            closing_tokens=CLOSING_TOKENS,
            cached_share=self.hand_overs.cached_share,
        )
        why = money.cost_refusal(prices, finish, remaining.tokens)
        if why is None and self.ledger.stop.step is None:
            self.ledger.costs.closing_usd = money.finishing_cost(prices, replace(finish, answer_tokens=0)).total_usd
        return why


@dataclass(slots=True)
class GuardedPolicy:
    """Runs signals and policy, in shadow runs too; a failure, a slow step or a costly stop lets the run go on.

    Nothing can interrupt it in the event loop, so once too slow it is switched off.
    """

    policy: Decider
    needs: tuple[str, ...]
    ledger: Ledger
    monotonic_s: Callable[[], float]
    cost: StopCost | None = None
    _observer: Observer | None = None
    _observed_s: float = 0.0  # duration of this step's signals
    _n_slow: int = 0
    _is_off: bool = False

    def observe(self, step: Step) -> Signals:
        """Return the step's signals; empty ones if they fail or are off."""
        if self._is_off:
            return Signals(step=step.index, tokens_used=0)
        start_s = self.monotonic_s()
        try:
            if self._observer is None:
                request = self.ledger.request
                self._observer = Observer(self.needs, request.kind, query=request.query)
            signals = self._observer.observe(step)
        except Exception:  # noqa: BLE001 - broken signals cost tokens, never an answer
            self.ledger.fail_open("signals")
            signals = Signals(step=step.index, tokens_used=0)
        self._observed_s = self.monotonic_s() - start_s
        return signals

    def decide(self, s: Signals) -> Decision:
        """Return the policy's decision; `continue` if it fails, is too slow, or its stop costs too much."""
        if self._is_off:
            return Decision(action="continue", reason="signals and policy were too slow and are switched off")
        start_s = self.monotonic_s()
        try:
            decision: object = self._apply_cost_guard(self.policy.decide(s), s)
        except Exception as error:  # noqa: BLE001 - a broken policy costs tokens, never an answer
            decision = error
        if not isinstance(decision, Decision):
            self.ledger.fail_open("policy")
            decision = Decision(action="continue", reason=f"the policy failed ({type(decision).__name__})")
        took_s = self._observed_s + self.monotonic_s() - start_s
        self._n_slow = self._n_slow + 1 if took_s > STEP_BUDGET_S else 0
        if took_s > HANG_S or self._n_slow >= SLOW_STEPS:
            self._is_off = True
            self.ledger.fail_open("slow")
        return decision

    def _apply_cost_guard(self, decision: Decision, s: Signals) -> Decision:
        why = self.cost.objection(s) if self.cost is not None and decision.action == "stop" else None
        if why is None or self.cost is None:
            return decision
        self.cost.skipped()
        # The run goes on whatever the policy drew, so the propensity is 1.
        reason = f"{why}; the policy's decision was: {decision.reason}"
        return replace(decision, action="continue", reason=reason, stop_reason=None, propensity=1.0)

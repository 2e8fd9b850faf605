"""A stop has a price: where finishing costs more than going on, the run goes on.

Stands between the policy and the loop, in shadow as in earnest, so that what an audit measures is
what live runs do. Knows the running request and what earlier requests of its route have taught;
refuses to know whether the answer is right. What is unknown stands in no stop's way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from suffice.assurance import money
from suffice.assurance.money import Finish, HandOvers, RunLengths
from suffice.episode.ledger import Ledger
from suffice.episode.loop import Decides
from suffice.settings import FinishMethod
from suffice.types import Decision, Signals

CLOSING_TOKENS = 4  # a line end and a tag, in the tokenizers that we have met; never what decides


class WorthIt:
    """A policy whose stops are made only where they are worth their price."""

    def __init__(self, policy: Decides, against: Callable[[Signals], str | None], skipped: Callable[[], None]) -> None:
        self._policy, self._against, self._skipped = policy, against, skipped

    def decide(self, s: Signals) -> Decision:
        """What the policy decides; `continue`, with the reason, in place of a stop that is too dear."""
        decision = self._policy.decide(s)
        if decision.action != "stop":
            return decision
        why = self._against(s)
        if why is None:
            return decision
        self._skipped()
        # Whatever the policy had drawn, the run would have gone on: the odds of that are 1.
        return replace(
            decision,
            action="continue",
            reason=f"{why}; the policy said: {decision.reason}",
            stop_reason=None,
            propensity=1.0,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """What a stop of this run would cost now, from all that is known."""

    ledger: Ledger
    method: FinishMethod | None  # the way that would be tried first; None: there is none
    full_runs: RunLengths | None  # of the route; None: none was seen yet
    hand_overs: HandOvers | None

    def against(self, s: Signals) -> str | None:
        """Why the run should go on although the policy says stop; None: nothing says so.

        Notes in the ledger what the first stop that passes would take, for runs that only watch.
        """
        prices, full = self.ledger.prices, self.full_runs
        remaining = full.remaining(s.tokens_used) if full is not None else None
        if prices is None or full is None or remaining is None or self.method is None:
            return None
        known, seen = self.ledger.client_prompt_tokens(), self.hand_overs or HandOvers()
        finish = Finish(
            method=self.method,
            prompt_tokens=full.mean_prompt_tokens if known is None else known,
            thought_tokens=s.tokens_used,
            answer_tokens=remaining.answer_tokens,
            overlap_tokens=seen.overlap_tokens,
            closing_tokens=CLOSING_TOKENS,
            cached_share=seen.cached_share,
        )
        why = money.not_worth_it(prices, finish, remaining.tokens)
        if why is None and self.ledger.stop_step is None:
            self.ledger.closing_usd = money.closing_cost(prices, finish).total_usd
        return why

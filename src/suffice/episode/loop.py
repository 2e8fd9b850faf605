"""The loop that is the product: read a step, fold it into signals, ask the policy, maybe stop.

The steps come from a chain of thought, from samples or from the caller's own rounds. Retries, probes and metrics live
around it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Protocol

from suffice.types import Decision, Signals, Step


class Decider(Protocol):
    """What the loop needs of a policy."""

    def decide(self, s: Signals) -> Decision:
        """Continue or stop, from the signals alone."""
        ...


@dataclass(frozen=True, slots=True)
class StopVerdict:
    """The step at which a policy said stop, and what was known there."""

    step: Step
    signals: Signals
    decision: Decision


async def run_episode(
    steps: AsyncGenerator[Step, None],
    observe: Callable[[Step], Signals],
    policy: Decider,
    record: Callable[[Step, Signals, Decision], bool],
) -> StopVerdict | None:
    """Read steps until the policy stops the run or the run ends by itself.

    `record` writes the step down and says whether a stop may be carried out: in shadow, in an audit
    and after the answer has begun it may not, and the run goes on. Returns the verdict that was
    obeyed, or None when the run ended in full.
    """
    async with aclosing(steps):
        async for step in steps:
            signals = observe(step)
            decision = policy.decide(signals)
            may_stop = record(step, signals, decision)
            if decision.action == "stop" and may_stop:
                return StopVerdict(step, signals, decision)
    return None

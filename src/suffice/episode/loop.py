"""The core loop: read a step, fold it into signals, call the policy, maybe stop."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Protocol

from suffice.types import Decision, Signals, Step


class Decider(Protocol):
    def decide(self, s: Signals) -> Decision: ...


@dataclass(frozen=True, slots=True)
class StopVerdict:
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

    `record` stores the step and returns whether a stop may act: in shadow, in an audit and after the answer has begun
    it may not, and the run goes on. Return the verdict that was carried out, or None if the run ended in full.
    """
    async with aclosing(steps):
        async for step in steps:
            signals = observe(step)
            decision = policy.decide(signals)
            may_stop = record(step, signals, decision)
            if decision.action == "stop" and may_stop:
                return StopVerdict(step, signals, decision)
    return None

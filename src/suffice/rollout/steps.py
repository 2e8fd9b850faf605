"""The steps of a rollout as records, planned from its rules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from suffice.rollout.evidence import RailName, Rules

Stage: TypeAlias = Literal["shadow", "canary", "ramp", "full", "rolled_back"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prove:
    """The candidate provably loses no more than the margin of these guardrails; EM stays proved in later steps."""

    guardrails: tuple[RailName, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Compare:
    """Each arm has enough new units, and nothing looks worse than its margin."""

    least: int  # units of each arm


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """The step has lasted a while."""

    seconds: float
    requests: int = 0  # of the route, which warm it up


Condition: TypeAlias = Prove | Compare | Wait


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutStep:
    stage: Stage
    share: float  # of new units that the candidate serves, [0, 1]
    until: tuple[Condition, ...] = ()  # what must hold before the next step


def plan_steps(rules: Rules) -> tuple[RolloutStep, ...]:
    """Return the steps in order, by `State.step`: shadow serves nobody, full everybody."""
    em, seconds = Prove(guardrails=("em",)), rules.least_stage_s
    steps = [RolloutStep(stage="shadow", share=0.0, until=(em, Wait(seconds=seconds)))]
    for n, share in enumerate(rules.shares, 1):
        required = (Prove(guardrails=rules.required),) if n == rules.n_steps - 1 else ()
        wait = Wait(seconds=seconds, requests=rules.warmup_requests)
        until = (em, Compare(least=n * rules.least_requests), *required, wait)
        steps.append(RolloutStep(stage="canary" if n == 1 else "ramp", share=share, until=until))
    return (*steps, RolloutStep(stage="full", share=1.0))

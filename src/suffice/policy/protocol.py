"""The interface of a policy, and the four decisions that it can make."""

from __future__ import annotations

from typing import ClassVar, Protocol, runtime_checkable

from suffice.types import Decision, Signals


@runtime_checkable
class Policy(Protocol):
    """A pure function from Signals to Decision.

    Every policy is deterministic, reads only `step`, `tokens_used`, `answer` and the fields that its folds fill, and
    equals any policy with the same parameters. An unknown signal never supports "suffices" or "hopeless".

    A policy that replay runs over millions of steps also has `stops`, see `policy.columns`.
    """

    name: ClassVar[str]  # the same in configuration, logs, metrics and docs

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the signal folds that it reads, with their parameters: keys of `suffice.signals.base.FOLDS`."""
        ...

    def decide(self, s: Signals) -> Decision:
        """Continue or stop, with a reason that an operator can read."""
        ...


def go_on(reason: str, score: float | None = None) -> Decision:
    return Decision(action="continue", reason=reason, score=score)


def suffices(reason: str, score: float) -> Decision:
    return Decision(action="stop", reason=reason, stop_reason="suffices", score=score)


def hopeless(reason: str, score: float) -> Decision:
    return Decision(action="stop", reason=reason, stop_reason="hopeless", score=score)


def stop_at_budget(reason: str, score: float) -> Decision:
    return Decision(action="stop", reason=reason, stop_reason="budget", score=score)

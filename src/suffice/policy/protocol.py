"""What a policy is, and the four decisions that it can make."""

from __future__ import annotations

from typing import ClassVar, Protocol, runtime_checkable

from suffice.types import Decision, Signals


@runtime_checkable
class Policy(Protocol):
    """A pure rule from Signals to Decision.

    Holds for every policy: the same signals give the same decision, it reads only the fields that its
    folds fill (and `step`, `tokens_used`, `answer`), what is unknown never makes it claim that an answer
    suffices or that a run is hopeless, and two policies with the same parameters are equal.

    A policy that is to be replayed over millions of steps also has `stops`, see `policy.columns`.
    """

    name: ClassVar[str]  # the same in configuration, logs, metrics and docs

    @property
    def needs(self) -> tuple[str, ...]:
        """The signal folds that it reads: names in `suffice.signals.base.FOLDS`, with their parameters."""
        ...

    def decide(self, s: Signals) -> Decision:
        """Continue or stop, with a sentence that an operator can read."""
        ...


def go_on(reason: str, score: float | None = None) -> Decision:
    return Decision(action="continue", reason=reason, score=score)


def suffices(reason: str, score: float) -> Decision:
    return Decision(action="stop", reason=reason, stop_reason="suffices", score=score)


def hopeless(reason: str, score: float) -> Decision:
    return Decision(action="stop", reason=reason, stop_reason="hopeless", score=score)


def stop_at_budget(reason: str, score: float) -> Decision:
    return Decision(action="stop", reason=reason, stop_reason="budget", score=score)

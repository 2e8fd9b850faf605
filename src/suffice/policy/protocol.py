"""The interface of a policy, the four decisions that it can make, and the round whose answer a run returns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import ClassVar, Literal, Protocol, TypeAlias, get_args, runtime_checkable

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


# ---- for the library, `POST /v1/decide` and replay alike

Returns: TypeAlias = Literal["last", "most-frequent", "most-confident"]
Answers: TypeAlias = Sequence[str | None]  # one per step, normalised; None: the step gave none
Confidences: TypeAlias = Sequence[float | None]  # one per answer, as `Signals.confidence`; None: unknown


def returns_of(policy: object) -> Returns:
    """The `returns` of the outermost policy; "last" if it has none."""
    returns = getattr(policy, "returns", "last")
    return next((known for known in get_args(Returns) if known == returns), "last")


def returning(policy: Policy) -> Callable[[Answers, Confidences], int]:
    return partial(return_step, returns_of(policy))


def return_step(returns: Returns, answers: Answers, confidences: Confidences) -> int:
    """The step, counted from 1, whose answer a run returns after the steps so far; 0 before the first.

    last            the latest step with an answer
    most-frequent   the first step with the most frequent answer; ties go to the answer seen first
    most-confident  the step with the most confident answer, the later of equals; "last" if no confidence is known

    If no step gave an answer, return the last step.
    """
    steps = return_steps(returns, answers, confidences)
    return steps[-1] if steps else 0


def return_steps(returns: Returns, answers: Answers, confidences: Confidences) -> list[int]:
    """`return_step` after each of the steps, in linear time. Raise ValueError for more answers than confidences."""
    if len(confidences) < len(answers):
        raise ValueError(f"return_steps: {len(answers)} answers and {len(confidences)} confidences; one for each")
    chosen: list[int] = []
    votes, first = Counter[str](), dict[str, int]()
    best, most = 0, -1.0  # 0: no answer yet; -1: no confidence known
    for step, (answer, confidence) in enumerate(zip(answers, confidences, strict=False), 1):
        if answer is None:
            pass  # selected only while no step has given an answer
        elif returns == "most-frequent":
            votes[answer] += 1
            seen = first.setdefault(answer, step)
            leader = answers[best - 1] if best else None
            if leader is None or (votes[answer], -seen) > (votes[leader], -best):
                best = seen
        elif returns == "last":
            best = step
        elif confidence is not None and confidence >= max(most, 0.0):  # NaN never is
            best, most = step, confidence
        elif most < 0:
            best = step
        chosen.append(best or step)
    return chosen

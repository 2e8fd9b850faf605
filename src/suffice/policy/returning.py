"""Which round's answer a run returns: the last is often not the best.

The library, `POST /v1/decide` and replay ask here, so that they return the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, TypeAlias, get_args

from suffice.policy.protocol import Policy

Returns: TypeAlias = Literal["last", "most-frequent", "most-confident"]
Answers: TypeAlias = Sequence[str | None]  # of the steps so far, normalised; None: that step gave none
Confidences: TypeAlias = Sequence[float | None]  # of those answers, as `Signals.confidence`; None: unknown


def returns_of(policy: Policy) -> Returns:
    """What the policy says; "last" for one that says nothing. Only the outermost policy is asked."""
    returns = getattr(policy, "returns", "last")
    return next((known for known in get_args(Returns) if known == returns), "last")


def returning(policy: Policy) -> Callable[[Answers, Confidences], int]:
    return partial(return_step, returns_of(policy))


def return_step(returns: Returns, answers: Answers, confidences: Confidences) -> int:
    """The step, counted from 1, whose answer is to be used after the steps so far; 0 before the first.

    last            the latest step that gave an answer
    most-frequent   the first step with the answer that most steps gave; ties go to the answer seen first
    most-confident  the step whose answer was the most confident, the later of equals; where no confidence is
                    known, as "last"

    A step without an answer is chosen only if no step gave one: then the last.
    """
    steps = return_steps(returns, answers, confidences)
    return steps[-1] if steps else 0


def return_steps(returns: Returns, answers: Answers, confidences: Confidences) -> list[int]:
    """`return_step` after each of the steps. O(the steps).

    Raises ValueError when there are more answers than confidences.
    """
    if len(confidences) < len(answers):
        raise ValueError(f"return_steps: {len(answers)} answers and {len(confidences)} confidences; one for each")
    chosen: list[int] = []
    votes, first = Counter[str](), dict[str, int]()
    best, most = 0, -1.0  # 0: no step has given an answer; -1: no confidence is known
    for step, (answer, confidence) in enumerate(zip(answers, confidences, strict=False), 1):
        if answer is None:
            pass  # chosen only while no step has given an answer
        elif returns == "most-frequent":
            votes[answer] += 1
            seen = first.setdefault(answer, step)
            leader = answers[best - 1] if best else None
            if leader is None or (votes[answer], -seen) > (votes[leader], -best):
                best = seen
        elif returns == "last":
            best = step
        elif confidence is not None and confidence >= max(most, 0.0):  # what is not a number never is
            best, most = step, confidence
        elif most < 0:
            best = step
        chosen.append(best or step)
    return chosen

"""Which round's answer a run returns: the last is often not the best.

Knows the answers of a run's steps and how confident they were; refuses to know when to stop and whether an
answer is right. The library, `POST /v1/decide` and replay ask here, so that they return the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Literal, Protocol, TypeAlias

from suffice.policy.protocol import Policy

Returns: TypeAlias = Literal["last", "most-frequent", "most-confident"]
Answers: TypeAlias = Sequence[str | None]  # of the steps so far, normalised; None: that step gave none
Confidences: TypeAlias = Sequence[float | None]  # of those answers, as `Signals.confidence`; None: unknown


def returns_of(policy: Policy) -> Returns:
    """What the policy says; "last" for one that says nothing. Only the outermost policy is asked."""
    returns = getattr(policy, "returns", "last")
    return next((known for known in _CHOICES if known == returns), "last")


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
    choice = _CHOICES[returns]()
    chosen: list[int] = []
    best = 0  # 0: no step has given an answer
    for step, answer in enumerate(answers, 1):
        if answer is not None:
            best = choice.take(step, answer, confidences[step - 1])
        chosen.append(best or step)
    return chosen


class _Choice(Protocol):
    """The best step so far, told of each step that gave an answer."""

    def take(self, step: int, answer: str, confidence: float | None) -> int:
        """Take the next such step in and say which is the best now."""
        ...


class _Last:
    def take(self, step: int, answer: str, confidence: float | None) -> int:  # noqa: ARG002 - all three have one form
        return step


class _MostFrequent:
    def __init__(self) -> None:
        self._votes: dict[str, int] = {}
        self._first: dict[str, int] = {}
        self._leader: str | None = None

    def take(self, step: int, answer: str, confidence: float | None) -> int:  # noqa: ARG002 - all three have one form
        votes = self._votes[answer] = self._votes.get(answer, 0) + 1
        first = self._first.setdefault(answer, step)
        leader = self._leader
        if leader is None or (votes, -first) > (self._votes[leader], -self._first[leader]):
            self._leader = leader = answer
        return self._first[leader]


class _MostConfident:
    def __init__(self) -> None:
        self._best: tuple[float, int] | None = None

    def take(self, step: int, answer: str, confidence: float | None) -> int:  # noqa: ARG002 - all three have one form
        # Asked this way round, a confidence that is not a number is none.
        if confidence is not None and confidence >= (0.0 if self._best is None else self._best[0]):
            self._best = confidence, step
        return step if self._best is None else self._best[1]


_CHOICES: Mapping[Returns, Callable[[], _Choice]] = {
    "last": _Last,
    "most-frequent": _MostFrequent,
    "most-confident": _MostConfident,
}

"""A signal, a policy that reads it, a scorer, a segmenter and a driver from another package."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

from suffice.episode.chain_reader import Segmenter
from suffice.policy.parameters import ParameterChecks, ParameterRange
from suffice.policy.protocol import go_on, suffices
from suffice.signals.fold import parse_parameter
from suffice.types import Decision, Signals, Step
from suffice.upstream.drivers import DriverFacts


class Asking:
    """How many questions the model asks itself: an exponential moving mean of the marks in a step.

    alpha  weight of the newest step, above 0 and at most 1
    """

    fields: tuple[str, ...] = ("asking.mean",)

    def __init__(self, *, alpha: float = 0.5) -> None:
        self._alpha = parse_parameter("asking.alpha", alpha, most=1.0)
        self._mean: float | None = None

    def update(self, step: Step) -> None:
        """Take the next step in. O(its text)."""
        marks = float(step.text.count("?"))
        self._mean = marks if self._mean is None else self._mean + self._alpha * (marks - self._mean)

    def values(self) -> Mapping[str, float | None]:
        return {"asking.mean": self._mean}


@dataclass(frozen=True, slots=True)
class Settled(ParameterChecks):
    """Stop once the answer has stood and the model no longer asks itself anything."""

    name: ClassVar[str] = "settled"
    streak: Annotated[int, ParameterRange(1, 1_000)] = 2  # steps in a row with the same answer
    most_questions: Annotated[float, ParameterRange(0.0, 100.0)] = 0.2  # on the moving mean

    @property
    def needs(self) -> tuple[str, ...]:
        """`stability`, and the signal of this package."""
        return ("stability", "asking")

    def decide(self, s: Signals) -> Decision:
        """Stop at the first step that is quiet enough."""
        request = s.values.get("asking.mean")
        if s.answer_streak is None or request is None:
            return go_on("the answer streak or the questions are unknown")
        if s.answer_streak < self.streak:
            return go_on(f"same answer for {s.answer_streak} of {self.streak} steps", float(s.answer_streak))
        if request <= self.most_questions:
            return suffices(f"{s.answer_streak} equal answers, {request:.2f} questions a step", request)
        return go_on(f"{request:.2f} questions a step", request)


@dataclass(frozen=True, slots=True)
class LastWord:
    """The answer is the text's last word, without its punctuation and its case."""

    name: ClassVar[str] = "last-word"

    def extract(self, text: str) -> str | None:
        """The last word of a model's text."""
        words = text.split()
        return self.normalise(words[-1]) if words else None

    def normalise(self, answer: str) -> str | None:
        """Letters and digits alone, in lower case."""
        kept = "".join(filter(str.isascii, filter(str.isalnum, answer.strip()))).lower()
        return kept or None

    def match(self, answer: str | None, gold: str) -> bool:
        """Is it the same word?"""
        normal = None if answer is None else self.normalise(answer)
        return normal is not None and normal == self.normalise(gold)


class Sentences(Segmenter):
    """Steps end behind a sentence."""

    def end_in(self, text: str, before: int) -> int | None:
        """Behind the last full stop, question or exclamation mark that came since the last look."""
        end = max(text.rfind(mark, before) for mark in ".?!")
        return None if end < 0 else end + 1


BOX = DriverFacts(methods=("re-ask",), effort=lambda level: {"box_effort": level}, lowest="low")

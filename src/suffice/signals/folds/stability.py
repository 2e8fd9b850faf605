"""Fold `stability`: does the trial answer still move?

Knows equality of normalised answers and refuses to know whether an answer is right. A step
without an answer breaks the streak, but neither counts as a change nor hides one: A, none, B is
one change, A, none, A is none.
"""

from __future__ import annotations

from typing import ClassVar

from suffice.signals.fold import Fields, SignalField
from suffice.types import Step


class Stability:
    """Count how long the trial answer has stood, how often it changed, and between how many."""

    name = "stability"
    looks_at = "the trial answers; a step without one breaks the streak and is no change"
    source = "answer convergence, [arXiv:2506.02536](https://arxiv.org/abs/2506.02536)"
    fields: ClassVar[Fields] = {
        "answer_streak": SignalField("steps in a row with the same trial answer", whole=True),
        "n_flips": SignalField("how often the trial answer changed", whole=True),
        "n_distinct": SignalField("different trial answers so far", whole=True),
    }

    def __init__(self) -> None:
        self._streak = 0
        self._n_flips = 0
        self._last: str | None = None
        self._seen: set[str] = set()

    def update(self, step: Step) -> None:
        answer = step.answer
        if answer is None:
            self._streak = 0
            return
        self._n_flips += self._last is not None and answer != self._last
        self._streak = self._streak + 1 if answer == self._last else 1
        self._last = answer
        self._seen.add(answer)

    def values(self) -> dict[str, int]:
        return {
            "answer_streak": self._streak,
            "n_flips": self._n_flips,
            "n_distinct": len(self._seen),
        }

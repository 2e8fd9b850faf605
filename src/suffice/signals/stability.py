"""Fold `stability`: does the trial answer still move?

Knows equality of normalised answers and refuses to know whether an answer is right. A step
without an answer breaks the streak, but neither counts as a change nor hides one: A, none, B is
one change, A, none, A is none.
"""

from __future__ import annotations

from suffice.types import Step


class Stability:
    """Count how long the trial answer has stood, how often it changed, and between how many."""

    fields: tuple[str, ...] = ("answer_streak", "n_flips", "n_distinct")

    def __init__(self) -> None:
        self._streak = 0
        self._n_flips = 0
        self._last: str | None = None
        self._seen: set[str] = set()

    def update(self, step: Step) -> None:
        """Take the next step in. O(1) beside hashing the answer."""
        answer = step.answer
        if answer is None:
            self._streak = 0
            return
        self._n_flips += self._last is not None and answer != self._last
        self._streak = self._streak + 1 if answer == self._last else 1
        self._last = answer
        self._seen.add(answer)

    def values(self) -> dict[str, int]:
        """The fields of Signals that this fold fills."""
        return {
            "answer_streak": self._streak,
            "n_flips": self._n_flips,
            "n_distinct": len(self._seen),
        }

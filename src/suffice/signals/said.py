"""Folds `said` and `wording`: what a model says of itself, and how sure it was of its own words.

They know what the caller or the model reported with a step and refuse to judge it: models state
high confidence whatever they know (arXiv:2606.13814 found one value in 96.5 % of answers).
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

from suffice.signals.known import ROUNDING, probability
from suffice.types import Step


class SelfReport:
    """The last step's stated confidence, the model's own flag that it is done, and the kind of step."""

    fields: tuple[str, ...] = ("stated_confidence", "said_done", "action_code")

    def __init__(self) -> None:
        self._step: Step | None = None

    def update(self, step: Step) -> None:
        """Take the next step in. O(1)."""
        self._step = step

    def values(self) -> dict[str, float | None]:
        """The fields of Signals that this fold fills."""
        step = self._step
        if step is None:
            return dict.fromkeys(self.fields)
        return {
            "stated_confidence": probability(step.stated_confidence),
            "said_done": None if step.said_done is None else float(step.said_done),
            "action_code": None if step.action is None else action_code(step.action),
        }


class WordingConfidence:
    """The mean log-probability of the last step's own tokens, as its source gave it."""

    fields: tuple[str, ...] = ("step_logprob",)

    def __init__(self) -> None:
        self._logprob: float | None = None

    def update(self, step: Step) -> None:
        """Take the next step in. O(1)."""
        logprob = step.logprob
        # A mean of minus infinity is one impossible token, and says nothing about the others.
        known = logprob is not None and float("-inf") < logprob <= ROUNDING
        self._logprob = min(0.0, logprob) if known and logprob is not None else None

    def values(self) -> dict[str, float | None]:
        """The field of Signals that this fold fills, at most 0."""
        return {"step_logprob": self._logprob}


@lru_cache(maxsize=1024)
def action_code(action: str) -> float:
    """A number in [0, 1) that stands for a word: equal words, equal numbers, in every process."""
    digest = hashlib.blake2b(action.encode("utf-8", "surrogatepass"), digest_size=6).digest()
    return int.from_bytes(digest, "big") / 2**48

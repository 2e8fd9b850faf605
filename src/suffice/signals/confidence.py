"""Fold `confidence`: what the model's own probabilities say about its trial answer.

Knows log-probabilities and refuses to know calibration: a confident model may be confidently wrong,
and what a threshold on this costs is measured elsewhere. Numbers that cannot be
probabilities are unknown, not extreme.
"""

from __future__ import annotations

import math

from suffice.types import Step

_ROUNDING = 1e-3  # engines report probabilities of 1 as logarithms a little above 0


class Confidence:
    """Confidence in the last step's trial answer; a step without an answer has none."""

    fields: tuple[str, ...] = ("confidence", "confidence_min", "entropy")

    def __init__(self) -> None:
        self._confidence: float | None = None
        self._confidence_min: float | None = None
        self._entropy: float | None = None

    def update(self, step: Step) -> None:
        """Take the next step in. O(tokens of its trial answer)."""
        usable = step.answer is not None
        logprobs = step.logprobs if usable else ()
        entropy = step.entropy if usable else None
        self._confidence = geometric_mean_probability(logprobs)
        self._confidence_min = None if self._confidence is None else math.exp(min(0.0, *logprobs))
        self._entropy = entropy if entropy is not None and 0.0 <= entropy < math.inf else None

    def values(self) -> dict[str, float | None]:
        """The fields of Signals that this fold fills."""
        return {
            "confidence": self._confidence,
            "confidence_min": self._confidence_min,
            "entropy": self._entropy,
        }


def geometric_mean_probability(logprobs: tuple[float, ...]) -> float | None:
    """exp(mean log-probability): the per-token probability of the trial answer, in [0, 1].

    The trial-answer confidence of DEER in its geometric form (Yang et al. 2025, "Dynamic Early Exit
    in Reasoning Models", arXiv:2504.15895), which does not reward long answers.

    logprobs  natural logarithms, minus infinity allowed; () gives None, and so does any value that is
              not a number or clearly above 0
    """
    if not logprobs or not all(logprob <= _ROUNDING for logprob in logprobs):
        return None
    return math.exp(sum(min(0.0, logprob) for logprob in logprobs) / len(logprobs))

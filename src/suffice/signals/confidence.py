"""Fold `confidence`: what the model's own probabilities say about its trial answer.

Knows log-probabilities and refuses to know calibration: a confident model may be confidently wrong,
and what a threshold on this costs is measured elsewhere. Numbers that cannot be
probabilities are unknown, not extreme.
"""

from __future__ import annotations

import math

from suffice.signals.known import ROUNDING, nats, probability
from suffice.types import Step


class Confidence:
    """Confidence in the last step's trial answer; a step without an answer has none."""

    fields: tuple[str, ...] = (
        "confidence",
        "confidence_min",
        "confidence_mean",
        "confidence_margin",
        "mass",
        "entropy",
    )

    def __init__(self) -> None:
        self._step: Step | None = None

    def update(self, step: Step) -> None:
        """Take the next step in. O(1); `values` looks at the tokens of its trial answer."""
        self._step = step

    def values(self) -> dict[str, float | None]:
        """The fields of Signals that this fold fills."""
        step = self._step
        if step is None or step.answer is None:
            return dict.fromkeys(self.fields)
        logprobs = step.logprobs
        geometric = geometric_mean_probability(logprobs)
        given = probability(step.confidence)
        return {
            "confidence": geometric if given is None else given,
            "confidence_min": None if geometric is None else math.exp(min(0.0, *logprobs)),
            "confidence_mean": None if geometric is None else _arithmetic_mean(logprobs),
            "confidence_margin": probability(step.margin),
            "mass": probability(step.mass),
            "entropy": nats(step.entropy),
        }


def confidence_of(step: Step) -> float | None:
    """Confidence in a step's trial answer, [0, 1]: as its source gave it, otherwise the geometric mean."""
    if step.answer is None:
        return None
    given = probability(step.confidence)
    return geometric_mean_probability(step.logprobs) if given is None else given


def geometric_mean_probability(logprobs: tuple[float, ...]) -> float | None:
    """exp(mean log-probability): the per-token probability of the trial answer, in [0, 1].

    The trial-answer confidence of DEER in its geometric form (Yang et al. 2025, "Dynamic Early Exit
    in Reasoning Models", arXiv:2504.15895), which does not reward long answers.

    logprobs  natural logarithms, minus infinity allowed; () gives None, and so does any value that is
              not a number or clearly above 0
    """
    if not logprobs or not all(logprob <= ROUNDING for logprob in logprobs):
        return None
    return math.exp(sum(min(0.0, logprob) for logprob in logprobs) / len(logprobs))


def _arithmetic_mean(logprobs: tuple[float, ...]) -> float:
    """Mean probability of the tokens: DEER in its first form. Pass at least one, each at most ROUNDING."""
    return sum(math.exp(min(0.0, logprob)) for logprob in logprobs) / len(logprobs)

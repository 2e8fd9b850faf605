"""Folds on the model's own probabilities: `confidence`, `trend`, `degeneration` and `closing`.

A confident model may be confidently wrong; what a threshold costs is measured elsewhere. Numbers that cannot be
probabilities are unknown, not extreme.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

from suffice.signals.fold import ROUNDING, Fields, SignalField, nats, parse_parameter, probability
from suffice.types import Step


class Confidence:
    """Confidence in the last step's trial answer; a step without an answer has none."""

    name = "confidence"
    looks_at = "the log-probabilities of the trial answer's tokens, and what its source says of its probability"
    source = (
        "DEER, Yang et al. 2025, [arXiv:2504.15895](https://arxiv.org/abs/2504.15895); margin: TASR, "
        "[arXiv:2606.13814](https://arxiv.org/abs/2606.13814)"
    )
    fields: ClassVar[Fields] = {
        "confidence": SignalField(
            "probability of the trial answer as its source gave it; else the geometric mean probability of its tokens",
            unknown="no answer, no log-probabilities",
            high=1.0,
        ),
        "confidence_min": SignalField(
            "smallest probability among its tokens",
            unknown="no answer, no log-probabilities",
            high=1.0,
        ),
        "confidence_mean": SignalField(
            "arithmetic mean probability of its tokens",
            unknown="no answer, no log-probabilities",
            high=1.0,
        ),
        "confidence_margin": SignalField(
            "its probability minus that of the runner-up",
            unknown="not given",
            high=1.0,
        ),
        "mass": SignalField("probability on all valid answers together", unknown="not given", high=1.0),
        "entropy": SignalField("entropy of its first token, in nats", unknown="no answer, not given", high=100.0),
    }

    def __init__(self) -> None:
        self._step: Step | None = None

    def update(self, step: Step) -> None:
        self._step = step

    def values(self) -> dict[str, float | None]:
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


class ConfidenceTrend:
    """Exponential moving mean of the confidence, begun with the first, and its last change.

    alpha  weight of the newest confidence, above 0 and at most 1
    """

    name = "trend"
    looks_at = "`confidence` from step to step"
    source = "ours"
    parameters: ClassVar[Mapping[str, str]] = {"alpha": "weight of the newest confidence"}
    fields: ClassVar[Fields] = {
        "confidence_ema": SignalField(
            "exponential moving mean of `confidence`, begun with the first",
            unknown="confidence unknown at this step",
            high=1.0,
        ),
        "confidence_slope": SignalField(
            "change of `confidence` against the last known one",
            unknown="the same, and at the first",
            low=-1.0,
            high=1.0,
        ),
    }

    def __init__(self, *, alpha: float = 0.3) -> None:
        self._alpha = parse_parameter("trend.alpha", alpha, most=1.0)
        self._last: float | None = None  # the latest known confidence
        self._mean: float | None = None
        self._slope: float | None = None
        self._known = False

    def update(self, step: Step) -> None:
        confidence = confidence_of(step)
        self._known = confidence is not None
        if confidence is None:
            return
        self._slope = None if self._last is None else confidence - self._last
        self._mean = confidence if self._mean is None else self._mean + self._alpha * (confidence - self._mean)
        self._last = confidence

    def values(self) -> dict[str, float | None]:
        if not self._known:
            return {"confidence_ema": None, "confidence_slope": None}
        return {"confidence_ema": self._mean, "confidence_slope": self._slope}


class Degeneration:
    """How long a run has been low and not improving in its confidence, early steps counting most.

    CoDE-Stop (Hosseini et al. 2026, arXiv:2604.04930), with c_i the i-th known confidence of the run, c_0 = c_1,
    and T_i the tokens generated up to it:

        D_k = sum over i = 1 … k of w_i v_i,  v_i = 1 if 2 c_i - c_(i-1) < delta else 0,  w_i = 1 + ln(T_k / T_i)

    v_i says that confidence is low even if its last change is taken as a trend. D_k never falls. Before the
    first token is generated, T counts as 1.

    delta  below it a confidence is low, from 0 to 2; 0.55 in all their experiments
    """

    name = "degeneration"
    looks_at = "`confidence` from step to step, and the tokens between"
    source = "CoDE-Stop, Hosseini et al. 2026, [arXiv:2604.04930](https://arxiv.org/abs/2604.04930)"
    parameters: ClassVar[Mapping[str, str]] = {"delta": "below it a confidence is low"}
    fields: ClassVar[Fields] = {
        "degeneration": SignalField(
            "sum over the steps k with 2 c(k) − c(k−1) < delta of 1 + ln(T / T(k)); T: tokens so far, T(k): "
            "up to step k",
            unknown="confidence unknown at this step",
        ),
    }

    def __init__(self, *, delta: float = 0.55) -> None:
        self._delta = parse_parameter("degeneration.delta", delta, most=2.0, low_included=True)
        self._tokens = 0
        self._last: float | None = None
        self._n_low = 0
        self._sum_ln_tokens = 0.0  # over the steps that were low
        self._known = False

    def update(self, step: Step) -> None:
        self._tokens += step.tokens
        confidence = confidence_of(step)
        self._known = confidence is not None
        if confidence is None:
            return
        before = confidence if self._last is None else self._last
        self._last = confidence
        if 2.0 * confidence - before < self._delta:
            self._n_low += 1
            self._sum_ln_tokens += math.log(max(1, self._tokens))

    def values(self) -> dict[str, float | None]:
        if not self._known:
            return {"degeneration": None}
        return {"degeneration": max(0.0, self._n_low * (1.0 + math.log(max(1, self._tokens))) - self._sum_ln_tokens)}


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


class ClosingEntropy:
    """Exponential moving mean and variance of the entropy behind the closed thought.

    EAT (Wang et al. 2025, "Entropy After </Think>", arXiv:2509.26522) and its authors' code
    (github.com/xidulu/EAT): mean m = (1 - alpha) m + alpha x, begun with the first entropy, then
    variance v = (1 - alpha) v + alpha (x - m)^2 with the new m, begun with 0. Two deviations: the
    variance of one entropy is unknown, where they say 0; and where a step has no entropy behind the closed
    thought, that of its trial answer's first token stands for it. A step with neither leaves
    mean and variance unknown, and the next one goes on from before.

    alpha  weight of the newest entropy, above 0 and at most 1
    """

    name = "closing"
    looks_at = (
        "the entropy of the first token behind a closed thought; where it is unknown, that of the trial "
        "answer's first token"
    )
    source = "EAT, Wang et al. 2025, [arXiv:2509.26522](https://arxiv.org/abs/2509.26522)"
    parameters: ClassVar[Mapping[str, str]] = {"alpha": "weight of the newest entropy"}
    fields: ClassVar[Fields] = {
        "closed_entropy": SignalField(
            "entropy of the first token behind the closed thought, in nats",
            unknown="not given",
            high=100.0,
        ),
        "entropy_ema": SignalField(
            "m: (1 − alpha) m + alpha x, begun with the first entropy x",
            unknown="no entropy at this step",
            high=100.0,
        ),
        "entropy_emv": SignalField(
            "v: (1 − alpha) v + alpha (x − m)², with the new m, begun with 0",
            unknown="the same, and at the first",
        ),
    }

    def __init__(self, *, alpha: float = 0.2) -> None:
        self._alpha = parse_parameter("closing.alpha", alpha, most=1.0)
        self._closed: float | None = None
        self._known = False  # had the last step an entropy?
        self._n_known = 0
        self._mean = 0.0
        self._variance = 0.0

    def update(self, step: Step) -> None:
        self._closed = nats(step.closed_entropy)
        entropy = self._closed
        if entropy is None and step.answer is not None:
            entropy = nats(step.entropy)
        self._known = entropy is not None
        if entropy is None:
            return
        self._n_known += 1
        if self._n_known == 1:
            self._mean = entropy
            return
        self._mean += self._alpha * (entropy - self._mean)
        self._variance += self._alpha * ((entropy - self._mean) ** 2 - self._variance)

    def values(self) -> dict[str, float | None]:
        return {
            "closed_entropy": self._closed,
            "entropy_ema": self._mean if self._known else None,
            "entropy_emv": self._variance if self._known and self._n_known > 1 else None,
        }

"""Folds `trend` and `degeneration`: where the confidence in the trial answer is going.

They know the confidence of each step (that of fold `confidence`) and refuse to know thresholds. A
step without a known confidence leaves them unknown and does not move them.
"""

from __future__ import annotations

import math

from suffice.signals.confidence import confidence_of
from suffice.signals.known import parse_parameter
from suffice.types import Step


class ConfidenceTrend:
    """Exponential moving mean of the confidence, begun with the first, and its last change.

    alpha  weight of the newest confidence, above 0 and at most 1
    """

    fields: tuple[str, ...] = ("confidence_ema", "confidence_slope")

    def __init__(self, *, alpha: float = 0.3) -> None:
        self._alpha = parse_parameter("trend.alpha", alpha, most=1.0)
        self._last: float | None = None  # the latest known confidence
        self._mean: float | None = None
        self._slope: float | None = None
        self._known = False

    def update(self, step: Step) -> None:
        """Take the next step in. O(tokens of its trial answer)."""
        confidence = confidence_of(step)
        self._known = confidence is not None
        if confidence is None:
            return
        self._slope = None if self._last is None else confidence - self._last
        self._mean = confidence if self._mean is None else self._mean + self._alpha * (confidence - self._mean)
        self._last = confidence

    def values(self) -> dict[str, float | None]:
        """The fields of Signals that this fold fills: in [0, 1] and in [-1, 1]."""
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

    fields: tuple[str, ...] = ("degeneration",)

    def __init__(self, *, delta: float = 0.55) -> None:
        self._delta = parse_parameter("degeneration.delta", delta, most=2.0, low_included=True)
        self._tokens = 0
        self._last: float | None = None
        self._n_low = 0
        self._sum_ln_tokens = 0.0  # over the steps that were low
        self._known = False

    def update(self, step: Step) -> None:
        """Take the next step in. O(tokens of its trial answer)."""
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
        """The field of Signals that this fold fills, at least 0."""
        if not self._known:
            return {"degeneration": None}
        return {"degeneration": max(0.0, self._n_low * (1.0 + math.log(max(1, self._tokens))) - self._sum_ln_tokens)}

"""Folds `trend` and `degeneration`: where the confidence in the trial answer is going.

They know the confidence of each step (that of fold `confidence`) and refuse to know thresholds. A
step without a known confidence leaves them unknown and does not move them.
"""

from __future__ import annotations

import math

from suffice.signals.confidence import confidence_of
from suffice.signals.known import number
from suffice.types import Step


class Trend:
    """Exponential moving mean of the confidence, begun with the first, and its last change.

    alpha  weight of the newest confidence, above 0 and at most 1
    """

    fields: tuple[str, ...] = ("confidence_ema", "confidence_slope")

    def __init__(self, *, alpha: float = 0.3) -> None:
        self._alpha = number("trend.alpha", alpha, most=1.0)
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
    """How much low and erratic confidence a run has piled up, early steps counting most.

    After the idea of CoDE-Stop (Hosseini et al. 2026, arXiv:2604.04930): runs that end wrong show
    low and jumping confidence early, and a confidence that rises late is not to be trusted. What is
    computed here, with c_i the i-th known confidence of the run and c_0 = c_1:

        degeneration_n = sum over i = 1 … n of (level (1 - c_i) + jump |c_i - c_(i-1)|) / log2(i + 1)

    It never falls; its first term has weight 1, its third 1/2. The published text gives the two
    ingredients and a logarithmic weight; the exact form, and the equal parts of level and jump, are ours.

    level, jump  weights of low and of erratic confidence, from 0 to 100
    """

    fields: tuple[str, ...] = ("degeneration",)

    def __init__(self, *, level: float = 1.0, jump: float = 1.0) -> None:
        self._level = number("degeneration.level", level, most=100.0, low_included=True)
        self._jump = number("degeneration.jump", jump, most=100.0, low_included=True)
        self._n_known = 0
        self._last = 0.0
        self._sum = 0.0
        self._known = False

    def update(self, step: Step) -> None:
        """Take the next step in. O(tokens of its trial answer)."""
        confidence = confidence_of(step)
        self._known = confidence is not None
        if confidence is None:
            return
        self._n_known += 1
        change = abs(confidence - self._last) if self._n_known > 1 else 0.0
        self._last = confidence
        self._sum += (self._level * (1.0 - confidence) + self._jump * change) / math.log2(self._n_known + 1)

    def values(self) -> dict[str, float | None]:
        """The field of Signals that this fold fills, at least 0."""
        return {"degeneration": self._sum if self._known else None}

"""One probability from several models: the mean of their logits, optionally calibrated."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from operator import mul
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from suffice.errors import ConfigError
from suffice.model.reading import at, exact_float, numbers
from suffice.model.trees import Trees

MOST_PARTS: Final = 16
MOST_LOGIT: Final = math.log(0.9999 / 0.0001)


@dataclass(frozen=True, slots=True)
class Linear:
    """weights · row + intercept; the weights include any scaling of the trainer."""

    weights: tuple[float, ...]
    intercept: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "weights", numbers("weights", self.weights))
        object.__setattr__(self, "intercept", exact_float("intercept", self.intercept))

    def check(self, n_features: int) -> None:
        if len(self.weights) != n_features:
            raise ConfigError(f"weights: got {len(self.weights):,}; one for each of {n_features:,} features")

    def plain(self) -> dict[str, Any]:
        return {"kind": "linear", "weights": list(self.weights), "intercept": self.intercept}

    def raw(self, row: Sequence[float]) -> float:
        return sum(map(mul, self.weights, row), self.intercept)

    def raws(self, matrix: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(matrix @ np.array(self.weights) + self.intercept)


ModelPart: TypeAlias = Linear | Trees  # each gives a logit for a row, and for the rows of a matrix


@dataclass(frozen=True, slots=True)
class Isotonic:
    """A rising curve: linear between its points, constant beyond the ends."""

    scores: tuple[float, ...]  # strictly rising
    probabilities: tuple[float, ...]  # one for each, in [0, 1], never falling

    def __post_init__(self) -> None:
        scores = numbers("scores", self.scores)
        probabilities = numbers("probabilities", self.probabilities, least=0.0, most=1.0)
        if not scores or len(scores) != len(probabilities):
            raise ConfigError(
                f"probabilities: got {len(probabilities)} for {len(scores)} scores; one for each, and at least one"
            )
        for i in range(1, len(scores)):
            if not (scores[i - 1] < scores[i] and probabilities[i - 1] <= probabilities[i]):
                raise ConfigError(f"scores[{i}]: scores must rise from point to point, and probabilities not fall")
        object.__setattr__(self, "scores", scores)
        object.__setattr__(self, "probabilities", probabilities)

    def plain(self) -> dict[str, Any]:
        return {"scores": list(self.scores), "probabilities": list(self.probabilities)}

    def one(self, score: float) -> float:
        above = bisect_right(self.scores, score)
        if above == 0:
            return self.probabilities[0]
        if above == len(self.scores):
            return self.probabilities[-1]
        x0, x1 = self.scores[above - 1], self.scores[above]
        y0, y1 = self.probabilities[above - 1], self.probabilities[above]
        return y0 + (y1 - y0) * (score - x0) / (x1 - x0)

    def many(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(np.interp(scores, self.scores, self.probabilities))


@dataclass(frozen=True, slots=True)
class Ensemble:
    """The sigmoid of the mean of the parts' clipped logits, then calibration. A nan is the lowest logit."""

    parts: tuple[ModelPart, ...]
    calibration: Isotonic | None = None

    def __post_init__(self) -> None:
        if not 0 < len(self.parts) <= MOST_PARTS:
            raise ConfigError(f"parts: got {len(self.parts)}; 1 to {MOST_PARTS}")

    def check(self, n_features: int) -> None:
        for i, part in enumerate(self.parts):
            with at(f"parts[{i}]"):
                part.check(n_features)

    def plain(self) -> dict[str, Any]:
        calibration = None if self.calibration is None else self.calibration.plain()
        return {"parts": [part.plain() for part in self.parts], "calibration": calibration}

    def raw(self, row: Sequence[float]) -> float:
        total = 0.0
        for part in self.parts:
            logit = part.raw(row)
            total += MOST_LOGIT if logit > MOST_LOGIT else max(-MOST_LOGIT, logit)
        return total / len(self.parts)

    def raws(self, matrix: NDArray[np.float64]) -> NDArray[np.float64]:
        logits = [np.fmin(np.fmax(part.raws(matrix), -MOST_LOGIT), MOST_LOGIT) for part in self.parts]
        return np.asarray(np.mean(logits, axis=0))

    def score(self, row: Sequence[float]) -> float:
        p = 1.0 / (1.0 + math.exp(-self.raw(row)))  # logits are clipped, so this cannot overflow
        return p if self.calibration is None else self.calibration.one(p)

    def scores(self, matrix: NDArray[np.float64]) -> NDArray[np.float64]:
        p = 1.0 / (1.0 + np.exp(-self.raws(matrix)))
        return p if self.calibration is None else self.calibration.many(p)

"""A rising curve from scores to probabilities, straight between its points.

Knows its points and refuses to know how they were found.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from suffice.errors import ConfigError
from suffice.model.reading import numbers


@dataclass(frozen=True, slots=True)
class Isotonic:
    """From a score to a probability.

    scores         strictly rising
    probabilities  one for each, in [0, 1], never falling; beyond the ends the first and the last hold
    """

    scores: tuple[float, ...]
    probabilities: tuple[float, ...]

    def __post_init__(self) -> None:
        scores = numbers("scores", self.scores)
        probabilities = numbers("probabilities", self.probabilities, least=0.0, most=1.0)
        if not scores or len(scores) != len(probabilities):
            raise ConfigError(
                f"probabilities: got {len(probabilities)} for {len(scores)} scores; one for each, and at least one"
            )
        for at in range(1, len(scores)):
            if not (scores[at - 1] < scores[at] and probabilities[at - 1] <= probabilities[at]):
                raise ConfigError(f"scores[{at}]: scores must rise from point to point, and probabilities not fall")
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

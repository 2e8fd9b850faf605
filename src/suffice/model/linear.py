"""A weighted sum of features.

Knows weights and refuses to know what the features mean and how the weights were found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import mul
from typing import Any

import numpy as np
from numpy.typing import NDArray

from suffice.errors import ConfigError
from suffice.model.reading import exact_float, numbers


@dataclass(frozen=True, slots=True)
class Linear:
    """weights · row + intercept, on raw features: whatever scaling a trainer used is in the weights."""

    weights: tuple[float, ...]
    intercept: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "weights", numbers("weights", self.weights))
        object.__setattr__(self, "intercept", exact_float("intercept", self.intercept))

    def check(self, n_features: int) -> None:
        """Raise ConfigError unless there is a weight for each feature."""
        if len(self.weights) != n_features:
            raise ConfigError(f"weights: got {len(self.weights):,}; one for each of {n_features:,} features")

    def plain(self) -> dict[str, Any]:
        return {"kind": "linear", "weights": list(self.weights), "intercept": self.intercept}

    def raw(self, row: Sequence[float]) -> float:
        return sum(map(mul, self.weights, row), self.intercept)

    def raws(self, matrix: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(matrix @ np.array(self.weights) + self.intercept)

"""Several models of one probability as one.

Knows that their logits are averaged and perhaps calibrated; refuses to know what the probability is of.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from suffice.errors import ConfigError
from suffice.model.calibration import Isotonic

MOST_PARTS: Final = 16
MOST_LOGIT: Final = math.log(0.9999 / 0.0001)


class ModelPart(Protocol):
    """A model of one number from a row of features: a logit, or a value."""

    def check(self, n_features: int) -> None:
        """Raise ConfigError unless rows of that many features can be read."""
        ...

    def plain(self) -> dict[str, Any]:
        """The part as JSON has it; `kind` says which it is."""
        ...

    def raw(self, row: Sequence[float]) -> float:
        """The number for one row."""
        ...

    def raws(self, matrix: NDArray[np.float64]) -> NDArray[np.float64]:
        """The number for each row of a matrix, shape (n rows, n features)."""
        ...


@dataclass(frozen=True, slots=True)
class Ensemble:
    """The sigmoid of the mean of the parts' logits, then the calibration if there is one.

    No part is surer than 1 in 10,000: beyond, its logit is cut, so that none outvotes the others alone. A logit that is
    no number, of weights that overflow, counts as the lowest: nothing is stopped for it.
    """

    parts: tuple[ModelPart, ...]
    calibration: Isotonic | None = None

    def __post_init__(self) -> None:
        if not 0 < len(self.parts) <= MOST_PARTS:
            raise ConfigError(f"parts: got {len(self.parts)}; 1 to {MOST_PARTS}")

    def check(self, n_features: int) -> None:
        """Raise ConfigError unless every part can read rows of that many features."""
        for at, part in enumerate(self.parts):
            try:
                part.check(n_features)
            except ConfigError as error:
                raise ConfigError(f"parts[{at}].{error}") from None

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
        p = 1.0 / (1.0 + math.exp(-self.raw(row)))  # logits are cut, so this cannot overflow
        return p if self.calibration is None else self.calibration.one(p)

    def scores(self, matrix: NDArray[np.float64]) -> NDArray[np.float64]:
        p = 1.0 / (1.0 + np.exp(-self.raws(matrix)))
        return p if self.calibration is None else self.calibration.many(p)

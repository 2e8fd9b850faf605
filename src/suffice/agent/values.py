"""What every action costs and loses in each query class: discounted means with their standard errors.

A cost is a fraction of the class's mean full run, so that 1 is the full run and a class whose questions become longer
does not change its actions' costs. Old observations fade with a half-life in requests of the class, so estimates follow
drift and never become certain.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]

PRIOR_RUNS: Final = 2.0  # pseudo-observations of an untried action: it costs as much as the full run
PRIOR_SPREAD: Final = 0.5
PRIOR_AUDITS: Final = 50.0  # pseudo-audits behind the prior loss
_COLUMNS: Final = ("n", "cost", "square", "seconds", "n_audits", "lost")


class ActionValues:
    """Sums of shape (classes, actions); action 0 is the full run, which costs 1 and loses nothing by definition."""

    def __init__(self, n_classes: int, n_actions: int, *, half_life: float, prior_loss: float) -> None:
        self._half_life, self._prior_loss = half_life, prior_loss
        self._sums = np.zeros((len(_COLUMNS), n_classes, n_actions))
        self._full = np.zeros((2, n_classes))  # runs and tokens of full runs

    def age(self, query_class: int) -> None:
        """Let a request of the class pass: what is known of the class loses its part of a half-life."""
        factor = 0.5 ** (1 / self._half_life)
        self._sums[:, query_class] *= factor
        self._full[:, query_class] *= factor

    def add_full(self, query_class: int, tokens: float) -> None:
        self._full[:, query_class] += (1, tokens)

    def add_run(self, query_class: int, action: int, tokens: float, seconds: float = 0.0) -> float | None:
        """Add one run of an action; return its cost, or None while no full run of the class is known."""
        if not self._full[0, query_class]:
            return None
        cost = tokens / self.full_tokens[query_class]
        self._sums[:4, query_class, action] += (1, cost, cost**2, seconds)
        return float(cost)

    def add_loss(self, query_class: int, action: int, z: float) -> None:
        """Add an audit's outcome for an action: +1 it lost the right answer, -1 it gained one, 0 neither."""
        self._sums[4:, query_class, action] += (1, z)

    def forget(self, query_class: int, actions: Ints) -> None:
        """Drop the costs of actions, because they have changed."""
        self._sums[:4, query_class, actions] = 0

    @property
    def n(self) -> Floats:
        return self._sums[0]

    @property
    def full_tokens(self) -> Floats:
        """Mean tokens of a full run, shape (classes,); nan where none is known."""
        with np.errstate(invalid="ignore"):
            return np.asarray(self._full[1] / self._full[0])

    @property
    def cost(self) -> Floats:
        n, total = self._sums[:2]
        cost = (total + PRIOR_RUNS) / (n + PRIOR_RUNS)
        cost[:, 0] = 1.0
        return np.asarray(cost)

    @property
    def spread(self) -> Floats:
        """Standard deviation of one run's cost."""
        n, _, square = self._sums[:3]
        prior = PRIOR_RUNS * (1 + PRIOR_SPREAD**2)
        variance = (square + prior) / (n + PRIOR_RUNS) - ((self._sums[1] + PRIOR_RUNS) / (n + PRIOR_RUNS)) ** 2
        return np.asarray(np.sqrt(np.maximum(variance, 1e-6)))

    @property
    def seconds(self) -> Floats:
        n, seconds = self._sums[0], self._sums[3]
        return np.asarray(seconds / np.maximum(n, 1.0))

    @property
    def loss(self) -> Floats:
        n, lost = self._sums[4:]
        loss = (lost + PRIOR_AUDITS * self._prior_loss) / (n + PRIOR_AUDITS)
        loss[:, 0] = 0.0
        return np.asarray(loss)

    def error(self, token_price: float) -> Floats:
        """Standard error of an action's value, in EM: that of its cost and that of its loss."""
        cost = token_price * self.spread / np.sqrt(self._sums[0] + PRIOR_RUNS)
        rate = np.clip(np.abs(self.loss), 0.5 / PRIOR_AUDITS, 0.5)
        loss = np.sqrt(rate * (1 - rate) / (self._sums[4] + PRIOR_AUDITS))
        error = np.sqrt(cost**2 + loss**2)
        error[:, 0] = 0.0
        return np.asarray(error)

    def plain(self) -> dict[str, Any]:
        return {"sums": self._sums.tolist(), "full": self._full.tolist()}

    def restore(self, plain: dict[str, Any]) -> None:
        self._sums, self._full = np.array(plain["sums"]), np.array(plain["full"])

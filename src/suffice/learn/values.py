"""What each arm is worth in each class: its loss from audits, its tokens and seconds from all that ran.

    value = -(EM drop) - price x (tokens / tokens of a mean full run) - latency price x seconds

Costs are discounted means, so that what changed is forgotten. Losses are means held back towards the arm's mean over
all classes, and that towards a guess, so that ten audits without a loss do not make an arm look free.
Knows numbers by class and arm; refuses to know whether an arm may be used.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from suffice.learn.arms import TunedArm

Floats = NDArray[np.float64]

PRIOR_LOSS: Final = 0.1  # EM lost by an arm that saves everything, in proportion: the guess before audits
PRIOR_AUDITS: Final = 10.0  # that the guess is worth against the arm's own
CLASS_AUDITS: Final = 30.0  # that the arm's mean is worth against the class's own


class Costs:
    """Discounted means of tokens and seconds, by class and arm.

    arms       the full run first; their expected shares stand in until something was seen
    n_classes  C
    half_life  observations of a class after which one counts half, above 0
    """

    def __init__(self, arms: Sequence[TunedArm], n_classes: int, *, half_life: float) -> None:
        self._keep = 0.5 ** (1 / half_life)
        self._expected = np.array([arm.expected_share / arms[0].expected_share for arm in arms])
        self._weight = np.zeros((n_classes, len(arms)))
        self._sums = np.zeros((2, n_classes, len(arms)))
        self._seen = np.zeros(n_classes)

    def add(self, query_class: int, arm: int, *, tokens: float, seconds: float, n_runs: int) -> None:
        """Take in what runs cost together."""
        keep = self._keep**n_runs
        self._weight[query_class] *= keep
        self._sums[:, query_class] *= keep
        self._seen *= keep
        self._seen[query_class] += n_runs
        self._weight[query_class, arm] += n_runs
        self._sums[0, query_class, arm] += tokens
        self._sums[1, query_class, arm] += seconds

    def n_draws(self, query_class: int) -> float:
        """Discounted number of observations of a class; never above half_life / ln 2 or so."""
        return float(self._weight[query_class].sum())

    def class_share(self, query_class: int) -> float:
        """Part of all requests that belong to a class, by what was seen; an even part before anything was."""
        total = self._seen.sum()
        return float(self._seen[query_class] / total) if total else 1 / len(self._seen)

    @property
    def full_tokens(self) -> float:
        """Tokens of a mean full run, all classes together; 1 before anything was seen."""
        weight = self._weight[:, 0].sum()
        return float(self._sums[0, :, 0].sum() / weight) if weight else 1.0

    def shares(self) -> Floats:
        """Expected tokens of each class and arm over those of a mean full run, shape (C, K)."""
        of_class = self._mean(0)[:, :1] / self.full_tokens
        guess = np.where(self._weight[:, :1] > 0, of_class, 1.0) * self._expected
        return np.where(self._weight > 0, self._mean(0) / self.full_tokens, guess)

    def seconds(self) -> Floats:
        """Expected seconds, shape (C, K); where an arm was never seen, the full run's times its expected share."""
        return np.where(self._weight > 0, self._mean(1), self._mean(1)[:, :1] * self._expected)

    def _mean(self, what: int) -> Floats:
        return np.asarray(self._sums[what] / np.maximum(self._weight, 1e-12))

    def plain(self) -> dict[str, Any]:
        """All it knows, as JSON takes it."""
        return {"weight": self._weight.tolist(), "sums": self._sums.tolist(), "seen": self._seen.tolist()}

    def restore(self, plain: dict[str, Any]) -> None:
        """Go on from `plain`. Raises ValueError for another shape."""
        weight, sums = np.array(plain["weight"]), np.array(plain["sums"])
        if weight.shape != self._weight.shape or sums.shape != self._sums.shape:
            raise ValueError(f"costs: got shape {weight.shape}; {self._weight.shape}")
        self._weight, self._sums, self._seen = weight, sums, np.array(plain["seen"])


def losses(n: Floats, lost: Floats, shares: Floats) -> Floats:
    """Expected EM drop of each class and arm, shape (C, K); 0 for the full run.

    n       audits, shape (C, K)
    lost    sum of their losses, each -1, 0 or +1
    shares  tokens of each arm over those of a full run: what saves much is guessed to lose much
    """
    guess = PRIOR_LOSS * np.clip(1 - shares.mean(axis=0) / shares[:, 0].mean(), 0.0, 1.0)
    of_arm = (lost.sum(axis=0) + PRIOR_AUDITS * guess) / (n.sum(axis=0) + PRIOR_AUDITS)
    means = (lost + CLASS_AUDITS * of_arm) / (n + CLASS_AUDITS)
    means[:, 0] = 0.0
    return np.asarray(means)

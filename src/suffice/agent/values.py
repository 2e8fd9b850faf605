"""What stopping costs and loses in each query class: discounted means with their standard errors.

A cost is a fraction of the class's mean full run, so a class whose questions become longer does not change its costs.
Old observations fade with a half-life in requests of the class: estimates follow drift and never become certain.
"""

from __future__ import annotations

from math import sqrt
from typing import Final

import numpy as np

from suffice.arrays import Floats
from suffice.types import Regret

PRIOR_RUNS: Final = 2.0  # pseudo-observations of something untried: it costs as much as the full run
PRIOR_SPREAD: Final = 0.5
PRIOR_AUDITS: Final = 50.0  # pseudo-audits behind the prior loss


class ActionValues:
    """Costs of shape (classes, settings, levels) and losses of shape (classes, levels); level 0 is the full run."""

    def __init__(
        self, n_classes: int, n_settings: int, n_levels: int, *, half_lives: tuple[float, float], prior_loss: float
    ) -> None:
        """half_lives: of costs and of losses, in requests of a class."""
        self._half_lives, self._prior_loss = half_lives, prior_loss
        self._runs = np.zeros((4, n_classes, n_settings, n_levels))  # number, cost, its square, seconds
        self._losses = np.zeros((2, n_classes, n_levels))  # audits, EM drops
        self._full = np.zeros((2, n_classes))  # full runs, their tokens

    def age(self, c: int, n_requests: float = 1.0) -> None:
        """Let requests of the class pass: what is known of the class loses its part of a half-life."""
        costs, losses = (0.5 ** (n_requests / half_life) for half_life in self._half_lives)
        self._runs[:, c] *= costs
        self._full[:, c] *= costs
        self._losses[:, c] *= losses

    def add_full(self, c: int, tokens: float) -> None:
        self._full[:, c] += (1, tokens)

    def add_run(self, c: int, setting: int, level: int, tokens: float, seconds: float) -> float | None:
        """Add one run; return its cost, or None while no full run of the class is known."""
        if not self._full[0, c]:
            return None
        cost = tokens / float(self.full_tokens[c])
        self._runs[:, c, setting, level] += (1, cost, cost**2, seconds)
        return cost

    def add_audit(self, c: int, setting: int, tokens: Floats) -> Floats:
        """Add what each level would have used, shape (levels,); return the costs."""
        cost = tokens / self.full_tokens[c]
        self._runs[0, c, setting] += 1
        self._runs[1, c, setting] += cost
        self._runs[2, c, setting] += cost**2
        return np.asarray(cost)

    def add_losses(self, c: int, z: Floats) -> None:
        """Add an audit's EM drop at each level: +1 the right answer was lost, -1 one was gained, 0 neither."""
        self._losses[0, c] += 1
        self._losses[1, c] += z

    def replace(self, c: int, setting: int, saving: float) -> None:
        """Replace the costs under a setting, which have changed, by a few runs with this saving."""
        n, cost = PRIOR_RUNS, 1 - saving
        self._runs[:, c, setting] = np.array([n, n * cost, n * cost**2, 0.0])[:, np.newaxis]

    def n_audits(self, c: int) -> float:
        return float(self._losses[0, c].max())

    @property
    def full_tokens(self) -> Floats:
        """Mean tokens of a full run, shape (classes,); nan where none is known."""
        with np.errstate(invalid="ignore"):
            return np.asarray(self._full[1] / self._full[0])

    @property
    def relative_tokens(self) -> Floats:
        """Mean tokens of a class's full run over that of all classes, shape (classes,); 1 where unknown."""
        n, total = self._full
        mean = total.sum() / n.sum() if n.sum() else 1.0
        return np.asarray(np.where(n > 0, total / np.maximum(n, 1e-12) / mean, 1.0))

    @property
    def cost(self) -> Floats:
        n, total = self._runs[:2]
        cost = (total + PRIOR_RUNS) / (n + PRIOR_RUNS)
        cost[..., 0] = 1.0
        return np.asarray(cost)

    @property
    def spread(self) -> Floats:
        """Standard deviation of one run's cost."""
        n, total, square, _ = self._runs
        prior = PRIOR_RUNS * (1 + PRIOR_SPREAD**2)
        variance = (square + prior) / (n + PRIOR_RUNS) - ((total + PRIOR_RUNS) / (n + PRIOR_RUNS)) ** 2
        return np.asarray(np.sqrt(np.maximum(variance, 1e-6)))

    @property
    def seconds(self) -> Floats:
        return np.asarray(self._runs[3] / np.maximum(self._runs[0], 1.0))

    @property
    def loss(self) -> Floats:
        n, lost = self._losses
        loss = (lost + PRIOR_AUDITS * self._prior_loss) / (n + PRIOR_AUDITS)
        loss[:, 0] = 0.0
        return np.asarray(loss)

    def cost_error(self) -> Floats:
        """Standard error of each cost; 0 for the full run."""
        error = self.spread / np.sqrt(self._runs[0] + PRIOR_RUNS)
        error[..., 0] = 0.0
        return np.asarray(error)

    def loss_error(self) -> Floats:
        """Standard error of each loss; 0 for the full run."""
        rate = np.clip(np.abs(self.loss), 0.5 / PRIOR_AUDITS, 0.5)
        error = np.sqrt(rate * (1 - rate) / (self._losses[0] + PRIOR_AUDITS))
        error[:, 0] = 0.0
        return np.asarray(error)


# ---- What the agent has earned, against doing nothing and against every fixed action, from audits


class RegretLog:
    def __init__(self, n_settings: int, n_levels: int) -> None:
        self._n = 0
        self._sums = np.zeros((2, n_settings, n_levels))  # of the difference to the agent, and of its square

    def add(self, setting: int, share: float, level: int, gain: Floats) -> None:
        """Add an audit.

        setting, share  the settings that it ran with, and the share with which they were drawn
        level           what the agent would have served
        gain            reward of each level above that of the full run, in EM, shape (levels,)
        """
        difference = np.full(self._sums.shape[1:], -gain[level])
        difference[setting] += gain / share
        self._n += 1
        self._sums += (difference, difference**2)

    def of_idle(self) -> Regret | None:
        """Compare with doing nothing; None before the second audit. The gain of level 0 is 0 under any settings."""
        return self._of(0, 0, z=1.96)

    def of_best_fixed(self, most: int) -> Regret | None:
        """Compare with the settings and the level up to `most` that would have earned most, by one interval for all."""
        if self._n < 2:
            return None
        setting, level = np.unravel_index(np.argmax(self._sums[0, :, : most + 1]), (len(self._sums[0]), most + 1))
        return self._of(int(setting), int(level), z=2.9)  # about 95 % for the largest of a dozen

    def _of(self, setting: int, level: int, *, z: float) -> Regret | None:
        if self._n < 2:
            return None
        total, square = self._sums[:, setting, level].tolist()
        mean = total / self._n
        error = sqrt(max(0.0, square / self._n - mean**2) / (self._n - 1))
        return Regret(mean=mean, low=mean - z * error, high=mean + z * error, n_audits=self._n)

"""What the agent has earned, against doing nothing and against every fixed action, from audits.

An audit shows what each level would have earned under its settings. Weighted by one over the share with which those
settings were drawn (Horvitz-Thompson), the difference between a fixed action and the agent is unbiased whatever the
shares were; regret needs no model.
"""

from __future__ import annotations

from math import sqrt

import numpy as np

from suffice.agent.values import Floats
from suffice.types import Regret


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

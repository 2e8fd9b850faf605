"""What the agent has earned, against doing nothing and against every fixed action, from audits.

An audit shows what each action of its settings would have earned on the same request. Weighted by one over the share
with which those settings were tried (Horvitz-Thompson), the difference between a fixed action and the agent's shares is
unbiased whatever the shares were; regret needs no model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Regret:
    """Reward per request of something else above the agent's, in EM; below 0 the agent is better."""

    mean: float
    low: float
    high: float
    n_audits: int


class RegretLog:
    def __init__(self, groups: Sequence[int]) -> None:
        self._groups = np.array(groups)  # of every action but the full run; each audit shows those of one group
        self._n = 0
        self._sums = np.zeros((2, len(groups)))  # of the difference to the agent, and of its square

    def add(self, group: int, trial: float, shares: Floats, reward: Mapping[int, float]) -> None:
        """Add an audit.

        group, trial  the settings that it ran with, and the share with which they were drawn
        shares        the agent's shares of every action for such a request
        reward        by action: what it would have earned more than the full run
        """
        earned = np.zeros(len(self._groups))
        for action, gain in reward.items():
            earned[action] = gain / trial
        agent = float(np.dot(shares, earned))
        difference = earned - agent
        self._n += 1
        self._sums += (difference, difference**2)

    def against(self, action: int, z: float = 1.96) -> Regret | None:
        """Compare with always drawing one action; 0 does nothing. None before the second audit."""
        if self._n < 2:
            return None
        total, square = self._sums[:, action].tolist()
        mean = total / self._n
        error = sqrt(max(0.0, square / self._n - mean**2) / (self._n - 1))
        return Regret(mean=mean, low=mean - z * error, high=mean + z * error, n_audits=self._n)

    def best_fixed(self, allowed: Sequence[int]) -> tuple[int, Regret] | None:
        """The allowed action that would have earned most, with an interval that covers the choice of it."""
        if self._n < 2:
            return None
        best = max(allowed, key=lambda action: self._sums[0, action])
        wide = self.against(best, z=2.9)  # about 95 % for the maximum over a dozen
        return None if wide is None else (best, wide)

    def plain(self) -> dict[str, Any]:
        return {"n": self._n, "sums": self._sums.tolist()}

    def restore(self, plain: Mapping[str, Any]) -> None:
        self._n, self._sums = int(plain["n"]), np.array(plain["sums"])

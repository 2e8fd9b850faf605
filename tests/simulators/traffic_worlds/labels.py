"""When the outcome of a run becomes known: late, rarely, or mostly for wrong answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from tests.simulators.traffic_worlds.traffic import SimulatedTraffic

NEVER: Final = np.iinfo(np.int64).max  # no label comes


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelDelays:
    """How labels arrive. Rates are fractions, delays are counted in requests."""

    delay: Literal["fixed", "geometric"] = "fixed"
    mean_delay: int = 0  # requests from an answer to its label
    p_when_right: float = 1.0  # P(a label arrives) if the full run's answer is correct
    p_when_wrong: float = 1.0  # … if it is wrong


def label_times(traffic: SimulatedTraffic, labels: LabelDelays, *, seed: int) -> NDArray[np.int64]:
    """The request before which each run's label arrives, shape (n,); NEVER: no label.

    Raise ValueError for rates outside 0 … 1 and delays below 0.
    """
    if labels.mean_delay < 0 or not 0 <= labels.p_when_right <= 1 or not 0 <= labels.p_when_wrong <= 1:
        raise ValueError(f"labels: got {labels}; rates from 0 to 1, a delay of at least 0")
    rng = np.random.default_rng([seed, 1])
    n = len(traffic)
    delay = np.full(n, labels.mean_delay, dtype=np.int64)
    if labels.delay == "geometric" and labels.mean_delay > 0:
        delay = rng.geometric(1 / labels.mean_delay, n)
    comes = rng.random(n) < np.where(traffic.right, labels.p_when_right, labels.p_when_wrong)
    return np.where(comes, np.arange(n) + delay, NEVER)

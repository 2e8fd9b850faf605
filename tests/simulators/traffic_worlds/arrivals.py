"""Arrival times of requests: a steady load, and spikes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from suffice.arrays import Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrivalRate:
    seconds: float  # above 0
    requests_per_s: float  # mean, at least 0


def arrival_times(loads: Sequence[ArrivalRate], *, seed: int) -> Floats:
    """Ascending arrival times in seconds from 0: a Poisson process with a piecewise constant rate.

    Raise ValueError for a period without length or a negative rate.
    """
    rng = np.random.default_rng([seed, 2])
    begin, times = 0.0, [np.empty(0)]
    for load in loads:
        if load.seconds <= 0 or load.requests_per_s < 0:
            raise ValueError(f"load: got {load}; seconds above 0, a rate of at least 0")
        n = int(rng.poisson(load.seconds * load.requests_per_s))
        times.append(np.sort(rng.uniform(begin, begin + load.seconds, n)))
        begin += load.seconds
    return np.concatenate(times)


def spiked(
    *,
    requests_per_s: float,
    factor: float = 5.0,
    before_s: float = 120.0,
    spike_s: float = 60.0,
    after_s: float = 120.0,
) -> tuple[ArrivalRate, ...]:
    """A steady load that is multiplied by `factor` for `spike_s`."""
    return (
        ArrivalRate(seconds=before_s, requests_per_s=requests_per_s),
        ArrivalRate(seconds=spike_s, requests_per_s=factor * requests_per_s),
        ArrivalRate(seconds=after_s, requests_per_s=requests_per_s),
    )

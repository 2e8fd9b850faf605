"""The bootstrap interval of the comparisons that the demonstration shows."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from math import isfinite
from typing import Final

import numpy as np
from numpy.typing import NDArray

from suffice.assurance.bounds import Interval

MIN_DEFINED_SHARE: Final = 0.99  # of draws; below it the statistic is too often undefined


def bootstrap_interval(
    values: NDArray[np.float64],
    groups: Sequence[Hashable],
    statistic: Callable[[NDArray[np.float64]], float],
    confidence: float,
    n_draws: int,
    rng: np.random.Generator,
) -> Interval | None:
    """Percentile interval from resampling whole groups with replacement, for a single look.

    Rows of one group (repeats of one question) are dependent and stay together: Davison and Hinkley (1997), section
    3.8. Below about 20 groups it is too narrow. `statistic` maps the d column sums of a resample of `values`, shape (n,
    d), to a number, nan where it is undefined. None: fewer than two groups, or undefined in more than 1 % of the draws.
    """
    if values.ndim != 2 or len(values) != len(groups):
        raise ValueError(f"need one group for each row of values; got {values.shape=} {len(groups)=}")
    if n_draws < 1 or not 0 < confidence < 1:
        raise ValueError(f"need n_draws >= 1 and 0 < confidence < 1; got {n_draws=} {confidence=}")
    numbers: dict[Hashable, int] = {}
    members = [numbers.setdefault(group, len(numbers)) for group in groups]
    if len(numbers) < 2:
        return None
    sums = np.zeros((len(numbers), values.shape[1]))
    np.add.at(sums, members, values)
    drawn = []
    for _ in range(n_draws):
        weights = np.bincount(rng.integers(len(sums), size=len(sums)), minlength=len(sums))
        drawn.append(statistic(weights @ sums))
    defined = [number for number in drawn if isfinite(number)]
    if len(defined) < MIN_DEFINED_SHARE * n_draws:
        return None
    low, high = np.quantile(defined, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(low), float(high))

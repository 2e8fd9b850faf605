"""Days and weeks in what a forecast reads: traffic of the coming hours is like that of the same hours before.

A season is two harmonics of the clock, for a week on top of those of a day. It is offered once a whole period has been
seen, because the first cannot be told from a drift, and only the evidence of losses and signals makes it likely.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from suffice.arrays import Floats

DAY_S: Final = 86_400.0
PERIODS: Final = (("day", DAY_S), ("week", 7 * DAY_S))
HARMONICS: Final = 2
LEAST_WINDOWS: Final = 12  # in a period: fewer windows do not show its shape
TEMPER: Final = 0.25  # of the evidence of signals, because neighbouring windows are alike for other reasons, too
PRIOR_ODDS: Final = -1.4  # logarithm: a season is rarer than none


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Season:
    name: str
    values: Floats  # harmonics of the windows, shape (W, K)
    path: Floats  # … and of the requests ahead, shape (A, K)

    def fit(self, values: Floats) -> tuple[Floats, Floats]:
        """The seasonal part of a signal, shape (W,) or (W, F), in the windows and ahead."""
        design, ahead = (np.concatenate([np.ones((len(part), 1)), part], axis=1) for part in (self.values, self.path))
        slopes = np.linalg.lstsq(design, values, rcond=None)[0]
        return np.asarray(design @ slopes), np.asarray(ahead @ slopes)

    def support(self, signals: Floats, trends: Sequence[Floats]) -> float:
        """Logarithm of the odds that the signals, shape (W, F), give to the season beside one of the trends.

        By the criterion of Schwarz (1978) for the signal that shows it best; signals that show none say nothing.
        """
        n, most = len(signals), 0.0
        for values in signals.T:
            alone = min(_left(values, [trend]) for trend in trends)
            both = min(_left(values, [trend, *self.values.T]) for trend in trends)
            gain = n * np.log((alone + 1e-12) / (both + 1e-12)) - self.values.shape[1] * np.log(n)
            most = max(most, TEMPER * float(gain) / 2)
        return PRIOR_ODDS + most


def find_seasons(until: Floats, at_s: Floats, ahead: Floats) -> Iterator[Season]:
    """Seasons of which the windows hold a whole period.

    until  number of each window's last request
    at_s   when it ended, in seconds since 1970
    ahead  requests from the last window on
    """
    harmonics, paths = list[Floats](), list[Floats]()
    for name, period in PERIODS:
        if at_s[-1] - at_s[0] < period:
            return
        # The latest period again and again: requests come as often as they came at this hour.
        origin = float(np.interp(at_s[-1] - period, at_s, until))
        in_period = until[-1] - origin
        if np.count_nonzero(until > origin) < LEAST_WINDOWS:
            return
        cycles, rest = np.divmod(ahead, in_period)
        then_s = period * cycles + np.interp(origin + rest, until, at_s)
        harmonics += _harmonics(at_s, period)
        paths += _harmonics(then_s, period)
        yield Season(name=name, values=np.stack(harmonics, axis=1), path=np.stack(paths, axis=1))


def strongest(season: Season, signals: Floats) -> Floats:
    """Of whitened signals, shape (W, F), the combination in which the season shows most, shape (W,)."""
    scale = np.sqrt(np.mean(np.diff(signals, axis=0) ** 2, axis=0) / 2) + 1e-9 * (1 + np.abs(signals).max(axis=0))
    scaled = (signals - signals.mean(axis=0)) / scale
    direction = np.linalg.svd(season.fit(scaled)[0], full_matrices=False)[2][0]
    return np.asarray(scaled @ direction)


def _harmonics(at_s: Floats, period: float) -> list[Floats]:
    angle = 2 * np.pi * at_s / period
    return [wave(k * angle) for k in range(1, HARMONICS + 1) for wave in (np.sin, np.cos)]


def _left(values: Floats, columns: Sequence[Floats]) -> float:
    """Mean square that a line of these columns leaves."""
    design = np.stack([np.ones(len(values)), *columns], axis=1)
    slopes = np.linalg.lstsq(design, values, rcond=None)[0]
    return float(np.mean((values - design @ slopes) ** 2))

"""What a forecast makes the control loop do: more audits while it is in doubt, and a lower level before a breach.

An action is a row of the log, which the loop reads in its place. It only ever lowers the level and raises the share of
audits, so no certificate depends on it: a wrong forecast costs tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from suffice.assurance.forecast import CALM_PART, Bools, Floats, Forecast, recency
from suffice.assurance.forecast_grades import HORIZON

Ints = NDArray[np.int64]

SMOOTHING: Final = 0.5  # disagreements added to every level before levels are compared


@dataclass(frozen=True, slots=True, kw_only=True)
class ForecastAction:
    """In effect until the route's next one, or the end of the epoch."""

    route: str
    epoch: int
    at: int  # requests of the route at the forecast
    level: int  # that the forecast is about: the one that acts without the cap
    cap: int | None  # the highest level that may act; None: no cap
    in_doubt: bool  # audits are drawn as often as in doubt
    reason: str  # a short sentence
    author: str = ""


@dataclass(frozen=True, slots=True)
class Stance:
    """The part of an action that is in effect."""

    cap: int | None = None
    in_doubt: bool = False


def first_disagreement(disagrees: Bools, level: int) -> Ints:
    """Lowest level up to `level` at which each audit disagrees, shape (N, M) to (N,); `level` + 1: none."""
    below = disagrees[:, 1 : level + 1]
    return np.where(below.any(axis=1), 1 + below.argmax(axis=1), level + 1)


def relative_losses(first: Sequence[Ints], level: int) -> Floats:
    """How often each level up to `level` disagrees lately, relative to `level`, shape (level + 1,), rising to 1.

    first  of the audits of each window (`first_disagreement`), oldest window first
    """
    weights = np.repeat(recency(len(first)), [len(window) for window in first])
    counts = np.bincount(np.concatenate([*first, np.zeros(0, dtype=np.int64)]), weights, minlength=level + 2)
    disagreeing = np.cumsum(counts[: level + 1]) + SMOOTHING
    relative = disagreeing / disagreeing[-1]
    relative[0] = 0.0  # a full run loses nothing
    return np.asarray(relative)


def next_stance(
    before: Stance, forecast: Forecast | None, *, at: int, alerted: bool, relative: Callable[[], Floats]
) -> Stance:
    """Decide at a look; without a forecast nothing changes.

    A cap needs two looks in a row with an alert, and is lifted with the alert. It is the highest level that stays
    clearly inside the budget if a drift multiplies the losses of all levels alike.

    alerted   the alert was open before this look
    relative  losses of levels, see `relative_losses`; the forecast is about the last one
    """
    if forecast is None:
        return before
    in_doubt = forecast.alert or forecast.doubtful
    if not forecast.alert:
        return Stance(None, in_doubt)
    latest = forecast.crossing.latest
    if not alerted or latest is None or latest > at + HORIZON:
        return Stance(before.cap, in_doubt)
    inside = np.flatnonzero(relative()[:-1] * forecast.worst < CALM_PART * forecast.limit)
    cap = int(inside[-1]) if len(inside) else 0
    return Stance(cap if before.cap is None else min(cap, before.cap), in_doubt)


def describe_change(before: Stance, after: Stance, forecast: Forecast | None) -> str:
    why = "" if forecast is None else f" ({forecast.reason})"
    if after.cap != before.cap:
        return f"the forecast no longer asks for a cap{why}" if after.cap is None else f"level {after.cap} at most{why}"
    return f"the forecast is {'in' if after.in_doubt else 'no longer in'} doubt{why}"

"""What gives way when everything of a route must run in full, and its upstream cannot bear that.

    ratio    tokens/s if all that is asked for ran in full, over tokens/s while the policy still stopped
    capacity the same ratio, as the owner says that the upstream could bear it

    ratio <= capacity   nothing: all run in full
    quality_first       part of the new requests is turned away, so that what remains fits, and runs in full
    availability_first  all are taken, at the next safer level or a safer one that fits; nothing is certified then

Pure: the brake that fires, the measurements and the lots are others'. Knows one route at one moment.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from suffice.settings import OnFallback

RETRY_AFTER_S: Final = (5, 15)  # who was turned away is spread over so long, or all would come back at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Fallback:
    """A route whose brake has fired: what was in force, and what its owner wants to give way."""

    level: int  # in force when the brake fired
    on_fallback: OnFallback
    capacity: float | None  # ratio, above 0; None: nobody said
    loads: tuple[float, ...] = ()  # by level, from 0: tokens/s there, as a ratio, when it fired; (): unknown


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """What becomes of one new request."""

    level: int | None  # it runs at; 0 runs in full; None: it is turned away
    certified: bool  # may the reply be called certified? Only of full runs, which keep the promise anyhow
    reason: str
    retry_after_s: int = 0  # for one that is turned away


IN_FULL: Final = Admission(level=0, certified=True, reason="in full while the brake holds")


def shed_share(ratio: float, capacity: float | None) -> float:
    """The share of requests to turn away so that the others, in full, are no more than `capacity`: [0, 1)."""
    return 0.0 if capacity is None or ratio <= capacity else 1 - capacity / ratio


def even_loads(ratio: float | None, level: int) -> tuple[float, ...]:
    """What each level takes, from `ratio` in full down to 1 at the level in force; (): unknown, or nothing stops.

    Levels are cut evenly by the tokens that they save, so between the two it falls along a line.
    """
    if ratio is None or level < 1:
        return ()
    return tuple(ratio + (1 - ratio) * at / level for at in range(level + 1))


def admission(fallback: Fallback, *, ratio: float, queue: float | None, point: float) -> Admission:
    """Admit or turn away one new request of the route, and say at which level it runs.

    ratio  as above, as it is now: who comes again because he was turned away counts as asking
    queue  calls open at the upstream over its slots; while slots are free nobody is turned away, whatever was
           declared. None: unknown
    point  a lot in [0, 1), drawn anew for each try and not by what is asked, or the same clients would be turned
           away for as long as it lasts
    """
    if not 0 <= point < 1:
        raise ValueError(f"point: got {point}; a lot from 0 up to, but not, 1")
    if fallback.on_fallback == "availability_first":
        level = safer_level(fallback, ratio)
        if level == 0:
            return IN_FULL
        return Admission(level=level, certified=False, reason=f"level {level} while the brake holds")
    share = shed_share(ratio, fallback.capacity)
    if point >= share or (queue is not None and queue < 1):
        return IN_FULL
    first_s, last_s = RETRY_AFTER_S
    return Admission(
        level=None,
        certified=False,
        retry_after_s=first_s + int((last_s - first_s + 1) * point / share),
        reason=f"full runs take {ratio:.2f} times the tokens/s, {fallback.capacity:g} times is the capacity",
    )


def safer_level(fallback: Fallback, ratio: float) -> int:
    """The safest level that the upstream bears; where that cannot be told, or none does, the next safer one.

    Never the level that was in force, unless that was 0. What levels take grows with what is asked for, as the full
    runs do.
    """
    next_safer = max(0, fallback.level - 1)
    if fallback.capacity is None:
        return next_safer
    if ratio <= fallback.capacity:
        return 0
    if not fallback.loads or not fallback.loads[0] > 0:
        return next_safer
    bears = fallback.capacity * fallback.loads[0] / ratio
    return _first_within(fallback.loads[1:next_safer], bears) or next_safer


def _first_within(loads: Sequence[float], capacity: float) -> int:
    """The first level from 1 whose load fits; 0: none does."""
    return next((level for level, load in enumerate(loads, start=1) if load <= capacity), 0)

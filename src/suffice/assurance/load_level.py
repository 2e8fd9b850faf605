"""The level at which a route operates under load; every level up to the certified one keeps the promise.

Moves to the thrifty side are fast, moves back slow, and slower each time one was too early, against oscillation.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import floor, isfinite
from typing import Final, Literal, NamedTuple, TypeAlias

from suffice.records import frozen_struct
from suffice.settings import OnFallback, Pressure

Stance: TypeAlias = Literal["slack", "usual", "spike"]  # from safe to thrifty

# Shares of the target, for the load with the largest share. Each pair leaves room for noise and for the effect of a
# move on the load.
SPIKE_FROM: Final = 1.0
SPIKE_UNTIL: Final = 0.7
SLACK_UNTIL: Final = 0.6
SLACK_FROM: Final = 0.3
RAISE_AFTER_S: Final = 2.0  # how long a load must call for the thrifty side
BLIND_S: Final = 5.0  # after a longer pause between measurements, these times start anew
MOST_DOUBLINGS: Final = 4  # of `hold_s`


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadSample:
    """Measured load. None: unknown, which is neither pressure nor slack."""

    queue: float | None = None  # calls open at the upstream, over its slots
    latency_s: float | None = None  # 95th percentile
    tokens_per_s: float | None = None
    usd_per_hour: float | None = None


class Strain(NamedTuple):
    share: float  # measured over target, at least 0
    name: str  # a field of `LoadSample`
    measured: float
    target: float

    def __str__(self) -> str:
        return f"{self.name} {self.measured:.3g} is {self.share:.2f} of its target {self.target:g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """The stance of a route and the state of its hysteresis. Times in seconds, monotonic."""

    stance: Stance = "usual"
    reason: str = "no load was measured yet"
    n_moves: int = 0
    at_s: float = 0.0  # of the last measurement
    more_since_s: float | None = None  # since when the load calls for the thrifty side; None: it does not
    less_since_s: float | None = None  # likewise, for the safe side
    lowered_s: float | None = None  # when the last move was made, if it was to the safe side; else None
    n_doublings: int = 0  # doublings of the hold after early moves


def strain(targets: Pressure, load: LoadSample) -> Strain | None:
    strains = [
        Strain(measured / target, name, measured, target)
        for name in ("queue", "latency_s", "tokens_per_s", "usd_per_hour")
        if (target := getattr(targets, name)) is not None
        and (measured := getattr(load, name)) is not None
        and isfinite(measured)
    ]
    return max(strains, default=None)


def update_pressure(before: Operation, targets: Pressure, load: LoadSample, *, now_s: float) -> Operation:
    """Add a measurement, at least once a second, and move if one is due; a clock that goes back is held.

    At most one move to the safe side in `hold_s`, and at most two to the other side between two of those.
    """
    now_s, measured = max(now_s, before.at_s), strain(targets, load)
    blind = now_s - before.at_s > BLIND_S
    more, less = _asks(before.stance, targets, measured)

    def since(asks: bool, known_s: float | None) -> float | None:
        return None if not asks else now_s if known_s is None or blind else known_s

    more_since_s, less_since_s = since(more, before.more_since_s), since(less, before.less_since_s)
    now = replace(before, at_s=now_s, more_since_s=more_since_s, less_since_s=less_since_s)
    if more_since_s is not None and measured is not None and now_s - more_since_s >= RAISE_AFTER_S:
        return _raised(now, targets, measured)
    hold_s = targets.hold_s * 2**now.n_doublings
    if less_since_s is not None and now_s - less_since_s >= hold_s:
        last = "no load was measured" if measured is None else str(measured)
        stance: Stance = "usual" if now.stance == "spike" else "slack"
        return replace(_moved(now, stance, f"the load was low for {hold_s:g} s; at last {last}"), lowered_s=now_s)
    return now


def level_of(stance: Stance, targets: Pressure | None, *, certified: int) -> int:
    """The level at a point from 0, which never stops, to `certified` (1), rounded down.

    Levels are spaced evenly by the tokens that they save. Without targets it is the certified level.
    """
    if targets is None or stance == "spike":
        return certified
    slack = targets.operating_point if targets.slack_point is None else targets.slack_point
    point = slack if stance == "slack" else targets.operating_point
    return floor(point * certified + 1e-9)


def _asks(stance: Stance, targets: Pressure, seen: Strain | None) -> tuple[bool, bool]:
    if seen is None:
        return False, stance == "spike"  # evidence of neither pressure nor slack
    if stance == "spike":
        return False, seen.share < SPIKE_UNTIL
    if stance == "slack":
        return seen.share >= SLACK_UNTIL, False
    has_slack = targets.slack_point is not None and targets.slack_point < targets.operating_point
    return seen.share >= SPIKE_FROM, has_slack and seen.share < SLACK_FROM


def _raised(now: Operation, targets: Pressure, measured: Strain) -> Operation:
    n_doublings = now.n_doublings
    if now.lowered_s is not None:
        early = now.at_s - now.lowered_s < 2 * targets.hold_s * 2**n_doublings
        n_doublings = min(MOST_DOUBLINGS, n_doublings + 1) if early else 0
    stance: Stance = "spike" if measured.share >= SPIKE_FROM else "usual"
    moved = _moved(now, stance, f"{measured} for {RAISE_AFTER_S:g} s")
    return replace(moved, lowered_s=None, n_doublings=n_doublings)


def _moved(now: Operation, stance: Stance, reason: str) -> Operation:
    return replace(now, stance=stance, reason=reason, n_moves=now.n_moves + 1, more_since_s=None, less_since_s=None)


# --------------------------------------------------------------------------- when everything must run in full
#
# ratio     tokens/s if all requests ran in full, over tokens/s while the policy still stopped
# capacity  the largest ratio that the upstream can bear, declared by the owner
#
# ratio <= capacity   all requests run in full
# quality_first       part of the new requests is rejected, so that the rest runs in full
# availability_first  all are admitted, at the next safer level or a safer one that fits, uncertified

RETRY_AFTER_S: Final = (5, 15)  # range over which retries are spread


@dataclass(frozen=True, slots=True, kw_only=True)
class Fallback:
    level: int  # active when the brake fired
    on_fallback: OnFallback
    capacity: float | None  # ratio, above 0; None: not declared
    loads: tuple[float, ...] = ()  # tokens/s by level, from 0, as a ratio, when it fired; (): unknown


@frozen_struct
class Admission:
    level: int | None  # 0 runs in full; None: rejected
    certified: bool  # only for full runs
    reason: str
    retry_after_s: int = 0  # for a rejected request


IN_FULL: Final = Admission(level=0, certified=True, reason="in full while the brake holds")


def shed_share(ratio: float, capacity: float | None) -> float:
    return 0.0 if capacity is None or ratio <= capacity else 1 - capacity / ratio


def even_loads(ratio: float | None, level: int) -> tuple[float, ...]:
    """Interpolate the load of each level between `ratio` in full and 1 at the active level; (): unknown."""
    if ratio is None or level < 1:
        return ()
    return tuple(ratio + (1 - ratio) * at / level for at in range(level + 1))


def admission(fallback: Fallback, *, ratio: float, queue: float | None, point: float) -> Admission:
    """Admit or reject one new request of the route, and choose its level.

    queue  calls open at the upstream over its slots; below 1 nothing is rejected. None: unknown
    point  a random number in [0, 1), drawn anew for each try, so that no client is rejected for good
    """
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
    """The safest level whose load fits; the next safer one if none is known to. Not the active one, unless it is 0."""
    next_safer = max(0, fallback.level - 1)
    if fallback.capacity is None:
        return next_safer
    if ratio <= fallback.capacity:
        return 0
    if not fallback.loads or not fallback.loads[0] > 0:
        return next_safer
    bears = fallback.capacity * fallback.loads[0] / ratio
    return next((at for at, load in enumerate(fallback.loads[1:next_safer], start=1) if load <= bears), next_safer)

"""At which level a route operates under load: safer with slack, thriftier under pressure, and with nothing certified.

    slack ──the load is back──▶ usual ──over a target──▶ spike
          ◀──far below all────        ◀──well below all──

Every level up to the certified one keeps the promise, so where to operate between them is a matter of load alone. Moves
to the thrifty side come fast, moves back slowly, and slower each time one turns out to have been too early: a load that
hangs about a threshold, by itself or because of our own moves, does not make the level swing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import floor, isfinite
from typing import Final, Literal, NamedTuple, TypeAlias

from suffice.settings import OnFallback, Pressure

Stance: TypeAlias = Literal["slack", "usual", "spike"]  # from the safe side to the thrifty one

# Shares of a target, of the load that is nearest to its own. Each pair leaves room for noise, and for what a move
# itself does to the load.
SPIKE_FROM: Final = 1.0
SPIKE_UNTIL: Final = 0.7
SLACK_UNTIL: Final = 0.6
SLACK_FROM: Final = 0.3
RAISE_AFTER_S: Final = 2.0  # a load must ask for the thrifty side so long
BLIND_S: Final = 5.0  # after a longer pause nobody knows what the load did meanwhile
MOST_DOUBLINGS: Final = 4  # of `hold_s`


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadSample:
    """What was measured. None: unknown, which is neither pressure nor slack."""

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
    """Where a route operates, and since when its load has asked for something else. Times in seconds, monotonic."""

    stance: Stance = "usual"
    reason: str = "no load was measured yet"
    n_moves: int = 0
    at_s: float = 0.0  # of the last look
    more_since_s: float | None = None  # the load has asked for the thrifty side since; None: it does not
    less_since_s: float | None = None  # … for the safe side
    lowered_s: float | None = None  # when the last move was made, if it was to the safe side; else None
    n_doublings: int = 0  # how often the hold was doubled, because such a move came too early


def strain(targets: Pressure, load: LoadSample) -> Strain | None:
    """The largest load in shares of its target; None: nothing that has a target was measured."""
    strains = [
        Strain(measured / target, name, measured, target)
        for name in ("queue", "latency_s", "tokens_per_s", "usd_per_hour")
        if (target := getattr(targets, name)) is not None
        and (measured := getattr(load, name)) is not None
        and isfinite(measured)
    ]
    return max(strains, default=None)


def update_pressure(before: Operation, targets: Pressure, load: LoadSample, *, now_s: float) -> Operation:
    """Take one measurement in, and move if it is time to.

    To be called every second or oftener; the time may stand still, and is not believed when it goes back. At most one
    move to the safe side in `hold_s`, and at most two to the other side between two of those.
    """
    now_s = max(now_s, before.at_s)
    measured, blind = strain(targets, load), now_s - before.at_s > BLIND_S
    more, less = _asks(before.stance, targets, measured)
    more_since_s = now_s if before.more_since_s is None or blind else before.more_since_s
    less_since_s = now_s if before.less_since_s is None or blind else before.less_since_s
    since = replace(
        before,
        at_s=now_s,
        more_since_s=more_since_s if more else None,
        less_since_s=less_since_s if less else None,
    )
    if more and measured is not None and now_s - more_since_s >= RAISE_AFTER_S:
        return _raised(since, targets, measured)
    hold_s = targets.hold_s * 2**since.n_doublings
    if less and now_s - less_since_s >= hold_s:
        last = "no load was measured" if measured is None else str(measured)
        stance: Stance = "usual" if since.stance == "spike" else "slack"
        return _moved(since, stance, f"the load was low for {hold_s:g} s; at last {last}", lowered_s=now_s)
    return since


def level_of(stance: Stance, targets: Pressure | None, *, certified: int, safe: int = 0) -> int:
    """The level that new requests get: from `safe` (point 0) to `certified`, or `certified` where that is lower.

    Levels are cut evenly by the tokens that they save, so a point is about the share of the certified saving that is
    kept. What falls between two levels goes to the safer one. Without targets the route saves what it may.
    """
    if targets is None or stance == "spike" or certified <= safe:
        return certified
    slack = targets.operating_point if targets.slack_point is None else targets.slack_point
    point = slack if stance == "slack" else targets.operating_point
    return safe + floor(point * (certified - safe) + 1e-9)


def _asks(stance: Stance, targets: Pressure, seen: Strain | None) -> tuple[bool, bool]:
    """Does the load ask for the thrifty side, or for the safe one?"""
    if seen is None:
        return False, stance == "spike"  # no evidence of pressure any more, and none of slack
    if stance == "spike":
        return False, seen.share < SPIKE_UNTIL
    if stance == "slack":
        return seen.share >= SLACK_UNTIL, False
    has_slack = targets.slack_point is not None and targets.slack_point < targets.operating_point
    return seen.share >= SPIKE_FROM, has_slack and seen.share < SLACK_FROM


def _raised(now: Operation, targets: Pressure, measured: Strain) -> Operation:
    """One move to the thrifty side. Soon after one to the safe side, the next of those takes twice as long."""
    n_doublings = now.n_doublings
    if now.lowered_s is not None:
        early = now.at_s - now.lowered_s < 2 * targets.hold_s * 2**n_doublings
        n_doublings = min(MOST_DOUBLINGS, n_doublings + 1) if early else 0
    stance: Stance = "spike" if measured.share >= SPIKE_FROM else "usual"
    moved = _moved(now, stance, f"{measured} for {RAISE_AFTER_S:g} s", lowered_s=None)
    return replace(moved, n_doublings=n_doublings)


def _moved(now: Operation, stance: Stance, reason: str, *, lowered_s: float | None) -> Operation:
    return replace(
        now,
        stance=stance,
        reason=reason,
        n_moves=now.n_moves + 1,
        more_since_s=None,
        less_since_s=None,
        lowered_s=lowered_s,
    )


# --------------------------------------------------------------------------- when everything must run in full
#
# ratio     tokens/s if all that is asked for ran in full, over tokens/s while the policy still stopped
# capacity  the same ratio, as the owner says that the upstream could bear it
#
# ratio <= capacity   nothing gives way: all run in full
# quality_first       part of the new requests is turned away, so that the rest fits and runs in full
# availability_first  all are taken, at the next safer level or a safer one that fits; nothing is certified then

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
    level: int | None  # it runs at; 0 runs in full; None: it is turned away
    certified: bool  # may the reply be called certified? Only of full runs, which keep the promise anyhow
    reason: str
    retry_after_s: int = 0  # for one that is turned away


IN_FULL: Final = Admission(level=0, certified=True, reason="in full while the brake holds")


def shed_share(ratio: float, capacity: float | None) -> float:
    """The share of requests to turn away so that the others, in full, are no more than `capacity`: [0, 1)."""
    return 0.0 if capacity is None or ratio <= capacity else 1 - capacity / ratio


def even_loads(ratio: float | None, level: int) -> tuple[float, ...]:
    """What each level takes, along a line from `ratio` in full to 1 at the active level; (): unknown."""
    if ratio is None or level < 1:
        return ()
    return tuple(ratio + (1 - ratio) * at / level for at in range(level + 1))


def admission(fallback: Fallback, *, ratio: float, queue: float | None, point: float) -> Admission:
    """Admit or turn away one new request of the route, and say at which level it runs.

    queue  calls open at the upstream over its slots; while slots are free nobody is turned away. None: unknown
    point  a random number in [0, 1), drawn anew for each try, or the same clients would be turned away for good
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

    Never the level that was active, unless that was 0. What levels take grows with what is asked for, as the full
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
    return next((at for at, load in enumerate(fallback.loads[1:next_safer], start=1) if load <= bears), next_safer)

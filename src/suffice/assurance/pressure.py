"""Where inside what is certified a route operates: safer with slack, thriftier under pressure.

    slack ──the load is back──▶ usual ──over a target──▶ spike
          ◀──far below all────        ◀──well below all──

Every level up to the certified one keeps the promise, so where to operate between them is a matter of load alone. Moves
to the thrifty side come fast, moves back slowly, and slower each time one turns out to have been too early: a load that
hangs about a threshold, by itself or because of our own moves, does not make the level swing.

Pure: time and measurements come in. Knows loads and stances; refuses to know how either is measured or obeyed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import floor, isfinite
from typing import Final, Literal, NamedTuple, TypeAlias

from suffice.settings import Pressure

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
    """The load that is nearest to its target, or farthest above it."""

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
    found = [
        Strain(measured / target, name, measured, target)
        for name in ("queue", "latency_s", "tokens_per_s", "usd_per_hour")
        if (target := getattr(targets, name)) is not None
        and (measured := getattr(load, name)) is not None
        and isfinite(measured)
    ]
    return max(found, default=None)


def update_pressure(before: Operation, targets: Pressure, load: LoadSample, *, now_s: float) -> Operation:
    """Take one measurement in, and move if it is time to.

    To be called every second or oftener; the time it is told may stand still, and is not believed when it goes back. At
    most one move to the safe side in `hold_s`, and at most two to the other side between two of those.
    """
    now_s = max(now_s, before.at_s)
    seen, blind = strain(targets, load), now_s - before.at_s > BLIND_S
    more, less = _asks(before.stance, targets, seen)
    since = replace(
        before,
        at_s=now_s,
        more_since_s=_since(before.more_since_s, now_s, asks=more, blind=blind),
        less_since_s=_since(before.less_since_s, now_s, asks=less, blind=blind),
    )
    if more and seen is not None and _for(since.more_since_s, now_s) >= RAISE_AFTER_S:
        return _raised(since, targets, seen)
    hold_s = targets.hold_s * 2**since.n_doublings
    if less and _for(since.less_since_s, now_s) >= hold_s:
        return _lowered(since, seen, hold_s)
    return since


def level_of(stance: Stance, targets: Pressure | None, *, certified: int, safe: int = 0) -> int:
    """The level that new requests get: from `safe` to `certified`; if that is below `safe`, `certified` itself.

    Levels are cut evenly by the tokens that they save, so a point is about the share of the certified saving that is
    kept. What falls between two levels goes to the safer one.

    targets    None: the owner asked for nothing, and the route saves what it may
    certified  the most aggressive level that may be used, guard-rails and ceilings taken off; 0 never stops
    safe       the level that point 0 stands for
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


def _since(before_s: float | None, now_s: float, *, asks: bool, blind: bool) -> float | None:
    if not asks:
        return None
    return now_s if before_s is None or blind else before_s


def _for(since_s: float | None, now_s: float) -> float:
    return -1.0 if since_s is None else now_s - since_s


def _raised(now: Operation, targets: Pressure, seen: Strain) -> Operation:
    """One move to the thrifty side. Soon after one to the safe side, the next of those takes twice as long."""
    n_doublings = now.n_doublings
    if now.lowered_s is not None:
        early = now.at_s - now.lowered_s < 2 * targets.hold_s * 2**n_doublings
        n_doublings = min(MOST_DOUBLINGS, n_doublings + 1) if early else 0
    return replace(
        now,
        stance="spike" if seen.share >= SPIKE_FROM else "usual",
        n_moves=now.n_moves + 1,
        reason=f"{seen} for {RAISE_AFTER_S:g} s",
        more_since_s=None,
        less_since_s=None,
        lowered_s=None,
        n_doublings=n_doublings,
    )


def _lowered(now: Operation, seen: Strain | None, hold_s: float) -> Operation:
    """One move to the safe side."""
    last = "no load was measured" if seen is None else str(seen)
    return replace(
        now,
        stance="usual" if now.stance == "spike" else "slack",
        n_moves=now.n_moves + 1,
        reason=f"the load was low for {hold_s:g} s; at last {last}",
        more_since_s=None,
        less_since_s=None,
        lowered_s=now.at_s,
    )

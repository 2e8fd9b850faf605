"""Experiments: a keyed hash decides who takes part and in which arm, on every machine and for every retry alike.

    settings ──▶ Experiment (as it was started) ──▶ draw ──▶ ArmDraw, with its odds, in the record of the request
                                                    └──▶ with_arm: the route as this arm serves it

A layer is cut into a thousand slots, and an experiment owns some of them: experiments of one layer exclude each other,
and those of different layers know nothing of each other, for each layer and each experiment hashes with its own salt.
An arm is the one of k racers that comes in first, each with a hash of its own as its luck and its weight as its speed:
a weight that is raised alone pulls units into its arm and moves nobody else, and no change of weights moves more than
2d / (1 + d) of the units, d being the part that must move (Bavarian et al. 2020, arXiv:1612.01041: nothing that
remembers no unit does better).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import log
from typing import Any, Final

import msgspec

from suffice.errors import ConfigError
from suffice.rollout.assign import joined, keyed, point_of
from suffice.settings import Effort, ExperimentArm, ExperimentUnit, Route
from suffice.settings import Experiment as Written
from suffice.types import ArmDraw

N_SLOTS: Final = 1_000  # of a layer: the smallest share is a thousandth

Slots = tuple[tuple[int, int], ...]  # (first, behind the last), rising


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    name: str
    weight: float  # relative to the other arms', at least 0
    full: bool = False  # nothing is stopped and nothing asked for before the call
    policy: str = ""  # JSON of a policy, as settings write it; "": the route's own
    threshold: float | None = None  # in place of the one of the route's own policy
    level: int | None = None  # the highest level of what is certified; 0 never stops
    effort: Effort | None = None  # asked for before the call
    budget_tokens: int | None = None  # of thought, kept by the engine
    uncertified: bool = False  # may its own policy act though nobody has certified it?


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningExperiment:
    """An experiment as it was started: what stands in the settings later changes nothing."""

    name: str
    run: int  # of this name; 1 is the first
    routes: tuple[str, ...]
    unit: ExperimentUnit
    layer: str
    slots: Slots  # of the layer's thousand
    arms: tuple[Arm, ...]
    control: str  # the arm that the others are compared with
    primary: str  # the metric that decides
    margins: tuple[tuple[str, float], ...] = ()  # metric: loss against the control that is put up with, in its unit
    confidence: float = 0.95  # of all that is said of it, together
    warmup_units: int = 100  # first units, which are left out
    max_tokens: float | None = None  # a run with more counts as this; None: learnt from the warm-up
    max_latency_s: float | None = None

    @property
    def share(self) -> float:
        return n_slots(self.slots) / N_SLOTS

    def owns(self, slot: int) -> bool:
        return any(first <= slot < behind for first, behind in self.slots)

    def arm(self, name: str) -> Arm:
        return {arm.name: arm for arm in self.arms}[name]

    def odds(self) -> dict[str, float]:
        """P(arm) of a unit that takes part; they sum to 1."""
        total = sum(arm.weight for arm in self.arms)
        return {arm.name: arm.weight / total for arm in self.arms}


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitIds:
    """What one request belongs to, by the names that it came with. None or "": it named none."""

    request: str  # what its retries share
    conversation: str | None = None
    user: str | None = None
    tenant: str | None = None

    def of(self, unit: ExperimentUnit) -> str | None:
        """The unit of that kind; a request without a conversation is one of its own. None: it takes no part."""
        if unit == "request":
            return self.request
        if unit == "conversation":
            return self.conversation or self.request
        return (self.user if unit == "user" else self.tenant) or None


def units_of(sender: str, *, request: str, conversation: str | None, user: str | None, tenant: str | None) -> UnitIds:
    """What a request belongs to. A name that its client chose is the client's own: another sender's is another unit.

    sender  keyed hash of its API key; "": no key was asked for
    """

    def own(name: str | None) -> str | None:
        return joined(sender, name) if sender and name else name

    return UnitIds(
        request=request, conversation=own(conversation), user=own(user), tenant=own(tenant) or sender or None
    )


def draw_arms(running: Iterable[RunningExperiment], *, route: str, units: UnitIds, salt: str) -> tuple[ArmDraw, ...]:
    """The arms of one request, at most one a layer; (): it takes part in nothing.

    Equal units draw equal arms, whoever asks and how often, as long as the weights are the same.
    """
    drawing = ((one, units.of(one.unit)) for one in running if route in one.routes)
    return tuple(
        draw_arm(one, unit, salt=salt)
        for one, unit in drawing
        if unit is not None and one.owns(slot_of(unit, layer=one.layer, salt=salt))
    )


def slot_of(unit: str, *, layer: str, salt: str) -> int:
    """The slot of a layer that a unit falls into, 0 to 999; layers are independent of each other."""
    return int(point_of(unit, salt=f"{salt}/layer/{layer}", purpose=b"layer-slot") * N_SLOTS)


def draw_arm(one: RunningExperiment, unit: str, *, salt: str) -> ArmDraw:
    """The arm of a unit that takes part. An experiment that is started again draws anew."""
    odds, own_salt = one.odds(), f"{salt}/experiment/{one.layer}/{one.name}/{one.run}"
    # By the arm's name and not by its place: an arm that is added moves units into itself alone.
    race = {
        name: -log(1.0 - point_of(f"{name}/{unit}", salt=own_salt, purpose=b"arm")) / share
        for name, share in odds.items()
        if share > 0
    }
    arm = min(race, key=race.__getitem__)
    return ArmDraw(
        experiment=one.name,
        run=one.run,
        arm=arm,
        propensity=odds[arm],
        others=tuple((name, share) for name, share in odds.items() if name != arm),
        unit=keyed(unit, salt=salt, purpose=b"experiment-unit", n_bytes=8).hex(),
    )


def with_arm(route: Route, arm: Arm) -> Route:
    """The route as an arm serves it; its `level` is for whoever knows the levels.

    The full run is the route in `observe`: its policy is asked, and nobody obeys.
    """
    if arm.full:
        return msgspec.structs.replace(route, mode="observe" if route.mode == "enforce" else route.mode)
    changed: dict[str, object] = {}
    if arm.policy:
        changed["policy"] = _policy_of(arm.policy)
    elif arm.threshold is not None:
        changed["policy"] = {**route.policy, "threshold": arm.threshold}
    if arm.uncertified:
        changed["uncertified"] = True
    if arm.effort is not None:
        changed |= {"effort": arm.effort, "budget_tokens": None}
    if arm.budget_tokens is not None:
        changed |= {"budget_tokens": arm.budget_tokens, "effort": None}
    return msgspec.structs.replace(route, **changed) if changed else route


@lru_cache(maxsize=256)
def _policy_of(written: str) -> Mapping[str, object]:
    """A policy's table. One that holds a model is long, and every request asks: it is read once, and not written to."""
    table: Mapping[str, object] = json.loads(written)
    return table


# --------------------------------------------------------------------------- from the settings


def define(name: str, written: Written, *, run: int, slots: Slots) -> RunningExperiment:
    same = ("routes", "unit", "layer", "primary", "confidence", "warmup_units", "max_tokens", "max_latency_s")
    kept: dict[str, Any] = {field: getattr(written, field) for field in same}
    return RunningExperiment(
        name=name,
        run=run,
        slots=slots,
        arms=tuple(find_arm(arm, table) for arm, table in written.arms.items()),
        control=control_of(written),
        margins=tuple(sorted(written.margins.items())),
        **kept,
    )


def control_of(written: Written) -> str:
    """The arm that the others are compared with: as written, else the full run, else the first; it has a weight."""
    drawn = {name: arm for name, arm in written.arms.items() if arm.weight}
    full = next((name for name, arm in drawn.items() if arm.full), None)
    return written.control or full or next(iter(drawn))


def same_question(one: RunningExperiment, other: RunningExperiment) -> bool:
    """Do two definitions differ in weights and shares alone, so that what was seen under one counts for both?"""
    return _without_weights(one) == _without_weights(other)


def allot(share: float, *, own: Slots = (), taken: Mapping[str, Slots]) -> Slots:
    """Slots for a share of a layer. Who owned some keeps them while the share grows, so a ramp only adds units.

    share  in (0, 1]

    Raises ConfigError where the layer has no room for it.
    """
    wanted = max(1, round(share * N_SLOTS))
    mine = [slot for first, behind in own for slot in range(first, behind)]
    others = {slot for slots in taken.values() for first, behind in slots for slot in range(first, behind)}
    free = [slot for slot in range(N_SLOTS) if slot not in others and slot not in set(mine)]
    if wanted > len(mine) + len(free):
        owners = ", ".join(f"{name} {n_slots(slots) / N_SLOTS:.1%}" for name, slots in sorted(taken.items()))
        raise ConfigError(
            f"share: got {share:g}; the layer has {(len(mine) + len(free)) / N_SLOTS:.1%} left beside {owners}"
        )
    return _ranges(sorted([*mine, *free][:wanted]))


def n_slots(slots: Slots) -> int:
    return sum(behind - first for first, behind in slots)


def _ranges(slots: list[int]) -> Slots:
    ranges: list[tuple[int, int]] = []
    for slot in slots:
        if ranges and ranges[-1][1] == slot:
            ranges[-1] = (ranges[-1][0], slot + 1)
        else:
            ranges.append((slot, slot + 1))
    return tuple(ranges)


def find_arm(name: str, table: ExperimentArm) -> Arm:
    policy = json.dumps(table.policy, sort_keys=True, separators=(",", ":")) if table.policy else ""
    return Arm(**(msgspec.structs.asdict(table) | {"name": name, "policy": policy}))


def _without_weights(one: RunningExperiment) -> dict[str, object]:
    plain = msgspec.to_builtins(one)
    for arm in plain["arms"]:
        del arm["weight"]
    return {key: value for key, value in plain.items() if key not in ("slots", "run")}

"""Experiments: a keyed hash assigns units to arms, the same on every machine and for every retry.

A layer has a thousand slots on each route, of which an experiment owns some: experiments of one layer exclude each
other where they share a route, and layers are independent, because each layer and experiment has its own salt. Arms are
assigned by weighted rendezvous hashing: raising one weight moves units into that arm only, and no change of weights
moves more than 2d / (1 + d) of the units, where d is the part that must move (Bavarian et al. 2020, arXiv:1612.01041:
optimal for a stateless assignment).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import log
from typing import Any, Final, TypeAlias

import msgspec

from suffice.errors import ConfigError
from suffice.rollout.assign import joined, keyed, point_of
from suffice.settings import Effort, ExperimentArm, ExperimentUnit, Route
from suffice.settings import Experiment as Written
from suffice.types import ArmDraw

N_SLOTS: Final = 1_000  # of a layer: the smallest share is 1/1000

Slots = tuple[tuple[int, int], ...]  # (first, one past the last), ascending


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    name: str
    weight: float  # relative to the other arms', at least 0
    full: bool = False  # never stops, and sends no effort or budget
    policy: str = ""  # JSON of a policy, as settings write it; "": the route's own
    threshold: float | None = None  # in place of the one of the route's own policy
    level: int | None = None  # the highest level used of the certified ones; 0 never stops
    effort: Effort | None = None  # sent with the call
    budget_tokens: int | None = None  # of reasoning, enforced by the engine
    uncertified: bool = False  # let its own policy act without a certificate


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningExperiment:
    name: str
    run: int  # of this name; 1 is the first
    routes: tuple[str, ...]
    unit: ExperimentUnit
    layer: str
    slots: Slots  # of the layer's thousand
    arms: tuple[Arm, ...]
    control: str  # the arm that others are compared with
    primary: str  # the metric that decides
    margins: tuple[tuple[str, float], ...] = ()  # metric: acceptable loss against the control, in its unit
    confidence: float = 0.95  # of all comparisons together
    warmup_units: int = 100  # first units, which do not count
    planned_units: int = 0  # at which intervals are tightest; 0: it was started before plans existed
    max_tokens: float | None = None  # a larger value counts as this; None: learned from the warm-up
    max_latency_s: float | None = None
    end_when_worse: bool = False  # the worker ends it once an arm is proved worse than the control
    days: float | None = None  # after which the worker ends it; None: never
    hypothesis: str = ""  # what its author expects

    @property
    def share(self) -> float:
        return n_slots(self.slots) / N_SLOTS

    def owns(self, slot: int) -> bool:
        return any(first <= slot < behind for first, behind in self.slots)

    def arm(self, name: str) -> Arm:
        return {arm.name: arm for arm in self.arms}[name]

    def odds(self) -> dict[str, float]:
        total = sum(arm.weight for arm in self.arms)
        return {arm.name: arm.weight / total for arm in self.arms}


Units: TypeAlias = Mapping[ExperimentUnit, str | None]  # the name of each kind of unit; None: the request has none


def units_of(
    sender: str,
    *,
    request: str,
    conversation: str | None = None,
    user: str | None = None,
    tenant: str | None = None,
    key_tenant: str = "",
) -> Units:
    """Return the units of a request; names that a client chose are scoped to its sender (`sender_key`, or "").

    request     the name that retries share
    key_tenant  of the sender's key, for requests that name no tenant of their own
    """

    def own(name: str | None) -> str | None:
        return (joined(sender, name) if sender and name else name) or None

    return {
        "request": request,
        "conversation": own(conversation) or request,
        "user": own(user),
        "tenant": own(tenant) or key_tenant or sender or None,
    }


def draw_arms(running: Iterable[RunningExperiment], *, route: str, units: Units, salt: str) -> tuple[ArmDraw, ...]:
    """Assign the arms of one request, at most one per layer; with equal weights, equal units get equal arms."""
    drawing = ((one, units[one.unit]) for one in running if route in one.routes)
    return tuple(
        draw_arm(one, unit, salt=salt)
        for one, unit in drawing
        if unit is not None and one.owns(slot_of(unit, layer=one.layer, salt=salt))
    )


def slot_of(unit: str, *, layer: str, salt: str) -> int:
    return int(point_of(unit, salt=f"{salt}/layer/{layer}", purpose=b"layer-slot") * N_SLOTS)


def draw_arm(one: RunningExperiment, unit: str, *, salt: str) -> ArmDraw:
    """Assign the arm of a participating unit. An experiment that is started again assigns anew."""
    assignment = f"experiment/{one.layer}/{one.name}/{one.run}"
    return draw_by_odds(one.odds(), unit, experiment=one.name, run=one.run, assignment=assignment, salt=salt)


def draw_by_odds(
    odds: Mapping[str, float], unit: str, *, experiment: str, run: int, assignment: str, salt: str
) -> ArmDraw:
    """Draw one of the arms. Draws of different assignments are independent."""
    own_salt = f"{salt}/{assignment}"
    # By the arm's name, not its position: an added arm moves units into itself only.
    race = {
        name: -log(1.0 - point_of(f"{name}/{unit}", salt=own_salt, purpose=b"arm")) / share
        for name, share in odds.items()
        if share > 0
    }
    arm = min(race, key=race.__getitem__)
    return ArmDraw(
        experiment=experiment,
        run=run,
        arm=arm,
        propensity=odds[arm],
        others=tuple((name, share) for name, share in odds.items() if name != arm),
        unit=keyed(unit, salt=salt, purpose=b"experiment-unit", n_bytes=8).hex(),
    )


def with_arm(route: Route, arm: Arm) -> Route:
    """Return the route as an arm serves it; the caller applies its `level`. A full run is a route in `observe`."""
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
    table: Mapping[str, object] = json.loads(written)
    return table


# --------------------------------------------------------------------------- from the settings


def define(name: str, written: Written, *, run: int, slots: Slots) -> RunningExperiment:
    design = ("routes", "unit", "layer", "primary", "confidence", "warmup_units", "planned_units")
    ends = ("max_tokens", "max_latency_s", "end_when_worse", "days", "hypothesis")
    kept: dict[str, Any] = {field: getattr(written, field) for field in (*design, *ends)}
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
    """Return the control arm: as configured, else the full run, else the first; it has a weight."""
    drawn = {name: arm for name, arm in written.arms.items() if arm.weight}
    full = next((name for name, arm in drawn.items() if arm.full), None)
    return written.control or full or next(iter(drawn))


def same_question(one: RunningExperiment, other: RunningExperiment) -> bool:
    """Return whether two definitions differ in weights and shares only, so that their data can be combined."""
    return _without_weights(one) == _without_weights(other)


def exclude_each_other(one: RunningExperiment | Written, other: RunningExperiment | Written) -> bool:
    """Return whether two experiments share slots: they are in one layer and have a route in common."""
    return one.layer == other.layer and not set(one.routes).isdisjoint(other.routes)


def allot(share: float, *, own: Slots = (), taken: Mapping[str, Slots]) -> Slots:
    """Allocate slots for a share of a layer, in (0, 1]; a growing share keeps its own. Raises ConfigError if full."""
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

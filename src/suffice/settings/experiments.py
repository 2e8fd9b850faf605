"""What the types of an experiment cannot say: arms that exclude each other, metrics that nobody knows, layers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import isfinite
from typing import Final

from suffice.errors import ConfigError
from suffice.settings.tables import Experiment, ExperimentArm, Metric, Route

BUILT_IN: Final = ("em", "satisfaction", "latency", "tokens")  # metrics that every route has
LEAST_WARMUP: Final = 20  # units: a cap that is learnt from fewer cuts many runs
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


def check_experiments(
    experiments: Mapping[str, Experiment], routes: Mapping[str, Route], metrics: Mapping[str, Metric]
) -> None:
    """Raises ConfigError with the path of what cannot be."""
    layers: dict[str, tuple[str, str]] = {}
    known = (*BUILT_IN, *(name for name, metric in metrics.items() if metric.type != "category"))
    for name, one in experiments.items():
        where = f"experiments.{name}"
        _check_name("experiments", name)
        _check_name(f"{where}.layer", one.layer)
        _check_routes(where, one, routes)
        _check_numbers(where, one)
        _check_metrics(where, one, known)
        _check_arms(where, one, [routes[route] for route in one.routes])
        first, unit = layers.setdefault(one.layer, (name, one.unit))
        if unit != one.unit:
            raise ConfigError(
                f"{where}.unit: got {one.unit!r}; experiments of one layer exclude each other, so all have one unit,"
                f" and experiments.{first} in layer {one.layer!r} has {unit!r}; write another layer"
            )


def _check_name(where: str, name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{where}: got {name[:80]!r}; a name is 1 to 64 letters, digits, '_', '.' and '-'")


def _check_routes(where: str, one: Experiment, routes: Mapping[str, Route]) -> None:
    if not one.routes:
        raise ConfigError(f"{where}.routes: is empty; name at least one route")
    for route in one.routes:
        if route not in routes:
            known = ", ".join(sorted(routes)) or "none is configured"
            raise ConfigError(f"{where}.routes: unknown route {route!r}; known: {known}")


def _check_numbers(where: str, one: Experiment) -> None:
    if not 0.001 <= one.share <= 1:
        raise ConfigError(f"{where}.share: got {one.share}; a fraction from 0.001 to 1")
    if not 0.5 < one.confidence < 1:
        raise ConfigError(f"{where}.confidence: got {one.confidence}; a fraction above 0.5 and below 1")
    if one.warmup_units < LEAST_WARMUP:
        raise ConfigError(f"{where}.warmup_units: got {one.warmup_units}; at least {LEAST_WARMUP}")
    for field in ("max_tokens", "max_latency_s"):
        value = getattr(one, field)
        if value is not None and not (isfinite(value) and value > 0):
            raise ConfigError(f"{where}.{field}: got {value}; more than 0")


def _check_metrics(where: str, one: Experiment, known: tuple[str, ...]) -> None:
    for place, metric in (("primary", one.primary), *((f"margins.{name}", name) for name in one.margins)):
        if metric not in known:
            raise ConfigError(f"{where}.{place}: unknown metric {metric!r}; known: {', '.join(known)}")
    for metric, margin in one.margins.items():
        if not (isfinite(margin) and margin >= 0):
            raise ConfigError(f"{where}.margins.{metric}: got {margin}; at least 0, in the metric's own unit")


def _check_arms(where: str, one: Experiment, routes: list[Route]) -> None:
    for name, arm in one.arms.items():
        _check_name(f"{where}.arms", name)
        _check_arm(f"{where}.arms.{name}", arm, routes)
    if sum(arm.weight > 0 for arm in one.arms.values()) < 2:
        raise ConfigError(f"{where}.arms: need at least two arms with a weight above 0")
    control = one.arms.get(one.control)
    if one.control and control is None:
        raise ConfigError(f"{where}.control: unknown arm {one.control!r}; known: {', '.join(one.arms)}")
    if control is not None and not control.weight:
        raise ConfigError(f"{where}.control: arm {one.control!r} has no weight, so nothing can be compared with it")


def _check_arm(where: str, arm: ExperimentArm, routes: list[Route]) -> None:
    if not (isfinite(arm.weight) and arm.weight >= 0):
        raise ConfigError(f"{where}.weight: got {arm.weight}; at least 0")
    own = [name for name in ("policy", "threshold", "level") if getattr(arm, name) not in ({}, None)]
    ahead = [name for name in ("effort", "budget_tokens") if getattr(arm, name) is not None]
    if arm.full and (own or ahead or arm.uncertified):
        raise ConfigError(f"{where}: full = true is the full run, which goes with nothing but a weight")
    for names in (own, ahead):
        if len(names) > 1:
            raise ConfigError(f"{where}: {' and '.join(names)} exclude each other; write one of them")
    for name in ("level", "budget_tokens"):
        if (getattr(arm, name) or 0) < 0:
            raise ConfigError(f"{where}.{name}: got {getattr(arm, name)}; at least 0")
    _check_fit(where, arm, routes, own, ahead)


def _check_fit(where: str, arm: ExperimentArm, routes: list[Route], own: list[str], ahead: list[str]) -> None:
    if arm.threshold is not None and not all("policy" in route.policy for route in routes):
        raise ConfigError(f"{where}.threshold: needs routes with a policy of their own, whose threshold it replaces")
    if arm.level is not None and any(route.policy for route in routes):
        raise ConfigError(f"{where}.level: needs routes without a policy of their own: what is certified has levels")
    if ahead and any(route.kind != "reasoning" for route in routes):
        raise ConfigError(f"{where}.{ahead[0]}: belongs to routes of kind 'reasoning'")
    if {"policy", "threshold"} & set(own) and not (arm.uncertified or all(route.uncertified for route in routes)):
        raise ConfigError(
            f"{where}.{own[0]}: nobody has certified it, so it stops nothing; write uncertified = true to let it act"
        )

"""The table of policies, and conversion between configuration and policy. To add one, add a file here."""

from __future__ import annotations

import hashlib
import importlib
import json
import pkgutil
from collections.abc import Mapping
from typing import Any

from msgspec import to_builtins

import suffice.policy
from suffice.errors import ConfigError, name_hint, shorten
from suffice.model.artefact import StopModel
from suffice.policy.columns import Columns, Stops, stops_of
from suffice.policy.parameters import Item, Parameter, ParameterChecks, Value, parameters_of
from suffice.policy.protocol import Policy

__all__ = ["POLICIES", "Columns", "Policy", "Stops", "build_policy", "describe", "stops_of", "version_of"]


def _declared_policies() -> dict[str, type[Policy]]:
    names = [f"{suffice.policy.__name__}.{module.name}" for module in pkgutil.iter_modules(suffice.policy.__path__)]
    modules = [importlib.import_module(name) for name in names if name != __name__]
    classes = [one for module in modules for one in vars(module).values() if isinstance(one, type)]
    declared: list[Any] = [one for one in classes if issubclass(one, ParameterChecks) and hasattr(one, "name")]
    return {one.name: one for one in declared}


POLICIES: dict[str, type[Policy]] = _declared_policies()  # other packages add theirs, see `suffice.plugins`

_MAX_DEPTH = 8  # of nested policies


def build_policy(spec: Mapping[str, Any]) -> Policy:
    """Build a policy from `{"policy": name, **parameters}`; an empty mapping is `never`.

    A nested policy is written as such a mapping. Raise ConfigError, and nothing else, for an unknown name or parameter
    (with the nearest known one), a missing parameter, and a value of the wrong type or out of range.
    """
    return _build("policy", spec, _MAX_DEPTH)


def version_of(policy: Policy) -> str:
    """The content address of a policy, such as `p-1a2b3c4d5e6f`: equal policies have equal versions.

    48 bits of BLAKE2b over the canonical JSON of `describe`, without `Later` parameters at their default and with the
    address in place of a learned model.
    """
    written = describe(policy, in_full=False)
    canonical = json.dumps(written, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return f"p-{hashlib.blake2b(canonical.encode(), digest_size=6).hexdigest()}"


def _build(where: str, spec: object, depth: int) -> Policy:
    if not isinstance(spec, Mapping):
        raise ConfigError(f"{where}: must be a table, got {type(spec).__name__}")
    if depth == 0:
        raise ConfigError(f"{where[:80]}…: policies inside policies are at most {_MAX_DEPTH} deep")
    given = dict(spec)
    name = given.pop("policy", None if given else "never")
    if not isinstance(name, str) or name not in POLICIES:
        raise ConfigError(f"{where}: unknown name {shorten(name)}; {name_hint(name, POLICIES)}")
    policy, where = POLICIES[name], f"{where}.{name}"
    declared = {parameter.name: parameter for parameter in parameters_of(policy)}
    for key in given:
        if key not in declared:
            raise ConfigError(f"{where}: unknown parameter {shorten(key)}; {name_hint(key, declared)}")
    return policy(**{name: _read(parameter, where, given, depth) for name, parameter in declared.items()})


def _read(parameter: Parameter, where: str, given: Mapping[str, object], depth: int) -> Any:
    if parameter.name in given:
        return parameter.read(where, given[parameter.name], lambda at, spec: _build(at, spec, depth - 1))
    if parameter.required:
        raise ConfigError(f"{where}.{parameter.name}: missing; {parameter.allowed()}")
    return parameter.default


def describe(policy: Policy, *, in_full: bool = True) -> dict[str, Any]:
    """The mapping from which `build_policy` builds an equal policy. Raise ConfigError for an unknown class.

    in_full  write out every parameter and model; otherwise write what `version_of` hashes
    """
    name = getattr(policy, "name", None)
    if not isinstance(name, str) or POLICIES.get(name) is not type(policy):
        raise ConfigError(f"policy: {type(policy).__name__} is unknown; known: {', '.join(sorted(POLICIES))}")
    written: dict[str, Any] = {"policy": name}
    for parameter in parameters_of(type(policy)):
        value = getattr(policy, parameter.name)
        if in_full or not (parameter.later and value == parameter.default):
            written[parameter.name] = _plain(value, in_full=in_full)
    return written


def _plain(value: Value | tuple[Item, ...], *, in_full: bool) -> Any:
    if isinstance(value, tuple):
        return [_plain(item, in_full=in_full) for item in value]
    if isinstance(value, StopModel):
        return to_builtins(value) if in_full else value.address
    return value if isinstance(value, (bool, int, float, str)) else describe(value, in_full=in_full)

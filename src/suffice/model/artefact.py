"""Stop models as bytes: written canonically, read with suspicion.

A file is data and never anything else: numbers and texts in tables, each checked against what may stand at its
place. What is wrong is a ConfigError that names the place. Feature names are looked up by
`signals.features`, which the policy asks before it serves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from suffice.errors import ConfigError
from suffice.model.calibration import Isotonic
from suffice.model.ensemble import Ensemble, ModelPart
from suffice.model.linear import Linear
from suffice.model.reading import ModelTable, at, describe_value, parse_json
from suffice.model.stop import SCHEMA, StepCost, StopModel, TrainingRecord, canonical
from suffice.model.trees import Tree, Trees

__all__ = ["StepCost", "StopModel", "TrainingRecord", "dump_model", "load_model"]


def dump_model(model: StopModel) -> bytes:
    """The model as canonical JSON; `load_model` gives an equal one with the same address."""
    return canonical(model.plain())


def load_model(source: bytes | Mapping[str, Any], *, where: str = "model") -> StopModel:
    """The model that was written, checked in every number.

    source  canonical or any other JSON, or what it says as a mapping
    where   it stands, for errors

    Raises ConfigError: for what is no such JSON, another schema, a key that is missing, unknown or given twice,
    a number that is not finite or out of its range, a tree that is none, and for what is too large.
    """
    table = ModelTable(where, parse_json(where, source) if isinstance(source, bytes) else source)
    schema = table.take("schema")
    if type(schema) is not int or schema != SCHEMA:
        raise ConfigError(f"{where}.schema: got {describe_value(schema)}; this version reads {SCHEMA}")
    hopeless = table.table_or_none("hopeless")
    read: dict[str, Any] = {
        "features": table.texts("features"),
        "suffices": _ensemble(table.table("suffices")),
        "hopeless": None if hopeless is None else _ensemble(hopeless),
        "classes": table.table("classes").pairs(),
        "found": table.items("found") if "found" in table.content else (),
        "cost": _cost(table.table("cost")),
        "trained": _trained(table.table("trained")),
    }
    table.done()
    with at(where):
        return StopModel(**read)


def _ensemble(table: ModelTable) -> Ensemble:
    parts = tuple(_part(part) for part in table.tables("parts"))
    curve = table.table_or_none("calibration")
    calibration = None if curve is None else _isotonic(curve)
    table.done()
    with at(table.where):
        return Ensemble(parts, calibration)


def _isotonic(table: ModelTable) -> Isotonic:
    scores, probabilities = table.items("scores"), table.items("probabilities")
    table.done()
    with at(table.where):
        return Isotonic(scores, probabilities)


def _part(table: ModelTable) -> ModelPart:
    kind = table.text("kind")
    if kind not in _PARTS:
        raise ConfigError(f"{table.where}.kind: got {kind!r:.60}; one of {', '.join(_PARTS)}")
    return _PARTS[kind](table)


def _linear(table: ModelTable) -> Linear:
    weights, intercept = table.items("weights"), table.take("intercept")
    table.done()
    with at(table.where):
        return Linear(weights, intercept)


def _trees(table: ModelTable) -> Trees:
    baseline, trees = table.take("baseline"), tuple(_tree(tree) for tree in table.tables("trees"))
    table.done()
    with at(table.where):
        return Trees(baseline, trees)


def _tree(table: ModelTable) -> Tree:
    feature, threshold = table.items("feature"), table.items("threshold")
    left, right, value = table.items("left"), table.items("right"), table.items("value")
    table.done()
    with at(table.where):
        return Tree(feature, threshold, left, right, value)


_PARTS: Final[Mapping[str, Callable[[ModelTable], ModelPart]]] = {"linear": _linear, "trees": _trees}


def _cost(table: ModelTable) -> StepCost:
    exponent, scale = table.take("exponent"), table.take("scale")
    table.done()
    with at(table.where):
        return StepCost(exponent, scale)


def _trained(table: ModelTable) -> TrainingRecord:
    read: dict[str, Any] = {name: table.take(name) for name in ("n_episodes", "n_questions", "seed")}
    read |= {name: table.text(name) for name in ("digest", "target")}
    versions = table.table("versions")
    read["versions"] = tuple((package, versions.text(package)) for package in list(versions.content))
    table.done()
    with at(table.where):
        return TrainingRecord(**read)

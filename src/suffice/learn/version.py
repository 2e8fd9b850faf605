"""A version: stop models as plain data with their levels. Its address is a hash of its content."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np

from suffice.errors import ConfigError
from suffice.learn.audits import AuditRuns
from suffice.learn.groups import prompt_fold
from suffice.learn.served import FoldedModels
from suffice.model.artefact import MOST_RISK, StopModel, canonical, load_model
from suffice.model.reading import describe_value, numbers, parse_json
from suffice.signals.features import FeatureSet

SCHEMA: Final = 1
MOST_FOLDS: Final = 20
_LOST: Final = 0.5  # P(fails) from which a run is hopeless and a stop needs no answer (`policy.learned`)


@dataclass(frozen=True, slots=True, kw_only=True)
class FoldedVersion:
    """K models with their levels; models[f] serves fold f of the prompts (`groups.prompt_fold`)."""

    models: tuple[StopModel, ...]  # each fitted on the other folds; all of the same features and cost
    levels: tuple[tuple[float, ...], ...]  # by fold: risks of levels 1, 2 …, rising; level 0 never stops
    values: tuple[StopModel, ...] | None = None  # at one price each, threshold 0.5; None: too few labels
    address: str = field(init=False, compare=False, repr=False)  # `v-` and twelve hexadecimal digits of the content

    def __post_init__(self) -> None:
        n = len(self.models)
        if not 1 <= n <= MOST_FOLDS or len(self.levels) != n or (self.values is not None and len(self.values) != n):
            raise ConfigError(f"version: got {n} models and {len(self.levels)} ladders; one each, 1 to {MOST_FOLDS}")
        if len({(model.features, model.cost) for model in self.models}) != 1:
            raise ConfigError("version.models: must all read the same features and weigh cost alike")
        if len({len(levels) for levels in self.levels}) != 1 or not self.levels[0]:
            raise ConfigError("version.levels: must be as many for each fold, and at least one")
        checked = []
        for f, levels in enumerate(self.levels):
            checked.append(numbers(f"version.levels[{f}]", levels, least=0.0, most=MOST_RISK))
            if list(checked[f]) != sorted(checked[f]):
                raise ConfigError(f"version.levels[{f}]: must rise, safe first")
        object.__setattr__(self, "levels", tuple(checked))
        digest = hashlib.blake2b(canonical(self.plain()), digest_size=6).hexdigest()
        object.__setattr__(self, "address", f"v-{digest}")

    @property
    def n_levels(self) -> int:
        return len(self.levels[0]) + 1

    def plain(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "models": [model.plain() for model in self.models],
            "levels": [list(levels) for levels in self.levels],
            "values": None if self.values is None else [model.plain() for model in self.values],
        }

    def policy(self, key: str, level: int) -> dict[str, Any]:
        """Spec for `build_policy` that serves a `Request.question_key`. Raise IndexError for a level out of range."""
        if not 0 <= level < self.n_levels:
            raise IndexError(f"level: got {level}; 0 to {self.n_levels - 1}")
        if level == 0:
            return {"policy": "never"}
        fold = prompt_fold(key, len(self.models))
        threshold = self.levels[fold][level - 1]
        return {"policy": "learned", "model": self.models[fold], "threshold": threshold, "on_hopeless": "stop"}


def fold_version(version: FoldedVersion) -> FoldedModels:
    """The version as it serves and is certified; feature rows must be in the order of its models' features."""
    levels = np.array(version.levels, dtype=np.float64)
    cost = version.models[0].cost
    return FoldedModels(
        models=tuple(model.suffices.scores for model in version.models),
        levels=np.concatenate([np.full((len(levels), 1), -np.inf), levels / cost.scale], axis=1),
        cost_exponent=cost.exponent,
    )


def as_served(runs: AuditRuns, version: FoldedVersion) -> AuditRuns:
    """The runs with `may_stop` extended to rows that the version calls hopeless, which need no answer."""
    lost = np.zeros(len(runs.x), dtype=bool)
    fold = runs.fold[runs.run_of_row]
    for f, model in enumerate(version.models):
        if model.hopeless is not None:
            rows = np.flatnonzero((fold == f) & ~runs.may_stop)
            lost[rows] = model.hopeless.scores(runs.x[rows]) >= _LOST
    return replace(runs, may_stop=runs.may_stop | lost)


def load_version(plain: Mapping[str, Any]) -> FoldedVersion:
    """Raise ConfigError with the place of any invalid value."""
    if plain.get("schema") != SCHEMA:
        raise ConfigError(f"version.schema: got {describe_value(plain.get('schema'))}; this one reads {SCHEMA}")
    unknown = set(plain) - {"schema", "models", "levels", "values"}
    if unknown:
        raise ConfigError(f"version.{min(unknown):.60}: unknown; schema, models, levels, values")
    each: dict[str, list[Any]] = {}  # Any: unchecked
    for name in ("models", "levels", "values"):
        value = plain.get(name)
        if name == "values" and value is None:
            continue
        if not isinstance(value, list) or not 1 <= len(value) <= MOST_FOLDS:
            got, allowed = describe_value(value), f"a list of 1 to {MOST_FOLDS}, one for each fold"
            raise ConfigError(f"version.{name}: got {got}; {allowed}")
        each[name] = value
    if not all(isinstance(one, list) for one in each["levels"]):
        raise ConfigError("version.levels: must be lists of numbers, one for each fold")
    models, values = (
        tuple(load_model(one, where=f"version.{name}[{f}]") for f, one in enumerate(each.get(name, ())))
        for name in ("models", "values")
    )
    levels = tuple(tuple(one) for one in each["levels"])
    version = FoldedVersion(models=models, levels=levels, values=values or None)
    FeatureSet(models[0].features, where="version.models[0].features")
    return version


def read_version(address: str, body: str | None) -> FoldedVersion:
    """Raise ConfigError if it is missing, invalid or has another address."""
    if body is None:
        raise ConfigError(f"version {address}: cannot be read, it is not kept in this log")
    try:
        plain = parse_json(f"version {address}", body.encode("utf-8", "surrogatepass"))
    except ConfigError:
        plain = None
    if not isinstance(plain, dict):
        raise ConfigError(f"version {address}: what is kept under it is no version")
    version = load_version(plain)
    if version.address != address:
        raise ConfigError(f"version {address}: what is kept under it is {version.address}")
    return version

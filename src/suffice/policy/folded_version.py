"""A version: stop models as plain data with their levels, fitted on folds. Its address is a hash of its content.

models[f], fitted on the other folds, serves and judges fold f. A hash of the unit assigns every request, audit or not,
to a fold, so the certified models are the served ones. Levels run from 0, which never stops, to the most aggressive.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any, Final

from suffice.errors import ConfigError
from suffice.model.artefact import MOST_RISK, StopModel, canonical, load_model
from suffice.model.reading import ModelTable, numbers, parse_json
from suffice.signals.features import FeatureSet

SCHEMA: Final = 1
MOST_FOLDS: Final = 20


def place_of(key: str, *, purpose: str) -> float:
    """A hash in [0, 1), independent for each purpose."""
    # Invalid Unicode needs a place, too.
    digest = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), person=purpose.encode()[:16], digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53  # a float holds 53 bits


def prompt_fold(key: str, n_folds: int) -> int:
    return int(place_of(key, purpose="fold") * n_folds)


@dataclass(frozen=True, slots=True, kw_only=True)
class FoldedVersion:
    """K models with their levels; models[f] serves fold f of the prompts (`prompt_fold`)."""

    models: tuple[StopModel, ...]  # each fitted on the other folds; all of the same features and cost
    levels: tuple[tuple[float, ...], ...]  # by fold: risks of levels 1, 2 …, rising; level 0 never stops
    values: tuple[StopModel, ...] | None = None  # at one price each, threshold 0.5; None: too few labels
    address: str = field(init=False, compare=False, repr=False)  # `v-` and twelve hexadecimal digits of the content

    def __post_init__(self) -> None:
        n = len(self.models)
        if not 1 <= n <= MOST_FOLDS:
            raise ConfigError(f"models: got {n}; 1 to {MOST_FOLDS}, one for each fold")
        if self.values is not None and len(self.values) != n:
            raise ConfigError(f"values: got {len(self.values)}; one for each of {n} models, or none at all")
        if len({(model.features, model.cost) for model in self.models}) != 1:
            raise ConfigError("models: must all read the same features and weigh cost alike")
        checked = []
        for f, levels in enumerate(self.levels):
            checked.append(numbers(f"levels[{f}]", levels, least=0.0, most=MOST_RISK))
            if list(checked[f]) != sorted(checked[f]):
                raise ConfigError(f"levels[{f}]: must rise, safe first")
        if len(checked) != n or len({len(levels) for levels in checked}) != 1 or not checked[0]:
            raise ConfigError(f"levels: need a list of levels for each of {n} models, equally long and not empty")
        object.__setattr__(self, "levels", tuple(checked))
        digest = hashlib.blake2b(canonical(self.plain()), digest_size=6).hexdigest()
        object.__setattr__(self, "address", f"v-{digest}")

    @property
    def n_levels(self) -> int:
        return len(self.levels[0]) + 1

    @property
    def needs(self) -> tuple[str, ...]:
        """The folds of signals that a policy with these models needs."""
        needs = FeatureSet(self.models[0].features).needs
        reads_class = any(model.classes for model in self.models)
        return (*needs, "query") if reads_class and "query" not in needs else needs

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


def load_version(plain: object, *, where: str = "version") -> FoldedVersion:
    """Raise ConfigError with the place of any invalid value."""
    table = ModelTable(where, plain)
    table.check_schema(SCHEMA)
    models = _load_models(table, "models")
    values = None if table.take("values") is None else _load_models(table, "values")
    return table.build(FoldedVersion, "levels", models=models, values=values)


def _load_models(table: ModelTable, key: str) -> tuple[StopModel, ...]:
    models = []
    for f, plain in enumerate(table.items(key)):
        models.append(load_model(plain, where=f"{table.where}.{key}[{f}]"))
        FeatureSet(models[f].features, where=f"{table.where}.{key}[{f}].features")
    return tuple(models)


def read_version(address: str, body: str | None) -> FoldedVersion:
    """Raise ConfigError if it is missing, invalid or has another address."""
    if body is None:
        raise ConfigError(f"version {address}: cannot be read, it is not kept in this log")
    where = f"version {address}"
    version = load_version(parse_json(where, body.encode("utf-8", "surrogatepass")), where=where)
    if version.address != address:
        raise ConfigError(f"{where}: what is kept under it is {version.address}")
    return version

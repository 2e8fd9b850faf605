"""A version: stop models as plain data with their levels, fitted on folds. Its address is a hash of its content.

models[f], fitted on the other folds, serves and judges fold f. A hash of the unit assigns every request, audit or not,
to a fold, so the certified models are the served ones. Levels run from 0, which never stops, to the most aggressive.
"""

from __future__ import annotations

import hashlib
from functools import cached_property
from typing import Any, Final, Literal

from msgspec import Struct, to_builtins
from msgspec.structs import force_setattr

from suffice.errors import ConfigError
from suffice.model.artefact import MOST_RISK, StopModel, canonical
from suffice.model.reading import convert, numbers, parse_json
from suffice.signals.features import FeatureSet

MOST_FOLDS: Final = 20


def place_of(key: str, *, purpose: str) -> float:
    """A hash in [0, 1), independent for each purpose."""
    # Invalid Unicode needs a place, too.
    digest = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), person=purpose.encode()[:16], digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53  # a float holds 53 bits


def prompt_fold(key: str, n_folds: int) -> int:
    return int(place_of(key, purpose="fold") * n_folds)


class FoldedVersion(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, dict=True):
    """K models with their levels; models[f] serves fold f of the prompts (`prompt_fold`)."""

    schema: Literal[2] = 2
    models: tuple[StopModel, ...]  # each fitted on the other folds; all of the same features, cost and target
    levels: tuple[tuple[float, ...], ...]  # by fold: risks of levels 1, 2 …, rising; level 0 never stops

    def __post_init__(self) -> None:
        n = len(self.models)
        if not 1 <= n <= MOST_FOLDS:
            raise ConfigError(f"models: got {n}; 1 to {MOST_FOLDS}, one for each fold")
        if len({(model.features, model.cost, model.trained.target) for model in self.models}) != 1:
            raise ConfigError("models: must all read the same features, weigh cost alike and have the same target")
        checked = []
        for f, levels in enumerate(self.levels):
            checked.append(numbers(f"levels[{f}]", levels, least=0.0, most=MOST_RISK))
            if list(checked[f]) != sorted(checked[f]):
                raise ConfigError(f"levels[{f}]: must rise, safe first")
        if len(checked) != n or len({len(levels) for levels in checked}) != 1 or not checked[0]:
            raise ConfigError(f"levels: need a list of levels for each of {n} models, equally long and not empty")
        force_setattr(self, "levels", tuple(checked))

    @cached_property
    def address(self) -> str:
        """`v-` and twelve hexadecimal digits of the content."""
        return f"v-{hashlib.blake2b(canonical(self.plain()), digest_size=6).hexdigest()}"

    @property
    def n_levels(self) -> int:
        return len(self.levels[0]) + 1

    @property
    def target(self) -> str:
        """Of its score: "as-good", "value"."""
        return self.models[0].trained.target

    @property
    def needs(self) -> tuple[str, ...]:
        """The folds of signals that a policy with these models needs."""
        needs = FeatureSet(self.models[0].features).needs
        reads_class = any(model.classes for model in self.models)
        return (*needs, "query") if reads_class and "query" not in needs else needs

    def plain(self) -> dict[str, Any]:
        plain: dict[str, Any] = to_builtins(self)
        return plain

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
    version = convert(plain, FoldedVersion, where)
    for f, model in enumerate(version.models):
        FeatureSet(model.features, where=f"{where}.models[{f}].features")
    return version


def read_version(address: str, body: str | None) -> FoldedVersion:
    """Raise ConfigError if it is missing, invalid or has another address."""
    if body is None:
        raise ConfigError(f"version {address}: cannot be read, it is not kept in this log")
    where = f"version {address}"
    version = load_version(parse_json(where, body.encode("utf-8", "surrogatepass")), where=where)
    if version.address != address:
        raise ConfigError(f"{where}: what is kept under it is {version.address}")
    return version

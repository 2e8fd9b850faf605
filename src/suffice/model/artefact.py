"""Stop models as plain data: their content, their origin, and their address by content."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from suffice.errors import ConfigError
from suffice.model.ensemble import COLUMNS, Ensemble, Linear, ModelPart, Tree, Trees
from suffice.model.reading import (
    ModelTable,
    check_list,
    describe_value,
    exact_float,
    locate_errors,
    parse_json,
    parse_whole,
)

SCHEMA: Final = 2
MOST_FEATURES: Final = 20_000
MOST_CLASSES: Final = 1_000
MOST_RULES: Final = 64
MOST_TESTS: Final = 16  # of one rule
MOST_RISK: Final = 1_000.0
_MOST_COUNT: Final = 10**12
_PARTS: Final = ("linear", "trees")


@dataclass(frozen=True, slots=True)
class StepCost:
    """Cost of a further step, which divides the risk of a stop: tokens_per_step ** exponent / scale."""

    exponent: float = 0.0  # 0: every step costs 1 / scale; 1: proportional to its tokens
    scale: float = 1.0  # normalises the usual cost to about 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "exponent", exact_float("exponent", self.exponent, least=0.0, most=4.0))
        object.__setattr__(self, "scale", exact_float("scale", self.scale, least=1e-12, most=1e36))

    def of(self, tokens_per_step: float) -> float:
        return math.pow(max(1.0, tokens_per_step), self.exponent) / self.scale

    def of_many(self, tokens_per_step: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(np.maximum(1.0, tokens_per_step) ** self.exponent / self.scale)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRecord:
    n_episodes: int
    n_questions: int
    digest: str  # of the data, as defined by the fitting program
    target: str  # of the probability
    seed: int
    versions: tuple[tuple[str, str], ...] = ()  # package and version, sorted

    def __post_init__(self) -> None:
        for name in ("n_episodes", "n_questions", "seed"):
            parse_whole(name, getattr(self, name), least=0, most=_MOST_COUNT)
        object.__setattr__(self, "versions", tuple(sorted(self.versions)))


@dataclass(frozen=True, slots=True, kw_only=True)
class StopModel:
    """P(stopping now is as good as the full run), and optionally P(the full run fails), from a row of features."""

    features: tuple[str, ...]  # names for `signals.features`, in the order of a row
    suffices: Ensemble
    trained: TrainingRecord
    hopeless: Ensemble | None = None  # None: not learned
    classes: tuple[tuple[str, float], ...] = ()  # thresholds that replace the policy's, by query class, sorted
    # Rules for a query's class; the first match counts; a test is (feature, above, value). (): the declared class.
    class_rules: tuple[tuple[tuple[str, bool, float], ...], ...] = ()
    cost: StepCost = StepCost()  # divides the risk of a step
    address: str = field(init=False, compare=False, repr=False)  # `m-` and twelve hexadecimal digits of the content

    def __post_init__(self) -> None:
        if not 0 < len(self.features) <= MOST_FEATURES:
            raise ConfigError(f"features: got {len(self.features):,}; 1 to {MOST_FEATURES:,}")
        for name, ensemble in (("suffices", self.suffices), ("hopeless", self.hopeless)):
            if ensemble is not None:
                with locate_errors(name):
                    ensemble.check(len(self.features))
        if len(dict(self.classes)) != len(self.classes) or len(self.classes) > MOST_CLASSES:
            raise ConfigError(f"classes: got {len(self.classes):,}; at most {MOST_CLASSES:,}, each once")
        risks = {
            name: exact_float(f"classes.{name:.60}", risk, least=0.0, most=MOST_RISK) for name, risk in self.classes
        }
        rules = check_list("class_rules", self.class_rules)
        if len(rules) > MOST_RULES:
            raise ConfigError(f"class_rules: got {len(rules):,} rules; at most {MOST_RULES}")
        object.__setattr__(self, "classes", tuple(sorted(risks.items())))
        object.__setattr__(
            self, "class_rules", tuple(_tests(f"class_rules[{i}]", rule) for i, rule in enumerate(rules))
        )
        digest = hashlib.blake2b(canonical(self.plain()), digest_size=6).hexdigest()
        object.__setattr__(self, "address", f"m-{digest}")

    def plain(self) -> dict[str, Any]:
        class_rules = (
            {"class_rules": [[list(test) for test in rule] for rule in self.class_rules]} if self.class_rules else {}
        )
        return class_rules | {
            "schema": SCHEMA,
            "features": list(self.features),
            "suffices": self.suffices.plain(),
            "hopeless": None if self.hopeless is None else self.hopeless.plain(),
            "classes": dict(self.classes),
            "cost": asdict(self.cost),
            "trained": asdict(self.trained) | {"versions": dict(self.trained.versions)},
        }


def _tests(where: str, rule: Sequence[object]) -> tuple[tuple[str, bool, float], ...]:
    if not isinstance(rule, (list, tuple)) or len(rule) > MOST_TESTS:
        raise ConfigError(f"{where}: got {describe_value(rule)}; a list of at most {MOST_TESTS} tests")
    tests = []
    for i, test in enumerate(rule):
        fits = isinstance(test, (list, tuple)) and len(test) == 3
        if not fits or not isinstance(test[0], str) or not isinstance(test[1], bool):
            raise ConfigError(f"{where}[{i}]: got {describe_value(test)}; [feature, above, value]")
        tests.append((test[0], test[1], exact_float(f"{where}[{i}][2]", test[2])))
    return tuple(tests)


def canonical(plain: Mapping[str, Any]) -> bytes:
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def dump_model(model: StopModel) -> bytes:
    return canonical(model.plain())


def load_model(source: object, *, where: str = "model") -> StopModel:
    """Raise ConfigError, with the place after `where`, for anything invalid, unknown, missing, duplicate or too big."""
    table = ModelTable(where, parse_json(where, source) if isinstance(source, bytes) else source)
    table.check_schema(SCHEMA)
    hopeless = table.table_or_none("hopeless")
    return table.build(
        StopModel,
        features=table.texts("features"),
        suffices=_ensemble(table.table("suffices")),
        hopeless=None if hopeless is None else _ensemble(hopeless),
        classes=table.table("classes").pairs(),
        class_rules=table.take("class_rules") if "class_rules" in table.content else (),
        cost=table.table("cost").build(StepCost, "exponent", "scale"),
        trained=_trained(table.table("trained")),
    )


def _ensemble(table: ModelTable) -> Ensemble:
    return table.build(Ensemble, parts=tuple(map(_part, table.tables("parts"))))


def _part(table: ModelTable) -> ModelPart:
    kind = table.text("kind")
    if kind not in _PARTS:
        raise ConfigError(f"{table.where}.kind: got {kind!r:.60}; one of {', '.join(_PARTS)}")
    if kind == "linear":
        return table.build(Linear, "weights", "intercept")
    return table.build(Trees, "baseline", trees=tuple(tree.build(Tree, *COLUMNS) for tree in table.tables("trees")))


def _trained(table: ModelTable) -> TrainingRecord:
    versions = table.table("versions")
    return table.build(
        TrainingRecord,
        *("n_episodes", "n_questions", "seed"),
        digest=table.text("digest"),
        target=table.text("target"),
        versions=tuple((package, versions.text(package)) for package in list(versions.content)),
    )

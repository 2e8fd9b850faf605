"""Stop models as plain data: their content, their origin, and their address by content."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from functools import cached_property
from typing import Any, Final, Literal

import numpy as np
from msgspec import Struct, to_builtins
from msgspec.structs import force_setattr
from numpy.typing import NDArray

from suffice.errors import ConfigError
from suffice.model.ensemble import Ensemble
from suffice.model.reading import Text, convert, exact_float, locate_errors, parse_json, parse_whole

MOST_FEATURES: Final = 20_000
MOST_CLASSES: Final = 1_000
MOST_RULES: Final = 64
MOST_TESTS: Final = 16  # of one rule
MOST_RISK: Final = 1_000.0
_MOST_COUNT: Final = 10**12


class StepCost(Struct, frozen=True, forbid_unknown_fields=True):
    """Cost of a further step, which divides the risk of a stop: tokens_per_step ** exponent / scale."""

    exponent: float = 0.0  # 0: every step costs 1 / scale; 1: proportional to its tokens
    scale: float = 1.0  # normalises the usual cost to about 1

    def __post_init__(self) -> None:
        force_setattr(self, "exponent", exact_float("exponent", self.exponent, least=0.0, most=4.0))
        force_setattr(self, "scale", exact_float("scale", self.scale, least=1e-12, most=1e36))

    def of(self, tokens_per_step: float) -> float:
        return math.pow(max(1.0, tokens_per_step), self.exponent) / self.scale

    def of_many(self, tokens_per_step: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(np.maximum(1.0, tokens_per_step) ** self.exponent / self.scale)


class TrainingRecord(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    n_episodes: int
    n_questions: int
    digest: Text  # of the data, as defined by the fitting program
    target: Text  # of the probability
    seed: int
    versions: tuple[tuple[Text, Text], ...] = ()  # package and version, sorted

    def __post_init__(self) -> None:
        for name in ("n_episodes", "n_questions", "seed"):
            parse_whole(name, getattr(self, name), least=0, most=_MOST_COUNT)
        force_setattr(self, "versions", tuple(sorted(self.versions)))


class StopModel(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, dict=True):
    """P(stopping now is as good as the full run), and optionally P(the full run fails), from a row of features."""

    schema: Literal[3] = 3
    features: tuple[Text, ...]  # names for `signals.features`, in the order of a row
    suffices: Ensemble
    trained: TrainingRecord
    hopeless: Ensemble | None = None  # None: not learned
    classes: tuple[tuple[Text, float], ...] = ()  # thresholds that replace the policy's, by query class, sorted
    # Rules for a query's class; the first match counts; a test is (feature, above, value). (): the declared class.
    class_rules: tuple[tuple[tuple[Text, bool, float], ...], ...] = ()
    cost: StepCost = StepCost()  # divides the risk of a step

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
        if len(self.class_rules) > MOST_RULES:
            raise ConfigError(f"class_rules: got {len(self.class_rules):,} rules; at most {MOST_RULES}")
        rules = tuple(_tests(f"class_rules[{i}]", rule) for i, rule in enumerate(self.class_rules))
        force_setattr(self, "classes", tuple(sorted(risks.items())))
        force_setattr(self, "class_rules", rules)

    @cached_property
    def address(self) -> str:
        """`m-` and twelve hexadecimal digits of the content."""
        return f"m-{hashlib.blake2b(dump_model(self), digest_size=6).hexdigest()}"


def _tests(where: str, rule: tuple[tuple[str, bool, float], ...]) -> tuple[tuple[str, bool, float], ...]:
    if len(rule) > MOST_TESTS:
        raise ConfigError(f"{where}: got {len(rule):,} tests; at most {MOST_TESTS}")
    return tuple(
        (feature, above, exact_float(f"{where}[{i}][2]", value)) for i, (feature, above, value) in enumerate(rule)
    )


def canonical(plain: Mapping[str, Any]) -> bytes:
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def dump_model(model: StopModel) -> bytes:
    return canonical(to_builtins(model))


def load_model(source: object, *, where: str = "model") -> StopModel:
    """Raise ConfigError, with the place after `where`, for anything invalid, unknown, missing, duplicate or too big."""
    return convert(parse_json(where, source) if isinstance(source, bytes) else source, StopModel, where)

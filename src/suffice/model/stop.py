"""A learned stop model as plain data: what is in it, what it came from, and its address by content.

Knows the parts and their shape; refuses to know how features are computed (`signals.features` reads their
names), how the model was fitted and what is done with its scores. How it is read back is `model.artefact`'s business.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from suffice.errors import ConfigError
from suffice.model.ensemble import Ensemble
from suffice.model.reading import describe_value, exact_float, parse_whole

SCHEMA: Final = 1
MOST_FEATURES: Final = 20_000
MOST_CLASSES: Final = 1_000
MOST_RULES: Final = 64
MOST_TESTS: Final = 16  # of one rule
MOST_RISK: Final = 1_000.0
_MOST_COUNT: Final = 10**12


@dataclass(frozen=True, slots=True)
class StepCost:
    """What a further step costs, so that cheap steps are not risked for: tokens_per_step ** exponent / scale."""

    exponent: float = 0.0  # 0: every step costs 1 / scale; 1: as many as its tokens
    scale: float = 1.0  # makes the usual cost about 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "exponent", exact_float("exponent", self.exponent, least=0.0, most=4.0))
        object.__setattr__(self, "scale", exact_float("scale", self.scale, least=1e-12, most=1e36))

    def of(self, tokens_per_step: float) -> float:
        """The cost at so many tokens a step; below one token a step, that of one."""
        return math.pow(max(1.0, tokens_per_step), self.exponent) / self.scale

    def of_many(self, tokens_per_step: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(np.maximum(1.0, tokens_per_step) ** self.exponent / self.scale)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRecord:
    """What a model came from."""

    n_episodes: int
    n_questions: int
    digest: str  # of the data, in the fitting program's own words
    target: str  # what the probability is of
    seed: int
    versions: tuple[tuple[str, str], ...] = ()  # package and version, sorted: what fitted it

    def __post_init__(self) -> None:
        for name in ("n_episodes", "n_questions", "seed"):
            parse_whole(name, getattr(self, name), least=0, most=_MOST_COUNT)
        object.__setattr__(self, "versions", tuple(sorted(self.versions)))


@dataclass(frozen=True, slots=True, kw_only=True)
class StopModel:
    """P(stopping now is as good as the full run), and perhaps P(the full run fails anyway), from a row of features.

    features    names, as `signals.features` reads them; the order of a row
    suffices    the first probability
    hopeless    the second; None: not learned
    classes     for a query class the threshold that replaces the policy's, sorted by class
    found       rules that say a query's class, the first that holds, as `signals.classes` reads them: of each its
                tests (feature, above, value); (): the class is the declared one
    cost        what the risk of a step is measured against
    address     `m-` and twelve hexadecimal digits of all of this: equal models, equal addresses, everywhere
    """

    features: tuple[str, ...]
    suffices: Ensemble
    trained: TrainingRecord
    hopeless: Ensemble | None = None
    classes: tuple[tuple[str, float], ...] = ()
    found: tuple[tuple[tuple[str, bool, float], ...], ...] = ()
    cost: StepCost = StepCost()
    address: str = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not 0 < len(self.features) <= MOST_FEATURES:
            raise ConfigError(f"features: got {len(self.features):,}; 1 to {MOST_FEATURES:,}")
        for name, ensemble in (("suffices", self.suffices), ("hopeless", self.hopeless)):
            if ensemble is not None:
                _within(name, ensemble, len(self.features))
        if len(dict(self.classes)) != len(self.classes) or len(self.classes) > MOST_CLASSES:
            raise ConfigError(f"classes: got {len(self.classes):,}; at most {MOST_CLASSES:,}, each once")
        risks = {
            name: exact_float(f"classes.{name:.60}", risk, least=0.0, most=MOST_RISK) for name, risk in self.classes
        }
        object.__setattr__(self, "classes", tuple(sorted(risks.items())))
        object.__setattr__(self, "found", _rules(self.found))
        digest = hashlib.blake2b(canonical(self.plain()), digest_size=6).hexdigest()
        object.__setattr__(self, "address", f"m-{digest}")

    def plain(self) -> dict[str, Any]:
        found = {"found": [[list(test) for test in rule] for rule in self.found]} if self.found else {}
        return found | {
            "schema": SCHEMA,
            "features": list(self.features),
            "suffices": self.suffices.plain(),
            "hopeless": None if self.hopeless is None else self.hopeless.plain(),
            "classes": dict(self.classes),
            "cost": {"exponent": self.cost.exponent, "scale": self.cost.scale},
            "trained": {
                "n_episodes": self.trained.n_episodes,
                "n_questions": self.trained.n_questions,
                "digest": self.trained.digest,
                "target": self.trained.target,
                "seed": self.trained.seed,
                "versions": dict(self.trained.versions),
            },
        }


def canonical(plain: Mapping[str, Any]) -> bytes:
    """The one way to write a mapping: keys sorted, no spaces, ASCII, every float by its shortest exact form."""
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def _rules(rules: Sequence[object]) -> tuple[tuple[tuple[str, bool, float], ...], ...]:
    """The rules with every number checked. What a feature means is for whoever reads queries."""
    if len(rules) > MOST_RULES:
        raise ConfigError(f"found: got {len(rules):,} rules; at most {MOST_RULES}")
    return tuple(_tests(f"found[{at}]", rule) for at, rule in enumerate(rules))


def _tests(where: str, rule: object) -> tuple[tuple[str, bool, float], ...]:
    if not isinstance(rule, (list, tuple)) or len(rule) > MOST_TESTS:
        raise ConfigError(f"{where}: got {describe_value(rule)}; a list of at most {MOST_TESTS} tests")
    tests = []
    for at, test in enumerate(rule):
        fits = isinstance(test, (list, tuple)) and len(test) == 3
        if not fits or not isinstance(test[0], str) or not isinstance(test[1], bool):
            raise ConfigError(f"{where}[{at}]: got {describe_value(test)}; [feature, above, value]")
        tests.append((test[0], test[1], exact_float(f"{where}[{at}][2]", test[2])))
    return tuple(tests)


def _within(name: str, ensemble: Ensemble, n_features: int) -> None:
    try:
        ensemble.check(n_features)
    except ConfigError as error:
        raise ConfigError(f"{name}.{error}") from None

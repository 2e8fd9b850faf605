"""All policies and all signals there are, to draw from."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np
from hypothesis import reject
from hypothesis import strategies as st

from suffice.errors import ConfigError
from suffice.model.artefact import StepCost, StopModel, TrainingRecord
from suffice.model.ensemble import LEAF, Ensemble, Linear, Tree, Trees
from suffice.policy.base import POLICIES, Columns, Policy, build_policy, describe
from suffice.policy.parameters import Parameter, parameters_of
from suffice.signals.base import FIELDS
from suffice.signals.folds.wording import encode_pattern, pattern_code
from suffice.types import Signals

OPTIONAL = sorted({"answer", "query", *FIELDS})
INTEGERS = {name for name, field in FIELDS.items() if field.whole}
NUMBERS = FIELDS.keys() - INTEGERS - {"query"}
PATTERNS = ("answer", r"\b(?:so|hence) ", "\u7b54\u6848")
CODES = [sign * pattern_code(encode_pattern(pattern)) for pattern in PATTERNS for sign in (1, -1)]
SIMPLE = sorted(name for name in POLICIES if not any(p.type is Policy for p in parameters_of(POLICIES[name])))
# A learned policy was taught what to make of one unknown signal; it goes on where all of them are unknown.
MODELLED = sorted(name for name in POLICIES if any(p.type is StopModel for p in parameters_of(POLICIES[name])))


def signals() -> st.SearchStrategy[Signals]:
    """Signals of any run, known or not; numbers that are none are among them."""
    return st.integers(0, 2**32).map(_seen)


def _seen(seed: int) -> Signals:
    rng = np.random.default_rng(seed)  # one draw for all fields: drawn one by one they cost a minute
    unknown = rng.choice([0.0, 0.1, 0.5])
    known: dict[str, Any] = {}
    for name in OPTIONAL:
        if rng.random() < unknown:
            continue
        if name == "answer":
            known[name] = rng.choice(["", "a", "7"])
        elif name == "pattern_code":
            known[name] = float(rng.choice([*CODES, math.nan]))
        elif name in INTEGERS:
            known[name] = int(rng.integers(0, 50))
        elif name in NUMBERS:
            known[name] = math.nan if rng.random() < 1 / 8 else float(rng.choice([0, 1, rng.uniform(-1, 1)]))
    return Signals(step=int(rng.integers(1, 500)), tokens_used=int(rng.integers(0, 10**6)), **known)


def columns(seed: int, n_rows: int = 200) -> Columns:
    """Signals of many steps at once, one in eight unknown; numbers crowd where thresholds are."""
    rng = np.random.default_rng(seed)
    drawn: dict[str, Any] = {
        "step": rng.integers(1, 60, n_rows).astype(float),
        "tokens_used": rng.integers(0, 3_000, n_rows).astype(float),
    }
    for name in OPTIONAL:
        if name == "answer" or name in INTEGERS:
            values = rng.integers(0, rng.choice([3, 12, 40]), n_rows).astype(float)
        elif name == "pattern_code":
            values = rng.choice(CODES, n_rows)
        elif name in NUMBERS:
            values = rng.uniform(0, 1, n_rows) ** rng.choice([0.05, 1, 4]) * rng.choice([1, 1, -1], n_rows)
        else:
            continue
        drawn[name] = np.where(rng.random(n_rows) < 1 / 8, np.nan, values)
    return drawn


def models() -> tuple[dict[str, Any], ...]:
    """Stop models as they are written: one signal alone, and several with trees, classes and a hopeless side."""
    one = StopModel(
        features=("logit(confidence)", "unknown(confidence)"),
        suffices=Ensemble((Linear((1.0, -9.0), -1.0),)),
        trained=TrainingRecord(n_episodes=9, n_questions=3, digest="", target="suffices", seed=0),
    )
    stump = Tree((1, LEAF, LEAF), (0.5, 0.0, 0.0), (1, 0, 0), (2, 0, 0), (0.0, -2.0, 2.0))
    fallen = Tree((1, LEAF, LEAF), (0.2, 0.0, 0.0), (1, 0, 0), (2, 0, 0), (0.0, 2.0, -2.0))
    several = StopModel(
        features=("logit(p_majority)", "agreement", "agreement*streak_share", "class=hard", "has_answer"),
        suffices=Ensemble((Linear((1.0, 2.0, -1.0, -1.0, 0.5), -1.0), Trees(0.5, (stump, stump)))),
        hopeless=Ensemble((Trees(0.5, (fallen,)),)),
        classes=(("hard", 0.2),),
        cost=StepCost(0.5, 10.0),
        trained=TrainingRecord(n_episodes=9, n_questions=3, digest="", target="as-good", seed=0),
    )
    return msgspec.to_builtins(one), msgspec.to_builtins(several)


def values_for(parameter: Parameter) -> st.SearchStrategy[Any]:
    """Values that the parameter allows, the small ones more often."""
    values = _item(parameter)
    for length in reversed(parameter.lengths):
        values = st.lists(values, min_size=length.low, max_size=min(length.high, length.low + 3))
    return values


def _item(parameter: Parameter) -> st.SearchStrategy[Any]:
    if parameter.type is Policy:
        return st.sampled_from(SIMPLE).flatmap(policies).map(describe)
    if parameter.type is StopModel:
        return st.sampled_from(models())
    if parameter.type is str and not parameter.words:
        return st.sampled_from(PATTERNS)
    if parameter.type is str:
        return st.sampled_from(parameter.words)
    if parameter.range is None:
        return st.booleans()
    low, high = parameter.range.low, parameter.range.high
    if parameter.type is int:
        return st.integers(int(low), int(min(high, low + 20))) | st.integers(int(low), int(high))
    return st.floats(low, high, exclude_min=parameter.range.low_open)


@st.composite
def policies(draw: st.DrawFn, name: str) -> Policy:
    """A policy of that name with parameters that it allows."""
    spec: dict[str, Any] = {"policy": name}
    for parameter in parameters_of(POLICIES[name]):
        if parameter.required or draw(st.booleans()):
            spec[parameter.name] = draw(values_for(parameter))
    try:
        return build_policy(spec)
    except ConfigError:
        reject()  # each value is allowed, but not beside the others: a calibration that falls, say


def example(name: str) -> Policy:
    """The policy with its defaults; what must be given is the first that is allowed."""
    required = [parameter for parameter in parameters_of(POLICIES[name]) if parameter.required]
    return build_policy({"policy": name, **{parameter.name: _first(parameter) for parameter in required}})


def _first(parameter: Parameter) -> object:
    if parameter.type is Policy:
        parts = [{"policy": "stable-answer", "streak": 2}, {"policy": "confidence-threshold", "threshold": 0.5}]
        return parts if parameter.lengths else parts[0]
    if parameter.type is StopModel:
        return models()[0]
    if parameter.type is str and not parameter.words:
        return PATTERNS[0]
    assert parameter.range is not None, f"{parameter.name}: say here what an example of it is"
    if len(parameter.lengths) == 2:
        return [[parameter.range.high / 2**place for place in range(1, 9)]]
    return [parameter.range.high] * parameter.lengths[0].low if parameter.lengths else parameter.range.low

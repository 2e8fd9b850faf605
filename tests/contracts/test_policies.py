"""What every policy promises. A policy added to the table is tested here."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suffice.errors import ConfigError
from suffice.policy.base import POLICIES, Policy, build_policy, describe, version_of
from suffice.policy.parameters import Parameter, parameters_of
from suffice.signals.base import ALWAYS_FILLED, FOLDS
from suffice.types import Signals

DOCS = Path(__file__).parents[2] / "docs" / "reference" / "policies.md"
EVERY_POLICY = pytest.mark.parametrize("name", sorted(POLICIES))
EVERY_PARAMETER = pytest.mark.parametrize(
    ("name", "parameter"),
    [
        pytest.param(name, parameter, id=f"{name}-{parameter.name}")
        for name in sorted(POLICIES)
        for parameter in parameters_of(POLICIES[name])
    ],
)
PROPERTY = settings(max_examples=50, derandomize=True, deadline=None)

FIELDS = {
    "answer": st.none() | st.text(max_size=3),
    "answer_streak": st.integers(0, 50),
    "n_flips": st.integers(0, 50),
    "n_distinct": st.integers(0, 50),
    "n_votes": st.integers(0, 50),
    "top_votes": st.integers(0, 50),
    "second_votes": st.integers(0, 50),
    "hedges": st.integers(0, 5),
}
OPTIONAL = sorted(get_type_hints(Signals).keys() - {"step", "tokens_used"})


@st.composite
def signals(draw: st.DrawFn) -> Signals:
    """Signals of any run, known or not; numbers that are none are among them."""
    number = st.floats(0.0, 1.0) | st.just(math.nan)
    known: dict[str, Any] = {field: draw(st.none() | FIELDS.get(field, number)) for field in OPTIONAL}
    return Signals(step=draw(st.integers(1, 500)), tokens_used=draw(st.integers(0, 10**6)), **known)


def values_for(parameter: Parameter) -> st.SearchStrategy[bool | int | float]:
    """Values that the parameter allows, the small ones more often."""
    if parameter.range is None:
        return st.booleans()
    low, high = parameter.range.low, parameter.range.high
    if parameter.type is int:
        return st.integers(int(low), int(min(high, low + 20))) | st.integers(int(low), int(high))
    return st.floats(low, high, exclude_min=parameter.range.low_open)


@st.composite
def policies(draw: st.DrawFn, name: str) -> Policy:
    spec: dict[str, Any] = {"policy": name}
    for parameter in parameters_of(POLICIES[name]):
        if parameter.required or draw(st.booleans()):
            spec[parameter.name] = draw(values_for(parameter))
    return build_policy(spec)


def example(name: str) -> Policy:
    """The policy with its defaults; what must be given is the smallest that is allowed."""
    required = [parameter for parameter in parameters_of(POLICIES[name]) if parameter.required]
    smallest = {parameter.name: parameter.range.low for parameter in required if parameter.range is not None}
    return build_policy({"policy": name, **smallest})


def with_values(seen: Signals, values: dict[str, Any]) -> Signals:
    return dataclasses.replace(seen, **values)


class Watched:
    """Signals that note which of their fields are looked at."""

    def __init__(self, seen: Signals) -> None:
        self._seen = seen
        self.read: set[str] = set()

    def __getattr__(self, field: str) -> object:
        self.read.add(field)
        return getattr(self._seen, field)


def fields_of(needs: tuple[str, ...]) -> set[str]:
    return {field for need in needs for field in FOLDS[need]().fields}


@EVERY_POLICY
@PROPERTY
@given(data=st.data())
def test_a_decision_is_pure_and_explains_itself(name: str, data: st.DataObject) -> None:
    policy, seen = data.draw(policies(name)), data.draw(signals())
    decision = policy.decide(seen)
    again = build_policy(describe(policy)).decide(seen)
    assert repr(decision) == repr(policy.decide(seen)) == repr(again)  # repr: nan is not equal to itself
    assert 0 < len(decision.reason) <= 120
    assert "\n" not in decision.reason
    assert 0 < decision.propensity <= 1
    if decision.action == "continue":
        assert decision.stop_reason is None
    else:
        assert decision.stop_reason in ("suffices", "budget")
        assert decision.score is not None
        assert math.isfinite(decision.score)


@EVERY_POLICY
@PROPERTY
@given(data=st.data())
def test_needs_are_folds_that_exist(name: str, data: st.DataObject) -> None:
    needs = data.draw(policies(name)).needs
    assert set(needs) <= set(FOLDS)
    assert len(set(needs)) == len(needs)


@EVERY_POLICY
@PROPERTY
@given(data=st.data())
def test_nothing_is_read_that_was_not_asked_for(name: str, data: st.DataObject) -> None:
    policy, seen, other = data.draw(policies(name)), data.draw(signals()), data.draw(signals())
    watched = Watched(seen)
    policy.decide(cast("Signals", watched))
    assert watched.read <= {*ALWAYS_FILLED, *fields_of(policy.needs)}
    hidden = set(OPTIONAL) - set(ALWAYS_FILLED) - fields_of(policy.needs)
    unknown = with_values(seen, dict.fromkeys(hidden))
    arbitrary = with_values(seen, {field: getattr(other, field) for field in hidden})
    assert repr(policy.decide(unknown)) == repr(policy.decide(seen)) == repr(policy.decide(arbitrary))


@EVERY_POLICY
@PROPERTY
@given(data=st.data())
def test_what_is_unknown_continues(name: str, data: st.DataObject) -> None:
    policy, seen = data.draw(policies(name)), data.draw(signals())
    for need in policy.needs:
        unknown = with_values(seen, dict.fromkeys(FOLDS[need]().fields))
        assert policy.decide(unknown).action == "continue"


@EVERY_POLICY
@PROPERTY
@given(data=st.data())
def test_a_policy_that_claims_an_answer_suffices_has_an_answer(name: str, data: st.DataObject) -> None:
    policy, seen = data.draw(policies(name)), data.draw(signals())
    none_now = dataclasses.replace(
        seen, answer=None, answer_streak=0, confidence=None, n_votes=0, p_majority=None
    )
    assert policy.decide(none_now).stop_reason != "suffices"


@EVERY_POLICY
@PROPERTY
@given(data=st.data())
def test_a_description_builds_an_equal_policy_of_the_same_version(name: str, data: st.DataObject) -> None:
    policy, other = data.draw(policies(name)), data.draw(policies(name))
    described = json.loads(json.dumps(describe(policy)))
    assert described["policy"] == name
    assert set(described) == {"policy", *(parameter.name for parameter in parameters_of(POLICIES[name]))}
    rebuilt = build_policy(described)
    assert rebuilt == policy
    assert describe(rebuilt) == describe(policy)
    assert version_of(rebuilt) == version_of(policy)
    assert (version_of(policy) == version_of(other)) == (policy == other)
    assert re.fullmatch(r"p-[0-9a-f]{12}", version_of(policy))


def test_versions_differ_between_policies() -> None:
    assert len({version_of(example(name)) for name in POLICIES}) == len(POLICIES)


@EVERY_PARAMETER
def test_a_value_out_of_range_is_refused_with_its_path(name: str, parameter: Parameter) -> None:
    wrong: list[object] = [None, "1", "", [], {}, math.nan, math.inf, 10**400, -1, "x" * 10**6]
    if parameter.type is not bool:
        assert parameter.range is not None
        wrong += [True, parameter.range.low - 1, parameter.range.high + 1]
    if parameter.type is int:
        wrong += [1.0, 1.5]
    if parameter.type is bool:
        wrong += [0, 1]
    for value in wrong:
        spec = {**describe(example(name)), parameter.name: value}
        with pytest.raises(ConfigError) as refused:
            build_policy(spec)
        message = str(refused.value)
        assert message.startswith(f"policy.{name}.{parameter.name}: got ")
        assert parameter.allowed() in message
        assert len(message) < 250


@EVERY_PARAMETER
def test_an_almost_right_parameter_is_named(name: str, parameter: Parameter) -> None:
    with pytest.raises(ConfigError, match=rf"\.{name}: unknown parameter .* did you mean '{parameter.name}'"):
        build_policy({"policy": name, f"{parameter.name}s": 1})


@EVERY_PARAMETER
def test_a_parameter_without_a_default_must_be_given(name: str, parameter: Parameter) -> None:
    spec = {key: value for key, value in describe(example(name)).items() if key != parameter.name}
    if not parameter.required:
        assert getattr(build_policy(spec), parameter.name) == parameter.default
        return
    with pytest.raises(ConfigError, match=rf"{name}\.{parameter.name}: missing; a whole number from 1"):
        build_policy(spec)


@EVERY_POLICY
def test_an_almost_right_name_is_named(name: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown name '{name}x'; did you mean '{name}'"):
        build_policy({"policy": f"{name}x"})


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=8)
KEYS = st.sampled_from(["policy", "threshold", "streak", "max_tokens", "min_samples", "no_hedges"]) | SCALARS
NAMES = st.sampled_from(sorted(POLICIES))
VALUES = NAMES | SCALARS | st.lists(SCALARS, max_size=2)


@PROPERTY
@given(spec=st.dictionaries(KEYS, VALUES, max_size=4), name=st.none() | NAMES)
def test_whatever_is_configured_gives_a_policy_or_a_readable_refusal(
    spec: dict[Any, Any], name: str | None
) -> None:
    if name is not None:
        spec["policy"] = name
    refusal = ""
    try:
        policy = build_policy(spec)
    except ConfigError as refused:
        refusal = str(refused)
    else:
        assert build_policy(describe(policy)) == policy
    assert refusal == "" or re.match(r"policy[.:]", refusal)
    assert len(refusal) < 400


def test_only_a_mapping_is_a_policy() -> None:
    for wrong in ("never", None, ["never"], 1):
        with pytest.raises(ConfigError, match="policy: must be a table, got"):
            build_policy(wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="unknown name of type NoneType"):
        build_policy({"threshold": 0.9})


# ---- the reference page -----------------------------------------------------------------------


def rows() -> Mapping[str, list[str]]:
    """The page's table: name → the cells behind it."""
    lines = [line.split("|")[1:-1] for line in DOCS.read_text("utf-8").splitlines() if line.startswith("| `")]
    return {cells[0].strip().strip("`"): [cell.strip() for cell in cells[1:]] for cells in lines}


def test_the_page_has_one_row_for_each_policy_and_no_other() -> None:
    assert set(rows()) == set(POLICIES)


@EVERY_POLICY
def test_the_row_names_what_the_policy_needs_and_nothing_else(name: str) -> None:
    extremes = {"no_hedges": True, "patience": 2}  # parameters that widen what is needed
    declared = {parameter.name for parameter in parameters_of(POLICIES[name])}
    widest = {**describe(example(name)), **{key: value for key, value in extremes.items() if key in declared}}
    needs = set(build_policy(widest).needs)
    named = {word for word in re.findall(r"`([a-z_]+)`", rows()[name][1]) if word in FOLDS}
    assert named == needs


@EVERY_PARAMETER
def test_the_row_names_the_parameter_with_its_default(name: str, parameter: Parameter) -> None:
    default = "(must be given)" if parameter.required else f"= {json.dumps(parameter.default)}"
    assert f"`{parameter.name}` {default}:" in rows()[name][2]


@EVERY_POLICY
def test_the_row_names_no_parameter_that_does_not_exist(name: str) -> None:
    named = set(re.findall(r"`([a-z_]+)` (?:=|\()", rows()[name][2]))
    assert named == {parameter.name for parameter in parameters_of(POLICIES[name])}

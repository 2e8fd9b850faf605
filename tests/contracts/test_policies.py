"""What every policy promises. A policy added to the table is tested here."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suffice.errors import ConfigError
from suffice.policy.base import POLICIES, build_policy, describe, stops_of, version_of
from suffice.policy.columns import CONTINUE, ForMany, decide_rows
from suffice.policy.parameters import Length, Parameter, parameters_of
from suffice.signals.base import ALWAYS_FILLED, FOLDS, fields_of, resolve_needs
from suffice.types import Signals
from tests.contracts.policy_space import MODELLED, NUMBERS, OPTIONAL, SIMPLE, columns, example, policies, signals
from tests.drawn import examples

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
PROPERTY = settings(max_examples=examples(20))


def with_values(seen: Signals, values: dict[str, Any]) -> Signals:
    return seen.replace(**values)


class Watched:
    """Signals that note which of their fields are looked at."""

    def __init__(self, seen: Signals) -> None:
        self._seen = seen
        self.read: set[str] = set()

    def __getattr__(self, field: str) -> object:
        self.read.add(field)
        return getattr(self._seen, field)


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
        assert decision.stop_reason in ("suffices", "hopeless", "budget")
        assert decision.score is not None
        assert math.isfinite(decision.score)


@EVERY_POLICY
@PROPERTY
@given(data=st.data())
def test_needs_are_folds_that_exist_and_no_two_fill_one_field(name: str, data: st.DataObject) -> None:
    needs = data.draw(policies(name)).needs
    assert len(resolve_needs(needs)) == len(needs) == len(set(needs))


@EVERY_POLICY
@PROPERTY
@given(data=st.data())
def test_nothing_is_read_that_was_not_asked_for(name: str, data: st.DataObject) -> None:
    policy, seen, other = data.draw(policies(name)), data.draw(signals()), data.draw(signals())
    watched = Watched(seen)
    policy.decide(cast("Signals", watched))
    request = set(fields_of(policy.needs))
    assert watched.read <= {*ALWAYS_FILLED, *request, "values"}  # `values` has the fields of other packages, too
    hidden = set(OPTIONAL) - set(ALWAYS_FILLED) - request
    unknown = with_values(seen, dict.fromkeys(hidden))
    arbitrary = with_values(seen, {field: getattr(other, field) for field in hidden})
    assert repr(policy.decide(unknown)) == repr(policy.decide(seen)) == repr(policy.decide(arbitrary))


@pytest.mark.parametrize("name", SIMPLE)
@PROPERTY
@given(data=st.data())
def test_what_is_unknown_continues(name: str, data: st.DataObject) -> None:
    policy, seen = data.draw(policies(name)), data.draw(signals())
    for needs in [policy.needs] if name in MODELLED else [(need,) for need in policy.needs]:
        fields = set(fields_of(needs)) & set(OPTIONAL)
        unknown = with_values(seen, dict.fromkeys(fields))
        assert policy.decide(unknown).action == "continue"
        no_numbers = with_values(unknown, dict.fromkeys(fields & NUMBERS, math.nan))
        assert policy.decide(no_numbers).action == "continue"


@EVERY_POLICY
@PROPERTY
@given(data=st.data())
def test_nothing_is_claimed_where_nothing_is_known(name: str, data: st.DataObject) -> None:
    policy, seen = data.draw(policies(name)), data.draw(signals())
    assert policy.decide(with_values(seen, dict.fromkeys(OPTIONAL))).stop_reason in {None, "budget"}


@EVERY_POLICY
@PROPERTY
@given(data=st.data(), seed=st.integers(0, 2**32))
def test_many_steps_at_once_are_decided_as_each_alone(name: str, data: st.DataObject, seed: int) -> None:
    policy, many = data.draw(policies(name)), columns(seed)
    together = stops_of(policy, many)
    assert together.dtype == np.int8
    assert together.tolist() == decide_rows(policy, many).tolist()


@EVERY_POLICY
def test_the_columns_of_these_tests_show_both_sides_of_a_rule(name: str) -> None:
    policy = example(name)
    codes = {code for seed in range(20) for code in stops_of(policy, columns(seed)).tolist()}
    assert CONTINUE in codes or name.startswith("fixed")
    assert (len(codes) > 1) == (name != "never") or name.startswith("fixed")


@EVERY_POLICY
def test_columns_that_are_not_there_are_unknown_and_none_is_written_to(name: str) -> None:
    policy, many = example(name), columns(1)
    assert isinstance(policy, ForMany)
    for column in many.values():
        column.flags.writeable = False
    policy.stops(many)
    bare = {field: many[field] for field in ("step", "tokens_used")}
    assert stops_of(policy, bare).tolist() == decide_rows(policy, bare).tolist()


@EVERY_POLICY
@PROPERTY
@given(data=st.data())
def test_a_policy_that_claims_an_answer_suffices_has_an_answer(name: str, data: st.DataObject) -> None:
    policy, seen = data.draw(policies(name)), data.draw(signals())
    none_now = seen.replace(answer=None, answer_streak=0)
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


def not_allowed(parameter: Parameter) -> list[object]:
    """Values that no such parameter allows, as a single value."""
    wrong: list[object] = [None, "", [], math.nan, math.inf, 10**400, "x" * 10**6, object, len]
    if parameter.type is not str or parameter.words:
        wrong += ["1"]
    if parameter.range is not None:
        wrong += [{}, True, -(10**400), parameter.range.low - 1, parameter.range.high + 1]
    if parameter.range is not None and parameter.range.low_open:
        wrong += [parameter.range.low]
    if parameter.type is int:
        wrong += [1.0, 1.5]
    if parameter.type is bool:
        wrong += [{}, 0, 1]
    return wrong


def no_lists(length: Length) -> list[object]:
    """Values that are no list of that length."""
    wrong: list[object] = [None, 1, "", {}, [0] * (length.high + 1)]
    return wrong + [[0] * short for short in (0, length.low - 1) if 0 <= short < length.low]


@EVERY_PARAMETER
def test_a_value_out_of_range_is_refused_with_its_path(name: str, parameter: Parameter) -> None:
    cases: list[tuple[str, object]] = [("", value) for value in not_allowed(parameter)]
    if parameter.lengths:
        outer, *inner = parameter.lengths
        cases = [("", value) for value in no_lists(outer)]
        some = max(1, outer.low)
        if inner:
            cases += [("[0]", [value] * some) for value in no_lists(inner[0])]
            cases += [("[0][0]", [[value] * inner[0].low] * some) for value in not_allowed(parameter)]
        else:
            cases += [("[0]", [value] * some) for value in not_allowed(parameter)]
    for at, value in cases:
        spec = {**describe(example(name)), parameter.name: value}
        with pytest.raises(ConfigError) as refused:
            build_policy(spec)
        message = str(refused.value)
        assert message.startswith(f"policy.{name}.{parameter.name}{at}: got ")
        assert parameter.allowed() in message
        assert len(message) < 300


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
    with pytest.raises(ConfigError) as refused:
        build_policy(spec)
    assert str(refused.value) == f"policy.{name}.{parameter.name}: missing; {parameter.allowed()}"


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
def test_whatever_is_configured_gives_a_policy_or_a_readable_refusal(spec: dict[Any, Any], name: str | None) -> None:
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


def test_a_fault_inside_a_policy_inside_a_policy_is_named_with_its_whole_path() -> None:
    inner = {"policy": "all-of", "policies": [{"policy": "never"}, {"policy": "beta", "threshold": 2}]}
    with pytest.raises(ConfigError, match=r"policy\.guarded\.inner\.all-of\.policies\[1\]\.beta\.threshold: got 2;"):
        build_policy({"policy": "guarded", "inner": inner})
    with pytest.raises(ConfigError, match=r"policy\.guarded\.inner: unknown name 'betta'; did you mean 'beta'"):
        build_policy({"policy": "guarded", "inner": {"policy": "betta"}})


def test_parts_that_want_one_signal_in_two_ways_are_refused() -> None:
    parts = [{"policy": "eat", "alpha": 0.1}, {"policy": "eat", "alpha": 0.2}]
    with pytest.raises(ConfigError, match=r"policy\.any-of\.policies: needs: .* fill the same fields"):
        build_policy({"policy": "any-of", "policies": parts})


def test_a_policy_that_holds_itself_is_refused() -> None:
    endless: dict[str, Any] = {"policy": "guarded"}
    endless["inner"] = endless
    with pytest.raises(ConfigError, match="policies inside policies are at most 8 deep"):
        build_policy(endless)


def test_only_a_mapping_is_a_policy() -> None:
    for wrong in ("never", None, ["never"], 1):
        with pytest.raises(ConfigError, match="policy: must be a table, got"):
            build_policy(wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="unknown name a value of type NoneType"):
        build_policy({"threshold": 0.9})


# ---- the reference page -----------------------------------------------------------------------


def rows() -> Mapping[str, list[str]]:
    """The page's first tables: name → the cells behind it."""
    head = DOCS.read_text("utf-8").split("\n## ")[0]
    lines = [line.split("|")[1:-1] for line in head.splitlines() if line.startswith("| `")]
    return {cells[0].strip().strip("`"): [cell.strip() for cell in cells[1:]] for cells in lines}


WIDEN: Mapping[str, object] = {"no_hedges": True, "patience": 2, "min_share": 0.5, "give_up": 1.0}  # need more


@EVERY_POLICY
def test_the_row_names_what_the_policy_needs_and_nothing_else(name: str) -> None:
    named = set(re.findall(r"`([a-z-]+)`", rows()[name][1])) & set(FOLDS)
    if name not in SIMPLE or name in MODELLED:
        assert ("what its model reads" if name in MODELLED else "what its parts need") in rows()[name][1]
        assert not named
        return
    declared = {parameter.name for parameter in parameters_of(POLICIES[name])}
    widest = {**describe(example(name)), **{key: value for key, value in WIDEN.items() if key in declared}}
    assert named == {ordered.name for ordered in resolve_needs(build_policy(widest).needs)}

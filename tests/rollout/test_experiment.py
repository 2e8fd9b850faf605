"""Assignment: sticky, fair, and moved by a change of weights as little as can be (F42); layers that do not meet."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from math import sqrt
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suffice.errors import ConfigError
from suffice.rollout.experiment import (
    N_SLOTS,
    Arm,
    RunningExperiment,
    Slots,
    allot,
    define,
    draw_arm,
    draw_arms,
    n_slots,
    same_question,
    slot_of,
    units_of,
    with_arm,
)
from suffice.settings import Experiment as Written
from suffice.settings import ExperimentUnit, Route, parse_settings
from suffice.types import ArmDraw
from tests.drawn import examples

WHOLE: Slots = ((0, N_SLOTS),)
N_IDS = 100_000
SALT = "salt"


def made(weights: dict[str, float] | None = None, **changes: Any) -> RunningExperiment:
    arms = {"full": 0.9, "brisk": 0.1} if weights is None else weights
    known: dict[str, Any] = {
        "name": "e",
        "run": 1,
        "routes": ("r",),
        "unit": "request",
        "layer": "default",
        "slots": WHOLE,
        "arms": tuple(Arm(name=name, weight=weight, full=name == "full") for name, weight in arms.items()),
        "control": "full",
        "primary": "tokens",
    }
    return RunningExperiment(**(known | changes))


def arms_of(one: RunningExperiment, n: int = N_IDS) -> list[str]:
    return [draw_arm(one, f"unit-{number}", salt=SALT).arm for number in range(n)]


def drawn(one: RunningExperiment, request: str, **names: str) -> tuple[ArmDraw, ...]:
    return draw_arms([one], route="r", units=units_of("", request=request, **names), salt=SALT)


# --------------------------------------------------------------------------- sticky


@given(unit=st.text(max_size=20), weights=st.lists(st.floats(0.01, 10), min_size=2, max_size=5))
@settings(max_examples=examples(100))
def test_a_draw_is_sticky_and_knows_its_odds(unit: str, weights: list[float]) -> None:
    one = made({f"a{at}": weight for at, weight in enumerate(weights)})
    result = draw_arm(one, unit, salt=SALT)
    assert result == draw_arm(one, unit, salt=SALT)
    odds = {result.arm: result.propensity, **dict(result.others)}
    assert odds == pytest.approx(one.odds())
    assert sum(odds.values()) == pytest.approx(1)
    assert 0 < result.propensity <= 1
    assert len(result.unit) == 16


def test_another_process_another_day_draws_the_same() -> None:
    """The hash is a promise: a release that changes it moves every unit of every running experiment."""
    arms = "".join(draw_arm(made({"full": 1, "brisk": 1}), f"u{n}", salt=SALT).arm[0] for n in range(12))
    slots = [slot_of(f"u{number}", layer="default", salt=SALT) for number in range(4)]
    assert (arms, slots) == ("bfbbbffbbbbb", [783, 481, 423, 85])


@pytest.mark.no_cover
def test_the_arms_get_what_they_weigh() -> None:
    counts = Counter(arms_of(made({"full": 5, "brisk": 3, "bold": 2}), 30_000))
    for name, share in (("full", 0.5), ("brisk", 0.3), ("bold", 0.2)):
        assert abs(counts[name] - 30_000 * share) < 4 * sqrt(30_000 * share * (1 - share)), name


def test_an_arm_without_weight_gets_nobody_and_no_draw_counts_it() -> None:
    one = made({"full": 1, "brisk": 1, "bold": 0})
    assert "bold" not in arms_of(one, 2_000)
    assert dict(drawn(one, "u")[0].others)["bold"] == 0


# --------------------------------------------------------------------------- a change of weights (F42)


@pytest.mark.no_cover
def test_a_ramp_only_adds_units() -> None:
    """100,000 ids before and after: from 10 % to 50 %, nobody leaves the arm that grows."""
    before, after = arms_of(made()), arms_of(made({"full": 0.5, "brisk": 0.5}))
    left = sum(a == "brisk" and b != "brisk" for a, b in zip(before, after, strict=True))
    moved = sum(a != b for a, b in zip(before, after, strict=True)) / N_IDS
    print(f"10 % to 50 %: {moved:.2%} of 100,000 ids moved, {left} left the arm that grew")
    assert left == 0
    assert abs(moved - 0.4) < 0.006, "what must move, and nobody else"


@pytest.mark.no_cover
def test_a_weight_that_is_raised_alone_moves_nobody_between_the_others() -> None:
    before = arms_of(made({"full": 6, "brisk": 2, "bold": 2}), 20_000)
    after = arms_of(made({"full": 6, "brisk": 2, "bold": 8}), 20_000)
    assert {(a, b) for a, b in zip(before, after, strict=True) if a != b} == {("full", "bold"), ("brisk", "bold")}


@pytest.mark.no_cover
@pytest.mark.parametrize(("before", "after"), [((5, 3, 2), (3, 3, 4)), ((8, 1, 1), (6, 3, 1)), ((1, 1, 8), (8, 1, 1))])
def test_no_change_moves_more_than_what_is_known_to_be_the_least(
    before: tuple[float, ...], after: tuple[float, ...]
) -> None:
    names = ("full", "brisk", "bold")
    arms = [arms_of(made(dict(zip(names, weights, strict=True))), 20_000) for weights in (before, after)]
    must = sum(abs(a - b) for a, b in zip(before, after, strict=True)) / 20
    moved = sum(a != b for a, b in zip(*arms, strict=True)) / 20_000
    assert moved <= 2 * must / (1 + must) + 0.015


@pytest.mark.no_cover
def test_an_arm_that_is_added_takes_units_from_all_and_moves_nobody_else() -> None:
    two, three = made({"full": 1, "brisk": 1}), made({"full": 1, "brisk": 1, "new": 1})
    before, after = arms_of(two, 20_000), arms_of(three, 20_000)
    assert all(b in (a, "new") for a, b in zip(before, after, strict=True))


@pytest.mark.no_cover
def test_a_share_that_grows_only_adds_units_and_moves_nobody() -> None:
    small = made(slots=allot(0.1, taken={}))
    large = made(slots=allot(0.5, own=small.slots, taken={"other": ((100, 300),)}))
    before = {n: drawn(small, f"u{n}") for n in range(20_000)}
    after = {n: drawn(large, f"u{n}") for n in range(20_000)}
    assert all(after[n] == before[n] for n in before if before[n])
    assert abs(sum(map(bool, before.values())) - 2_000) < 4 * sqrt(20_000 * 0.1 * 0.9)
    assert abs(sum(map(bool, after.values())) - 10_000) < 4 * sqrt(20_000 * 0.25)


# --------------------------------------------------------------------------- layers


def test_experiments_of_one_layer_exclude_each_other_and_share_it_out() -> None:
    first = made(name="first", slots=allot(0.4, taken={}))
    second = made(name="second", slots=allot(0.6, taken={"first": first.slots}))
    result = [
        draw_arms([first, second], route="r", units=units_of("", request=f"u{n}"), salt=SALT) for n in range(10_000)
    ]
    assert all(len(one) == 1 for one in result)
    assert abs(sum(one[0].experiment == "first" for one in result) - 4_000) < 4 * sqrt(10_000 * 0.24)


def test_experiments_of_one_layer_on_disjoint_routes_get_every_unit_of_theirs() -> None:
    here, there = made(name="here"), made(name="there", routes=("law",))
    for number in range(200):
        units = units_of("", request=f"u{number}")
        assert [one.experiment for one in draw_arms([here, there], route="r", units=units, salt=SALT)] == ["here"]
        assert [one.experiment for one in draw_arms([here, there], route="law", units=units, salt=SALT)] == ["there"]


@pytest.mark.no_cover
def test_layers_are_independent() -> None:
    """In 40,000 units the arms of two layers, and their taking part, are as if two coins had been thrown."""
    pair = [
        made({"full": 1, "brisk": 1}, name="first", layer="a", slots=allot(0.5, taken={})),
        made({"full": 1, "brisk": 1}, name="second", layer="b", slots=allot(0.5, taken={})),
    ]
    n, counts = 40_000, Counter[tuple[str, ...]]()
    for number in range(n):
        result = {
            one.experiment: one.arm
            for one in draw_arms(pair, route="r", units=units_of("", request=f"u{number}"), salt=SALT)
        }
        counts[result.get("first", "-"), result.get("second", "-")] += 1
    share = {"-": 0.5, "full": 0.25, "brisk": 0.25}
    chi2 = sum((counts[a, b] - n * share[a] * share[b]) ** 2 / (n * share[a] * share[b]) for a in share for b in share)
    print(f"two layers: chi-squared {chi2:.1f} on 8 degrees of freedom")
    assert chi2 < 26.1, "p < 0.001"


def test_a_start_anew_draws_anew() -> None:
    runs = [arms_of(made({"full": 1, "brisk": 1}, run=run), 10_000) for run in (1, 2)]
    same = sum(a == b for a, b in zip(*runs, strict=True))
    assert abs(same - 5_000) < 4 * 50


def test_a_layer_that_is_full_says_who_has_it() -> None:
    with pytest.raises(ConfigError, match=r"share: got 0\.7; the layer has 40\.0% left beside other 60\.0%"):
        allot(0.7, taken={"other": ((0, 600),)})
    assert n_slots(allot(0.4, taken={"other": ((0, 600),)})) == 400


@given(st.lists(st.floats(0.001, 1), min_size=1, max_size=6), st.floats(0.001, 1))
@settings(max_examples=examples(60))
def test_slots_never_overlap_and_a_ramp_keeps_its_own(shares: list[float], grown: float) -> None:
    taken: dict[str, Slots] = {}
    for at, share in enumerate(shares):
        try:
            taken[str(at)] = allot(share, taken=taken)
        except ConfigError:
            break
    owned = [slot for slots in taken.values() for first, behind in slots for slot in range(first, behind)]
    assert len(owned) == len(set(owned))
    if taken:
        own = taken.pop("0")
        try:
            wider = allot(grown, own=own, taken=taken)
        except ConfigError:
            return
        assert all(a[1] < b[0] for a, b in pairwise(wider))
        small, large = sorted([own, wider], key=n_slots)
        covered = {slot for first, behind in large for slot in range(first, behind)}
        assert {slot for first, behind in small for slot in range(first, behind)} <= covered


# --------------------------------------------------------------------------- units


@pytest.mark.parametrize(
    ("unit", "names", "expected"),
    [
        ("request", {}, "q"),
        ("conversation", {"conversation": "c"}, "c"),
        ("conversation", {}, "q"),
        ("user", {"user": "x"}, "x"),
        ("user", {}, None),
        ("tenant", {"tenant": "t"}, "t"),
        ("tenant", {"tenant": ""}, None),
    ],
)
def test_a_request_belongs_to_what_it_names(unit: ExperimentUnit, names: dict[str, str], expected: str | None) -> None:
    assert units_of("", request="q", **names)[unit] == expected


@pytest.mark.parametrize("unit", ["conversation", "user", "tenant"])
def test_one_name_of_two_senders_is_two_units(unit: ExperimentUnit) -> None:
    def of(sender: str) -> str | None:
        return units_of(sender, request="q", conversation="1", user="1", tenant="1")[unit]

    assert len({of(""), of("a"), of("b")}) == 3
    assert of("") == "1"
    unnamed = units_of("a", request="q", conversation=None, user=None, tenant=None)
    assert (unnamed["conversation"], unnamed["user"], unnamed["tenant"]) == ("q", None, "a")


def test_who_names_no_user_or_another_route_takes_no_part() -> None:
    one = made(unit="user")
    assert drawn(one, "q") == ()
    assert drawn(one, "q", user="x") == drawn(one, "another request", user="x") != ()
    assert draw_arms([one], route="other", units=units_of("", request="q", user="x"), salt=SALT) == ()


# --------------------------------------------------------------------------- arms


ROUTE = Route(
    upstream="u", mode="enforce", policy={"policy": "stable-answer", "streak": 3}, effort="low", uncertified=True
)


def test_the_full_run_is_the_route_in_observe() -> None:
    assert with_arm(ROUTE, Arm(name="full", weight=1, full=True)).mode == "observe"
    assert with_arm(msgspec.structs.replace(ROUTE, mode="off"), Arm(name="full", weight=1, full=True)).mode == "off"


def test_an_arm_changes_what_it_names_and_nothing_else() -> None:
    assert with_arm(ROUTE, Arm(name="as it is", weight=1)) is ROUTE
    policy = {"policy": "beta", "threshold": 0.9}
    assert with_arm(ROUTE, Arm(name="a", weight=1, policy=json.dumps(policy))).policy == policy
    bolder = with_arm(ROUTE, Arm(name="a", weight=1, threshold=0.7, uncertified=True))
    assert bolder.policy == {**ROUTE.policy, "threshold": 0.7}
    assert bolder.uncertified
    budget = with_arm(ROUTE, Arm(name="a", weight=1, budget_tokens=100))
    assert (budget.effort, budget.budget_tokens) == (None, 100)
    effort = with_arm(budget, Arm(name="a", weight=1, effort="high"))
    assert (effort.effort, effort.budget_tokens) == ("high", None)


def test_a_definition_is_the_settings_as_they_were() -> None:
    written = parsed({"arms": {"brisk": {"policy": {"policy": "beta"}, "uncertified": True}, "full": {"full": True}}})
    one = define("e", written, run=2, slots=WHOLE)
    assert (one.name, one.run, one.control, one.share) == ("e", 2, "full", 1.0)
    assert one.arm("brisk") == Arm(name="brisk", weight=1.0, policy='{"policy":"beta"}', uncertified=True)
    with pytest.raises(KeyError):
        one.arm("bold")
    assert define("e", parsed({"control": "b", "arms": {"a": {}, "b": {}}}), run=1, slots=WHOLE).control == "b"
    assert define("e", parsed({"arms": {"a": {}, "b": {}}}), run=1, slots=WHOLE).control == "a"
    idle = {"full": {"full": True, "weight": 0.0}, "z": {"weight": 0.0}, "a": {}, "b": {}}
    assert define("e", parsed({"arms": idle}), run=1, slots=WHOLE).control == "a"


def test_weights_and_shares_are_no_other_question() -> None:
    one = made()
    assert same_question(one, made({"full": 1, "brisk": 9}, slots=((0, 10),), run=4))
    assert not same_question(one, made(primary="em"))
    assert not same_question(one, made({"full": 1, "brisk": 1, "bold": 1}))


# --------------------------------------------------------------------------- settings


def parsed(changes: dict[str, Any], **others: Any) -> Written:
    table = {"routes": ["r"], "arms": {"full": {"full": True}, "brisk": {}}, **changes}
    raw = {
        "upstreams": {"u": {"url": "http://h"}},
        "routes": {"r": {"upstream": "u"}, "votes": {"upstream": "u", "kind": "samples"}},
        "metrics": {"solved": {"type": "boolean"}, "tone": {"type": "category", "values": ["warm", "cold"]}},
        "experiments": {"e": table, **others},
    }
    return parse_settings(raw).experiments["e"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"routes": []}, r"experiments\.e\.routes: is empty"),
        ({"routes": ["x"]}, r"experiments\.e\.routes: unknown route 'x'; known: r, votes"),
        ({"share": 0.0}, r"experiments\.e\.share: got 0\.0"),
        ({"confidence": 1.0}, r"experiments\.e\.confidence: got 1\.0"),
        ({"warmup_units": 1}, r"experiments\.e\.warmup_units: got 1; at least 20"),
        ({"max_tokens": 0.0}, r"experiments\.e\.max_tokens: got 0\.0; more than 0"),
        ({"layer": "a b"}, r"experiments\.e\.layer: got 'a b'"),
        ({"primary": "joy"}, r"experiments\.e\.primary: unknown metric 'joy'; known: em, .*, solved"),
        ({"margins": {"tone": 0.1}}, r"experiments\.e\.margins\.tone: unknown metric"),
        ({"margins": {"em": -0.1}}, r"experiments\.e\.margins\.em: got -0\.1; at least 0"),
        ({"control": "x"}, r"experiments\.e\.control: unknown arm 'x'; known: full, brisk"),
        ({"control": "a", "arms": {"a": {"weight": 0.0}, "b": {}, "c": {}}}, r"control: arm 'a' has no weight"),
        ({"arms": {"full": {"full": True}}}, r"experiments\.e\.arms: need at least two arms"),
        ({"arms": {"a": {"weight": -1.0}, "b": {}}}, r"experiments\.e\.arms\.a\.weight: got -1\.0"),
        ({"arms": {"a": {"full": True, "level": 2}, "b": {}}}, r"arms\.a: full = true is the full run"),
        ({"arms": {"a": {"level": -2}, "b": {}}}, r"arms\.a\.level: got -2"),
        ({"arms": {"a": {"level": 2, "policy": {"policy": "beta"}}, "b": {}}}, "policy and level exclude each other"),
        ({"arms": {"a": {"effort": "low", "budget_tokens": 9}, "b": {}}}, "effort and budget_tokens exclude"),
        ({"arms": {"a": {"threshold": 0.9}, "b": {}}}, r"arms\.a\.threshold: needs routes with a policy"),
        ({"arms": {"a": {"policy": {"policy": "beta"}}, "b": {}}}, r"arms\.a\.policy: nobody has certified it"),
        ({"routes": ["votes"], "arms": {"a": {"effort": "low"}, "b": {}}}, "belongs to routes of kind 'reasoning'"),
        ({"arms": {"a b": {}, "b": {}}}, r"experiments\.e\.arms: got 'a b'"),
        ({"arms": {"a": {"weight": "much"}, "b": {}}}, r"experiments\.e\.arms\.a\.weight: "),
    ],
)
def test_an_experiment_that_cannot_be_is_refused_with_its_place(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parsed(changes)


def test_a_level_belongs_to_what_is_certified() -> None:
    raw = {
        "upstreams": {"u": {"url": "http://h"}},
        "routes": {"r": {"upstream": "u", "policy": {"policy": "beta"}}},
        "experiments": {"e": {"routes": ["r"], "arms": {"a": {"level": 2}, "b": {}}}},
    }
    with pytest.raises(ConfigError, match=r"arms\.a\.level: needs routes without a policy of their own"):
        parse_settings(raw)


def test_experiments_of_one_layer_have_one_unit() -> None:
    other = {"routes": ["r"], "arms": {"a": {}, "b": {}}, "unit": "user"}
    with pytest.raises(ConfigError, match=r"experiments\.f\.unit: got 'user'; .*experiments\.e in layer 'default'"):
        parsed({}, f=other)
    assert parsed({}, f={**other, "layer": "people"}).unit == "request"
    assert parsed({}, f={**other, "routes": ["votes"]}).unit == "request"


def test_declared_metrics_may_decide() -> None:
    assert parsed({"primary": "solved", "margins": {"solved": 0.02}}).primary == "solved"

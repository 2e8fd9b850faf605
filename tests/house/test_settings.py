"""Every setting, one by one: unknown keys and wrong types are refused with their path, defaults are safe."""

from __future__ import annotations

import copy
from typing import Any, get_type_hints

import msgspec
import pytest

from suffice import settings as house
from suffice.errors import ConfigError
from suffice.settings import parse_settings
from tests.house.levels import LEVELS, OWNERS_NAMES, RAW


class Strange:
    """A value of no type that a configuration file can hold."""


def with_value(level: tuple[str, ...], key: str, value: object) -> dict[str, Any]:
    """A good configuration with one value changed."""
    raw = copy.deepcopy(RAW)
    table = raw
    for part in level:
        table = table[part]
    table[key] = value
    return raw


def test_the_table_of_levels_is_complete() -> None:
    models = {
        value
        for value in vars(house).values()
        if isinstance(value, type) and issubclass(value, msgspec.Struct) and value is not msgspec.Struct
    }
    assert models == set(LEVELS.values())
    assert parse_settings(RAW).routes["math"].upstream == "box"


@pytest.mark.parametrize("level", LEVELS, ids=".".join)
def test_an_unknown_key_is_refused_with_its_path(level: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_settings(with_value(level, "zzzz", 1))
    assert str(refused.value).startswith(".".join((*level, "zzzz")) + ": unknown key")
    assert min(get_type_hints(LEVELS[level])) in str(refused.value)


@pytest.mark.parametrize("level", LEVELS, ids=".".join)
def test_a_misspelt_key_is_answered_with_the_nearest(level: tuple[str, ...]) -> None:
    names = get_type_hints(LEVELS[level])
    for name in names:
        misspelt = name + "s" if not name.endswith("s") else name[:-1]
        if misspelt in names:
            misspelt = name + "_"
        with pytest.raises(ConfigError, match="did you mean") as refused:
            parse_settings(with_value(level, misspelt, 1))
        assert str(refused.value).startswith(".".join((*level, misspelt)) + ":")
        assert repr(name) in str(refused.value)


@pytest.mark.parametrize("level", LEVELS, ids=".".join)
def test_a_value_of_a_wrong_type_is_refused_with_its_path(level: tuple[str, ...]) -> None:
    for name in get_type_hints(LEVELS[level]):
        with pytest.raises(ConfigError) as refused:
            parse_settings(with_value(level, name, Strange()))
        where, colon, what = str(refused.value).partition(": ")
        # The name that the owner chose may be left out, the keys that we chose may not.
        ours = [part for part in (*level, name) if part not in OWNERS_NAMES]
        assert colon
        assert [part for part in where.split(".") if part in ours] == ours, refused.value
        assert what


@pytest.mark.parametrize("level", [level for level in LEVELS if level], ids=".".join)
def test_something_else_in_place_of_a_table_is_refused(level: tuple[str, ...]) -> None:
    for wrong in (1, "text", ["list"]):
        with pytest.raises(ConfigError, match="must be a table"):
            parse_settings(with_value(level[:-1], level[-1], wrong))


@pytest.mark.parametrize("model", LEVELS.values(), ids=lambda model: model.__name__)
def test_settings_cannot_be_changed_afterwards(model: type[msgspec.Struct]) -> None:
    assert model.__struct_config__.frozen
    assert model.__struct_config__.forbid_unknown_fields


def test_defaults_are_the_safe_ones() -> None:
    nothing = parse_settings({})
    assert nothing.routes == {}
    assert nothing.upstreams == {}
    assert nothing.server.host == "127.0.0.1"
    route = parse_settings({"upstreams": RAW["upstreams"], "routes": {"math": {"upstream": "box"}}}).routes["math"]
    assert route.mode == "observe"
    assert route.uncertified is False
    assert route.policy == {}
    assert route.probe is None
    assert route.samples == 1


@pytest.mark.parametrize(
    ("key", "value", "names"),
    [
        ("upstream", "bix", "box"),
        ("max_em_drop", 1.5, "fraction"),
        ("confidence", -0.1, "fraction"),
        ("audit_share", 7.0, "fraction"),
        ("critical_em", 2.0, "fraction"),
        ("samples", 0, "at least 1"),
        ("wave", 0, "at least 1"),
        ("mode", "enforced", "enforced"),
        ("kind", "reasonning", "reasonning"),
    ],
)
def test_a_value_out_of_range_says_what_is_allowed(key: str, value: object, names: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_settings(with_value(("routes", "math"), key, value))
    assert key in str(refused.value)
    assert names in str(refused.value)


def test_an_upstream_needs_an_address() -> None:
    for url in ("", "box:8080", "ftp://box", "http://"):
        with pytest.raises(ConfigError, match=r"upstreams\.box\.url"):
            parse_settings(with_value(("upstreams", "box"), "url", url))


@pytest.mark.parametrize(("key", "value"), [("period_s", 0.0), ("tick_requests", 0), ("window_audits", -1)])
def test_a_control_loop_needs_numbers_that_it_can_work_with(key: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"control\.{key}: got {value}"):
        parse_settings(with_value(("control",), key, value))


def test_a_label_cannot_be_late_before_it_comes() -> None:
    with pytest.raises(ConfigError, match=r"routes\.math\.label_timeout_s: got -1\.0"):
        parse_settings(with_value(("routes", "math"), "label_timeout_s", -1.0))


def test_a_closing_text_must_not_end_in_a_space() -> None:
    with pytest.raises(ConfigError, match=r"routes\.math\.probe\.closing"):
        parse_settings(with_value(("routes", "math", "probe"), "closing", "Answer: "))


@pytest.mark.parametrize(
    ("level", "key", "value"),
    [
        (("routes", "math", "probe"), "timeout_s", 0.0),
        (("routes", "math", "probe"), "reask_thought", "no place for it"),
        (("routes", "math"), "budget_tokens", -1),
        (("upstreams", "box", "template"), "turn", "no place for it"),
    ],
)
def test_what_a_finish_cannot_work_with_is_refused(level: tuple[str, ...], key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=key):
        parse_settings(with_value(level, key, value))


def test_effort_and_budget_belong_to_reasoning() -> None:
    raw = with_value(("routes", "math"), "kind", "samples")
    raw["routes"]["math"]["effort"] = "low"
    with pytest.raises(ConfigError, match="reasoning"):
        parse_settings(raw)


@pytest.mark.parametrize(
    ("level", "key", "value", "allowed"),
    [
        (("routes", "math"), "min_satisfaction", 0, "a fraction up to 1, or a rating"),
        (("routes", "math"), "min_satisfaction", 5.1, "a fraction up to 1, or a rating"),
        (("routes", "math"), "fallback_capacity", 0, "above 0"),
        (("routes", "math"), "on_fallback", "quality", "quality_first, availability_first"),
        (("routes", "math"), "pressure", {}, "at least one of queue, latency_s"),
        (("routes", "math", "pressure"), "queue", 0, "more than 0"),
        (("routes", "math", "pressure"), "hold_s", float("inf"), "more than 0"),
        (("routes", "math", "pressure"), "operating_point", 1.1, "from 0 to 1"),
        (("routes", "math", "pressure"), "slack_point", 1.1, "from 0 to 1"),
    ],
)
def test_what_steers_by_load_and_ratings_is_checked(
    level: tuple[str, ...], key: str, value: object, allowed: str
) -> None:
    with pytest.raises(ConfigError, match=rf"routes\.math.*{key}|names no target") as refused:
        parse_settings(with_value(level, key, value))
    assert allowed in str(refused.value)


def test_pressure_needs_an_upstream_whose_load_is_measured_and_slack_is_the_safer_side() -> None:
    raw = with_value(("routes", "math"), "kind", "rounds")
    raw["routes"]["math"].pop("upstream")
    with pytest.raises(ConfigError, match=r"routes\.math\.pressure: needs a route with an upstream"):
        parse_settings(raw)
    raw = with_value(("routes", "math", "pressure"), "slack_point", 0.8)
    raw["routes"]["math"]["pressure"]["operating_point"] = 0.7
    with pytest.raises(ConfigError, match=r"slack_point: got 0\.8; a fraction from 0 to 0\.7"):
        parse_settings(raw)


@pytest.mark.parametrize("key", ["input_usd_per_mtok", "cached_input_usd_per_mtok", "output_usd_per_mtok"])
def test_a_price_is_a_number_from_zero_up(key: str) -> None:
    for wrong in (-0.01, float("inf"), float("nan")):
        with pytest.raises(ConfigError, match=rf"upstreams\.box\.prices\.{key}: .*US dollars"):
            parse_settings(with_value(("upstreams", "box", "prices"), key, wrong))
    free = parse_settings(with_value(("upstreams", "box", "prices"), key, 0)).upstreams["box"].prices
    assert free is not None
    assert getattr(free, key) == 0.0

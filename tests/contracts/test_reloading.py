"""Every setting is taken over by a reload, or named as one that needs a restart: none is lost in silence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import msgspec
import pytest

from suffice.settings import Settings, parse_settings
from suffice.settings.reloading import AT_START, can_reload, merge_settings
from tests.house.levels import LEVELS, RAW

S = TypeVar("S", bound=msgspec.Struct)
BEFORE = parse_settings(RAW)
CHANGED = "another value than any that a setting can have"


def values() -> Iterator[tuple[tuple[str, ...], str]]:
    """Every setting that is no table: the place of its table, and its name."""
    for level in LEVELS:
        table = at(BEFORE, level)
        for field in table.__struct_fields__:
            value = getattr(table, field)
            tables = isinstance(value, Mapping) and any(isinstance(one, msgspec.Struct) for one in value.values())
            if level and not (tables or isinstance(value, msgspec.Struct)):
                yield level, field


def at(settings: Any, level: tuple[str, ...]) -> msgspec.Struct:
    for part in level:
        settings = settings[part] if isinstance(settings, Mapping) else getattr(settings, part)
    assert isinstance(settings, msgspec.Struct)
    return settings


def changed(table: S, level: tuple[str, ...], field: str) -> S:
    """The same settings with another value in one place."""
    if not level:
        return msgspec.structs.replace(table, **{field: CHANGED})
    name, *rest = level
    inner: Any = getattr(table, name)
    if isinstance(inner, Mapping):
        inner = {**inner, rest[0]: changed(inner[rest[0]], tuple(rest[1:]), field)}
    else:
        inner = changed(inner, tuple(rest), field)
    return msgspec.structs.replace(table, **{name: inner})


@pytest.mark.parametrize("level", dict.fromkeys(level for level, _ in values()), ids=".".join)
def test_a_changed_setting_is_taken_over_or_needs_a_restart(level: tuple[str, ...]) -> None:
    for field in (field for own, field in values() if own == level):
        after = changed(BEFORE, level, field)
        result, path = merge_settings(BEFORE, after), ".".join((*level, field))
        if can_reload(LEVELS[level], field):
            assert (result.applied, result.need_restart, result.settings) == ((path,), (), after)
        else:
            assert (result.applied, result.need_restart, result.settings) == ((), (path,), BEFORE)
        assert path in result.sentence


def test_what_is_read_at_the_start_is_a_setting() -> None:
    for table, fields in AT_START.items():
        assert fields <= set(table.__struct_fields__)


def test_a_table_that_comes_or_goes_is_named() -> None:
    without = msgspec.structs.replace(BEFORE, keys={}, experiments={})
    there, back = merge_settings(BEFORE, without), merge_settings(without, BEFORE)
    assert there.applied == back.applied == ("keys.team", "experiments.brisk")
    assert (there.settings, back.settings) == (without, BEFORE)
    assert merge_settings(BEFORE, BEFORE).applied == ()
    assert merge_settings(Settings(), Settings()).sentence == "no change"


def test_the_order_of_routes_is_a_setting_because_the_first_that_matches_serves() -> None:
    two = parse_settings({"upstreams": {"u": {"url": "http://h"}}, "routes": {n: {"upstream": "u"} for n in "ab"}})
    turned = msgspec.structs.replace(two, routes=dict(reversed(two.routes.items())))
    result = merge_settings(two, turned)
    assert result.applied == ("routes (their order)",)
    assert list(result.settings.routes) == ["b", "a"]

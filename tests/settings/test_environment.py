"""Every setting can be set by an environment variable, which wins over the file; a wrong name or value is refused."""

from __future__ import annotations

import copy
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from suffice.errors import ConfigError
from suffice.settings import parse_settings
from suffice.settings.environment import override_settings
from tests.house.levels import LEVELS, RAW

SETTINGS = parse_settings(RAW)
TABLES = {
    level: [
        (*level, field.name)
        for field in msgspec.structs.fields(model)
        if not (level == () or (isinstance(field.default_factory, type) and issubclass(field.default_factory, dict)))
    ]
    for level, model in LEVELS.items()
}
EVERY_TABLE = pytest.mark.parametrize(
    "paths", [paths for paths in TABLES.values() if paths], ids=lambda paths: ".".join(paths[0][:-1])
)


def variable_of(path: tuple[str, ...]) -> str:
    return "SUFFICE__" + "__".join(part.upper() for part in path)


def at(raw: dict[str, Any], path: tuple[str, ...]) -> Any:
    value: Any = raw
    for part in path:
        value = value[part] if isinstance(value, dict) else getattr(value, part)
    return value


@EVERY_TABLE
def test_every_setting_takes_the_value_that_it_has_in_a_file(paths: list[tuple[str, ...]]) -> None:
    """The value that the settings show, written into its variable, gives the same settings."""
    for path in paths:
        value = msgspec.to_builtins(at(msgspec.structs.asdict(SETTINGS), path))
        text = value if isinstance(value, str) else json.dumps(value)
        merged, variables = override_settings(RAW, {variable_of(path): text})
        assert variables == {".".join(path): variable_of(path)}
        assert at(merged, path) == (value if isinstance(value, str) else json.loads(text)), path
        assert parse_settings(merged) == SETTINGS, path


@EVERY_TABLE
def test_a_misspelt_variable_is_answered_with_the_nearest(paths: list[tuple[str, ...]]) -> None:
    for path in paths:
        wrong = (*path[:-1], path[-1] + "x")
        with pytest.raises(ConfigError) as refused:
            override_settings(RAW, {variable_of(wrong): "1"})
        assert str(refused.value) == (
            f"{variable_of(wrong)}: unknown setting {'.'.join(wrong)!r}; did you mean {variable_of(path)}?"
        )


@pytest.mark.parametrize(
    ("variable", "text", "path", "value"),
    [
        ("SUFFICE__SERVER__PORT", "9000", "server.port", 9000),
        ("SUFFICE__server__port", "9000", "server.port", 9000),
        ("SUFFICE__CONSOLE__ENABLED", "false", "console.enabled", False),
        ("SUFFICE__CONSOLE__PORT", "null", "console.port", None),
        ("SUFFICE__SERVER__ALLOWED_HOSTS", '["a", "b"]', "server.allowed_hosts", ["a", "b"]),
        ("SUFFICE__SERVER__ALLOWED_HOSTS", "['a', 'b']", "server.allowed_hosts", ["a", "b"]),
        ("SUFFICE__ROUTES__MATH_QA__MODE", "off", "routes.math-qa.mode", "off"),
        ("SUFFICE__ROUTES__math-qa__MODE", "off", "routes.math-qa.mode", "off"),
        ("SUFFICE__ROUTES__A__B__MODE", "off", "routes.a__b.mode", "off"),
        ("SUFFICE__ROUTES__NEW__UPSTREAM", "box", "routes.new.upstream", "box"),
        ("SUFFICE__ROUTES__MATH_QA__SCORER", "math", "routes.math-qa.scorer", "math"),
        ("SUFFICE__ROUTES__MATH_QA__SCORER", '{"scorer": "em"}', "routes.math-qa.scorer", {"scorer": "em"}),
        ("SUFFICE__ROUTES__MATH_QA__SCORER", '{scorer = "em"}', "routes.math-qa.scorer", {"scorer": "em"}),
        ("SUFFICE__ROUTES__MATH_QA__POLICY__POLICY", "never", "routes.math-qa.policy.policy", "never"),
        ("SUFFICE__ROUTES__MATH_QA__POLICY__THRESHOLD", "0.5", "routes.math-qa.policy.threshold", 0.5),
        ("SUFFICE__ROUTES__MATH_QA__MODEL", "7", "routes.math-qa.model", "7"),
        ("SUFFICE__ROUTES__MATH_QA__MODEL", "null", "routes.math-qa.model", None),
        ("SUFFICE__UPSTREAMS__BOX", '{"url": "http://h"}', "upstreams.box", {"url": "http://h"}),
    ],
)
def test_names_and_values(variable: str, text: str, path: str, value: object) -> None:
    raw = {"routes": {"math-qa": {"upstream": "box"}, "a__b": {"upstream": "box"}}}
    merged, variables = override_settings(raw, {variable: text, "SUFFICE_SALT": "x", "PATH": "y"})
    assert variables == {path: variable}
    assert at(merged, tuple(path.split("."))) == value


@pytest.mark.parametrize(
    ("variable", "text", "says"),
    [
        ("SUFFICE__SERVER__PORT", "80 80", "server.port: is neither JSON nor TOML"),
        ("SUFFICE__SERVER__PORT", "", "server.port: is neither JSON nor TOML"),
        ("SUFFICE__SERVER__PORT", "1\nother = 2", "server.port: is neither JSON nor TOML"),
        ("SUFFICE__SERVER__PORT__X", "1", "server.port is no table"),
        ("SUFFICE__SERVER", "1 1", "server: is neither JSON nor TOML"),
        ("SUFFICE__ZZZZ", "1", "unknown setting 'zzzz'; known in settings: alerts, "),
        ("SUFFICE__", "1", "unknown setting ''; known in settings: "),
        ("SUFFICE__ROUTES__A_B__MODE", "off", "may mean 'a-b' or 'a.b'; write the one in the file"),
    ],
)
def test_what_cannot_be_meant_is_refused(variable: str, text: str, says: str) -> None:
    raw = {"routes": {"a-b": {"upstream": "box"}, "a.b": {"upstream": "box"}}}
    with pytest.raises(ConfigError, match=variable) as refused:
        override_settings(raw, {variable: text})
    assert says in str(refused.value)


def test_a_fault_of_the_file_is_not_covered_up() -> None:
    with pytest.raises(ConfigError, match="SUFFICE__ROUTES__A__MODE: routes is no table in the file"):
        override_settings({"routes": "a"}, {"SUFFICE__ROUTES__A__MODE": "off"})


def test_a_key_wins_over_its_table_and_other_keys_of_the_file_stay() -> None:
    raw = {"upstreams": {"box": {"url": "http://file", "slots": 2}}}
    merged, _ = override_settings(raw, {"SUFFICE__UPSTREAMS__BOX__URL": "http://key"})
    assert merged["upstreams"]["box"] == {"url": "http://key", "slots": 2}
    both = {"SUFFICE__UPSTREAMS__BOX__URL": "http://key", "SUFFICE__UPSTREAMS__BOX": '{"url": "http://t", "slots": 3}'}
    assert override_settings(raw, both)[0]["upstreams"]["box"] == {"url": "http://key", "slots": 3}


def test_the_file_as_read_is_never_changed() -> None:
    before = copy.deepcopy(RAW)
    override_settings(RAW, {"SUFFICE__ROUTES__MATH__MODE": "off", "SUFFICE__UPSTREAMS__BOX__EXTRA__WHEN_BUSY": "queue"})
    assert before == RAW


@given(name=st.text(alphabet="ABCXYZ_abc.-é", max_size=40), text=st.text(max_size=60))
def test_any_variable_gives_settings_or_an_error_that_names_it_and_hides_its_value(name: str, text: str) -> None:
    output = ""
    try:
        override_settings(RAW, {f"SUFFICE__{name}": f"{text}canary"})
    except ConfigError as error:
        output = str(error)
    assert not output or output.startswith(f"SUFFICE__{name}: ")
    assert "canary" not in output

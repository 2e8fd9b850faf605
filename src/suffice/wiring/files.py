"""A settings file, read: TOML or YAML, with the models that its routes name by a file."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from suffice.errors import ConfigError
from suffice.model.artefact import StopModel
from suffice.model.artefact import load as load_model
from suffice.model.reading import MOST_BYTES
from suffice.plugins import load_plugins
from suffice.policy.base import POLICIES, Policy
from suffice.policy.parameters import parameters_of
from suffice.settings import Settings, parse

if TYPE_CHECKING:
    pass

MOST_CHARS = 2**20  # of a settings file
MOST_PARTS = 64     # of a key in it, with dots between
_PART = r"""(?:[\w-]+|"[^"\n]{0,100}"|'[^'\n]{0,100}')"""
_LONG_KEY = re.compile(rf"""(?<![\w."'-]){_PART}(?:[ \t]*\.[ \t]*{_PART}){{{MOST_PARTS}}}""")
MOST_DEEP = 8  # policies inside policies whose models are looked for, as many as `build_policy` takes


def load_settings(path: str | Path) -> Settings:
    """Read a TOML (or YAML) file. Raises ConfigError with the file, the place and what is allowed."""
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: is not UTF-8 at byte {error.start}") from None
    try:
        raw = _read_yaml(text) if file.suffix in (".yaml", ".yml") else read_toml(text)
        load_plugins()
        return parse(_with_models(raw, file.parent))
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from None


def read_toml(text: str) -> dict[str, Any]:
    """A TOML table. Raises ConfigError for what is none, too long or too deep."""
    if len(text) > MOST_CHARS:
        raise ConfigError(f"got {len(text):,} characters; at most {MOST_CHARS:,}")
    if _LONG_KEY.search(text):  # tomllib needs time that grows with the square of a key's parts
        raise ConfigError(f"a key has more than {MOST_PARTS} parts; at most that many")
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"is no TOML: {error}") from None


def _with_models(raw: Any, folder: Path) -> Any:
    """The settings as read, each learned model that a route or an arm names by its file replaced by what the file says.

    Whatever else is wrong with them is left to `settings.parse` and `build_policy`. Any: nothing is checked yet.
    """
    if not isinstance(raw, Mapping):
        return raw
    read, experiments = dict(raw), raw.get("experiments")
    if "routes" in raw:
        read["routes"] = _policies_with_models("routes", raw["routes"], folder)
    if isinstance(experiments, Mapping):
        read["experiments"] = {
            name: {**one, "arms": _policies_with_models(f"experiments.{name}.arms", one["arms"], folder)}
            if isinstance(one, Mapping) and "arms" in one else one
            for name, one in experiments.items()
        }  # fmt: skip
    return read


def _policies_with_models(where: str, tables: Any, folder: Path) -> Any:
    """Tables that may hold a policy each, with the models of these."""
    if not isinstance(tables, Mapping):
        return tables
    return {
        name: {**table, "policy": policy_with_models(f"{where}.{name}.policy", table["policy"], folder)}
        if isinstance(table, Mapping) and "policy" in table else table
        for name, table in tables.items()
    }  # fmt: skip


def policy_with_models(where: str, spec: Any, folder: Path, depth: int = MOST_DEEP) -> Any:
    """A policy, written as a table, with its models' data in it; a policy inside it likewise."""
    name = spec.get("policy") if isinstance(spec, Mapping) else None
    if not depth or not isinstance(name, str) or name not in POLICIES:
        return spec
    read = dict(spec)
    for parameter in parameters_of(POLICIES[name]):
        value, place = read.get(parameter.name), f"{where}.{name}.{parameter.name}"
        if parameter.type is StopModel and isinstance(value, str):
            read[parameter.name] = _read_model(place, folder / value)
        elif parameter.type is Policy and isinstance(value, list):
            read[parameter.name] = [
                policy_with_models(f"{place}[{at}]", one, folder, depth - 1) for at, one in enumerate(value)
            ]
        elif parameter.type is Policy and value is not None:
            read[parameter.name] = policy_with_models(place, value, folder, depth - 1)
    return read


def _read_model(where: str, file: Path) -> dict[str, Any]:
    """The model in a file, checked, as a table. Raises ConfigError with where it was named, the file and the place."""
    try:
        with file.open("rb") as handle:
            content = handle.read(MOST_BYTES + 1)
    except (OSError, ValueError) as error:  # a name may hold a null byte
        raise ConfigError(f"{where}: {file}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    try:
        return load_model(content).plain()
    except ConfigError as error:
        raise ConfigError(f"{where}: {file}: {error}") from None


def _read_yaml(text: str) -> Any:
    try:
        import yaml  # type: ignore[import-untyped, unused-ignore]  # only for those who write YAML
    except ImportError:
        raise ConfigError("YAML config needs the package PyYAML; install it or write TOML") from None
    try:
        if len(text) > MOST_CHARS:
            raise ConfigError(f"got {len(text):,} characters; at most {MOST_CHARS:,}")
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=yaml.SafeLoader)):
            raise ConfigError("has an alias (*NAME), which can stand for any amount of text; write the text itself")
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(str(error)) from None

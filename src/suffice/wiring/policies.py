"""A policy as a person hands it over: a table on the command line, or a file that holds one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from suffice.errors import ConfigError
from suffice.settings import Route
from suffice.wiring.files import policy_with_models, read_toml
from suffice.wiring.routes import build_route


def policy_table(said: str) -> dict[str, Any]:
    """The table of a policy. Raises ConfigError with what was wrong and what is allowed.

    said  TOML or JSON in braces, or a file's name; models that the table names by a file are read
    """
    is_written = said.lstrip().startswith("{")
    where, folder = ("policy", Path()) if is_written else (said, Path(said).parent)
    try:
        text = said if is_written else Path(said).read_text(encoding="utf-8")
        found = _read(text)
    except OSError as error:
        raise ConfigError(f"{said}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError, ConfigError):  # of TOML, JSON and Unicode
        raise ConfigError(
            f"""{where}: is no table; write it as {{policy = "beta", threshold = 0.9}}, or name a TOML or JSON file"""
        ) from None
    if not isinstance(found, Mapping) or not isinstance(found.get("policy"), str):
        raise ConfigError(f'{where}: names no policy; a table needs policy = "NAME"')
    return dict(policy_with_models(where, found, folder))


def check_policy(name: str, route: Route, policy: Mapping[str, Any]) -> None:
    """Can the policy be built on the route, with all signals that it reads? Raises ConfigError."""
    build_route(name, msgspec.structs.replace(route, policy=dict(policy)))


def _read(text: str) -> Any:
    """A table, in TOML or JSON. Any: nothing is checked yet. Raises ValueError."""
    stripped = text.strip()
    if stripped.startswith("{"):
        try:
            return json.loads(stripped)
        except (ValueError, RecursionError):
            return read_toml(f"table = {stripped}")["table"]
    return read_toml(text)

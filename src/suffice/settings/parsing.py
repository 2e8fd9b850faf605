"""Parses tables into settings; refuses unknown keys with their path and the nearest known key."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any, Final, Literal, TypeVar, get_args, get_origin

import msgspec

from suffice.errors import ConfigError
from suffice.settings.checks import check_settings, typed_fields
from suffice.settings.tables import Settings

S = TypeVar("S", bound=msgspec.Struct)

MOST_NAME_CHARS: Final = 100  # of a route, an upstream, an experiment, a metric
_SECRET_NAME: Final = re.compile(r"(^|_)(key|secret|password|token|credential)s?$")
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_HTTP_URL: Final = re.compile(r"https?://[!-.0-?A-~]+(/[!-~]*)?")  # before the path: all but "/" and "@"

# Types in the words of people who write a settings file.
_KINDS = {
    "str": "a text in quotes",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "array": "a list",
    "object": "a table",
    "null": "nothing",
}


def parse_settings(raw: Mapping[str, Any]) -> Settings:
    """Turn a nested mapping (TOML or YAML as read) into settings.

    Raises ConfigError with the path of the value at fault, what it was and what is allowed.
    """
    _check_table(raw, Settings, path="")
    settings = _convert(_with_rollout(raw), Settings, path="")
    check_settings(settings)
    return settings


def _with_rollout(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Merge the deployment's rollout table into that of every route that overrides parts of it."""
    everywhere, routes = raw.get("rollout") or {}, raw.get("routes") or {}
    if not everywhere:
        return dict(raw)
    merged = {
        name: {**route, "rollout": {**everywhere, **(route.get("rollout") or {})}} for name, route in routes.items()
    }
    return {**raw, "routes": merged}


def _convert(raw: object, model: type[S], *, path: str) -> S:
    try:
        return msgspec.convert(raw, model, strict=True)
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at ")
        inner = where.strip("`").removeprefix("$").removeprefix(".")
        here = ".".join(part for part in (path, inner) if part) or "config"
        raise ConfigError(f"{here}: {_in_words(what)}{_allowed(model, inner)}") from None


def _in_words(what: str) -> str:
    if match := re.fullmatch(r"Expected `([\w| ]+)`, got `(\w+)`", what):
        wanted = [_KINDS.get(kind, kind) for kind in match[1].split(" | ") if kind != "null"]
        return f"must be {' or '.join(wanted)}, got {_KINDS.get(match[2], match[2])}"
    if match := re.fullmatch(r"Invalid enum value (.+)", what):
        return f"got {match[1]}"
    if match := re.fullmatch(r"Object missing required field `(\w+)`", what):
        return f"{match[1]} must be given"
    return what


def _allowed(model: type[msgspec.Struct], inner: str) -> str:
    hint: Any = model
    for name in inner.split("."):
        nested = _struct_in(hint)
        hint = typed_fields(nested).get(name.partition("[")[0]) if nested is not None else None
    words = [w for part in (hint, *get_args(hint)) if get_origin(part) is Literal for w in get_args(part)]
    return f"; allowed: {', '.join(words)}" if words else ""


def _check_table(raw: object, model: type[msgspec.Struct], path: str) -> None:
    """Refuse unknown keys and wrong types, in the tables inside it first, so that an error names its own table."""
    if not isinstance(raw, Mapping):
        raise ConfigError(f"{path or 'config'}: must be a table, got {type(raw).__name__}")
    fields = typed_fields(model)
    for key, value in raw.items():
        here = f"{path}.{key}" if path else str(key)
        if key not in fields:
            hint = _hint(str(key), value, fields)
            raise ConfigError(f"{here if here.isprintable() else ascii(here)}: unknown key{hint}")
        _check_plain(here, key, value)
        nested = _struct_in(fields[key])
        if nested is None or value is None:
            continue
        if get_origin(fields[key]) is not dict:
            _check_table(value, nested, here)
            continue
        if not isinstance(value, Mapping):
            raise ConfigError(f"{here}: must be a table, got {type(value).__name__}")
        for name, item in value.items():
            if not (isinstance(name, str) and 0 < len(name) <= MOST_NAME_CHARS and name.isprintable()):
                got = ascii(name)[:80]
                raise ConfigError(f"{here}: got {got} as a name; 1 to {MOST_NAME_CHARS} printable characters")
            _check_table(item, nested, f"{here}.{name}")
    if path:
        _convert(raw, model, path=path)


def _hint(key: str, value: object, fields: Mapping[str, Any]) -> str:
    if _SECRET_NAME.search(key) and isinstance(value, str):
        places = " or ".join(name for name in fields if name.endswith(("_env", "_file")) and "key" in name)
        return f"; a settings file holds no secrets: name where it is{f', in {places}' if places else ''}"
    near = difflib.get_close_matches(key, fields, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(sorted(fields))}"


def _check_plain(here: str, key: str, value: object) -> None:
    """Refuse values that would change their meaning later. Errors never repeat a text: it may be a secret."""
    if isinstance(value, int) and value.bit_length() > 63:
        raise ConfigError(f"{here}: got a number that is too large")
    if not isinstance(value, str):
        return
    if "\0" in value:
        raise ConfigError(f"{here}: holds a null character")
    if key.endswith("_env") and value and not _VARIABLE.fullmatch(value):
        raise ConfigError(f"{here}: needs the name of an environment variable, never what it holds")
    is_address = (key == "url" and here != "store.url") or (key == "otlp_endpoint" and value)
    if is_address and not _HTTP_URL.fullmatch(value):
        raise ConfigError(f"{here}: need http://host[:port][/path] in ASCII, without a user, a password or spaces")


def _struct_in(hint: Any) -> type[msgspec.Struct] | None:
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        return hint
    results = [_struct_in(part) for part in get_args(hint)]
    return next((part for part in results if part is not None), None)

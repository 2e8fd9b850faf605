"""Environment variables over a settings file: SUFFICE__SERVER__PORT=9000 sets server.port. Pure."""

from __future__ import annotations

import copy
import difflib
import json
import tomllib
from collections.abc import Iterator, Mapping
from types import UnionType
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

import msgspec

from suffice.errors import ConfigError
from suffice.settings.checks import typed_fields
from suffice.settings.tables import Settings

PREFIX: Final = "SUFFICE__"
SEPARATOR: Final = "__"


def override_settings(raw: Mapping[str, Any], environ: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Put the values of variables over settings as read; return both, and by path the variable that set it.

    A variable of a whole table comes before those of its keys. Raises ConfigError, which never repeats a value.
    """
    merged, variables = copy.deepcopy(dict(raw)), dict[str, str]()
    for variable in sorted(name for name in environ if name.startswith(PREFIX)):
        path, hint = _place_of(variable, merged)
        value = _value(environ[variable], hint, f"{variable}: {'.'.join(path)}")
        table = merged
        for part in path[:-1]:
            if table.get(part) is None:  # missing, or an empty table of YAML
                table[part] = {}
            table = table[part]
            if not isinstance(table, dict):
                raise ConfigError(f"{variable}: {part} is no table in the file, so nothing can be set inside it")
        table[path[-1]] = value
        variables[".".join(path)] = variable
    return merged, variables


def _place_of(variable: str, raw: Mapping[str, Any]) -> tuple[list[str], Any]:
    """The path that a variable names, and the type of the setting there."""
    parts, path = variable.removeprefix(PREFIX).split(SEPARATOR), list[str]()
    hint: Any = Settings
    table: Any = raw
    while parts:
        types, known = list(_alternatives(hint)), table if isinstance(table, Mapping) else {}
        structs = [one for one in types if isinstance(one, type) and issubclass(one, msgspec.Struct)]
        values = [(*get_args(one), Any)[1] for one in types if get_origin(one) is dict]
        if structs:
            name, parts = parts[0].lower(), parts[1:]
            hint = _field_type(variable, path, name, structs[0])
        elif values or hint is Any:
            name, parts = _owners_name(variable, parts, known)
            hint = values[0] if values else Any
        else:
            raise ConfigError(f"{variable}: {'.'.join(path)} is no table, so nothing can be set inside it")
        path.append(name)
        table = known.get(name)
    return path, hint


def _alternatives(hint: Any) -> Iterator[Any]:
    if get_origin(hint) is Annotated:
        yield from _alternatives(get_args(hint)[0])
    elif get_origin(hint) in (Union, UnionType):
        for part in get_args(hint):
            yield from _alternatives(part)
    else:
        yield hint


def _field_type(variable: str, path: list[str], name: str, table: type[msgspec.Struct]) -> Any:
    fields = typed_fields(table)
    if name in fields:
        return fields[name]
    before = PREFIX + "".join(f"{part.upper()}{SEPARATOR}" for part in path)
    near = difflib.get_close_matches(name, fields, n=1, cutoff=0.5)
    known = ", ".join(sorted(fields))
    hint = f"did you mean {before}{near[0].upper()}?" if near else f"known in {'.'.join(path) or 'settings'}: {known}"
    raise ConfigError(f"{variable}: unknown setting {'.'.join((*path, name))!r:.200}; {hint}")


def _owners_name(variable: str, parts: list[str], known: Mapping[str, Any]) -> tuple[str, list[str]]:
    """The name of a route, an upstream, … that a variable means, and the parts behind it.

    A name of the file is meant in any case and with `_` for other signs; a new name is in lower case.
    """
    for n_parts in range(len(parts), 0, -1):  # a name may hold the separator itself
        written = SEPARATOR.join(parts[:n_parts])
        same = [name for name in known if written in (name, _plain(name))] or [
            name for name in known if _plain(written) == _plain(name)
        ]
        if len(same) > 1:
            raise ConfigError(f"{variable}: may mean {' or '.join(map(repr, same))}; write the one in the file")
        if same:
            return same[0], parts[n_parts:]
    return parts[0].lower(), parts[1:]


def _plain(name: str) -> str:
    return "".join(sign if sign.isalnum() else "_" for sign in name.upper())


def _value(text: str, hint: Any, where: str) -> Any:
    """Read a value: texts as they are, everything else as JSON or TOML; "null": nothing, where that is allowed."""
    types = list(_alternatives(hint))
    if text == "null" and type(None) in types:
        return None
    is_text = any(one is str or get_origin(one) is Literal for one in types)
    brackets = {"{": dict, "[": tuple}
    if is_text and not any(get_origin(one) is brackets.get(text[:1], str) for one in types):
        return text
    for read in (json.loads, _toml_value):
        try:
            return read(text)
        except (ValueError, RecursionError):
            continue
    if hint is Any:
        return text
    raise ConfigError(f'{where}: is neither JSON nor TOML; lists are written as ["a"], tables as {{"key": 1}}')


def _toml_value(text: str) -> Any:
    table = tomllib.loads(f"value = {text}")
    if set(table) != {"value"}:
        raise ValueError
    return table["value"]

"""How a fold is asked for: `votes`, or `closing(alpha=0.2)` where it has parameters.

Knows the form and refuses to know which folds there are. Values are numbers, words, `true` and
`false`: a need can be written in a settings file, logged and compared, and holds nothing to run.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TypeAlias

from suffice.errors import ConfigError

Value: TypeAlias = bool | int | float | str
_MOST_CHARS = 500
_NAME = re.compile(r"[a-z][a-z0-9.-]*")
_NEED = re.compile(r"([a-z][a-z0-9.-]*)(?:\(([^()]*)\))?")
_PARAMETER = re.compile(r"\s*([a-z][a-z0-9_]*)\s*=\s*(\S+)\s*")
_WHOLE = re.compile(r"[+-]?[0-9]+")
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_.:/-]*")
_FORM = "write name or name(parameter=value, …) with numbers and words, such as closing(alpha=0.2)"


def need(name: str, **parameters: Value) -> str:
    """The text by which a policy asks for a fold: `need("closing", alpha=0.2)` is `closing(alpha=0.2)`.

    Raises ConfigError for a name or a value that cannot be written so.
    """
    written = ", ".join(f"{key}={_write(value)}" for key, value in parameters.items())
    text = f"{name}({written})" if written else name
    if not _NAME.fullmatch(name) or parse_need(text) != (name, parameters):
        raise ConfigError(f"needs: {text!r:.100} cannot be read back; {_FORM}")
    return text


def parse_need(text: str) -> tuple[str, Mapping[str, Value]]:
    """The name and the parameters that were written. Raises ConfigError that says what was wrong."""
    found = _NEED.fullmatch(text) if len(text) <= _MOST_CHARS else None
    if found is None:
        raise ConfigError(f"needs: got {text!r:.100}; {_FORM}")
    name, inside = found.groups()
    given: dict[str, Value] = {}
    for part in inside.split(",") if inside and inside.strip() else ():
        pair = _PARAMETER.fullmatch(part)
        if pair is None:
            raise ConfigError(f"needs: {name}: got {part!r:.80}; {_FORM}")
        key, value = pair.groups()
        if key in given:
            raise ConfigError(f"needs: {name}.{key}: given twice; write it once")
        given[key] = _read(f"needs: {name}.{key}", value)
    return name, given


def _read(where: str, text: str) -> Value:
    if text in ("true", "false"):
        return text == "true"
    if _WHOLE.fullmatch(text):
        return int(text)
    if _NUMBER.fullmatch(text) and math.isfinite(float(text)):
        return float(text)
    if _WORD.fullmatch(text):
        return text
    raise ConfigError(f"{where}: got {text!r:.80}; a number, a word, true or false")


def _write(value: Value) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)

"""The fold interface, and how a policy requests a fold.

A reported number out of its range is unknown (None), never extreme; a parameter out of its range is an error.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from math import inf
from typing import Protocol, TypeAlias

from suffice.errors import ConfigError
from suffice.types import Query, Step

Known: TypeAlias = int | float | Query | None


@dataclass(frozen=True, slots=True)
class SignalField:
    """One field of `Signals` as its fold declares it, and its row in docs/reference/signals.md."""

    says: str  # description
    low: float = 0.0
    high: float = inf
    unknown: str = "never"  # when its value is None
    whole: bool = False  # a count


Fields: TypeAlias = Mapping[str, SignalField]


class Fold(Protocol):
    """A small state that is updated by each step of one run.

    Every fold keeps these promises: it never raises, its values depend only on the steps and the query, a step costs
    time linear in its own length, and no two folds fill the same field. Its constructor takes keyword parameters,
    numbers or words, and raises ConfigError for bad ones.

    A fold with a method `begin(query: Query | None) -> None` gets the query before the first step. This package's folds
    also declare their `name`, what they look at, their source and their parameters, for the reference.
    """

    @property
    def fields(self) -> Collection[str]: ...

    def update(self, step: Step) -> None: ...

    def values(self) -> Mapping[str, Known]:
        """Return one value per entry of `fields`, in their order; None: unknown at this step."""
        ...


def parse_parameter(where: str, value: object, *, above: float = 0.0, most: float, low_included: bool = False) -> float:
    """Return a fold's parameter as a float. Raise ConfigError that names `where` it is and the allowed range."""
    # Whole numbers may be too large for a float, so the range is checked first.
    fits = isinstance(value, (int, float)) and not isinstance(value, bool) and above <= value <= most
    if isinstance(value, (int, float)) and fits and (low_included or value > above):
        return float(value)
    least = f"from {above:g} to {most:g}" if low_included else f"above {above:g} and at most {most:g}"
    raise ConfigError(f"{where}: got {value!r:.80}; a number {least}")


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
    """Write a need: `need("closing", alpha=0.2)` is `closing(alpha=0.2)`. Raise ConfigError if it cannot be written."""
    words = {key: str(value).lower() if isinstance(value, bool) else str(value) for key, value in parameters.items()}
    written = ", ".join(f"{key}={word}" for key, word in words.items())
    text = f"{name}({written})" if written else name
    if not _NAME.fullmatch(name) or parse_need(text) != (name, parameters):
        raise ConfigError(f"needs: {text!r:.100} cannot be read back; {_FORM}")
    return text


def parse_need(text: str) -> tuple[str, Mapping[str, Value]]:
    """Parse a need into its name and parameters. Raise ConfigError that says what was wrong."""
    match = _NEED.fullmatch(text) if len(text) <= _MOST_CHARS else None
    if match is None:
        raise ConfigError(f"needs: got {text!r:.100}; {_FORM}")
    name, inside = match.groups()
    given: dict[str, Value] = {}
    for part in inside.split(",") if inside and inside.strip() else ():
        pair = _PARAMETER.fullmatch(part)
        if pair is None:
            raise ConfigError(f"needs: {name}: got {part!r:.80}; {_FORM}")
        key, value = pair.groups()
        if key in given:
            raise ConfigError(f"needs: {name}.{key}: given twice; write it once")
        given[key] = _parse_value(f"needs: {name}.{key}", value)
    return name, given


def _parse_value(where: str, text: str) -> Value:
    if text in ("true", "false"):
        return text == "true"
    if _WHOLE.fullmatch(text):
        return int(text)
    if _NUMBER.fullmatch(text) and math.isfinite(float(text)):
        return float(text)
    if _WORD.fullmatch(text):
        return text
    raise ConfigError(f"{where}: got {text!r:.80}; a number, a word, true or false")

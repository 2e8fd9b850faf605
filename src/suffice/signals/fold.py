"""What a fold is and declares, how it is asked for, and which reported numbers it may believe.

A fold reads the steps of one run in order, keeps a small state, and fills some fields of `Signals`. A reported number
out of its range is unknown (None), never extreme; a parameter out of its range is an error at start-up.
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

ROUNDING = 1e-3  # engines report probabilities of 1 as logarithms a little above 0
_MOST_NATS = 100.0  # of one token: e^100 tokens are in no vocabulary

Known: TypeAlias = int | float | Query | None


@dataclass(frozen=True, slots=True)
class SignalField:
    """One field of `Signals` as its fold declares it: also its row in docs/reference/signals.md."""

    says: str  # what it is
    low: float = 0.0
    high: float = inf
    unknown: str = "never"  # when its value is None
    whole: bool = False  # a count


Fields: TypeAlias = Mapping[str, SignalField]


class Fold(Protocol):
    """A small state that grows with each step of one run.

    Holds for every fold: it never raises, its values depend on the steps (and the query) alone, a step
    costs time in its own length, and no two folds fill the same field. Its parameters are keywords of
    its constructor, numbers or words, which refuses bad ones with ConfigError.

    A fold that has a method `begin(query: Query | None) -> None` gets the query before the first step. Those of this
    package also declare their `name`, what they look at, their source and their parameters, for the reference.
    """

    @property
    def fields(self) -> Collection[str]:
        """The fields of Signals that this fold alone fills."""
        ...

    def update(self, step: Step) -> None:
        """Take the next step in."""
        ...

    def values(self) -> Mapping[str, Known]:
        """One value for each of `fields`, in their order; None: unknown at this step."""
        ...


def probability(value: float | None) -> float | None:
    """The value if it is a probability, in [0, 1]; None otherwise."""
    if value is None or not 0.0 <= value <= 1.0 + ROUNDING:
        return None
    return min(1.0, value)


def nats(value: float | None) -> float | None:
    """The value if it can be the entropy of one token; None otherwise."""
    return value if value is not None and 0.0 <= value <= _MOST_NATS else None


def parse_parameter(where: str, value: object, *, above: float = 0.0, most: float, low_included: bool = False) -> float:
    """A fold's parameter as a float. Raises ConfigError that names `where` it stood and what is allowed."""
    # Whole numbers may be too large for a float, so the range is looked at first.
    if isinstance(value, (int, float)) and not isinstance(value, bool) and above <= value <= most:
        fits = low_included or value > above
        if fits:
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
    matched = _NEED.fullmatch(text) if len(text) <= _MOST_CHARS else None
    if matched is None:
        raise ConfigError(f"needs: got {text!r:.100}; {_FORM}")
    name, inside = matched.groups()
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

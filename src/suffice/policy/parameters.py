"""The parameters of policies: their ranges, and the check that every policy makes of its own.

Knows numbers and their ranges; refuses to know what a policy does with them. A parameter is a
dataclass field `name: Annotated[type, Range(…)] = default`; `bool` needs no range.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, get_args, get_origin, get_type_hints

from suffice.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Range:
    """The values that a number may take, both ends included unless `low` is open."""

    low: float
    high: float
    low_open: bool = False

    def __contains__(self, value: float) -> bool:
        """Is the value allowed? Not-a-number never is."""
        above = value > self.low if self.low_open else value >= self.low
        return above and value <= self.high

    def __str__(self) -> str:
        if self.low_open:
            return f"above {self.low:g} and at most {self.high:,}"
        return f"from {self.low:,} to {self.high:,}"


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter as its policy declares it."""

    name: str
    type: type            # bool, int or float
    range: Range | None   # None for bool
    default: Any          # dataclasses.MISSING: it must be given

    @property
    def required(self) -> bool:
        """Has it no default?"""
        return self.default is dataclasses.MISSING

    def allowed(self) -> str:
        """What may be written, in words."""
        if self.type is bool:
            return "true or false"
        return f"a {'whole ' if self.type is int else ''}number {self.range}"

    def read(self, where: str, value: object) -> bool | int | float:
        """The value in the parameter's own type. Raises ConfigError that names `where` it stood."""
        fits = type(value) is self.type or (self.type is float and type(value) is int)
        if fits and isinstance(value, (int, float)) and (self.range is None or value in self.range):
            return float(value) if self.type is float else value
        raise ConfigError(f"{where}.{self.name}: got {_shown(value)}; {self.allowed()}")


class Checked:
    """Base of policies: a policy with a parameter out of range cannot be built."""

    __slots__ = ()
    name: ClassVar[str]

    def __post_init__(self) -> None:
        """Check every parameter and put whole numbers given for fractions into their type."""
        for parameter in parameters_of(type(self)):
            value = parameter.read(f"policy.{self.name}", getattr(self, parameter.name))
            object.__setattr__(self, parameter.name, value)


def parameters_of(policy: type) -> tuple[Parameter, ...]:
    """The parameters that a policy class declares, in order. Pass a dataclass."""
    hints = get_type_hints(policy, include_extras=True)
    found = []
    for field in dataclasses.fields(policy):
        hint, allowed = hints[field.name], None
        if get_origin(hint) is Annotated:
            hint, allowed = get_args(hint)[:2]
        found.append(Parameter(name=field.name, type=hint, range=allowed, default=field.default))
    return tuple(found)


def values_of(policy: object) -> Mapping[str, bool | int | float]:
    """The parameters of a policy with their values, defaults included."""
    return {parameter.name: getattr(policy, parameter.name) for parameter in parameters_of(type(policy))}


def _shown(value: object) -> str:
    """The value, short. A whole number too long to print is not printed."""
    if isinstance(value, int) and not -(10**18) < value < 10**18:
        return f"a whole number of about {math.floor(value.bit_length() * 0.30103) + 1:,} digits"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."

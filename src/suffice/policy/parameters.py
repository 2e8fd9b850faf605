"""The parameters of policies: their types, and the check that every policy makes of its own.

A parameter is a field of a frozen dataclass: a bool, a Literal of words, a number with a `ParameterRange`, a text, a
tuple (or a tuple of tuples) of such numbers with a `Length`, a policy (`Nested`), a tuple of policies, or a StopModel.
"""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, ClassVar, Final, Literal, TypeAlias, TypeGuard, get_args, get_origin, get_type_hints

from suffice.errors import ConfigError
from suffice.model.artefact import StopModel, load_model
from suffice.policy.protocol import Policy

Item: TypeAlias = bool | int | float | str | Policy | StopModel
Value: TypeAlias = Item | tuple[Item | tuple[Item, ...], ...]
Build: TypeAlias = Callable[[str, object], Policy]  # (path in the configuration, table) → policy


@dataclass(frozen=True, slots=True)
class ParameterRange:
    """The allowed values of a number; both ends are included unless `low` is open."""

    low: float
    high: float
    low_open: bool = False

    def __contains__(self, value: float) -> bool:
        return (value > self.low if self.low_open else value >= self.low) and value <= self.high

    def __str__(self) -> str:
        if self.low_open:
            return f"above {self.low:g} and at most {self.high:,}"
        return f"from {self.low:,} to {self.high:,}"


@dataclass(frozen=True, slots=True)
class Length:
    """The allowed lengths of a list, both ends included; for a list of lists first the outer, then the inner."""

    low: int
    high: int

    def __contains__(self, value: object) -> bool:
        return isinstance(value, (list, tuple)) and self.low <= len(value) <= self.high

    def __str__(self) -> str:
        return f"a list of {self.low}" if self.low == self.high else f"a list of {self.low} to {self.high:,}"


class Later:
    """Marks a parameter added after versions of its policy were logged: its default stays out of the version."""


Nested: TypeAlias = Policy  # the type of a parameter that is itself a policy
_ANY_LENGTH: Final = Length(1, 1_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    name: str
    type: type  # of the value or of each item: bool, int, float, str (a word), Policy or StopModel
    default: Any  # dataclasses.MISSING: required
    range: ParameterRange | None = None  # of a number
    words: tuple[str, ...] = ()  # of a word; (): `range` bounds the bytes of a free text
    lengths: tuple[Length, ...] = ()  # of a list, and of each list in a list of lists; (): not a list
    later: bool = False  # see `Later`

    @property
    def required(self) -> bool:
        return self.default is dataclasses.MISSING

    def allowed(self) -> str:
        lengths = [f"{length}, each " for length in self.lengths]
        return f"{''.join(lengths)}{self._allowed_item()}"

    def read(self, where: str, value: object, build: Build | None = None) -> Any:
        """Convert `value` to the parameter's type. Raise ConfigError that names `where`.

        build  builds a policy from a table; without it only built policies are accepted
        """
        return self._read(f"{where}.{self.name}", value, self.lengths, build)

    def _read(self, where: str, value: object, lengths: tuple[Length, ...], build: Build | None) -> Any:
        if not lengths:
            return self._read_item(where, value, build)
        if not isinstance(value, (list, tuple)) or value not in lengths[0]:
            raise ConfigError(f"{where}: got {_describe_value(value)}; {self.allowed()}")
        return tuple(self._read(f"{where}[{at}]", item, lengths[1:], build) for at, item in enumerate(value))

    def _allowed_item(self) -> str:
        words: dict[type, str] = {
            bool: "true or false",
            str: f"one of {', '.join(self.words)}" if self.words else f"a text {self.range} bytes long",
            Policy: "a policy, written as a table",
            StopModel: "a stop model, written as a table",
        }
        return words.get(self.type, f"a {'whole ' if self.type is int else ''}number {self.range}")

    def _read_item(self, where: str, value: object, build: Build | None) -> Item:
        if build is not None and self.type is Policy and isinstance(value, Mapping):
            return build(where, value)
        if self.type is StopModel and isinstance(value, Mapping):
            return load_model(value, where=where)
        if not self._fits(value):
            raise ConfigError(f"{where}: got {_describe_value(value)}; {self.allowed()}")
        # The value now has the right type, except that an int may stand for a float.
        return float(value) if self.type is float and isinstance(value, int) else value

    def _fits(self, value: object) -> TypeGuard[Item]:
        if self.type in (Policy, StopModel):
            return isinstance(value, self.type) and not isinstance(value, type)
        if self.type is str:
            return isinstance(value, str) and (
                value in self.words if self.range is None else _n_bytes(value) in self.range
            )
        if type(value) is not self.type and not (self.type is float and type(value) is int):
            return False
        return self.range is None or (isinstance(value, (int, float)) and value in self.range)


class ParameterChecks:
    """Base of policies: raises ConfigError at construction for a parameter out of range.

    docs/reference/policies.md is generated from a policy's first docstring sentence ("Stop when …"), the comment behind
    each parameter, and the two class variables below.
    """

    __slots__ = ()
    name: ClassVar[str]
    source: ClassVar[str] = "–"
    needs_note: ClassVar[str] = ""  # set where the needed folds depend on the parameters

    def __post_init__(self) -> None:
        policy: type = type(self)
        for parameter in parameters_of(policy):
            value = parameter.read(f"policy.{self.name}", getattr(self, parameter.name))
            object.__setattr__(self, parameter.name, value)


@cache
def parameters_of(policy: type) -> tuple[Parameter, ...]:
    hints = get_type_hints(policy, include_extras=True)
    return tuple(_parameter(field, hints[field.name]) for field in dataclasses.fields(policy))


def _parameter(field: dataclasses.Field[Any], hint: Any) -> Parameter:
    marks: tuple[object, ...] = ()
    if get_origin(hint) is Annotated:
        hint, *rest = get_args(hint)
        marks = tuple(rest)
    declared = iter([mark for mark in marks if isinstance(mark, Length)])
    lengths: list[Length] = []
    while get_origin(hint) is tuple:
        hint = get_args(hint)[0]
        lengths.append(next(declared, _ANY_LENGTH))
    words = get_args(hint) if get_origin(hint) is Literal else ()
    return Parameter(
        name=field.name,
        type=str if words else hint,
        default=field.default,
        range=next((mark for mark in marks if isinstance(mark, ParameterRange)), None),
        words=words,
        lengths=tuple(lengths),
        later=Later in marks,
    )


def _n_bytes(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


def _describe_value(value: object) -> str:
    if isinstance(value, int) and not -(10**18) < value < 10**18:
        return f"a whole number of about {math.floor(value.bit_length() * 0.30103) + 1:,} digits"
    if isinstance(value, (list, tuple)) and len(value) != 0:
        return f"a list of {len(value):,}"
    if isinstance(value, Mapping) and len(value) != 0:
        return f"a table of {len(value):,}"
    if isinstance(value, (type, types.FunctionType)):
        return f"the {type(value).__name__} {value.__name__[:60]}"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."

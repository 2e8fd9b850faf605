"""Frozen records that are made quickly."""

from __future__ import annotations

from dataclasses import MISSING, Field, dataclass, field
from typing import Any, TypeVar, cast, dataclass_transform

import msgspec

T = TypeVar("T")


def _default(one: Field[Any]) -> tuple[Any, ...]:
    if one.default_factory is not MISSING:
        return (msgspec.field(default_factory=one.default_factory),)
    return () if one.default is MISSING else (one.default,)


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(field,))
def frozen_struct(kind: type[T]) -> type[T]:
    """Make a class a frozen record with slots and named fields, which the functions of `dataclasses` know, too.

    It is a struct of msgspec, because each request makes several: a frozen dataclass takes seven times as long.
    """
    taken = {"__dict__", "__weakref__", *kind.__annotations__}
    own = {name: value for name, value in vars(kind).items() if name not in taken}
    own["__dataclass_fields__"] = known = vars(dataclass(frozen=True, kw_only=True)(kind))["__dataclass_fields__"]
    columns = [(one.name, one.type, *_default(one)) for one in known.values()]
    name, module = kind.__name__, kind.__module__
    made = msgspec.defstruct(name, columns, namespace=own, module=module, frozen=True, kw_only=True)
    return cast("type[T]", made)

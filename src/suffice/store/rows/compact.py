"""Structs that mirror dataclasses, and whose JSON leaves out what is unknown: fields that are None, as by default.

Such a row reads like one that is older than the field. Without this, half the bytes of an outcome are nulls.
"""

from __future__ import annotations

from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache, partial
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import msgspec


@cache
def struct_like(record: type[Any]) -> type[msgspec.Struct]:
    hints = get_type_hints(record)
    columns = [_column(one, _mirrored(hints[one.name])) for one in fields(record)]
    return msgspec.defstruct(record.__name__, columns, omit_defaults=True, kw_only=True)


def _column(one: Field[Any], hint: Any) -> tuple[str, Any] | tuple[str, Any, Any]:
    if one.default is None:
        return one.name, hint, None
    # Only a default value is ever left out, never what a factory makes.
    if one.default is not MISSING:
        return one.name, hint, msgspec.field(default_factory=partial(getattr, one, "default"))
    if one.default_factory is not MISSING:
        return one.name, hint, msgspec.field(default_factory=partial(one.default_factory))
    return one.name, hint


def _mirrored(hint: Any) -> Any:
    """Return a type with the dataclasses in it replaced."""
    if is_dataclass(hint):
        return struct_like(hint)  # type: ignore[arg-type]
    arguments = tuple(_mirrored(one) for one in get_args(hint))
    if arguments == get_args(hint):
        return hint
    origin = get_origin(hint)
    return Union[arguments] if origin in (Union, UnionType) else origin[arguments]  # noqa: UP007 - made at run time

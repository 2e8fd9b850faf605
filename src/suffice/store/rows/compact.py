"""What makes rows small and plain.

Structs mirror dataclasses and leave out of their JSON what is unknown: fields that are None, as by default. Such a row
reads like one that is older than the field; without this, half the bytes of an outcome are nulls. Plain values take the
place of what JSON cannot carry.
"""

from __future__ import annotations

import math
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


def to_plain(event: Any) -> Any:
    """Return an event's fields as dicts, lists and plain values. Raise TypeError for what is none.

    A scalar of numpy becomes Python's, an array a list or, without dimensions, its value. A list with a number that is
    not finite becomes empty (unknown), half of a surrogate pair its escape.
    """
    return _mended(msgspec.to_builtins(event, enc_hook=_unboxed))


def _unboxed(value: Any) -> Any:
    """Called for types that msgspec does not know. Numpy's are told by their method: its import would cost gateways."""
    tolist = getattr(value, "tolist", None)
    if tolist is None:
        raise TypeError(f"got {type(value).__name__}; allowed: plain values, and numpy's scalars and arrays")
    return tolist()


def _mended(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _mended(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        if any(isinstance(item, float) and not math.isfinite(item) for item in value):
            return []
        return [_mended(item) for item in value]
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    return value

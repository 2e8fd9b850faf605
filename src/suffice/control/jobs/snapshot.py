"""Writes the objects of a fold as plain data and makes them again; shared objects stay shared, numbers keep each bit.

A scalar stands for itself; anything else is a list that begins with its tag. Objects are made without their
constructors and get their fields back, so only what has no fields, such as a closure, cannot be written. Names of
classes are looked up in this package alone; the caller verifies that the data is its own (`folds.FoldStates`).
"""

from __future__ import annotations

import importlib
import types
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from functools import cache
from operator import attrgetter
from typing import Any, Final

import msgspec
import numpy as np

from suffice.assurance.runs import RunNumbers
from suffice.types import Episode

PACKAGE: Final = "suffice."
_SCALARS: Final = frozenset({type(None), bool, int, float, str, bytes})
_ABSENT: Final = object()
_SMALLEST, _LARGEST = -(2**63), 2**63 - 1  # of what is written as a number


class UnstorableState(Exception):
    """The state holds something that is no plain data of this package."""


def take_snapshot(root: object, given: Mapping[str, object]) -> bytes:
    """Return an object and all that it refers to as bytes. Raise UnstorableState.

    given  what is not part of the state, by name: the reader passes its own
    """
    try:
        return msgspec.msgpack.encode(_Taker(given).plain(root))
    except (OverflowError, TypeError, RecursionError) as error:
        raise UnstorableState(str(error)) from None


def restore_snapshot(body: bytes, given: Mapping[str, object]) -> Any:
    return _Restorer(given).value(msgspec.msgpack.decode(body))


class _Taker:
    def __init__(self, given: Mapping[str, object]) -> None:
        self._given = {id(one): name for name, one in given.items()}
        self._places = dict[int, int]()  # of what has been written, by identity

    def plain(self, value: Any) -> Any:
        kind = type(value)
        if kind in _SCALARS:
            return ["int", str(value)] if kind is int and not _SMALLEST <= value <= _LARGEST else value
        if kind is tuple:
            return ["tuple", *map(self.plain, value)]
        if (name := self._given.get(id(value))) is not None:
            return ["given", name]
        if (place := self._places.get(id(value))) is not None:
            return ["same", place]
        self._places[id(value)] = len(self._places)
        write = _WRITERS.get(kind)
        return write(self, value) if write is not None else self._object(kind, value)

    def _object(self, kind: type[Any], value: Any) -> list[Any]:
        if isinstance(value, np.generic):
            return ["number", value.dtype.str, value.tobytes()]
        name, is_record, slots = _layout_of(kind)  # type: ignore[arg-type]
        if is_record:
            return ["record", name, msgspec.msgpack.encode(value)]
        if isinstance(value, tuple):
            return ["named", name, *map(self.plain, value)]
        fields = {key: self.plain(one) for key in slots if (one := getattr(value, key, _ABSENT)) is not _ABSENT}
        fields |= {key: self.plain(one) for key, one in getattr(value, "__dict__", {}).items()}
        return ["object", name, fields]

    def pairs(self, value: Mapping[Any, Any]) -> list[Any]:
        return [self.plain(one) for pair in value.items() for one in pair]

    def array(self, value: Any) -> list[Any]:
        if value.dtype.hasobject:
            raise UnstorableState("an array of objects")
        order = "F" if value.flags.f_contiguous and not value.flags.c_contiguous else "C"
        return ["array", value.dtype.str, list(value.shape), order, value.tobytes(order)]


_WRITERS: Final[Mapping[type[Any], Callable[[_Taker, Any], list[Any]]]] = {
    list: lambda to, one: ["list", *map(to.plain, one)],
    set: lambda to, one: ["set", *map(to.plain, sorted(one, key=repr))],
    frozenset: lambda to, one: ["frozenset", *map(to.plain, sorted(one, key=repr))],
    deque: lambda to, one: ["deque", one.maxlen, *map(to.plain, one)],
    dict: lambda to, one: ["dict", *to.pairs(one)],
    Counter: lambda to, one: ["counter", *to.pairs(one)],
    range: lambda _, one: ["range", one.start, one.stop, one.step],
    np.ndarray: _Taker.array,
    types.MethodType: lambda to, one: ["method", to.plain(one.__self__), one.__name__],
    types.FunctionType: lambda _, one: ["name", _name_of(one)],
}


@cache
def _named(name: str) -> Any:
    module, _, path = name.partition(":")
    if not module.startswith(PACKAGE):
        raise ValueError(f"{name} is none of this package's")
    return attrgetter(path)(importlib.import_module(module))


@cache
def _decoder(name: str) -> msgspec.msgpack.Decoder[Any]:
    return msgspec.msgpack.Decoder(_named(name))


class _Restorer:
    def __init__(self, given: Mapping[str, object]) -> None:
        self._given, self._made = given, list[Any]()

    def value(self, plain: Any) -> Any:
        if type(plain) is not list:
            return plain
        tag, rest = plain[0], plain[1:]
        if tag == "tuple":
            return tuple(map(self.value, rest))
        if tag == "int":
            return int(rest[0])
        if tag == "given":
            return self._given[rest[0]]
        if tag == "same":
            return self._made[rest[0]]
        place = len(self._made)
        self._made.append(None)
        if (fill := _FILLERS.get(tag)) is not None:  # may refer to itself
            made, rest = fill(rest)
            self._made[place] = made
            self._fill(made, rest)
        else:
            made = self._made[place] = _MAKERS[tag](self, *rest)
        return made

    def _fill(self, made: Any, rest: Any) -> None:
        if isinstance(rest, dict):
            for key, one in rest.items():
                object.__setattr__(made, key, self.value(one))
        elif isinstance(made, dict):
            dict.update(made, zip(*[map(self.value, rest)] * 2, strict=True))  # a counter would count the pairs
        else:
            add = made.add if isinstance(made, set) else made.append
            for one in rest:
                add(self.value(one))

    def array(self, kind: str, shape: list[int], order: Any, body: bytes) -> Any:
        return np.frombuffer(body, dtype=kind).reshape(shape, order=order).copy(order)


_FILLERS: Final[Mapping[str, Callable[[list[Any]], tuple[Any, Any]]]] = {
    "list": lambda rest: ([], rest),
    "set": lambda rest: (set(), rest),
    "deque": lambda rest: (deque(maxlen=rest[0]), rest[1:]),
    "dict": lambda rest: ({}, rest),
    "counter": lambda rest: (Counter(), rest),
    "object": lambda rest: (object.__new__(_named(rest[0])), rest[1]),
}
_MAKERS: Final[Mapping[str, Callable[..., Any]]] = {
    "frozenset": lambda of, *rest: frozenset(map(of.value, rest)),
    "range": lambda _, *ends: range(*ends),
    "number": lambda _, kind, body: np.frombuffer(body, dtype=kind)[0],
    "named": lambda of, name, *rest: _named(name)._make(map(of.value, rest)),
    "record": lambda _, name, body: _decoder(name).decode(body),
    "array": _Restorer.array,
    "method": lambda of, owner, name: getattr(of.value(owner), name),
    "name": lambda _, name: _named(name),
}


@cache
def _layout_of(kind: type[Any]) -> tuple[str, bool, tuple[str, ...]]:
    """The name of a class, whether its objects are immutable plain data with types, and their slots."""
    # Of an episode, the request is shared with others.
    of_log = is_dataclass(kind) and kind.__module__ == Episode.__module__ and kind is not Episode
    slots = (vars(one).get("__slots__", ()) for one in kind.__mro__)  # tuples, as dataclasses make them
    names = tuple(field for each in slots for field in each if field not in ("__dict__", "__weakref__"))
    return _name_of(kind), of_log or kind is RunNumbers or issubclass(kind, msgspec.Struct), names


def _name_of(one: Any) -> str:
    module, name = one.__module__, one.__qualname__
    if not module.startswith(PACKAGE) or "<" in name:
        raise UnstorableState(f"{module}.{name}")
    return f"{module}:{name}"

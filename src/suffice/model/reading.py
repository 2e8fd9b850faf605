"""Reads a model from plain data: no missing or extra keys, finite numbers in range, errors that name the place."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, NoReturn, TypeVar

from suffice.errors import ConfigError

MOST_BYTES: Final = 32 * 2**20
MOST_ITEMS: Final = 1_000_000  # of one list or table
MOST_CHARS: Final = 2_000  # of one text
MOST: Final = 1e300  # of any number in a model, so that sums of them stay finite
T = TypeVar("T")


class ModelTable:
    """Any: values are unchecked until they are taken."""

    def __init__(self, where: str, content: object) -> None:
        if not isinstance(content, Mapping):
            raise ConfigError(f"{where}: got {describe_value(content)}; a table")
        if len(content) > MOST_ITEMS:
            raise ConfigError(f"{where}: got {len(content):,} keys; at most {MOST_ITEMS:,}")
        for key in content:
            if not isinstance(key, str) or len(key) > MOST_CHARS:
                got = f"{len(key):,} characters" if isinstance(key, str) else describe_value(key)
                raise ConfigError(f"{where}: got {got} as a key; a text of at most {MOST_CHARS:,} characters")
        self.where, self.content = where, content
        self._left: dict[str, None] = dict.fromkeys(content)

    def take(self, key: str) -> Any:
        if key not in self.content:
            raise ConfigError(f"{self.where}.{key}: missing")
        self._left.pop(key, None)
        return self.content[key]

    def check_schema(self, known: int) -> None:
        schema = self.take("schema")
        if type(schema) is not int or schema != known:
            raise ConfigError(f"{self.where}.schema: got {describe_value(schema)}; this version reads {known}")

    def text(self, key: str) -> str:
        return _text(f"{self.where}.{key:.60}", self.take(key))

    def items(self, key: str) -> tuple[Any, ...]:
        return check_list(f"{self.where}.{key}", self.take(key))

    def texts(self, key: str) -> tuple[str, ...]:
        return tuple(_text(f"{self.where}.{key}[{at}]", item) for at, item in enumerate(self.items(key)))

    def table(self, key: str) -> ModelTable:
        return ModelTable(f"{self.where}.{key}", self.take(key))

    def table_or_none(self, key: str) -> ModelTable | None:
        return None if self.take(key) is None else self.table(key)

    def tables(self, key: str) -> tuple[ModelTable, ...]:
        return tuple(ModelTable(f"{self.where}.{key}[{at}]", item) for at, item in enumerate(self.items(key)))

    def pairs(self) -> tuple[tuple[str, Any], ...]:
        self._left.clear()
        return tuple(self.content.items())

    def done(self) -> None:
        for key in self._left:
            known = sorted(set(self.content) - set(self._left))
            raise ConfigError(f"{self.where}: unknown key {key!r:.60}; known: {', '.join(known)}")

    def build(self, make: Callable[..., T], *keys: str, **values: Any) -> T:
        """Raise ConfigError for any key besides `keys` and `values`."""
        arguments = {key: self.take(key) for key in keys} | values
        self.done()
        with locate_errors(self.where):
            return make(**arguments)


@contextmanager
def locate_errors(where: str) -> Iterator[None]:
    """Prefix ConfigErrors of the block with the place."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{where}.{error}") from None


def parse_json(where: str, source: bytes) -> object:
    """Raise ConfigError for invalid JSON, or if it is too long, too deep, or has a duplicate key."""
    if len(source) > MOST_BYTES:
        raise ConfigError(f"{where}: got {len(source):,} bytes; at most {MOST_BYTES:,}")

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) != len(pairs):
            raise ConfigError(f"{where}: a table has a key twice; each key once")
        return table

    def no_number(name: str) -> NoReturn:
        raise ConfigError(f"{where}: got {name}; finite numbers only")

    try:
        parsed: object = json.loads(source, object_pairs_hook=once, parse_constant=no_number)
    except ConfigError:
        raise
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: cannot be read as JSON: {error!s:.100}") from None
    return parsed


def check_list(where: str, value: object) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)) or len(value) > MOST_ITEMS:
        got = f"{len(value):,} items" if isinstance(value, (list, tuple)) else describe_value(value)
        raise ConfigError(f"{where}: got {got}; a list of at most {MOST_ITEMS:,}")
    return tuple(value)


def _text(where: str, value: object) -> str:
    if not isinstance(value, str) or len(value) > MOST_CHARS:
        got = f"{len(value):,} characters" if isinstance(value, str) else describe_value(value)
        raise ConfigError(f"{where}: got {got}; a text of at most {MOST_CHARS:,} characters")
    return value


def exact_float(where: str, value: object, *, least: float = -MOST, most: float = MOST) -> float:
    """Return the value as a float that is equal after writing and reading. Raise ConfigError if it is out of range."""
    # Check the range before converting: an integer may be too large for a float. nan is in no range.
    if isinstance(value, (int, float)) and not isinstance(value, bool) and least <= value <= most:
        return float(value) + 0.0  # -0.0 becomes 0.0
    allowed = "a finite number" if (least, most) == (-MOST, MOST) else f"a number from {least:g} to {most:g}"
    raise ConfigError(f"{where}: got {describe_value(value)}; {allowed}")


def numbers(where: str, values: Iterable[object], *, least: float = -MOST, most: float = MOST) -> tuple[float, ...]:
    values = check_list(where, values)
    return tuple(exact_float(f"{where}[{at}]", value, least=least, most=most) for at, value in enumerate(values))


def parse_whole(where: str, value: object, *, least: int, most: int) -> int:
    if type(value) is not int or not least <= value <= most:
        raise ConfigError(f"{where}: got {describe_value(value)}; a whole number from {least:,} to {most:,}")
    return value


def describe_value(value: object) -> str:
    """Describe a value without the content of texts and tables."""
    if value is None or isinstance(value, (bool, float)):
        return repr(value)
    if isinstance(value, int):
        return repr(value) if abs(value) < 10**18 else f"a whole number of {value.bit_length():,} bits"
    return f"a {type(value).__name__}"

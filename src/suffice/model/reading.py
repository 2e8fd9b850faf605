"""Reads a model from plain data: no unknown keys, finite numbers in range, errors that name the place."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Final, NoReturn, TypeAlias, TypeVar

import msgspec

from suffice.errors import ConfigError

MOST_BYTES: Final = 32 * 2**20
MOST_ITEMS: Final = 1_000_000  # of one list or table
MOST_CHARS: Final = 2_000  # of one text
MOST: Final = 1e300  # of any number in a model, so that sums of them stay finite
Text: TypeAlias = Annotated[str, msgspec.Meta(max_length=MOST_CHARS)]
T = TypeVar("T")


def convert(plain: object, kind: type[T], where: str) -> T:
    """Return plain data as a structure. Raise ConfigError with the place of what is missing, unknown or wrong."""
    try:
        return msgspec.convert(plain, kind)
    except (ValueError, RecursionError) as error:  # ValidationError is a ValueError
        problem, _, place = str(error).partition(" - at ")
        inside = place.rpartition("`$")[2].rstrip("`")
        between = "." if isinstance(error.__cause__, ConfigError) else ": "
        raise ConfigError(f"{where}{inside:.120}{between}{problem:.150}") from None


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

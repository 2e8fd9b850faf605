"""The numbers in a model: finite, in their range, and the same on every machine.

Knows ranges and how to say where a bad one stands; refuses to know models.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from suffice.errors import ConfigError

MOST: Final = 1e300  # of any number in a model, so that sums of them stay finite


def exact_float(where: str, value: object, *, least: float = -MOST, most: float = MOST) -> float:
    """The value as a float that equals no other when written. Raises ConfigError that names `where` it stands."""
    # Whole numbers may be too large for a float, so the range is looked at first; not-a-number is in none.
    if isinstance(value, (int, float)) and not isinstance(value, bool) and least <= value <= most:
        return float(value) + 0.0  # -0.0 becomes 0.0
    allowed = "a finite number" if (least, most) == (-MOST, MOST) else f"a number from {least:g} to {most:g}"
    raise ConfigError(f"{where}: got {describe_value(value)}; {allowed}")


def numbers(where: str, values: Iterable[object], *, least: float = -MOST, most: float = MOST) -> tuple[float, ...]:
    """All of them, as `exact_float` takes each."""
    return tuple(exact_float(f"{where}[{at}]", value, least=least, most=most) for at, value in enumerate(values))


def parse_whole(where: str, value: object, *, least: int, most: int) -> int:
    """The value as a whole number in a range. Raises ConfigError that names `where` it stands."""
    if type(value) is not int or not least <= value <= most:
        raise ConfigError(f"{where}: got {describe_value(value)}; a whole number from {least:,} to {most:,}")
    return value


def describe_value(value: object) -> str:
    """The value for an error: short, and nothing of a text or a table but what it is."""
    if value is None or isinstance(value, (bool, float)):
        return repr(value)
    if isinstance(value, int):
        return repr(value) if abs(value) < 10**18 else f"a whole number of {value.bit_length():,} bits"
    return f"a {type(value).__name__}"

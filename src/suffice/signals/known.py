"""What may be believed of a number that a model server or a caller reports.

Knows the ranges of probabilities, entropies and parameters; refuses to know what they mean. A reported
number out of its range is unknown (None), never extreme; a parameter out of its range is an error at
start-up.
"""

from __future__ import annotations

from suffice.errors import ConfigError

ROUNDING = 1e-3  # engines report probabilities of 1 as logarithms a little above 0
_MOST_NATS = 100.0  # of one token: e^100 tokens are in no vocabulary


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

"""What a scorer's parameters may be, and errors that say where and what is allowed.

Knows words, switches and texts; refuses to know scorers.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from suffice.errors import ConfigError

_MAX_CHARS = 1_000


class Comparer(Protocol):
    """The part of a scorer that compares bare answers; another scorer found them."""

    def normalise(self, answer: str) -> str | None:
        """The normal form of a bare answer; None: it is no answer."""
        ...

    def match(self, answer: str | None, gold: str) -> bool:
        """Is `answer` the reference? None never is."""
        ...


def check_word(where: str, value: object, words: Iterable[str]) -> str:
    """The value, if it is one of the words. Raises ConfigError."""
    known = tuple(words)
    if isinstance(value, str) and value in known:
        return value
    raise ConfigError(f"{where}: got {shorten(value)}; allowed: {', '.join(known)}")


def check_flag(where: str, value: object) -> bool:
    """The value, if it is true or false. Raises ConfigError."""
    if isinstance(value, bool):
        return value
    raise ConfigError(f"{where}: got {shorten(value)}; allowed: true, false")


def check_text(where: str, value: object) -> str:
    """The value, if it is a text of 1 to 1,000 characters. Raises ConfigError."""
    if isinstance(value, str) and 0 < len(value) <= _MAX_CHARS:
        return value
    raise ConfigError(f"{where}: got {shorten(value)}; need a text of 1 to {_MAX_CHARS:,} characters")


def shorten(value: object) -> str:
    """The value as an error shows it."""
    if not isinstance(value, str):
        return f"a value of type {type(value).__name__}"
    return repr(value) if len(value) <= 80 else f"{value[:77]!r}..."

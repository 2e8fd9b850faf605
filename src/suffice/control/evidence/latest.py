"""The latest of what is still awaited: a fold over a log without an end remembers so many, and no more."""

from __future__ import annotations

from typing import Final, TypeVar

MOST_OPEN: Final = 200_000  # requests without an outcome that are remembered

V = TypeVar("V")


def remember(kept: dict[str, V], name: str, value: V, most: int = MOST_OPEN) -> None:
    """Keep a value under its name; beyond `most` the oldest one is forgotten."""
    kept[name] = value
    if len(kept) > most:
        del kept[next(iter(kept))]

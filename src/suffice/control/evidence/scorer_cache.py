"""What compares the answers of each route with what people call right, opened once and kept as long as a job lives.

Knows routes by their names; refuses to know what is compared.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import TypeAlias

from suffice.assurance.runs import Match
from suffice.settings import Route

Matches: TypeAlias = Callable[[Route], AbstractContextManager[Match]]


class ScorerCache:
    """Opens a route's comparison when it is first asked for."""

    def __init__(self) -> None:
        self._open: dict[str, Match] = {}
        self._stack = ExitStack()

    def of(self, name: str, route: Route, matches: Matches) -> Match:
        """The comparison of a route, opened by `matches`. Raises what opening it raises, ConfigError above all."""
        if name not in self._open:
            self._open[name] = self._stack.enter_context(matches(route))
        return self._open[name]

    def close(self) -> None:
        """Let go of all of them."""
        self._stack.close()

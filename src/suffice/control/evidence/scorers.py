"""Compares the answers of a route with references, by the route's own scorer."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TypeAlias

from suffice.assurance.runs import Match
from suffice.edge.math import yardstick
from suffice.settings import Route


@contextlib.contextmanager
def matching(route: Route) -> Iterator[Match]:
    """Open the route's match of an answer with a reference. Raises ConfigError for a scorer that cannot be built."""
    with yardstick(route.scorer) as scorer:

        def match(answer: str | None, gold: str) -> bool:
            reference = scorer.normalise(gold)  # labels contain references as people write them
            return reference is not None and scorer.match(answer, reference)

        yield match


Matches: TypeAlias = Callable[[Route], AbstractContextManager[Match]]

"""How answers of a route are compared with what people call right: by its own scorer and all that it may ask."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from suffice.assurance.runs import Match
from suffice.edge.yardstick import yardstick
from suffice.settings import Route


@contextlib.contextmanager
def matching(route: Route) -> Iterator[Match]:
    """Does an answer equal a reference? Raises ConfigError for a scorer that cannot be built."""
    with yardstick(route.scorer) as scorer:

        def match(answer: str | None, gold: str) -> bool:
            reference = scorer.normalise(gold)  # labels come as people write them
            return reference is not None and scorer.match(answer, reference)

        yield match

"""A route's scorer with everything that it may ask: what is used where labels are joined, off the event loop.

Requests need none of it: votes, streaks and trial answers compare normal forms, and `build_scorer` is enough.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from suffice.edge.math import MathWorkers
from suffice.scoring.base import Scorer, Spec, asks_judge, build_scorer


@contextlib.contextmanager
def yardstick(spec: Spec) -> Iterator[Scorer]:
    """The scorer of a spec, with a judge of formulas where it asks one; its processes end with the block.

    Raises ConfigError, also when math-verify is needed and missing: another yardstick would give another EM.
    """
    if not asks_judge(spec):
        yield build_scorer(spec)
        return
    with MathWorkers() as judge:
        yield build_scorer(spec, math_judge=judge)

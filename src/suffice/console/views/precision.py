"""Whether an estimate is precise enough to be shown as a figure."""

from __future__ import annotations

from math import ceil
from typing import Final

from suffice.assurance.estimate import IntervalEstimate
from suffice.sanitize import plural

USEFUL: Final = 0.1  # half the width of an interval around no difference, above which a page gives no figure
EVERYTHING: Final = 2.0  # width of the interval of all differences of two rates


def says_nothing(one: IntervalEstimate) -> bool:
    """Whether a difference may be a loss as well as a gain, within more than is useful."""
    return one.low is not None and one.high is not None and one.low < 0 < one.high and one.high - one.low > 2 * USEFUL


def describe_needed(one: IntervalEstimate, what: str) -> str:
    """How many observations there are, and about how many make the interval useful: its width falls as 1 / sqrt(n).

    >>> describe_needed(IntervalEstimate(value=0.3, low=-0.2, high=0.4, n=57, method=""), "audit")
    '57 of about 520 audits needed'
    """
    width = (one.high or 0.0) - (one.low or 0.0)
    if width >= EVERYTHING:  # it was cut to what is possible
        return f"{plural(one.n, what)} so far"
    needed = one.n * (width / (2 * USEFUL)) ** 2
    step = 10 ** max(0, len(f"{needed:.0f}") - 2)
    return f"{one.n:,} of about {plural(step * ceil(needed / step), what)} needed"

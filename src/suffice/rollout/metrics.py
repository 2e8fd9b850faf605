"""What experiments compare, in one table: which way is better, in which range, and how it is said to people."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class RunMetric:
    """One number of a run."""

    name: str
    higher_is_better: bool
    high: float | None  # largest value, the smallest is 0; None: learnt from the warm-up
    said: str  # a sentence around {n}, the size of a difference, and {way}
    more: str  # the way of an arm with a higher value
    less: str
    margin: str  # the unit of a margin, behind its number
    times: float = 1.0  # of a number, for people
    digits: int = 1
    title: str = ""  # at the beginning of a sentence; "": its name

    @property
    def same(self) -> str:
        """What is said where there is no difference."""
        return f"{self.title or self.name} is the same"

    def size(self, value: float) -> str:
        """How large a difference is, for people."""
        return f"{abs(value) * self.times:,.{self.digits}f}"

    def way(self, value: float) -> str:
        """Which way a difference goes."""
        return self.more if value > 0 else self.less


EM: Final = "em"
SATISFACTION: Final = "satisfaction"
LATENCY: Final = "latency"
TOKENS: Final = "tokens"

METRICS: Final[Mapping[str, RunMetric]] = {
    EM: RunMetric(
        name=EM,
        higher_is_better=True,
        high=1.0,
        said="EM is {n} points {way}",
        more="higher",
        less="lower",
        margin="points",
        times=100,
        digits=2,
        title="EM",
    ),
    SATISFACTION: RunMetric(
        name=SATISFACTION,
        higher_is_better=True,
        high=1.0,
        said="satisfaction is {n} points {way}",
        more="higher",
        less="lower",
        margin="points",
        times=100,
    ),
    LATENCY: RunMetric(
        name=LATENCY,
        higher_is_better=False,
        high=None,
        said="answers take {n} s {way}",
        more="longer",
        less="shorter",
        margin="s",
        digits=2,
    ),
    TOKENS: RunMetric(
        name=TOKENS,
        higher_is_better=False,
        high=None,
        said="a request uses {n} {way} tokens",
        more="more",
        less="fewer",
        margin="tokens",
    ),
}


def metric_of(name: str) -> RunMetric:
    """A built-in metric, or a declared one: from 0, the worst that it can be, to 1, the best."""
    return METRICS.get(name) or RunMetric(
        name=name,
        higher_is_better=True,
        high=1.0,
        said=f"{name} is {{n}} points of its range {{way}}",
        more="better",
        less="worse",
        margin="points of its range",
        times=100,
    )

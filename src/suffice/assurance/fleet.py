"""One promise for all routes: of those that are certified, few are wrong in expectation.

A certificate needs the wealth 1/delta of its own route, and here also the wealth that the fleet requires: R / (alpha K)
for K certified routes of R (e-BH: Wang and Ramdas 2022, JRSS B 84(3), arXiv:2009.02824). What the promise says, when it
holds and its proof: docs/reference/assurance.md.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, log
from typing import Final

STEP: Final = 1.25  # ratio of neighbouring requirements: a few routes more or less change nothing
SLACK: Final = 1.1  # times the wealth that a lower requirement takes, so that it does not alternate
NO_REQUIREMENT: Final = 1.0  # each route keeps its own confidence alone


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteWealth:
    """The evidence for one route's safest level."""

    route: str
    epoch: int
    wealth: float  # times the part of delta that its epoch and version may use
    own: float  # wealth that its own confidence requires


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetRequirement:
    """From this place in the log on, a certificate of any route needs at least this wealth."""

    number: int  # from 1
    wealth: float  # 1: nothing beyond each route's own confidence
    confidence: float | None  # of the fleet; None: no fleet promise
    n_routes: int  # that can be certified
    n_certified: int  # whose evidence reaches the requirement
    evidence: tuple[RouteWealth, ...]  # from which it follows
    reason: str
    author: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmStart:
    """A new route tests the levels of a version that a similar route serves; its own audits alone certify them."""

    route: str
    epoch: int
    fit: str  # address of the version
    source: str  # the route that serves it
    burst: int  # requests from the start of the epoch that run in full on a route with little traffic
    reason: str
    author: str


def require_wealth(evidence: Sequence[RouteWealth], *, confidence: float, before: float = 0.0) -> tuple[float, int]:
    """Return the least requirement that keeps the fleet's promise, and how many routes reach it.

    A requirement w keeps it if at least R / (alpha w) of the R routes reach w and their own. Requirements lie on a
    geometric grid from 1/alpha. To lower it from `before`, routes must have a tenth more.
    """
    least, n = 1 / (1 - confidence), len(evidence)
    wealths = sorted(one.wealth for one in evidence if one.wealth >= one.own)

    def count(wealth: float) -> int:
        return len(wealths) - bisect_left(wealths, wealth)

    top = ceil(log(max(1, n)) / log(STEP))
    for wealth in (least * STEP**place for place in range(top + 1)):
        if count(SLACK * wealth if STEP * wealth < SLACK * before else wealth) * wealth >= n * least:
            break
    return wealth, count(wealth)


def fleet_sentence(requirement: FleetRequirement, *, n_certified: int) -> str:
    if requirement.confidence is None:
        return ""
    most = f"{100 * (1 - requirement.confidence):.4g} %"
    return (
        f"fleet: {n_certified:,} of {requirement.n_routes:,} routes certified; expected wrong among them at most {most}"
    )

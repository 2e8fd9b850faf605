"""Scenarios by name: how traffic changes from one regime to another, at once, linearly, or periodically.

Any scenario combines with any labels and arrivals.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np

from suffice.arrays import Floats
from tests.simulators.traffic_worlds.traffic import SimulatedTraffic, draw_traffic
from tests.simulators.traffic_worlds.worlds import BENIGN, HARDER, HARSH, MANY, STEALTH, SWAPPED, USUAL, ClassWorld


@dataclass(frozen=True, slots=True, kw_only=True)
class Path:
    """How far the traffic has moved to its new regime, by request."""

    shape: Literal["step", "ramp", "sine"] = "step"
    at: int | None = None  # first request of the change; None: in the middle
    over: int = 5_000  # ramp: length in requests; sine: period

    def share(self, n: int) -> Floats:
        """0 in the old regime, 1 in the new one, shape (n,)."""
        since = np.arange(n) - (n // 2 if self.at is None else self.at)
        if self.shape == "step":
            return np.where(since >= 0, 1.0, 0.0)
        if self.shape == "ramp":
            return np.clip((since + 1) / self.over, 0.0, 1.0)
        return np.where(since >= 0, 0.5 - 0.5 * np.cos(2 * np.pi * since / self.over), 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    name: str
    says: str  # a sentence for tables
    before: ClassWorld = USUAL
    after: ClassWorld = USUAL
    path: Path = field(default_factory=Path)


SCENARIOS: Final[Mapping[str, Scenario]] = {
    scenario.name: scenario
    for scenario in (
        Scenario(name="none", says="nothing changes"),
        Scenario(name="harsh", says="bolder confidence, false plateaus, harder questions, at once", after=HARSH),
        Scenario(name="stealth", says="three times the false plateaus behind unchanged signals", after=STEALTH),
        Scenario(name="benign", says="a better model and easier questions", after=BENIGN),
        Scenario(name="mix", says="harder questions for the same model", after=HARDER),
        Scenario(name="gradual", says="harsh, along a line over 5,000 requests", after=HARSH, path=Path(shape="ramp")),
        Scenario(
            name="seasonal",
            says="to the harder mix and back, every 5,000 requests",
            after=HARDER,
            path=Path(shape="sine", at=0),
        ),
        Scenario(name="swap", says="another model behind the same name", after=SWAPPED),
        Scenario(name="many", says="24 small classes of unequal size", before=MANY, after=MANY),
    )
}


def simulate(scenario: Scenario, n: int, *, seed: int) -> SimulatedTraffic:
    """n requests of a scenario, each run to its end; equal for equal seeds. Raise ValueError for n below 1."""
    if n < 1:
        raise ValueError(f"n: got {n}; at least 1")
    return draw_traffic(scenario.before, scenario.after, scenario.path.share(n), np.random.default_rng(seed))


def in_world(world: ClassWorld, n: int, *, seed: int) -> SimulatedTraffic:
    """n requests of one regime, to estimate its truth."""
    return draw_traffic(world, world, np.zeros(n), np.random.default_rng(seed))

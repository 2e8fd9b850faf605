"""The true loss of a deployed level: its EM drop over many runs of the current regime, hidden from the loop."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from bench.claims.streams import SETTINGS, Setting, online

from suffice.arrays import Floats
from suffice.learn.audits import find_first_passages
from suffice.learn.version import FoldedModels
from suffice.replay.online.stream import RecordedTraffic

N_RUNS = 10_000  # of each world: ± 0.15 points at a drop of 2 %
KNOTS = (0.0, 0.25, 0.5, 0.75, 1.0)  # ways between two worlds at which it is read; between them along a line


@lru_cache(maxsize=8)
def _world(setting: str, way: float) -> RecordedTraffic:
    made = known(setting).in_world(way, N_RUNS, 987_654)
    return online(made, np.zeros(N_RUNS), seed=987_654)


def known(setting: str) -> Setting:
    """A setting by its name, the reference generator's among them."""
    if setting in SETTINGS:
        return SETTINGS[setting]
    from bench.claims.reference import settings  # not there on every machine

    return settings()[setting]


@dataclass(slots=True)
class Truth:
    """The true EM drop of whatever is deployed in one setting."""

    setting: str
    _risk: dict[tuple[int, float], tuple[FoldedModels, Floats]] = field(default_factory=dict)
    _drop: dict[tuple[int, float, int], float] = field(default_factory=dict)

    def drop(self, served: FoldedModels | None, level: int, way: float) -> float:
        """E Z of a level.

        way  how far the world is from the old to the new one, 0 … 1
        """
        if served is None or level == 0:
            return 0.0
        above = int(np.searchsorted(KNOTS, way))
        if KNOTS[above] == way:
            return self._at(served, level, way)
        low, high = KNOTS[above - 1], KNOTS[above]
        share = (way - low) / (high - low)
        return (1 - share) * self._at(served, level, low) + share * self._at(served, level, high)

    def _at(self, served: FoldedModels, level: int, way: float) -> float:
        key = (id(served), way, level)
        if key not in self._drop:
            runs = _world(self.setting, way).runs
            if (id(served), way) not in self._risk:
                # The version is held with its scores, so that no other one can get its id.
                self._risk[id(served), way] = (served, served.risk(runs))
            risk, rows = self._risk[id(served), way][1], runs.last.copy()
            for fold, levels in enumerate(served.levels):
                mine = runs.fold == fold
                rows[mine] = find_first_passages(risk, runs.starts, levels[level : level + 1])[0][mine]
            self._drop[key] = float(runs.z[rows].mean())
        return self._drop[key]

"""Simulated traffic as records of `replay.online`, from our own generator or from the one in SUFFICE_SIM.

A *setting* is a scenario with a label delay.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from tests.simulators import traffic_worlds as simulated
from tests.simulators.traffic_worlds.traffic import PROBE_TOKENS

from suffice.arrays import Bools, Floats, Small
from suffice.assurance.clusters import own_clusters
from suffice.learn.audits import AuditRuns
from suffice.learn.features import FeatureSelection
from suffice.learn.version import N_FOLDS
from suffice.replay.online.stream import RecordedTraffic

N_REQUESTS: Final = 20_000
LATE: Final = simulated.LabelDelays(mean_delay=1_000)
SPREAD: Final = simulated.LabelDelays(delay="geometric", mean_delay=700)
COMPLAINTS: Final = simulated.LabelDelays(mean_delay=1_000, p_when_right=0.05, p_when_wrong=0.5)
SIGNALS: Final = FeatureSelection(simulated.FEATURES[:10], simulated.FEATURES[10:])
Worlds = Callable[
    [float, int, int], simulated.SimulatedTraffic
]  # way from old to new world, runs, seed → runs of that world


@dataclass(frozen=True, slots=True, eq=False)
class Drawn:
    """N requests of a setting."""

    traffic: RecordedTraffic
    right: Bools  # (N,): the full run's answer is right; audits do not need it
    ways: Floats  # (N,): how far the world is from its old to its new state


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One row of the tables: a scenario, and when labels come."""

    name: str
    simulate: Callable[[int, int], simulated.SimulatedTraffic]  # n, seed
    in_world: Worlds
    path: simulated.Path = field(default_factory=simulated.Path)
    labels: simulated.LabelDelays = LATE
    label_timeout: int = 1_000  # requests after which an audit counts, labelled or not

    def draw(self, n: int, seed: int) -> Drawn:
        """n requests in order."""
        made = self.simulate(n, seed)
        times = simulated.label_times(made, self.labels, seed=seed)
        label_at = np.where(times == simulated.NEVER, np.inf, times.astype(np.float64))
        return Drawn(online(made, label_at, seed=seed), made.right, self.path.share(n))

    def drift_at(self, n: int) -> int:
        """First request of the drift; the middle where there is none."""
        return n // 2 if self.path.at is None else self.path.at


def ours(
    scenario: simulated.Scenario,
    name: str | None = None,
    labels: simulated.LabelDelays = LATE,
    label_timeout: int = 1_000,
) -> Setting:
    """A scenario of our own generator."""

    def in_world(way: float, n: int, seed: int) -> simulated.SimulatedTraffic:
        return simulated.traffic.draw_traffic(
            scenario.before, scenario.after, np.full(n, way), np.random.default_rng(seed)
        )

    return Setting(
        name=name or scenario.name,
        simulate=lambda n, seed: simulated.simulate(scenario, n, seed=seed),
        in_world=in_world,
        path=scenario.path,
        labels=labels,
        label_timeout=label_timeout,
    )


def _settings() -> Mapping[str, Setting]:
    none, harsh, stealth = (simulated.SCENARIOS[name] for name in ("none", "harsh", "stealth"))
    made = [ours(scenario) for scenario in simulated.SCENARIOS.values()]
    made += [
        ours(none, "none, spread labels", SPREAD, 3_000),
        ours(none, "none, complaints only", COMPLAINTS),
        ours(harsh, "harsh, complaints only", COMPLAINTS),
        ours(stealth, "stealth, spread labels", SPREAD, 3_000),
    ]
    return {setting.name: setting for setting in made}


SETTINGS: Final = _settings()


def online(made: simulated.SimulatedTraffic, label_at: Floats, *, seed: int) -> RecordedTraffic:
    """Simulated runs as records of `replay.online`.

    label_at  request before which each label is there, infinite: none comes, shape (n,)
    seed      of the hash that deals requests to folds
    """
    n = len(made)
    probes = PROBE_TOKENS * made.step.astype(np.float64)
    return RecordedTraffic(
        runs=AuditRuns(
            x=made.x,
            starts=made.starts,
            z=made.z,
            d=made.d,
            may_stop=np.ones(len(made.z), dtype=bool),
            cost=made.cost,
            per_step=np.maximum((made.cost - probes) / made.step, 1.0),
            full=made.full,
            fold=folds(n, seed),
            at=np.arange(n, dtype=np.float64),
            share=np.ones(n),
            label_at=label_at,
            query_class=made.query_class,
            clusters=own_clusters(n),
            abandoned=np.zeros(n, dtype=bool),
        ),
        probes=probes,
        duration=np.zeros(n),
        early=made.early,
        question=tuple(str(i) for i in range(n)),
        chosen=SIGNALS,
    )


def folds(n: int, seed: int) -> Small:
    """The fold of each of n requests, as a hash would deal them."""
    return np.random.default_rng([seed, 3]).integers(0, N_FOLDS, n).astype(np.int8)

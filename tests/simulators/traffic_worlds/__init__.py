"""Simulated traffic of step-wise reasoning with known truth, to test a control loop.

    worlds ──▶ stories ──▶ traffic ──▶ labels, arrivals

It simulates no text and no model, only numbers that behave like recorded runs, determined by the seed.

>>> from tests.simulators.traffic_worlds import SCENARIOS, simulate
>>> traffic = simulate(SCENARIOS["harsh"], 2_000, seed=1)
>>> len(traffic), traffic.x.shape[1], sorted(set(traffic.z.tolist()))
(2000, 16, [-1, 0, 1])
"""

from __future__ import annotations

from tests.simulators.traffic_worlds.arrivals import ArrivalRate, arrival_times, spiked
from tests.simulators.traffic_worlds.labels import NEVER, LabelDelays, label_times
from tests.simulators.traffic_worlds.scenarios import SCENARIOS, Path, Scenario, in_world, simulate
from tests.simulators.traffic_worlds.traffic import EARLY, FEATURES, SimulatedTraffic
from tests.simulators.traffic_worlds.worlds import HARSH, MANY, USUAL, WORLDS, ClassWorld, QueryClass

__all__ = [
    "EARLY",
    "FEATURES",
    "HARSH",
    "MANY",
    "NEVER",
    "SCENARIOS",
    "USUAL",
    "WORLDS",
    "ArrivalRate",
    "ClassWorld",
    "LabelDelays",
    "Path",
    "QueryClass",
    "Scenario",
    "SimulatedTraffic",
    "arrival_times",
    "in_world",
    "label_times",
    "simulate",
    "spiked",
]

"""Simulated traffic of step-wise reasoning: to test a control loop where the truth is known.

    world ──▶ stories ──▶ rows ──▶ Traffic       labels, arrivals
    who asks  what        what is  arrays        when an outcome is known,
              happens     seen                   when a request comes

No text and no model: numbers that behave as recorded runs do. What is drawn follows from the seed alone.

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

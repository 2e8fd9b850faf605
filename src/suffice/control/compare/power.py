"""Reads recent runs of an experiment's routes, for what it can find."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from suffice.control.compare.experiments import measured_values
from suffice.edge.math import open_match
from suffice.rollout.experiment import RunningExperiment
from suffice.rollout.power import Power, RecentRuns, power_of
from suffice.settings import ExperimentUnit, Settings
from suffice.store.database.views import LogSource, open_reader, place_before, read_episodes
from suffice.types import Request

MOST_RUNS: Final = 2_000  # latest requests of each route
DAY_S: Final = 86_400.0


def read_power(source: LogSource, one: RunningExperiment, settings: Settings) -> Power:
    """Estimate what an experiment finds from the latest live runs of its routes. Raise StoreError."""
    values, requests = list[float](), list[Request]()
    with open_reader(source) as log:
        for route in one.routes:
            place = place_before(log, route, MOST_RUNS)
            with open_match(settings.routes[route]) as match:
                for item in read_episodes(log, route, place, ended_after=place):
                    if not item.episode.request.audit and item.episode.request.ungoverned is None:
                        requests.append(item.episode.request)
                        measured = measured_values(item, match, settings.metrics)
                        values += [value for metric, _, value, _ in measured if metric == one.primary]
    times = [request.received_at_s for request in requests]
    recent = RecentRuns(
        n_runs=len(requests),
        n_units=_n_units(requests, one.unit),
        days=(max(times) - min(times)) / DAY_S if times else 0.0,
        values=tuple(values),
    )
    return power_of(one, recent)


def _n_units(requests: Sequence[Request], unit: ExperimentUnit) -> float:
    """Count the units; 0 for users, whom rows do not name."""
    if unit == "request":
        return sum(1 / request.keep_rate for request in requests)
    if unit == "user":
        return 0.0
    names = {request.conversation if unit == "conversation" else request.tenant for request in requests}
    return float(len(names - {""}))

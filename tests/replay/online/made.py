"""Traffic written down by hand or made up from a seed, for the tests of replaying as traffic."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from suffice.learn.audits import AuditRuns
from suffice.learn.features import FeatureSelection
from suffice.replay.online.stream import RecordedTraffic
from suffice.replay.traces.read import Survey, survey
from suffice.types import Kind
from suffice_testing.traces import Synthetic
from tests.learn.runs_made import drawn

CHOSEN = FeatureSelection(("score", "number"), ())
PROBE = 5.0


def traffic_of(runs: AuditRuns, *, question: tuple[str, ...] | None = None) -> RecordedTraffic:
    """Requests that are these runs, and each step but the last asks a probe of PROBE tokens besides."""
    step = np.arange(len(runs.x)) - runs.starts[runs.run_of_row] + 1
    asked = np.minimum(step, np.diff(runs.starts)[runs.run_of_row] - 1)
    probes = PROBE * asked
    return RecordedTraffic(
        runs=replace(runs, cost=runs.cost + probes),
        probes=probes,
        early=np.zeros((len(runs), 2)),
        chosen=CHOSEN,
        question=question or tuple(f"q{number}" for number in range(len(runs))),
        duration=np.zeros(len(runs)),
    )


def made_up(n: int, seed: int) -> RecordedTraffic:
    """Requests drawn from a seed, whose stops lose with a chance that falls with the score."""
    return traffic_of(drawn(n, np.random.default_rng(seed)))


def surveyed(
    folder: Path,
    *,
    kind: Kind = "samples",
    n_runs: int = 400,
    n_questions: int = 80,
    seed: int = 3,
    name: str = "made.parquet",
) -> Survey:
    """A set of made-up runs of three models on two tasks."""
    path = folder / name
    Synthetic(kind=kind, n_runs=n_runs, seed=seed, n_questions=n_questions).write(path)
    (data,) = survey([path])
    return data

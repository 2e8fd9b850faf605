"""Recorded runs as settled traffic: what the level in force saves beside the best level that truly keeps the budget.

    SUFFICE_TRACES=folder python bench/settled.py [--only NAME ...] [--seeds N] [--requests N] [--max-em-drop E]

At the end of each stream all levels of the version in force are replayed on all recorded runs, so their drop is known.
The best one is the last of the unbroken run of levels from the safe end whose drop is within the budget: what a
certificate without any uncertainty would serve. Streams, draws and models follow from the seed.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import numpy as np

from suffice.learn.certifier import Certifier
from suffice.learn.features import DENSE
from suffice.replay.online.drift import draw_order
from suffice.replay.online.protocol import OnlineOptions, stream_plan
from suffice.replay.online.stream import RecordedTraffic, learner_of, make_traffic, run_stream
from suffice.replay.study.runs import concatenate, make_runs
from suffice.replay.traces.read import survey
from suffice.signals.features import FeatureSet


def shares(traffic: RecordedTraffic, max_em_drop: float, n: int, seed: int) -> tuple[float, float]:
    """Part of the tokens that the level in force saves, and the best true one; 0, 0 where nothing was learned.

    n  requests, by question-level bootstrap
    """
    rng = np.random.default_rng(seed)
    stream = traffic.take(draw_order(traffic, rng, resample=n).which)
    keeper = Certifier(
        stream_plan(OnlineOptions(max_em_drop=max_em_drop), traffic, n), learner_of(stream.chosen, seed=seed)
    )
    run_stream(stream, keeper, rng)
    served, runs = keeper.served, traffic.runs
    if served is None:
        return 0.0, 0.0
    rows = served.rows(runs)
    drop = runs.z[rows].mean(axis=0)
    saved = 1 - runs.cost[rows].sum(axis=0) / runs.full.sum()
    broken = np.flatnonzero(drop[1:] > max_em_drop)
    best = int(broken[0]) if len(broken) else len(drop) - 1
    return float(saved[keeper.level]), float(saved[best])


def main() -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(prog="python bench/settled.py", description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", default=["sc_epoch_gpqa", "sc_epoch_aime", "agent_mint"], metavar="NAME")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--requests", type=int, default=10_000, help="of each stream, drawn by question")
    parser.add_argument("--max-em-drop", type=float, default=0.02)
    options, _ = parser.parse_known_args()
    folder = os.environ.get("SUFFICE_TRACES")
    if not folder:
        print("settled: set SUFFICE_TRACES to a folder with SET.dev.parquet files of recorded runs", file=sys.stderr)
        return 2
    print("| set | budget, points | level in force saves | best true level saves | ratio |")
    print("| --- | --- | --- | --- | --- |", flush=True)
    for name in options.only:
        (data,) = survey([Path(folder) / f"{name}.dev.parquet"])
        needs = FeatureSet(DENSE[data.kind]).needs
        batches = data.batches(share=data.share)
        runs = [make_runs(one, needs, probe_tokens=None, planned_steps=data.longest) for one in batches]
        traffic = make_traffic(concatenate(runs))
        asked = options.max_em_drop, options.requests
        found = np.array([shares(traffic, *asked, seed) for seed in range(options.seeds)])
        mine, best = found.mean(axis=0)
        print(f"| {name} | {100 * options.max_em_drop:g} | {mine:.1%} | {best:.1%} | {mine / best:.0%} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

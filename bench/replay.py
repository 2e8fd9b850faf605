"""How fast recorded runs are replayed, and in how much memory.

    python bench/replay.py [--full] [--check]

Three limits: a million episode × level evaluations a second and core at 41 levels; every published rule and learned
score with 1,000 bootstrap draws in 60 seconds on two cores; and, with `--full`, five million made-up runs in under
4 GiB. The first two look at `sc_epoch_gpqa.dev` where SUFFICE_TRACES names a folder that has it, else at made-up runs
of its shape. With `--check` a figure beyond its limit ends the program with 1. Needs the extras `replay` and `train`.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from suffice.learn.audits import find_first_passages
from suffice.learn.models import one_thread
from suffice.replay.study.policies import build_ladders, halts_at, list_ladder_folds
from suffice.replay.study.runs import Runs, concatenate, make_runs
from suffice.replay.study.sets import ReplayOptions, replay_set
from suffice.replay.study.sums import SumsFold
from suffice.replay.traces.read import Survey, survey
from suffice_testing.traces import Synthetic

N_LEVELS = 41
REPEATS = 7
FIVE_MILLION = 5_000_000
GIB = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One row of the table."""

    what: str
    measured: float
    limit: float | None  # None: none was set
    at_least: bool = False  # is the limit the smallest allowed?

    @property
    def kept(self) -> bool:
        return self.limit is None or (self.measured >= self.limit if self.at_least else self.measured <= self.limit)


def dev_set(folder: Path) -> tuple[Survey, str]:
    """The runs that the first two figures look at, and what they are called."""
    named = os.environ.get("SUFFICE_TRACES")
    path = Path(named or "") / "sc_epoch_gpqa.dev.parquet"
    if not named or not path.exists():
        path = folder / "made_up.parquet"
        Synthetic(kind="samples", n_runs=4_816, n_questions=112, n_models=43, n_steps=12, seed=0).write(path)
    (data,) = survey([path])
    return data, f"{data.set}, {data.n_runs:,} runs of {data.n_steps:,} steps"


def cpu(run: Callable[[], object]) -> float:
    """CPU seconds, the median over repetitions."""
    seen = []
    for _ in range(REPEATS):
        begin = time.process_time()
        run()
        seen.append(time.process_time() - begin)
    return median(seen)


def evaluations(data: Survey) -> list[Figure]:
    needs = list_ladder_folds(build_ladders(data.kind, longest=data.longest))
    runs = concatenate([make_runs(b, needs, probe_tokens=None, planned_steps=data.longest) for b in data.batches()])
    risk, levels = np.random.default_rng(0).random(len(runs.cost)), np.linspace(0.001, 0.999, N_LEVELS)
    codes = np.ones(len(risk), dtype=np.int8)
    n = len(runs) * N_LEVELS
    with one_thread():
        found = cpu(lambda: find_first_passages(risk, runs.starts, levels))
        judged = cpu(lambda: judge(runs, risk, levels, codes))
    return [
        Figure(
            what=f"episode × level at {N_LEVELS} levels: where each run halts, a second and core",
            measured=n / found,
            limit=1e6,
            at_least=True,
        ),
        Figure(
            what="the same with EM, tokens and probes summed by question", measured=n / judged, limit=1e6, at_least=True
        ),
    ]


def judge(runs: Runs, risk: np.ndarray, levels: np.ndarray, codes: np.ndarray) -> None:
    summing = SumsFold(len(levels))
    summing.add(runs, halts_at(risk, levels, runs, codes))


def everything(data: Survey) -> list[Figure]:
    wall, used = time.perf_counter(), time.process_time()
    report = replay_set(data, ReplayOptions())
    wall, used = time.perf_counter() - wall, time.process_time() - used
    n = len(report.lines)
    return [
        Figure(what=f"a whole replay, {n} lines, learned scores, 1,000 draws: seconds", measured=wall, limit=60.0),
        Figure(what="the same: CPU seconds", measured=used, limit=None),
    ]


# ---- five million runs ------------------------------------------------------------------------------


def write_large(path: Path, n_runs: int) -> None:
    Synthetic(kind="samples", n_runs=n_runs, n_questions=200_000, n_steps=4, seed=0, name="large").write(path)


def large(folder: Path, n_runs: int) -> list[Figure]:
    """Written and replayed by processes of their own, whose peak resident memory is then known."""
    path = folder / "large.parquet"
    for role in ("write", "replay"):
        begin = time.perf_counter()
        subprocess.run([sys.executable, __file__, "--role", role, "--runs", str(n_runs), str(path)], check=True)
        seconds = time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    return [
        Figure(
            what=f"{n_runs:,} runs of 4 steps ({path.stat().st_size / 1e6:,.0f} MB), every published rule and"
            " learned score: peak memory, GiB",
            measured=peak / GIB,
            limit=4.0,
        ),
        Figure(what="the same: seconds", measured=seconds, limit=None),
    ]


def replay_large(path: Path, n_runs: int) -> None:
    (data,) = survey([path])
    report = replay_set(data, ReplayOptions())
    judged = {line.n_episodes for line in report.lines}
    if judged != {n_runs}:
        raise SystemExit(f"replay: judged {judged} runs instead of {n_runs:,}")


# ---- the table --------------------------------------------------------------------------------------


def show(figures: Sequence[Figure]) -> None:
    print("| what | measured | limit |\n| --- | --- | --- |")
    for figure in figures:
        limit = "–" if figure.limit is None else f"{'≥' if figure.at_least else '≤'} {figure.limit:,.0f}"
        print(f"| {figure.what} | {figure.measured:,.{0 if figure.measured > 1_000 else 2}f} | {limit} |")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="also the large file; some minutes and 400 MB of disk")
    parser.add_argument("--runs", type=int, default=FIVE_MILLION, help="runs of the large file")
    parser.add_argument("--check", action="store_true", help="end with 1 where a limit is exceeded")
    parser.add_argument("--role", choices=("write", "replay"), help=argparse.SUPPRESS)
    parser.add_argument("path", nargs="?", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    missing = [name for name in ("pyarrow", "sklearn") if importlib.util.find_spec(name) is None]
    if missing:
        print(f"replay: needs {', '.join(missing)}; install the extras replay and train", file=sys.stderr)
        return 2
    if asked.role:
        (write_large if asked.role == "write" else replay_large)(asked.path, asked.runs)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        data, name = dev_set(Path(folder))
        print(f"{name}; {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
        figures = [*evaluations(data), *everything(data), *(large(Path(folder), asked.runs) if asked.full else ())]
    show(figures)
    return 1 if asked.check and not all(figure.kept for figure in figures) else 0


if __name__ == "__main__":
    sys.exit(main())

"""What an archive takes to write and to replay, and whether a pool and Ray give the same bytes as one process.

    python bench/archive.py [--requests 100000] [--workers 2] [--most-steps 500000] [--folder FOLDER] [--policies NAMES]

Requests are simulated chains with known truth, all of them full runs, written by the code of `suffice archive` from
rows as the log has them. CPU time is that of one process, without the simulation.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy: a process a core, not a core a product

import argparse
import hashlib
import itertools
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.learn.made import Simulation, episodes, match

from suffice.executor import Executor, PoolExecutor, RayExecutor, SerialExecutor
from suffice.replay.archive.days import RouteFiles, archive_row, expand_archives
from suffice.replay.archive.layout import MANIFESTS, Archive, Manifest, Part
from suffice.replay.report.text import dump_lines
from suffice.replay.study.sets import replay_set
from suffice.replay.study.study import ReplayOptions
from suffice.replay.traces.read import MOST_STEPS, survey
from suffice.store.database.archiving import StoredRun
from suffice.store.rows.events import to_row

DAY_ROWS = 100_000
FIRST_DAY_S = 20_454 * 86_400


def write(folder: Path, n: int) -> tuple[float, int]:
    """Write an archive of n requests of one route; return CPU seconds and bytes."""
    archive = Archive.open(folder / "archive", cache=folder / "cache", create=True)
    begin_s, n_bytes = time.process_time(), 0
    made_s = 0.0
    for number, start in enumerate(range(0, n, DAY_ROWS)):
        at = time.process_time()
        items = episodes(min(DAY_ROWS, n - start), seed=number, simulation=Simulation(mode="observe"))
        runs = []
        for place, item in enumerate(items, start + 1):
            episode_id = f"e{place}"
            request = replace(item.episode.request, episode_id=episode_id, question_key=f"q{place}")
            outcome = replace(item.episode.outcome, episode_id=episode_id)
            runs.append(
                StoredRun(2 * place, 0.0, to_row(request).body, 2 * place + 1, to_row(outcome).body, item.labels)
            )
        made_s += time.process_time() - at
        day = datetime.fromtimestamp(FIRST_DAY_S + 86_400 * number, UTC).date().isoformat()
        files = RouteFiles(folder / "archive", "r", day)
        for run in runs:
            files.add(archive_row(run, match))
        files.close()
        parts = []
        for path, rows, full in zip(files.files, files.n_rows, files.n_replayable, strict=True):
            digest, size = hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_size
            name = path.relative_to(folder / "archive").as_posix()
            parts.append(Part(name=name, n_rows=rows, n_replayable=full, n_bytes=size, sha256=digest))
            n_bytes += size
        manifest = Manifest(
            day=day,
            since_seq=2 * start,
            until_seq=2 * (start + len(runs)),
            n_requests=len(runs),
            chain=None,
            parts=tuple(parts),
        )
        archive.write(f"{MANIFESTS}/{day}.json", manifest.content)
    return time.process_time() - begin_s - made_s, n_bytes


def report_of(folder: Path, executor: Executor, options: ReplayOptions, most_steps: int) -> tuple[bytes, list[float]]:
    """Replay the archive; return the report's lines, and this process's CPU seconds for survey, fits and judging."""
    at = [time.process_time()]
    files = expand_archives([folder / "archive"], cache=folder / "cache")
    (data,) = survey(files, most_steps=most_steps, executor=executor)
    at.append(time.process_time())
    fitted = list[float]()

    def tick(what: str) -> None:
        if what == "picking":
            fitted.append(time.process_time())

    report = replay_set(data, options, executor=executor, tick=tick)
    at += [fitted[0], time.process_time()]
    return dump_lines([report]).encode(), [later - before for before, later in itertools.pairwise(at)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--most-steps", type=int, default=MOST_STEPS, help="that models are fitted on")
    parser.add_argument("--folder", type=Path, help="where the archive is made, or was made before")
    parser.add_argument("--policies", default="", help="only these, as of `suffice replay`")
    given = parser.parse_args()
    families = tuple(given.policies.split(",")) if given.policies else ()
    options, n = ReplayOptions(families=families), given.requests
    with ExitStack() as stack:
        folder = given.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if not (folder / "archive").exists():
            cpu_s, n_bytes = write(folder, n)
            print(f"written: {1e6 * cpu_s / n:,.0f} core-seconds a million, {n_bytes / n:.0f} bytes each", flush=True)
        printed = dict[str, bytes]()
        printed["this process"], (surveyed_s, fitted_s, judged_s) = report_of(
            folder, SerialExecutor(), options, given.most_steps
        )
        each_s = (surveyed_s + judged_s) / n
        print(
            f"replayed: survey {1e6 * surveyed_s / n:,.0f} and judging {1e6 * judged_s / n:,.0f} core-s a million,"
            f" fits {fitted_s:,.0f} core-seconds whatever the number; ten millions in proportion:"
            f" {(1e7 * each_s + fitted_s) / 3600:.2f} core-hours",
            flush=True,
        )
        for name, executor in (("pool", PoolExecutor(given.workers)), ("Ray", RayExecutor(given.workers))):
            begin_s = time.monotonic()
            printed[name], _ = report_of(folder, executor, options, given.most_steps)
            print(f"{name}, {given.workers} workers: {time.monotonic() - begin_s:,.0f} s", flush=True)
        for name, lines in printed.items():
            print(f"{name}: sha256 {hashlib.sha256(lines).hexdigest()}")
        if len(set(printed.values())) > 1:
            sys.exit("not the same bytes")


if __name__ == "__main__":
    main()

"""What an archive takes to write and to replay, and whether a pool and Ray give the same bytes.

    python bench/archive.py [--requests 100000] [--workers 2] [--folder FOLDER] [--no-ray] [--policies NAMES]

Requests are simulated chains with known truth, all of them full runs, written by the code of `suffice archive` from
rows as the log has them. `suffice replay` then reads them in processes of its own; CPU time is that of all of these.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import resource
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.learn.made import World, episodes, match

from suffice.replay.archive.layout import MANIFESTS, Archive, Manifest, Part
from suffice.replay.archive.writing import RouteFiles, archive_row
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
        items = episodes(min(DAY_ROWS, n - start), seed=number, world=World(mode="observe"))
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


def replay(folder: Path, arguments: list[str]) -> tuple[bytes, float, float, int]:
    """Replay the archive; return what was printed, CPU seconds of all processes, wall seconds, and peak memory."""
    before, begin_s = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    source = "from suffice.cli.main import main; main()"
    command = [sys.executable, "-c", source, "replay", str(folder / "archive"), "--json", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return done.stdout, cpu_s, time.monotonic() - begin_s, after.ru_maxrss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="where the archive is made, or was made before")
    parser.add_argument("--no-ray", action="store_true")
    parser.add_argument("--policies", help="only these, as of `suffice replay`")
    given = parser.parse_args()
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # a process a core, not a core a product
    with ExitStack() as stack:
        folder = given.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        millions = given.requests / 1e6
        if not (folder / "archive").exists():
            cpu_s, n_bytes = write(folder, given.requests)
            per = n_bytes / given.requests
            print(
                f"written: {given.requests:,} requests, {cpu_s / millions:,.0f} core-seconds a million, {per:.0f} bytes each"
            )
        wanted = ["--policies", given.policies] if given.policies else []
        printed = dict[str, bytes]()
        for name, how in (("pool", []), ("Ray", ["--ray", "local"])):
            if name == "Ray" and given.no_ray:
                continue
            printed[name], cpu_s, wall_s, peak = replay(folder, ["--workers", str(given.workers), *how, *wanted])
            hours = cpu_s / given.requests * 1e7 / 3600
            print(
                f"{name}, {given.workers} workers: {cpu_s:,.0f} core-seconds ({cpu_s / millions:,.0f} a million, "
                f"{hours:.2f} core-hours for ten millions in proportion), {wall_s:,.0f} s, peak {peak / 1e6:.1f} GB; "
                f"sha256 {hashlib.sha256(printed[name]).hexdigest()[:16]}",
                flush=True,
            )
        if len(set(printed.values())) > 1:
            sys.exit("the two gave different bytes")


if __name__ == "__main__":
    main()

"""What a start of the gateway costs on a long log, beside a short one: CPU time of its process until it listens.

    python bench/start.py                                       a few minutes, 100,000 episodes
    python bench/start.py --episodes 1000000 --folder PATH      half an hour the first time, 4 GB

The log of `bench/console.py`, whose writer is dead: the start looks for requests that it left open, too.
"""

from __future__ import annotations

import argparse
import sqlite3
import sys
import tempfile
from contextlib import closing
from pathlib import Path
from statistics import median
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.gateway_process import GatewayProcess

from console import made, tables
from peers.processes import cpu_s

SHORT: Final = 1_000  # episodes
STARTS: Final = 5


def started(folder: Path, n: int) -> float:
    """CPU seconds of a start on a log of so many episodes; median, its writer having just died each time."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "log.db"
    made(path, n)
    taken = list[float]()
    for number in range(STARTS):
        with closing(sqlite3.connect(path)) as connection:  # the rows of `made` are of process 1
            connection.execute(
                "INSERT OR REPLACE INTO owners (id, lock, pid, started_s, settled)"
                " SELECT 1, ?, 1, 1.0, max(seq) - 1000 FROM events",
                (f"dead{number}",),
            )
            connection.commit()
        with GatewayProcess.serving(folder, tables(path)) as gateway:
            taken.append(cpu_s(gateway.process.pid))
    return float(median(taken))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--episodes", type=int, default=100_000)
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        for n in (SHORT, given.episodes):
            print(f"{n:>9,} episodes: {started(folder / str(n), n):.2f} s of CPU until it listens", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

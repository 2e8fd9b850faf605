"""Runs cells in processes and records each result as it arrives."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from bench.claims.results import Cell, Line, append


def run_cells(cells: Sequence[Cell], work: Callable[[Cell], Line], results: Path, *, mark: str, jobs: int) -> None:
    """Run `work` on every cell and append its line, with the mark of the code, to the results."""
    begin, n_done = time.monotonic(), 0
    with ProcessPoolExecutor(jobs) as pool:
        waiting = {pool.submit(work, cell) for cell in cells}
        for done in as_completed(waiting):
            append(results, {**done.result(), "code": mark})
            n_done += 1
            if n_done % 100 == 0:
                left = (time.monotonic() - begin) / n_done * (len(cells) - n_done)
                print(f"{n_done:,} of {len(cells):,} cells, {left / 60:.0f} min left", file=sys.stderr)

"""Runs cells in processes and records each result as it arrives."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from bench.claims.results import Cell, Line, append

from suffice.executor import build_executor


def run_cells(
    cells: Sequence[Cell], work: Callable[[Cell], Line], results: Path, *, mark: str, jobs: int, ray: str | None = None
) -> None:
    """Run `work` on every cell and append its line, with the mark of the code, to the results."""
    begin = time.monotonic()
    for n_done, line in enumerate(build_executor(jobs, ray).map(work, cells), 1):
        append(results, {**line, "code": mark})
        if n_done % 100 == 0:
            left = (time.monotonic() - begin) / n_done * (len(cells) - n_done)
            print(f"{n_done:,} of {len(cells):,} cells, {left / 60:.0f} min left", file=sys.stderr)

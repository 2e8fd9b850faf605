"""One page of benchmarks: every published rule, ours, oracles and three competitors on every set of recorded runs.

    SUFFICE_TRACES=folder python -m bench.page [--only SET ...] [--seeds N] [--minutes M] [--fresh] [--table]

Computes the cells that `bench/results/page.jsonl` does not hold yet, the quick ones first, and writes
`docs/reference/benchmarks.md` from all that it holds. A run that is cut off, or that `--minutes` ends, goes on where it
was. The two sets in the box need nothing; others are files named SET.dev.parquet in the folder of SUFFICE_TRACES.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy: a process a core, not a core a product

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from bench.page.cells import Maker, compute, list_cells
from bench.page.competitor import is_installed
from bench.page.found import Found
from bench.page.render import PAGE, render
from bench.page.sets import VARIABLE, cases
from bench.page.store import RESULTS, Cell, Line, read_cells, write_cell

from suffice.errors import SufficeError


def _arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.page", description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", default=[], metavar="SET", help="sets whose names begin like this")
    parser.add_argument("--parts", nargs="+", default=[], metavar="PART", help="parts of the page to compute")
    parser.add_argument("--seeds", type=int, default=10, help="streams of each set, every run once; default: 10")
    parser.add_argument("--again", type=int, default=2, help="streams of 10,000 requests of each set; default: 2")
    parser.add_argument("--minutes", type=float, default=120.0, help="begin no cell later than this; default: 120")
    parser.add_argument("--fresh", action="store_true", help="compute again what is there")
    parser.add_argument("--table", action="store_true", help="compute nothing, write the page")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where cells are kept")
    parser.add_argument("--page", type=Path, default=PAGE, help="the page whose marked blocks are written")
    return parser.parse_args(given)


def _compute(asked: argparse.Namespace) -> int:
    known = {case.name: case for case in cases()}
    if not os.environ.get(VARIABLE):
        print(f"page: {VARIABLE} names no folder: only the sets in the box are computed", file=sys.stderr)
    if not is_installed():
        print("page: e-valuator is not installed: its rows are left as they are", file=sys.stderr)
    os.nice(10)
    names = [name for name in known if not asked.only or name.startswith(tuple(asked.only))]
    cells = list_cells(names, n_seeds=asked.seeds, n_again=asked.again)
    there = {} if asked.fresh else read_cells(asked.results)
    wanted = [c for c in cells if c not in there and (not asked.parts or c.part in asked.parts)]

    def keep(cell: Cell, found: Line, cpu_s: float) -> None:
        write_cell(cell, found, cpu_s, asked.results)
        print(f"{time.strftime('%H:%M:%S')} {cpu_s:6.1f} s  {' '.join(str(value) for value in cell)}", flush=True)

    try:
        left = compute(wanted, Maker(known), keep, until=time.monotonic() + 60 * asked.minutes)
    except SufficeError as error:
        print(f"page: {error}", file=sys.stderr)
        return 2
    print(f"{len(wanted) - left} cells computed, {left} left", file=sys.stderr)
    return 0


def main(given: Sequence[str] | None = None) -> int:
    asked = _arguments(given)
    if not asked.table and (code := _compute(asked)):
        return code
    page = render(asked.page.read_text(encoding="utf-8"), Found(read_cells(asked.results)))
    asked.page.write_text(page, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The claims in full: every design in every setting on the same seeds, resumable, without a time limit.

    python -m bench.claims [--seeds 200] [--only WORD ...] [--jobs 2] [--ray ADDRESS] [--results FILE] [--table]

Each cell (setting, design, seed) is 20,000 requests from a cold start and becomes one line of the results file; cells
that are already there for the same code are skipped. Seeds are the outer loop, so an interrupted run leaves every cell
with about as many. `--only` keeps settings and designs whose names contain one of the words: `--only harsh certified`;
`--only live` keeps the scenarios of the live loop (`live_run`). `--table` only prints the tables. If SUFFICE_SIM names
the folder of another generator (`generator.py`), its scenarios are settings too.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy: a process a core, not a core a product

import platform
import shlex
import sys
from collections.abc import Sequence

from bench.claims import live, live_run, reference
from bench.claims.cells import DESIGNS, run_cell
from bench.claims.pool import run_cells
from bench.claims.results import Cell, Line, arguments, cell_of, code_mark, lines
from bench.claims.streams import SETTINGS
from bench.claims.table import tables
from tests.simulators.traffic_worlds import SCENARIOS

COMPLAINTS = "complaints"  # where labels are missing not at random, the design that leaves out what has none is shown
SAYS = {name: scenario.says for name, scenario in SCENARIOS.items()} | {
    "none, spread labels": "delays from 0 to thousands of requests, 700 on average",
    "none, complaints only": "a label for 5 % of right answers and 50 % of wrong ones",
    "harsh, complaints only": "both at once",
    "stealth, spread labels": "both at once",
}


def order(words: Sequence[str]) -> list[tuple[str, str]]:
    """(setting, design) of every row, in their order."""
    settings, designs = [*SETTINGS, *reference.settings()], list(DESIGNS)
    of_live = [word for word in words if live_run.order([word])]
    about_settings = [word for word in words if any(word in name for name in settings)]
    about_designs = [word for word in words if any(word in name for name in designs)]
    unknown = set(words) - set(about_settings) - set(about_designs) - set(of_live)
    if unknown:
        names = [*settings, *live.SETTINGS, *designs, *live_run.DESIGNS]
        sys.exit(f"--only: nothing is named {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    if words and not about_settings and not about_designs:
        return []
    return [
        (setting, design)
        for setting in settings
        if not about_settings or any(word in setting for word in about_settings)
        for design in designs
        if not about_designs or any(word in design for word in about_designs)
        if design != "labelled-only" or COMPLAINTS in setting
    ]


def work(cell: Cell) -> Line:
    """One cell, in a process of the pool."""
    return run_cell(*cell)


def main() -> None:
    asked = arguments("python -m bench.claims", __doc__.splitlines()[0], only="settings")
    mark, rows, of_live = code_mark(), order(asked.only), live_run.order(asked.only)
    wanted = [(setting, design, seed) for seed in range(asked.seeds) for setting, design in rows]
    if not asked.table:
        there = {cell_of(line) for line in lines(asked.results) if line["code"] == mark}
        cells = [cell for cell in wanted if cell not in there]
        run_cells(cells, work, asked.results, mark=mark, jobs=asked.jobs, ray=asked.ray)
        live_run.run(of_live, seeds=asked.seeds, results=asked.results, jobs=asked.jobs, ray=asked.ray)
    found = [line for line in lines(asked.results) if line["code"] == mark and cell_of(line) in set(wanted)]
    hours = sum(line["cpu_s"] for line in found) / 3600
    command = shlex.join(["python", "-m", "bench.claims", *sys.argv[1:]])
    version = f"code {mark}, Python {platform.python_version()}"
    print(f"`{command}`: {len(found):,} streams, {hours:.2f} h of CPU time; {version}")
    for text in (*tables(found, rows, SAYS), *live_run.tables(asked.results, of_live, seeds=asked.seeds)):
        print(text)


if __name__ == "__main__":
    main()

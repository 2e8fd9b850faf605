"""Runs the live scenarios of both codes, and prints their tables.

    python -m bench.claims --only live                                     cells of this code, with all other claims
    git worktree add ../before d979473
    PYTHONPATH=../before/src python -m bench.claims.live_run --seeds 200   the same streams through the code before

Both write to one results file; the tables list the code before as the rejected design.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy: a process a core, not a core a product

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from bench.claims.live import BUDGETS, SETTINGS, design_of, run_cell
from bench.claims.live_scenarios import SCENARIOS
from bench.claims.pool import run_cells
from bench.claims.results import Cell, Line, arguments, cell_of, lines, mark_of

import suffice
from suffice.assurance.bounds import exact_binomial

DESIGNS: Final = tuple(design_of(budget) for budget in BUDGETS)
REJECTED: Final = "before"  # the first word of a design that this code does not run, whatever code wrote its line
_PACKAGE: Final = Path(suffice.__file__).parent
_MADE_BY: Final = (
    *(_PACKAGE / name for name in ("assurance", "certification", "control", "learn", "model", "rollout", "signals")),
    _PACKAGE / "types.py",
    *sorted(Path(__file__).parent.glob("live*.py")),
)
HEAD: Final = (
    "| design | streams | (a) window at or above the budget; up to the look | (b) served at or above it, % of requests"
    " | worst level, points | lost above the budget, points x requests | saved all / late, % | noticed after, median |"
    " alarm after, median; streams | false alarms per 20,000 | CPU s |"
)


def order(words: Sequence[str]) -> list[tuple[str, str]]:
    """(setting, design) of every cell of this code whose names match; words that match nothing here are passed over."""
    about_settings = [word for word in words if any(word in name for name in SETTINGS)]
    about_designs = [word for word in words if any(word in name for name in DESIGNS)]
    if words and not about_settings and not about_designs:
        return []
    return [
        (setting, design)
        for setting in SETTINGS
        if not about_settings or any(word in setting for word in about_settings)
        for design in DESIGNS
        if not about_designs or any(word in design for word in about_designs)
    ]


def work(cell: Cell) -> Line:
    """One cell, in a process of the pool."""
    return run_cell(*cell)


def run(rows: Sequence[tuple[str, str]], *, seeds: int, results: Path, jobs: int, ray: str | None = None) -> None:
    """Run the cells whose lines are not there yet for this code."""
    mark = mark_of(_MADE_BY)
    there = {cell_of(line) for line in lines(results) if line["code"] == mark}
    wanted = [(setting, design, seed) for seed in range(seeds) for setting, design in rows]
    run_cells([cell for cell in wanted if cell not in there], work, results, mark=mark, jobs=jobs, ray=ray)


def tables(results: Path, rows: Sequence[tuple[str, str]], *, seeds: int) -> Iterator[str]:
    """Lines of Markdown: a table for each setting, the code before first."""
    mark, settings = mark_of(_MADE_BY), dict.fromkeys(setting for setting, _ in rows)
    found: dict[tuple[str, str], dict[int, Line]] = {}
    for line in lines(results):
        is_rejected = line["design"].startswith(REJECTED)
        if line["setting"] in settings and line["seed"] < seeds and (line["code"] == mark or is_rejected):
            found.setdefault((line["setting"], line["design"]), {})[line["seed"]] = line
    for setting in settings:
        yield from ("", f"#### {setting}: {SCENARIOS[SETTINGS[setting]].says}", "", HEAD)
        yield "| --- " * (HEAD.count("|") - 1) + "|"
        for name, design in sorted(found):
            if name == setting:
                yield row(design, list(found[name, design].values()))


def row(design: str, rows: Sequence[Line]) -> str:
    """One design in one setting, with exact 95 % intervals."""
    share = 100 * np.mean([line["over_share"] for line in rows])
    noticed, delays = ([line[name] for line in rows if line[name] is not None] for name in ("noticed", "alarm_delay"))
    false = 20_000 * sum(line["false"] for line in rows) / sum(line["quiet"] for line in rows)
    saved = " / ".join(f"{100 * np.mean([line[name] for line in rows]):.1f}" for name in ("saved", "saved_late"))
    cells = (
        design,
        f"{len(rows)}",
        f"{_rate(rows, 'over')}; {sum(line['over_so_far'] for line in rows)}",
        f"{share:.2f}, {_rate(rows, 'picked_over')}",
        f"{100 * max(line['worst_drop'] for line in rows):.2f}",
        f"{np.mean([line['excess'] for line in rows]):,.0f}",
        saved,
        f"{np.median(noticed):,.0f}" if noticed else "",
        f"{np.median(delays):,.0f}; {len(delays)}" if delays else "none",
        f"{false:.2f}",
        f"{np.mean([line['cpu_s'] for line in rows]):.1f}",
    )
    return "| " + " | ".join(cells) + " |"


def _rate(rows: Sequence[Line], name: str) -> str:
    """How many streams, and the exact interval of their rate (Clopper and Pearson 1934)."""
    k = sum(line[name] for line in rows)
    ends = exact_binomial(k, len(rows), 0.95)
    return f"{k} ({100 * ends.low:.1f} to {100 * ends.high:.1f} %)"


def main() -> None:
    asked = arguments("python -m bench.claims.live_run", __doc__.splitlines()[0], only="scenarios")
    rows = order(asked.only)
    if not asked.table:
        run(rows, seeds=asked.seeds, results=asked.results, jobs=asked.jobs, ray=asked.ray)
    for text in tables(asked.results, rows, seeds=asked.seeds):
        print(text)


if __name__ == "__main__":
    main()

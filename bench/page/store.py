"""The stored cells of the page: one JSON line each, with the commit and the code that made it."""

from __future__ import annotations

import datetime
import subprocess
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from bench.claims.results import ROOT, append, lines, mark_of

RESULTS = ROOT / "bench" / "results" / "page.jsonl"
MADE_BY = (
    "src/suffice/assurance",
    "src/suffice/learn",
    "src/suffice/policy",
    "src/suffice/replay",
    "src/suffice/signals",
)
Line: TypeAlias = dict[str, Any]


class Cell(NamedTuple):
    set: str
    part: str  # see `cells.PARTS`
    stream: str = ""  # see `cells.STREAMS`; "": not a stream
    budget: float = 0.0  # a fraction; 0: all budgets
    seed: int = 0


def read_cells(path: Path = RESULTS) -> dict[Cell, Line]:
    """The latest line of each cell."""
    return {Cell(*(line[field] for field in Cell._fields)): line for line in lines(path)}


def write_cell(cell: Cell, found: Line, cpu_s: float, path: Path = RESULTS) -> None:
    on = datetime.datetime.now(datetime.UTC).date().isoformat()
    made = {"commit": commit(), "code": code_mark(), "on": on, "cpu_s": round(cpu_s, 2)}
    append(path, {**cell._asdict(), **made, **found})


@cache
def code_mark() -> str:
    return mark_of(ROOT / name for name in MADE_BY)


@cache
def commit() -> str:
    """The short hash of the checkout, with a plus sign where its sources were changed since; "?": no repository."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "src", "bench/page", "bench/nested.py")
        return git("rev-parse", "--short=10", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "?"

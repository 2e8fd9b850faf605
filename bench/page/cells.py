"""Which cells the page consists of, in what order they are worth computing, and how each is made."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from bench.page import bargain, bpac, competitor, streams, study
from bench.page.sets import Case
from bench.page.store import Cell, Line

BUDGETS: Final = (0.01, 0.02)  # largest EM drops, fractions
SEEDS_AT_ONCE: Final = 2  # seeds of every set, before any set gets more
STREAM_PARTS: Final = {
    "ours": streams.serve_ours,
    "rules": streams.serve_rules,
    "reference": streams.serve_reference,
    "e-valuator": competitor.serve,
    "b-pac": bpac.serve,
}
STREAMED: Final = (
    *((budget, part) for budget in BUDGETS for part in STREAM_PARTS),
    *((streams.LOOSE, part) for part in ("ours", "b-pac")),
)
FROZEN_PARTS: Final[dict[str, Callable[[Case, Sequence[float]], Line]]] = {
    "study": study.judge,
    "e-valuator": competitor.judge,
    "bargain": bargain.judge,
}


def list_cells(names: Sequence[str], *, n_seeds: int, n_again: int) -> list[Cell]:
    """All cells of these sets, the quick and telling ones first, so that a run may be cut off anywhere.

    n_again  seeds of the streams that draw questions again
    """
    once = [
        Cell(name, part, "once", budget, seed)
        for first in range(0, n_seeds, SEEDS_AT_ONCE)
        for name in names
        for budget, part in STREAMED
        for seed in range(first, min(first + SEEDS_AT_ONCE, n_seeds))
    ]
    again = [
        Cell(name, part, "again", budget, seed)
        for seed in range(n_again)
        for name in names
        for budget, part in STREAMED
        if part != "e-valuator"  # repeated questions would be in both of its halves
    ]
    frozen = [Cell(name, part) for name in names for part in FROZEN_PARTS]
    first = SEEDS_AT_ONCE * len(names) * len(STREAMED)
    return [*frozen, *once[:first], *again, *once[first:]]


@dataclass(slots=True)
class Maker:
    """Makes cells; the last set that a stream needed stays open."""

    cases: dict[str, Case]
    _open: dict[str, streams.OpenSet] = field(default_factory=dict)

    def make(self, cell: Cell) -> Line | None:
        """None: the part needs a package that is not installed."""
        if cell.part == "e-valuator" and not competitor.is_installed():
            return None
        if cell.stream:
            return STREAM_PARTS[cell.part](self._opened(cell.set), cell.stream, cell.budget, cell.seed)
        return FROZEN_PARTS[cell.part](self.cases[cell.set], BUDGETS)

    def _opened(self, name: str) -> streams.OpenSet:
        if name not in self._open:
            self._open = {name: streams.OpenSet(self.cases[name])}
        return self._open[name]


def compute(cells: Iterable[Cell], maker: Maker, write: Callable[[Cell, Line, float], None], *, until: float) -> int:
    """Make and write cells until the clock says so; how many are left undone."""
    left = 0
    for cell in cells:
        if time.monotonic() >= until:
            left += 1
            continue
        begin = time.process_time()
        found = maker.make(cell)
        if found is None:
            left += 1
            continue
        write(cell, found, time.process_time() - begin)
    return left

"""The stored cells as the page reads them, and how it writes a figure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
from bench.page.cells import BUDGETS
from bench.page.sets import SOURCES
from bench.page.store import Cell, Line

from suffice.assurance.bounds import exact_binomial

GAP: Final = "\N{NO-BREAK SPACE}"
NOT_RUN: Final = f"not{GAP}run"
DASH: Final = "–"
_UNIT: Final = f"{GAP}%"


class Streams(NamedTuple):
    """What one design came to on some streams of a set; means, as fractions."""

    saved: float  # of the whole stream
    saved_late: float  # of its second half
    drop_late: float
    n_over: int  # streams whose second half lost more than the budget
    n: int

    @property
    def over(self) -> str:
        ends = exact_binomial(self.n_over, self.n, 0.95)
        return f"{self.n_over} of {self.n} ({100 * ends.low:.0f} to {100 * ends.high:.0f} %)"


class Found:
    def __init__(self, cells: Mapping[Cell, Line]) -> None:
        self.cells = cells
        known = dict.fromkeys([*SOURCES, *(cell.set.partition(",")[0] for cell in cells)])
        order = {name: at for at, name in enumerate(known)}
        names = {cell.set for cell in cells}
        self.sets = sorted(names, key=lambda name: (order[name.partition(",")[0]], name))

    def study(self, name: str) -> Line | None:
        return self.cells.get(Cell(name, "study"))

    def studies(self) -> Iterable[tuple[str, Line]]:
        return ((name, study) for name in self.sets if (study := self.study(name)) is not None)

    def evaluator(self, name: str) -> Line | None:
        return self.cells.get(Cell(name, "e-valuator"))

    def streams(self, name: str, part: str, stream: str, budget: float, rule: str = "") -> Streams | None:
        """None: not run, or the design does not apply. rule: of the part `rules`."""
        lines = [
            line["rules"].get(rule) if rule else line
            for cell, line in self.cells.items()
            if cell[:4] == (name, part, stream, budget)
        ]
        kept = [line for line in lines if line is not None and "saved" in line]
        return _mean(kept, budget) if kept else None

    def rules(self, name: str, stream: str, budget: float) -> dict[str, Streams]:
        """Each published rule that was served on these streams."""
        of_set = (line["rules"] for cell, line in self.cells.items() if cell[:4] == (name, "rules", stream, budget))
        known = dict.fromkeys(rule for rules in of_set for rule in rules)
        met = {rule: self.streams(name, "rules", stream, budget, rule) for rule in known}
        return {rule: one for rule, one in met.items() if one is not None}


def _mean(lines: Sequence[Line], budget: float) -> Streams:
    def mean(field: str) -> float:
        return float(np.mean([line[field] for line in lines]))

    over = sum(line["drop_late"] > budget + 1e-12 for line in lines)
    return Streams(mean("saved"), mean("saved_late"), mean("drop_late"), over, len(lines))


def percent(value: float) -> str:
    return f"{100 * value if abs(value) >= 5e-4 else 0.0:.1f}{_UNIT}"


def points(value: float, budget: float | None = None) -> str:
    """An EM drop in points, marked where it is over the budget."""
    over = budget is not None and value > budget + 1e-9
    text = f"{100 * value:+.2f}" if abs(value) >= 5e-5 else "0.00"
    return f"{text} **!**" if over else text


def name_budget(budget: float) -> str:
    return f"{100 * budget:g} point{'' if budget == BUDGETS[0] else 's'}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])

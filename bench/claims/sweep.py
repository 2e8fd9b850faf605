"""A table with one row per setting and per choice of one option, shared by the programs beside the claims."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from bench.claims.course import Figures

from suffice.executor import build_executor

C = TypeVar("C")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep(Generic[C]):
    """One program.

    run    the figures of one stream: setting, choice, seed
    cells  of a row, behind the setting
    """

    prog: str
    about: str
    head: str
    settings: Sequence[str]
    choices: Sequence[C]
    run: Callable[[tuple[str, C, int]], Figures]
    cells: Callable[[C, Sequence[Figures]], list[str]]

    def row(self, setting: str, choice: C, found: Sequence[Figures]) -> str:
        """One line of the table."""
        return f"| {' | '.join([setting, *self.cells(choice, found)])} |"

    def main(self, arguments: Sequence[str] | None = None) -> None:
        """Print the table, row by row."""
        parser = argparse.ArgumentParser(prog=self.prog, description=self.about)
        parser.add_argument("--seeds", type=int, default=8)
        parser.add_argument("--jobs", type=int, default=2)
        parser.add_argument(
            "--only", nargs="+", default=self.settings, metavar="SETTING", help="settings, see bench.claims"
        )
        asked = parser.parse_args(arguments)
        print(self.head, "| --- " * (self.head.count("|") - 1) + "|", sep="\n")
        pool = build_executor(asked.jobs)
        for setting in asked.only:
            for choice in self.choices:
                cells = [(setting, choice, seed) for seed in range(asked.seeds)]
                print(self.row(setting, choice, list(pool.map(self.run, cells))), flush=True)


def mean(found: Sequence[Figures], name: str) -> float:
    """Mean of a figure that every stream has."""
    return float(np.mean([one[name] for one in found]))


def percents(found: Sequence[Figures], *names: str, digits: int = 1) -> str:
    """Means of fractions, in per cent or points."""
    return " / ".join(f"{100 * mean(found, name):.{digits}f}" for name in names)


def over(found: Sequence[Figures]) -> str:
    """In how many streams the budget was broken before or after the drift."""
    return f"{sum(bool(one['over_pre'] or one['over_post']) for one in found)} of {len(found)}"


def for_good(found: Sequence[Figures]) -> str:
    """When the budget was kept for good, median and 90th percentile."""
    return " / ".join(f"{at:.0f}" for at in np.quantile([one["for_good"] or 0.0 for one in found], [0.5, 0.9]))

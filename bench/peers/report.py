"""What was measured, as a table for a reader at a terminal."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from statistics import median

BARE = "bare byte relay"
Figures = Mapping[str, Mapping[str, Sequence[float]]]  # scenario → target → one figure a round


def machine() -> str:
    """The machine, its Python, and how busy it is with other things."""
    load = " ".join(f"{value:.1f}" for value in os.getloadavg()) if hasattr(os, "getloadavg") else "unknown"
    return (
        f"{platform.platform()}, {platform.machine()}, {os.cpu_count()} cores, "
        f"Python {platform.python_version()}, load average {load}"
    )


def cell(values: Sequence[float], bare: float | None) -> str:
    """Median, the range of the rounds, the ratio to the bare relay."""
    if not values:
        return "-"
    middle = median(values)
    digits = 1 if middle >= 10 else 2
    spread = f" ({min(values):.{digits}f}-{max(values):.{digits}f})" if len(values) > 1 else ""
    ratio = f" {middle / bare:.2f}x" if bare else ""
    return f"{middle:.{digits}f}{spread}{ratio}"


def table(figures: Figures, targets: Sequence[str], absent: Mapping[str, str]) -> str:
    """One row a target, one column a scenario; `x` is the ratio to the bare byte relay of the same run."""
    scenarios = list(figures)
    rows = [["", *scenarios]]
    for name in targets:
        row = [name]
        for scenario in scenarios:
            bare = figures[scenario].get(BARE)
            row.append(cell(figures[scenario].get(name, ()), median(bare) if bare else None))
        rows.append(row)
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    padded = [[text.ljust(width) for text, width in zip(row, widths, strict=True)] for row in rows]
    lines = [f"| {' | '.join(row)} |" for row in padded]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join([*lines, *[f"{name}: not measured, {why}" for name, why in absent.items()]])

"""The tables of the claims, from the results file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from bench.claims.results import Line

from suffice.assurance.bounds import exact_binomial

HEAD = (
    "| design | seeds | saved all / steady / last, % | drop pre / post, points | over pre | over post |"
    " truly over pre / end | recovered after, median / p90 | … for good | surplus | alarm after, median; within 500 |"
    " false alarms per 10,000 | CPU s |"
)


def tables(found: Sequence[Line], order: Sequence[tuple[str, str]], says: dict[str, str]) -> Iterator[str]:
    """Lines of Markdown: one table for each setting, one row for each design.

    order  (setting, design) as they are to appear
    says   one sentence about each setting
    """
    by_cell: dict[tuple[str, str], list[Line]] = {}
    for line in found:
        by_cell.setdefault((line["setting"], line["design"]), []).append(line)
    last = ""
    for setting, design in order:
        rows = by_cell.get((setting, design))
        if not rows:
            continue
        if setting != last:
            yield from ("", f"#### {setting}: {says.get(setting, '')}".rstrip(": "), "", HEAD)
            yield "| --- " * (HEAD.count("|") - 1) + "|"
            last = setting
        yield row(design, rows)


def row(design: str, rows: Sequence[Line]) -> str:
    """One design in one setting."""
    saved = " / ".join(f"{100 * _mean(rows, f'saved_{part}'):.1f}" for part in ("all", "steady", "last"))
    drop = " / ".join(f"{100 * _mean(rows, f'drop_{part}'):.2f}" for part in ("pre", "post"))
    truly = " / ".join(_share(line[name] > line["max_em_drop"] for line in rows) for name in ("true_pre", "true_end"))
    recover, for_good = (
        " / ".join(f"{x:.0f}" for x in np.quantile([line[name] for line in rows], [0.5, 0.9]))
        for name in ("recover", "for_good")
    )
    delays = [line["alarm_delay"] for line in rows if line["alarm_delay"] is not None]
    soon = sum(delay <= 500 for delay in delays)
    alarm = f"{np.median(delays):.0f}; {soon} of {len(rows)}" if delays else "none"
    per_10_000 = 1e4 * sum(line["alarms_pre"] for line in rows) / max(1, sum(line["drift_at"] for line in rows))
    cells = [
        design,
        str(len(rows)),
        saved,
        drop,
        _bound(rows, "over_pre"),
        _bound(rows, "over_post"),
        truly,
        recover,
        for_good,
        f"{_mean(rows, 'surplus'):.0f}",
        alarm,
        f"{per_10_000:.2f}",
        f"{_mean(rows, 'cpu_s'):.1f}",
    ]
    return "| " + " | ".join(cells) + " |"


def _mean(rows: Sequence[Line], name: str) -> float:
    return float(np.mean([line[name] for line in rows]))


def _share(flags: Iterable[bool]) -> str:
    found = list(flags)
    return f"{100 * sum(found) / len(found):.0f} %"


def _bound(rows: Sequence[Line], name: str) -> str:
    """How many seeds, and the exact upper end of a one-sided 95 % interval for their share."""
    k = int(sum(line[name] for line in rows))
    return f"{k} (≤ {100 * exact_binomial(k, len(rows), 0.9).high:.1f} %)"

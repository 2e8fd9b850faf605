"""A replay as traffic for people: a table for the terminal, and the course of each set as a figure.

Knows rich, matplotlib and the records of a result; refuses to compute any of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import Any, Final

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from suffice.assurance.bounds import Interval
from suffice.errors import ConfigError
from suffice.extras import how_to_install
from suffice.files import whole_file
from suffice.learn.audits import Floats
from suffice.replay.online.result import Course, OnlineReport
from suffice.replay.report.plot import COLOURS, FAINT, INK
from suffice.replay.report.wording import describe_percent
from suffice.sanitize import plural, printable

_HEADS: Final = ("set", "requests", "saved %", "late %", "no probes", "late drop", "over budget", "audits", "alarms")
SMOOTH: Final = 5  # blocks of the course that are averaged


def print_online(reports: Sequence[OnlineReport], console: Console) -> None:
    """Print one row a set, and what the columns mean."""
    first = reports[0]
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="dim")
    table.add_column(_HEADS[0], overflow="fold")
    for head in _HEADS[1:]:
        table.add_column(head, justify="right", no_wrap=True)
    for one in reports:
        ends = one.violations_interval
        table.add_row(
            Text(printable(one.set)),
            f"{one.seeds[0].n:,}",
            describe_percent(one.mean("reduction")),
            describe_percent(one.mean("reduction_late")),
            describe_percent(one.mean("reduction_late_free")),
            _signed(one.mean("drop_late")),
            f"{one.n_violations}/{len(one.seeds)} {_between(ends)}",
            f"{one.mean('audits'):,.0f}",
            f"{one.mean('alarms'):.2f}",
        )
    budget = f"{format_budget(first)} of EM, {sureness(first)}"
    console.print(Text(f"As traffic, from a cold start: {budget}, {plural(len(first.seeds), 'seed')}", style="bold"))
    console.print(table)
    for one in reports:
        for note in notes(one):
            console.print(Text(note, style="yellow"))
    console.print(
        Text(
            "late: the second half of the stream, audits and probes paid. late drop: points of EM, audits as 0."
            " over budget: seeds whose late drop exceeds the budget, with the exact 95 % interval of that share.",
            style="dim",
        )
    )


def format_budget(report: OnlineReport) -> str:
    """The budget for people: "at most 1 point"."""
    points = f"{100 * report.max_em_drop:g}"
    return f"at most {points} point" if points == "1" else f"at most {points} points"


def sureness(report: OnlineReport) -> str:
    """How sure that is: of the budgeted mode nothing is."""
    if report.promise == "budgeted":
        return "on average, without a confidence (budgeted mode)"
    return f"{100 * report.confidence:g} % sure"


def notes(report: OnlineReport) -> list[str]:
    """What a reader must know of one set."""
    found = []
    name = printable(report.set)
    if report.too_small:
        found.append(
            f"{name}: too small to certify: {report.n_rows:,} runs of {report.n_questions} questions; certificates"
            " begin at 1,000 runs and 50 questions"
        )
    if report.resampled:
        found.append(f"{name}: resampled: requests were drawn with replacement from {report.n_rows:,} runs")
    if report.disjoint:
        found.append(f"{name}: disjoint: fitted and certified on one half of the questions, the late half is the other")
    if report.drift is not None:
        found.append(f"{name}: {_drifted(report)}")
    return found


def _drifted(report: OnlineReport) -> str:
    """What came of a drift."""
    n, alarmed = len(report.seeds), len(report.values("alarm_delay"))
    delay, recovery = report.median("alarm_delay"), report.recovery
    told = f"alarm in {alarmed} of {n} seeds"
    told += "" if delay is None else f", {delay:,.0f} requests after it (median)"
    back = f"{len(report.values('recovery'))} came back within the budget for good"
    back += "" if recovery is None else f", after {recovery:,.0f} requests (median)"
    return (
        f"drift {printable(report.drift or '')} at request {report.drift_at:,}: {told}; {back};"
        f" {report.loss_above_budget or 0:,.0f} points x requests lost above the budget,"
        f" {report.false_alarms or 0:.2f} false alarms before it (means)"
    )


def write_courses(reports: Sequence[OnlineReport], folder: Path) -> list[Path]:
    """Draw each set's course into `SET.online.png` and `.svg`. Raises ConfigError without matplotlib."""
    try:
        import matplotlib as mpl

        mpl.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        raise ConfigError(f"replay: figures need matplotlib: {how_to_install('replay')}; or pass --no-report") from None
    written = []
    for report in reports:
        figure = _drawn(report, pyplot)
        for suffix in ("png", "svg"):
            path = folder / f"{''.join(c if c.isalnum() or c in '-_' else '-' for c in report.set)}.online.{suffix}"
            with whole_file(path) as part:
                figure.savefig(part, format=suffix, dpi=144, metadata={"Date": None} if suffix == "svg" else None)
            written.append(path)
        pyplot.close(figure)
    return written


def _drawn(report: OnlineReport, pyplot: Any) -> Any:
    """Three panels over requests: level, saving, drop. matplotlib has no types: Any."""
    figure, panels = pyplot.subplots(3, 1, figsize=(9, 7.6), sharex=True, layout="constrained")
    courses = [seed.course for seed in report.seeds]
    n_blocks = min(len(course.requests) for course in courses)  # short streams of a mixed drift differ in length
    x = np.array(courses[0].requests[:n_blocks])
    for axes, field, title, scale in (
        (panels[0], "level", "level in force, part of the most aggressive", 1.0),
        (panels[1], "reduction", "tokens saved, %", 100.0),
        (panels[2], "drop", "EM drop, points (mean of seeds)", 100.0),
    ):
        values = scale * np.array([getattr(course, field)[:n_blocks] for course in courses])
        smooth = np.array([_smoothed(row) for row in values])
        if field != "drop":
            low, high = np.quantile(smooth, [0.1, 0.9], axis=0)
            axes.fill_between(x, low, high, color=COLOURS["ours"], alpha=0.15, linewidth=0)
        axes.plot(x, smooth.mean(axis=0), color=COLOURS["ours"])
        axes.set_title(title, loc="left", fontsize=10)
        axes.grid(visible=True, color=FAINT, alpha=0.25)
        _marks(axes, courses[0], report)
    panels[2].axhline(100 * report.max_em_drop, color=INK, linestyle="--", linewidth=1)
    panels[2].margins(y=0.15)  # room for the word above its line
    panels[2].annotate("budget", (x[-1], 100 * report.max_em_drop), ha="right", va="bottom", fontsize=9)
    panels[2].set_xlabel(
        f"requests; band: 10 to 90 % of {len(courses)} seeds; first seed: grey full runs, dotted alarms, line drift"
    )
    budget = f"{format_budget(report)}, {sureness(report)}"
    drifted = "" if report.drift is None else f"\n{fill(_drifted(report), 120)}"
    figure.suptitle(f"{report.set}: {budget}{drifted}", x=0.01, ha="left", fontsize=10 if drifted else None)
    return figure


def _marks(axes: Any, course: Course, report: OnlineReport) -> None:
    for begin, end in course.bursts:
        axes.axvspan(begin, end, color=FAINT, alpha=0.25, linewidth=0)
    for at, _ in course.alarms:
        axes.axvline(at, color=COLOURS["oracle"], linestyle=":", linewidth=1.4)
    if report.drift_at is not None:
        axes.axvline(report.drift_at, color=INK, linewidth=1)


def _smoothed(values: Floats) -> Floats:
    weights = np.ones(min(SMOOTH, len(values)))
    return np.asarray(np.convolve(values, weights, "same") / np.convolve(np.ones(len(values)), weights, "same"))


def _signed(drop: float) -> str:
    return f"{100 * drop:+.2f}".replace("-", "\u2212")


def _between(ends: Interval) -> str:
    return f"({describe_percent(ends.low, 0)}\u2013{describe_percent(ends.high, 0)} %)"

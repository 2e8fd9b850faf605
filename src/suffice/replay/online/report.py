"""The report of a replay as traffic: a table for a terminal, and the course of each set as a figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import Any, Final

import numpy as np
from rich.console import Console
from rich.text import Text

from suffice.arrays import Floats
from suffice.replay.online.drift import Drift
from suffice.replay.online.protocol import Course, OnlineReport
from suffice.replay.report.plot import COLOURS, FAINT, INK, PlotFiles, open_figure, render_figure
from suffice.replay.report.text import build_table, describe_percent
from suffice.sanitize import plural, printable

_HEADS: Final = ("set", "requests", "saved %", "late %", "no probes", "late drop", "over budget", "audits", "alarms")
SMOOTH: Final = 5  # blocks in the moving average of the course


def print_online(reports: Sequence[OnlineReport], console: Console) -> None:
    first = reports[0]
    table = build_table(_HEADS)
    for one in reports:
        ends = one.violations_interval
        low, high = describe_percent(ends.low, 0), describe_percent(ends.high, 0)
        table.add_row(
            Text(printable(one.set)),
            f"{one.seeds[0].n:,}",
            describe_percent(one.mean("reduction")),
            describe_percent(one.mean("reduction_late")),
            describe_percent(one.mean("reduction_late_free")),
            f"{100 * one.mean('drop_late'):+.2f}".replace("-", "\u2212"),
            f"{one.n_violations}/{len(one.seeds)} ({low}\u2013{high} %)",
            f"{one.mean('audits'):,.0f}",
            f"{one.mean('alarms'):.2f}",
        )
    budget = f"{format_budget(first)} of EM, {describe_confidence(first)}"
    console.print(Text(f"As traffic, from a cold start: {budget}, {plural(len(first.seeds), 'seed')}", style="bold"))
    console.print(table)
    for one in reports:
        for note in describe_notes(one):
            console.print(Text(note, style="yellow"))
    console.print(
        Text(
            "late: the second half of the stream, audits and probes paid. late drop: points of EM, audits as 0."
            " over budget: seeds whose late drop exceeds the budget, with the exact 95 % interval of that share.",
            style="dim",
        )
    )


def format_budget(report: OnlineReport) -> str:
    points = f"{100 * report.options.max_em_drop:g}"
    return f"at most {points} point{'' if points == '1' else 's'}"


def describe_confidence(report: OnlineReport) -> str:
    if report.options.promise == "budgeted":
        return "on average, without a confidence (budgeted mode)"
    return f"{100 * report.options.confidence:g} % sure"


def describe_notes(report: OnlineReport) -> list[str]:
    options, notes = report.options, []
    if report.too_small:
        size = f"{report.n_rows:,} runs of {report.n_questions} questions"
        notes.append(f"too small to certify: {size}; certificates begin at 1,000 runs and 50 questions")
    if options.resample is not None:
        notes.append(f"resampled: requests were drawn with replacement from {report.n_rows:,} runs")
    if options.disjoint:
        notes.append("disjoint: fitted and certified on one half of the questions, the late half is the other")
    if options.drift is not None:
        notes.append(_describe_drift(report, options.drift))
    return [f"{printable(report.set)}: {note}" for note in notes]


def _describe_drift(report: OnlineReport, drift: Drift) -> str:
    delay, recovery = report.alarm_delay, report.recovery
    alarms = f"alarm in {len(report.known('alarm_delay'))} of {len(report.seeds)} seeds"
    alarms += "" if delay is None else f", {delay:,.0f} requests after it (median)"
    back = f"{len(report.known('recovery'))} returned to the budget permanently"
    back += "" if recovery is None else f", after {recovery:,.0f} requests (median)"
    return (
        f"drift {printable(drift.text)} at request {report.drift_at or 0:,}: {alarms}; {back};"
        f" {report.mean('loss_above_budget'):,.0f} points x requests lost above the budget,"
        f" {report.mean('false_alarms'):.2f} false alarms before it (means)"
    )


def write_courses(reports: Sequence[OnlineReport], folder: Path) -> list[Path]:
    """Draw the course of each set into `SET.online.png` and `.svg`. Raise ConfigError without matplotlib."""
    written = []
    for report in reports:
        name = "".join(c if c.isalnum() or c in "-_" else "-" for c in report.set)
        written += _draw_course(report).write(folder, f"{name}.online")
    return written


def _draw_course(report: OnlineReport) -> PlotFiles:
    courses, target = [seed.course for seed in report.seeds], 100 * report.options.max_em_drop
    n_blocks = min(len(course.requests) for course in courses)  # short streams of a mixed drift differ in length
    x = np.array(courses[0].requests[:n_blocks])
    with open_figure(f"course {report.set}", (9, 7.6)) as figure:
        panels = figure.subplots(3, 1, sharex=True)
        for axes, name, title, scale in (
            (panels[0], "level", "active level, as a fraction of the most aggressive", 1.0),
            (panels[1], "reduction", "tokens saved, %", 100.0),
            (panels[2], "drop", "EM drop, points (mean of seeds)", 100.0),
        ):
            values = scale * np.array([getattr(course, name)[:n_blocks] for course in courses])
            smooth = np.array([_smooth(row) for row in values])
            if name != "drop":
                low, high = np.quantile(smooth, [0.1, 0.9], axis=0)
                axes.fill_between(x, low, high, color=COLOURS["ours"], alpha=0.15, linewidth=0)
            axes.plot(x, smooth.mean(axis=0), color=COLOURS["ours"])
            axes.set_title(title, loc="left", fontsize=10)
            axes.grid(visible=True)
            _draw_marks(axes, courses[0], report.drift_at)
        panels[2].axhline(target, color=INK, linestyle="--", linewidth=1)
        panels[2].margins(y=0.15)  # room for the label
        panels[2].annotate("budget", (x[-1], target), ha="right", va="bottom", fontsize=9)
        panels[2].set_xlabel(
            f"requests; band: 10 to 90 % of {len(courses)} seeds; first seed: grey full runs, dotted alarms, line drift"
        )
        drift = report.options.drift
        drifted = "" if drift is None else f"\n{fill(_describe_drift(report, drift), 120)}"
        title = f"{printable(report.set)}: {format_budget(report)}, {describe_confidence(report)}{drifted}"
        figure.suptitle(title, x=0.01, ha="left", fontsize=10 if drifted else None)
        return render_figure(figure)


def _draw_marks(axes: Any, course: Course, drift_at: int | None) -> None:
    for begin, end in course.bursts:
        axes.axvspan(begin, end, color=FAINT, alpha=0.25, linewidth=0)
    for at in course.alarms:
        axes.axvline(at, color=COLOURS["oracle"], linestyle=":", linewidth=1.4)
    if drift_at is not None:
        axes.axvline(drift_at, color=INK, linewidth=1)


def _smooth(values: Floats) -> Floats:
    weights = np.ones(min(SMOOTH, len(values)))
    return np.asarray(np.convolve(values, weights, "same") / np.convolve(np.ones(len(values)), weights, "same"))

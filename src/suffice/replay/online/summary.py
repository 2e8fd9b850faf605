"""The result of a replay as traffic: records of seeds and sets, a table for the terminal, a figure of the course."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import Any, Final

import numpy as np
from rich.console import Console
from rich.text import Text

from suffice.assurance.bounds import Interval, exact_binomial
from suffice.errors import ConfigError
from suffice.extras import how_to_install
from suffice.files import whole_file
from suffice.learn.audits import Floats
from suffice.replay.report.plot import COLOURS, FAINT, INK
from suffice.replay.report.text import build_table, describe_percent
from suffice.replay.study.result import TOO_SMALL_QUESTIONS, TOO_SMALL_RUNS
from suffice.sanitize import plural, printable
from suffice.types import Promise


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """One stream over time, in blocks of requests; each tuple has one number a block."""

    requests: tuple[int, ...]  # requests so far, at the block's end
    level: tuple[float, ...]  # in force, as part of the most aggressive one
    reduction: tuple[float, ...]  # token reduction of the block
    drop: tuple[float, ...]  # mean EM drop of the block
    audits: tuple[float, ...]  # part of the block that was audited
    alarms: tuple[tuple[int, str], ...]  # request, reason
    bursts: tuple[tuple[int, int], ...]  # first request, end


@dataclass(frozen=True, slots=True, kw_only=True)
class Seed:
    seed: int
    n: int
    reduction: float
    reduction_late: float  # second half; with `disjoint` the other half of the questions
    reduction_late_free: float  # … without probes
    drop_late: float  # EM drop of all requests of the second half, audits as 0
    audits: int
    alarms: int
    alarm_delay: int | None  # requests from the drift to the first alarm; None: none came, or no drift
    false_alarms: int | None  # before the drift; None: there is none
    recovery: int | None  # requests from the drift until the deployed level keeps the budget for good
    loss_above_budget: float | None  # after the drift, of all requests that were no audits; points x requests
    course: Course


@dataclass(frozen=True, slots=True, kw_only=True)
class OnlineReport:
    set: str
    max_em_drop: float
    confidence: float
    n_rows: int
    n_questions: int
    seeds: tuple[Seed, ...]
    resampled: bool = False
    disjoint: bool = False
    drift: str | None = None
    drift_at: int | None = None  # request
    warm_up: int = 0
    promise: Promise = "certified"

    @property
    def too_small(self) -> bool:
        return self.n_rows < TOO_SMALL_RUNS or self.n_questions < TOO_SMALL_QUESTIONS

    @property
    def n_violations(self) -> int:
        return sum(one.drop_late > self.max_em_drop for one in self.seeds)

    @property
    def violations_interval(self) -> Interval:
        """Of the share of such seeds, exact, 95 %; seeds reorder the same rows, so it is no more than a guide."""
        return exact_binomial(self.n_violations, len(self.seeds), 0.95)

    def mean(self, field: str) -> float:
        return float(self.values(field).mean())

    def values(self, field: str) -> Floats:
        known = [getattr(one, field) for one in self.seeds if getattr(one, field) is not None]
        return np.array(known, dtype=np.float64)

    def median(self, field: str) -> float | None:
        """Median over the seeds that have the figure; None: none has."""
        known = self.values(field)
        return float(np.median(known)) if len(known) else None

    @property
    def recovery(self) -> float | None:
        """Requests after a drift until the budget is kept for good, median; None: half of the seeds never come back."""
        middle = float(np.median([np.inf if one.recovery is None else one.recovery for one in self.seeds]))
        return middle if np.isfinite(middle) else None

    def mean_known(self, field: str) -> float | None:
        """Mean over the seeds that have the figure; None: none has."""
        known = self.values(field)
        return float(known.mean()) if len(known) else None

    def plain(self) -> dict[str, object]:
        ends = self.violations_interval
        fields: dict[str, object] = {
            "set": self.set,
            "max_em_drop": self.max_em_drop,
            "confidence": self.confidence,
            "seeds": len(self.seeds),
            "token_reduction": self.mean("reduction"),
            "token_reduction_second_half": self.mean("reduction_late"),
            "em_drop_second_half": self.mean("drop_late"),
            "violations": self.n_violations / len(self.seeds),
            "violations_interval": [ends.low, ends.high],
            "token_reduction_second_half_without_probes": self.mean("reduction_late_free"),
            "n_requests": self.seeds[0].n,
            "n_rows": self.n_rows,
            "n_questions": self.n_questions,
            "too_small": self.too_small,
            "resampled": self.resampled,
            "disjoint": self.disjoint,
            "warm_up": self.warm_up,
            "promise": self.promise,
            "audits": self.mean("audits"),
            "alarms": self.mean("alarms"),
        }
        if self.drift is not None:
            fields |= {
                "drift": self.drift,
                "drift_at": self.drift_at,
                "recovery_requests": self.recovery,
                "recovered": len(self.values("recovery")) / len(self.seeds),
                "alarm_delay_requests": self.median("alarm_delay"),
                "alarmed": len(self.values("alarm_delay")) / len(self.seeds),
                "false_alarms": self.mean_known("false_alarms"),
                "loss_above_budget": self.mean_known("loss_above_budget"),
            }
        return fields


_HEADS: Final = ("set", "requests", "saved %", "late %", "no probes", "late drop", "over budget", "audits", "alarms")
SMOOTH: Final = 5  # blocks of the course that are averaged


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
    points = f"{100 * report.max_em_drop:g}"
    return f"at most {points} point{'' if points == '1' else 's'}"


def describe_confidence(report: OnlineReport) -> str:
    if report.promise == "budgeted":
        return "on average, without a confidence (budgeted mode)"
    return f"{100 * report.confidence:g} % sure"


def describe_notes(report: OnlineReport) -> list[str]:
    size = f"{report.n_rows:,} runs of {report.n_questions} questions"
    notes = (
        (report.too_small, f"too small to certify: {size}; certificates begin at 1,000 runs and 50 questions"),
        (report.resampled, f"resampled: requests were drawn with replacement from {report.n_rows:,} runs"),
        (report.disjoint, "disjoint: fitted and certified on one half of the questions, the late half is the other"),
        (report.drift is not None, _drifted(report)),
    )
    return [f"{printable(report.set)}: {note}" for applies, note in notes if applies]


def _drifted(report: OnlineReport) -> str:
    n, alarmed = len(report.seeds), len(report.values("alarm_delay"))
    delay, recovery = report.median("alarm_delay"), report.recovery
    alarms = f"alarm in {alarmed} of {n} seeds"
    alarms += "" if delay is None else f", {delay:,.0f} requests after it (median)"
    back = f"{len(report.values('recovery'))} came back within the budget for good"
    back += "" if recovery is None else f", after {recovery:,.0f} requests (median)"
    return (
        f"drift {printable(report.drift or '')} at request {report.drift_at or 0:,}: {alarms}; {back};"
        f" {report.mean_known('loss_above_budget') or 0:,.0f} points x requests lost above the budget,"
        f" {report.mean_known('false_alarms') or 0:.2f} false alarms before it (means)"
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
    budget = f"{format_budget(report)}, {describe_confidence(report)}"
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

"""What people read of the online demonstration: the table of the three periods, and sentences in plain words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table

from suffice.demo.online import course
from suffice.demo.online.course import Figures, Period
from suffice.demo.online.story import DemoReport, n_reconciled
from suffice.demo.show import format_fraction_points, span

TITLES: Final[Mapping[Period, str]] = {"before": "before", "certified": "certified", "swapped": "swapped"}


CAPTION: Final = """\
before: all in full, until a level was certified; swapped: another model behind
the same name. audits: ran in full by design. EM: Exact Match of what clients
got; its change in points, against all runs before the certificate, not paired.
tokens: generated for a run, audits and cancelled samples included, prompts not."""


def format_story_table(figures: Mapping[Period, Figures]) -> Table:
    shown = Table(header_style="bold", box=None, padding=(0, 1, 0, 0))
    shown.add_column("period", no_wrap=True)
    for name in ("runs", "audits", "stopped", "EM", "change (95 %)", "tokens", "saved (95 %)"):
        shown.add_column(name, justify="right", no_wrap=True)
    for period, one in figures.items():
        shown.add_row(*_cells(one), style="bold" if period == "certified" else "")
    return shown


def _cells(one: Figures) -> list[str]:
    plain = [TITLES[one.period], f"{one.n}", f"{one.n_audits}", f"{one.n_stopped}", f"{one.em:.3f}"]
    change = (
        "" if one.em_change is None else f"{format_fraction_points(one.em_change)} ({span(one.em_change_interval, 0)})"
    )
    saved = "" if one.saved is None else f"{one.saved * 100:.0f} % ({span(one.saved_interval, 0)})"
    return [*plain, change, f"{one.tokens:.1f}", saved]


def story_verdict(report: DemoReport, figures: Mapping[Period, Figures]) -> str:
    plan, held = report.plan, report.certified
    promise = f"a drop of at most {100 * plan.max_em_drop:g} points of EM at {plan.confidence:.0%}"
    if held is None or "certified" not in figures:
        return (
            f"Nothing was certified within {len(report.runs)} requests, so everything ran in full and nothing was"
            f" saved: the evidence did not show {promise}."
        )
    one, made = figures["certified"], held.publication
    level = f"level {held.level} of {made.n_levels - 1}" if made is not None else f"level {held.level}"
    return (
        f"Certified, {level}: {promise}. Under it {(one.saved or 0) * 100:.0f} % of the generated tokens were saved,"
        f" audits included; EM of what clients got moved by {format_fraction_points(one.em_change or 0)} points."
    )


def facts(report: DemoReport) -> list[str]:
    found, runs = [], report.runs
    full = course.all_figures(runs).get("before")
    if full is not None:
        found.append(
            f"in the full runs before, one sample has EM {full.em_first:.3f} and the vote {full.em:.3f}: where a vote"
            " pays little, much of it can be saved"
        )
    made = report.certified.publication if report.certified is not None else None
    if made is not None:
        told = made.evidence
        e_value = "" if told.e_value is None else f"; its e-value is {told.e_value:.3g}, {_needed(report)} is enough"
        found.append(
            f"the certificate rests on {told.n_audits} audits of which a stop loses {told.n_lost} and"
            f" gains {told.n_gained}{e_value}"
        )
        lot = course.audited(runs)
        found.append(
            f"of {lot.n} audits by lot under the certificate {lot.n_stops} would have stopped: {lot.n_lost} answers"
            f" made wrong, {lot.n_gained} made right"
        )
    found += _swap(report)
    ours = sum(call.completion_tokens for run in runs for call in run.episode.outcome.calls)
    line = f"upstream usage = client usage + overhead in {n_reconciled(runs)} of {len(runs)} requests"
    if report.n_predicted is not None:
        cancelled = sum(call.cancelled for run in runs for call in run.episode.outcome.calls)
        line += (
            f"; the model servers counted {report.n_predicted:,} generated tokens, our records say {ours:,}"
            f" ({cancelled} calls were cancelled: what was in flight then is in their count only)"
        )
    return [*found, line]


def _needed(report: DemoReport) -> str:
    return f"{1 / (1 - report.plan.confidence):.0f}"


def _swap(report: DemoReport) -> list[str]:
    after = [run for run in report.runs if run.period == "swapped"]
    if not after:
        return []
    before = next(run.episode.outcome.model for run in reversed(report.runs) if run.period != "swapped")
    now = after[0].episode.outcome.model
    acted = [number for number, run in enumerate(after, 1) if run.episode.request.certified]
    first = (acted[-1] if acted else 0) + 1
    alarm = report.held.alarm
    why = f"; the control loop says: {alarm.reason}" if alarm is not None else "; the control loop has raised no alarm"
    who = f"behind the swap the server answers as {now!r}, before as {before!r}"
    return [f"{who}: from request {first} of {len(after)} on everything ran in full{why}"]


def print_story(console: Console, report: DemoReport) -> Mapping[Period, Figures]:
    figures = course.all_figures(report.runs, sure=True)
    console.print()
    console.print(format_story_table(figures), highlight=False)
    console.print(CAPTION, style="dim italic", highlight=False, markup=False)
    console.print()
    console.print(story_verdict(report, figures), style="bold", highlight=False, markup=False)
    console.print()
    for fact in facts(report):
        console.print(f"  · {fact}", style="dim", highlight=False, markup=False)
    for error in report.errors[:3]:
        console.print(f"  ! a request failed: {error}", style="red", highlight=False, markup=False)
    return figures


def write_story_report(report: DemoReport, figures: Mapping[Period, Figures], path: Path) -> None:
    made = report.certified.publication if report.certified is not None else None
    plain = {
        "plan": asdict(report.plan),
        "periods": {period: asdict(one) for period, one in figures.items()},
        "certificate": asdict(made) if made is not None else None,
        "facts": facts(report),
        "errors": list(report.errors),
    }
    path.write_text(json.dumps(plain, indent=2) + "\n", encoding="utf-8")

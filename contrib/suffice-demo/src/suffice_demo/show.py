"""Tables, a picture and sentences of the demonstrations."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table

from suffice.assurance.bounds import Interval
from suffice_demo import story
from suffice_demo.story import DemoReport, Figures, Period, n_reconciled


def _points(fraction: float) -> str:
    return f"{fraction * 100:+.1f}"


def _span(interval: Interval | None, digits: int = 1) -> str:
    return "–" if interval is None else f"{interval.low * 100:+.{digits}f} … {interval.high * 100:+.{digits}f}"


def _table(first: str, *numbers: str) -> Table:
    table = Table(caption_justify="left", header_style="bold", box=None, padding=(0, 1, 0, 0))
    table.add_column(first, no_wrap=True)
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _print_facts(console: Console, facts: Sequence[str], errors: Sequence[str]) -> None:
    console.print()
    for fact in facts:
        console.print(f"  · {fact}", style="dim", highlight=False, markup=False)
    for error in errors[:3]:
        console.print(f"  ! a request failed: {error}", style="red", highlight=False, markup=False)


NEXT = """
What next, with your own server, which is only observed at no further token:
  . .venv/bin/activate
  suffice init --upstream http://127.0.0.1:8080   # asks it ten questions
  suffice serve                                   # links to the console\
"""


CAPTION: Final = """\
observed, proving: all in full; swapped: another model behind the same name.
audits: ran in full by design. EM: Exact Match of what clients got; its change
in points, against all full runs before the certificate, which is not paired.
tokens: generated for a run, audits and cancelled samples included, prompts not."""


def format_story_table(figures: Mapping[Period, Figures]) -> Table:
    table = _table("period", "runs", "audits", "stopped", "EM", "change (95 %)", "tokens", "saved (95 %)")
    for period, one in figures.items():
        table.add_row(*_show_cells(one), style="bold" if period == "certified" else "")
    return table


def _show_cells(one: Figures) -> list[str]:
    plain = [one.period, f"{one.n}", f"{one.n_audits}", f"{one.n_stopped}", f"{one.em:.3f}"]
    change = "" if one.em_change is None else f"{_points(one.em_change)} ({_span(one.em_change_interval, 0)})"
    saved = "" if one.saved is None else f"{one.saved * 100:.0f} % ({_span(one.saved_interval, 0)})"
    return [*plain, change, f"{one.tokens:.1f}", saved]


def story_verdict(report: DemoReport, figures: Mapping[Period, Figures]) -> str:
    held = report.certified
    promise = f"a drop of at most {100 * report.budget.max_em_drop:g} points of EM at {report.plan.confidence:.0%}"
    if held is None or "certified" not in figures:
        return (
            f"Nothing was certified within {len(report.runs)} requests, so everything ran in full and nothing was"
            f" saved: the evidence did not show {promise}. More traffic, or a larger budget, would decide it."
        )
    one = figures["certified"]
    return (
        f"Certified: {promise}. Under it {(one.saved or 0) * 100:.0f} % of the generated tokens were saved, audits"
        f" included; EM of what clients got moved by {_points(one.em_change or 0)} points, by chance as well."
    )


def _price(report: DemoReport, figures: Mapping[Period, Figures]) -> Sequence[str]:
    """What the proof cost in tokens that stopping would have saved, and after how many requests that is earned."""
    proving = [run for run in report.runs if run.period == "proving"]
    spent = sum(run.tokens - run.stop_tokens for run in proving)
    line = (
        f"the proof took {len(proving)} further full runs, which cost {spent:,} tokens that stopping would have saved"
    )
    one, full = figures.get("certified"), [run for run in report.runs if run.period in ("observed", "proving")]
    if one is None or not full:
        return [line]
    earned = sum(run.tokens for run in full) / len(full) - one.tokens
    if earned <= 0:
        return [f"{line}; here the certificate has saved nothing yet"]
    return [f"{line}; the certificate saves {earned:.1f} a request, and has paid after {spent / earned:,.0f} requests"]


def facts(report: DemoReport) -> list[str]:
    results, runs, figures = list[str](), report.runs, story.all_figures(report.runs)
    full = figures.get("proving")
    results.append(story.saving_sentence(story.first_saving([run for run in runs if run.period == "observed"])))
    if full is not None:
        results.append(
            f"in the full runs of the proof, one sample has EM {full.em_first:.3f} and the vote {full.em:.3f}: where a"
            " vote pays little, much of it can be saved"
        )
    made = report.certified.publication if report.certified is not None else None
    if made is not None:
        evidence = made.evidence
        needed = f"{1 / (1 - report.plan.confidence):.0f} is enough"
        e_value = "" if evidence.e_value is None else f"; its e-value is {evidence.e_value:.3g}, {needed}"
        results.append(
            f"the certificate rests on {evidence.n_audits} audits of which a stop loses {evidence.n_lost} and"
            f" gains {evidence.n_gained}{e_value}"
        )
        tally = story.audited(runs)
        results.append(
            f"of {tally.n} random audits under the certificate {tally.n_stops} would have stopped: {tally.n_lost}"
            f" answers made wrong, {tally.n_gained} made right"
        )
    results += _price(report, figures)
    results += _swap(report)
    ours = sum(call.completion_tokens for run in runs for call in run.episode.outcome.calls)
    line = f"upstream usage = client usage + overhead in {n_reconciled(runs)} of {len(runs)} requests"
    if report.n_predicted is not None:
        cancelled = sum(call.cancelled for run in runs for call in run.episode.outcome.calls)
        line += (
            f"; the model servers counted {report.n_predicted:,} generated tokens, our records say {ours:,}"
            f" ({cancelled} calls were cancelled: what was in flight then is in their count only)"
        )
    return [*results, line]


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
    figures = story.all_figures(report.runs, sure=True)
    console.print()
    console.print(format_story_table(figures), highlight=False)
    console.print(CAPTION, style="dim italic", highlight=False, markup=False)
    console.print()
    console.print(story_verdict(report, figures), style="bold", highlight=False, markup=False)
    _print_facts(console, facts(report), report.errors)
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

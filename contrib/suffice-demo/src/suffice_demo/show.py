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
from suffice.settings import Route
from suffice_demo import story
from suffice_demo.rows import TableRow
from suffice_demo.run import StageResult
from suffice_demo.story import DemoReport, Figures, Period, n_reconciled

ACCEPTED_DROP = Route(upstream="").max_em_drop  # fraction; the default


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


CAPTION_OF_STAGE: Final = (
    "EM: Exact Match; its change in points, paired; -/+: answers made wrong, made right.",
    "tokens: generated for a question, probes and cancelled samples included, prompts not.",
)


def format_stage_table(result: StageResult) -> Table:
    table = _table("way of answering", "EM", "EM change (95 %)", "-/+", "tokens", "saved (95 %)")
    for index, row in enumerate(result.rows):
        table.add_row(*_cells(row, is_full=index == 0), style="bold" if row.acts else "")
    notes = [f"{row.title}: {row.note}." for row in result.rows if row.note]
    table.caption = "\n".join([*CAPTION_OF_STAGE, *notes])
    return table


def _cells(row: TableRow, *, is_full: bool) -> list[str]:
    c = row.comparison
    if is_full:
        return [row.title, f"{c.em:.3f}", "", "", f"{c.tokens:.0f}", ""]
    change = f"{_points(c.em_change)} ({_span(c.em_change_interval, 0)})"
    saved = f"{c.token_reduction * 100:.0f} % ({_span(c.token_reduction_interval, 0)})"
    return [row.title, f"{c.em:.3f}", change, f"{c.n_lost}/{c.n_gained}", f"{c.tokens:.0f}", saved]


def stage_verdict(result: StageResult) -> str:
    live = result.rows[-1].comparison
    saved, change = f"{live.token_reduction * 100:.0f} %", _points(live.em_change)
    if not result.pays and result.stage.kind == "samples":
        greedy = result.rows[2].comparison
        return (
            f"Voting does not pay on this model and these questions: one greedy answer has EM {greedy.em:.3f} at"
            f" {greedy.tokens:.0f} tokens, the vote {live.full_em:.3f} at {live.full_tokens:.0f}."
            f" Where a vote is wanted all the same, stopping it changed EM by {change} points"
            f" (95 % interval {_span(live.em_change_interval)}) and saved {saved} of its tokens"
            f" ({_span(live.token_reduction_interval, 0)}). Uncertified."
        )
    if not result.pays:
        full, none = result.rows[0].comparison, result.rows[1].comparison
        return (
            f"Reasoning does not pay on this model and these questions: without it EM is {none.em:.3f} at"
            f" {none.tokens:.0f} tokens, with it {full.em:.3f} at {full.tokens:.0f}."
            " No saving is claimed; turn reasoning off instead."
        )
    interval = live.em_change_interval
    if live.em_change < -ACCEPTED_DROP:
        return (
            f"Live, the policy saved {saved} of the generated tokens and lost"
            f" {-live.em_change * 100:.1f} points of EM: more than the {ACCEPTED_DROP * 100:.0f} points that a route"
            " accepts by default. It would not be certified here, and `observe` is the right mode for it."
        )
    sure = "" if interval is None else f" (95 % interval {_span(interval)})"
    return (
        f"Live, the policy changed EM by {change} points{sure} and saved {saved} of the generated tokens on"
        f" {live.n} questions."
        " It is not certified: so few questions prove nothing about your traffic."
    )


def print_demo(console: Console, results: Sequence[StageResult]) -> None:
    for result in results:
        stage, n = result.stage, result.rows[0].comparison.n
        console.print(f"\n[bold]{stage.kind} · {stage.model} · {n} questions with exact gold[/bold]\n", highlight=False)
        console.print(format_stage_table(result), highlight=False)
        console.print()
        console.print(stage_verdict(result), style="bold", highlight=False)
        if result.stops:
            console.print("\nwhat was stopped live, and why", highlight=False)
            reasons = Table(header_style="bold", box=None, padding=(0, 2, 0, 0))
            reasons.add_column("runs", justify="right")
            reasons.add_column("the policy's reason")
            for reason, count in sorted(result.stops.items(), key=lambda item: -item[1])[:8]:
                reasons.add_row(str(count), reason)
            console.print(reasons, highlight=False)
        _print_facts(console, result.facts, result.errors)


NEXT = """\
What next, with your own server:
  1. write suffice.toml:   [upstreams.mine]  url = "http://127.0.0.1:8000"
                           [routes.all]      upstream = "mine"   kind = "reasoning"   scorer = "number"
  2. . .venv/bin/activate   then  suffice config check  and  suffice serve
  3. point your OpenAI client's base_url at http://127.0.0.1:8400/v1: it observes, adds no call and no
     token, and `suffice status` tells what it saw.
  4. send right answers to POST /v1/feedback, and read docs/how-to/observe-then-enforce.md before you enforce.\
"""


def picture(results: Sequence[StageResult], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(results), figsize=(7.2 * len(results), 5.6), squeeze=False)
    for axis, result in zip(axes[0], results, strict=True):
        for index, row in enumerate(result.rows):
            c = row.comparison
            low, high = _em_span(row)
            colour, marker = _style(row, index)
            axis.errorbar(
                c.tokens,
                c.em,
                yerr=[[c.em - low], [high - c.em]],
                fmt=marker,
                color=colour,
                capsize=3,
                markersize=9,
                linewidth=1,
                markerfacecolor=colour if row.how == "live" else "white",
                label=row.title,
                clip_on=False,
                zorder=3 + index,
            )
        first = result.rows[0].comparison
        axis.axhline(first.em, color="#24292f", linewidth=0.6, linestyle=":")
        axis.set_title(f"{result.stage.kind} · {result.stage.model} · {first.n} questions", loc="left", fontsize=11)
        axis.set_xlabel("generated tokens a question (probes included)")
        axis.set_ylabel("Exact Match")
        axis.set_xlim(left=0, right=max(r.comparison.tokens for r in result.rows) * 1.08)
        axis.set_ylim(0, 1.02)
        axis.grid(alpha=0.2)
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncol=2, fontsize=9, frameon=False)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(
        "Filled: measured live; hollow: replayed on the recorded full runs."
        " Bars: 95 % interval of the paired EM change against the full run.",
        x=0.01,
        ha="left",
        fontsize=9,
    )
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _style(row: TableRow, index: int) -> tuple[str, str]:
    if index == 0:
        return "#24292f", "o"
    if row.acts:
        return ("#1f6feb", "D") if index % 2 else ("#0a3069", "s")
    return "#8c959f", "v^<>"[index % 4]


def _em_span(row: TableRow) -> tuple[float, float]:
    c = row.comparison
    if c.em_change_interval is None or row.comparison.n_lost + row.comparison.n_gained == 0:
        return c.em, c.em
    low, high = c.full_em + c.em_change_interval.low, c.full_em + c.em_change_interval.high
    return max(0.0, min(low, c.em)), min(1.0, max(high, c.em))


CAPTION: Final = """\
before: all in full, until a level was certified; swapped: another model behind
the same name. audits: ran in full by design. EM: Exact Match of what clients
got; its change in points, against all runs before the certificate, not paired.
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
        f" audits included; EM of what clients got moved by {_points(one.em_change or 0)} points."
    )


def facts(report: DemoReport) -> list[str]:
    results, runs = [], report.runs
    full = story.all_figures(runs).get("before")
    if full is not None:
        results.append(
            f"in the full runs before, one sample has EM {full.em_first:.3f} and the vote {full.em:.3f}: where a vote"
            " pays little, much of it can be saved"
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

"""The frontier of one set as a table for a terminal, 100 columns wide, plain where colours mean nothing.

It knows rich and refuses to know how anything was computed. Names come from files, so none of them
is taken for markup and none can move the cursor.
"""

from __future__ import annotations

import io
from typing import Final

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from suffice.replay.report.wording import describe_percent, describe_points, describe_result, group_lines, interval
from suffice.replay.study.result import PolicyResult, SetReport
from suffice.sanitize import plural, printable

WIDTH: Final = 100
_HEADS: Final = ("policy", "EM %", "drop", "95 %", "lost", "gained", "saved %", "no probes", "misses %")


def print_report(report: SetReport, console: Console) -> None:
    """Print one set: what it says, the table, and what its columns mean."""
    first = report.lines[0] if report.lines else None
    size = "" if first is None else f": {plural(first.n_episodes, 'run')} of {plural(first.n_questions, 'question')}"
    console.print(Text(f"{printable(report.set)}, {report.kind}{size}", style="bold"))
    for note in report.notes:
        console.print(Text(f"Note: {printable(note)}", style="yellow"))
    for k, sentence in enumerate(describe_result(report)[:5]):
        console.print(Text(sentence, style="bold" if k == 0 else ""))
    console.print()
    console.print(_table(report, min(WIDTH, console.width)))
    console.print()
    console.print(Text(_legend(report), style="dim"))


def table_text(report: SetReport, *, width: int = WIDTH) -> str:
    """The same as plain text, without colours, whatever the output is."""
    out = io.StringIO()
    print_report(report, Console(file=out, width=width, color_system=None, force_terminal=False))
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def _table(report: SetReport, width: int) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="dim", width=width)
    table.add_column(_HEADS[0], ratio=1, overflow="fold")
    for head in _HEADS[1:]:
        table.add_column(head, justify="right", no_wrap=True)
    for heading, lines in group_lines(report.lines):
        table.add_row(Text(heading, style="underline"), *[""] * (len(_HEADS) - 1))
        for line in lines:
            table.add_row(*_cells(line, report.max_em_drop))
    return table


def _cells(line: PolicyResult, target: float) -> list[Text | Padding]:
    strong = "bold" if line.family == "ours" and line.choice == "frozen" else ""
    missed = "red" if line.em_drop > target and line.family not in ("full", "oracle") else strong
    numbers = [
        Text(describe_percent(line.em), style=strong),
        Text(describe_percent(line.em_drop), style=missed),
        Text(interval(line.em_drop_interval)),
        Text(describe_percent(line.lost)),
        Text(describe_percent(line.gained)),
        Text(describe_percent(line.token_reduction), style=strong),
        Text(describe_percent(line.token_reduction_without_probes)),
        Text(describe_percent(line.miss_share, 0)),
    ]
    return [Padding(Text(printable(line.policy), style=strong), (0, 0, 0, 2)), *numbers]


def _legend(report: SetReport) -> str:
    probes = f"probes charged at {plural(report.probe_tokens, 'token')}" if report.probe_tokens else "no probes charged"
    fitted = f"fitted on {', '.join(map(printable, report.fitted_on))}" if report.fitted_on else "fitted on folds"
    return (
        f"Target: at most {describe_points(report.max_em_drop)}. EM in percent; drop, lost and gained in points of EM; "
        f"95 %: interval of the drop, by questions. Saved: of all tokens, {probes}. Misses: share of random question "
        f"splits in which the point misses the target on the other half. Frozen: picked on other questions than these; "
        f"hindsight: picked on these, so better than anyone could have had it. Oracles read what no policy may. "
        f"{fitted[0].upper()}{fitted[1:]}."
    )

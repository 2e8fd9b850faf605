"""The result of a replay as sentences, as a table for a terminal, and as JSON.

Names come from files, so they are escaped for terminals, markup and spreadsheets.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, Final

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from suffice.assurance.bounds import Interval
from suffice.replay.study.sets import Choice, Family, PolicyResult, SetReport
from suffice.sanitize import computes, plural, printable

GROUPS: Final[tuple[tuple[Family, Choice | None, str], ...]] = (
    ("full", None, "Full runs"),
    ("ours", "frozen", "Ours, frozen"),
    ("ours", "hindsight", "Ours, hindsight"),
    ("ours", "fixed", "Ours, as given"),
    ("published", "frozen", "Published rules, frozen"),
    ("published", "hindsight", "Published rules, hindsight"),
    ("published", "fixed", "Published rules, as published"),
    ("given", None, "As you gave them"),
    ("oracle", None, "Oracles"),
)
UNKNOWN: Final = "–"
_ORACLES: Final = {
    "oracle_agree": "the first step that already holds the full run's answer",
    "oracle_correct": "the first step that holds a right answer",
}


def group_lines(lines: Sequence[PolicyResult]) -> list[tuple[str, list[PolicyResult]]]:
    groups = []
    for family, choice, heading in GROUPS:
        own = [line for line in lines if line.family == family and choice in (None, line.choice)]
        if own:
            groups.append((heading, own))
    return groups


def assign_letters(lines: Sequence[PolicyResult]) -> list[str]:
    """A letter for each line except the full runs, to find it in the figure; "" from the 27th on."""
    free = iter("abcdefghijklmnopqrstuvwxyz")
    return ["" if line.family == "full" else next(free, "") for line in lines]


def describe_percent(share: float | None, digits: int = 1) -> str:
    """A share as a percentage without its sign, such as "54.2"; a dash for None and NaN."""
    if share is None or not math.isfinite(share):
        return UNKNOWN
    text = f"{100 * share:.{digits}f}"
    if float(text) == 0:
        text = text.removeprefix("-")  # no -0
    return text.replace("-", "\u2212")


def format_interval(of: Interval | None) -> str:
    return UNKNOWN if of is None else f"{describe_percent(of.low)} to {describe_percent(of.high)}"


def describe_points(share: float) -> str:
    text = describe_percent(share).removesuffix(".0")
    return f"{text} point" if text in ("1", "\u22121") else f"{text} points"


def find_headline(report: SetReport, family: Family, choice: Choice) -> PolicyResult | None:
    return next((line for line in report.lines if (line.family, line.choice) == (family, choice)), None)


def describe_result(report: SetReport) -> list[str]:
    """The result in sentences; the first one alone states the answer."""
    ours = find_headline(report, "ours", "frozen") or find_headline(report, "given", "fixed")
    published = find_headline(report, "published", "frozen")
    hindsight = find_headline(report, "published", "hindsight")
    sentences: list[str] = []
    main = ours or published
    if main is not None:
        name = "ours" if main.family == "ours" else printable(main.policy)
        saved = f"{describe_percent(main.token_reduction)} % of the tokens"
        saves = f"saves {saved}" if main.token_reduction > 0 else f"saves nothing ({saved})"
        target = describe_points(report.max_em_drop)
        sentences.append(f"At most {target} of Exact Match: {name} {saves}; {_change(main)}.")
        sentences.append(_verdict(main, report.max_em_drop))
        if main.miss_share is not None:
            other = None if published is None or published is main else published.miss_share
            beside = "" if other is None else f" (the published rule: in {describe_percent(other, 0)} %)"
            sentences.append(
                f"Tuned on a random half of the questions, {name} misses the target on the other half in"
                f" {describe_percent(main.miss_share, 0)} % of the splits{beside}."
            )
    if published is not None and published is not main:
        sentences.append(
            "The published rule whose point was picked in the same way saves"
            f" {describe_percent(published.token_reduction)} %; "
            f"{_change(published)}{', which misses the target' if published.em_drop > report.max_em_drop else ''}."
        )
    if hindsight is not None:
        rule = printable(hindsight.note or hindsight.policy)
        sentences.append(
            f"In hindsight, picked on these very questions, a published rule ({rule}) saves "
            f"{describe_percent(hindsight.token_reduction)} %. It could not have been known in advance;"
            " it is listed only for comparison."
        )
    if main is not None:
        without = main.token_reduction_without_probes
        if without - main.token_reduction >= 0.0005:
            sentences.append(
                f"Probes cost {describe_points(without - main.token_reduction)} of the saving; leaving them out it is"
                f" {describe_percent(without)} %."
            )
    for line in report.lines:
        if line.family == "oracle":
            what = _ORACLES.get(line.policy, printable(line.policy))
            saved = describe_percent(line.token_reduction)
            sentences.append(f"An oracle that stops at {what} saves {saved} %.")
    return [sentence.replace(" %", "\u00a0%") for sentence in sentences]


def _change(line: PolicyResult) -> str:
    bounds = "" if line.em_drop_interval is None else f"; 95 %: {format_interval(line.em_drop_interval)}"
    ends = f"({describe_percent(line.full_em)} % to {describe_percent(line.em)} %{bounds})"
    if describe_percent(line.em_drop).strip("\u22120.") == "":
        return f"Exact Match stays the same {ends}"
    if line.em_drop < 0:
        return f"Exact Match rises by {describe_points(-line.em_drop)} {ends}"
    return f"Exact Match falls by {describe_points(line.em_drop)} {ends}"


def _verdict(line: PolicyResult, target: float) -> str:
    if line.em_drop > target:
        return f"That misses the target by {describe_points(line.em_drop - target)}."
    if line.em_drop_interval is None:
        return "That is within the target; there are too few questions for an interval."
    if line.em_drop_interval.high <= target:
        return "That is within the target, and so is the whole interval."
    return (
        f"That is within the target, but the interval reaches {describe_points(line.em_drop_interval.high)}: "
        "these questions are too few to rule out a miss."
    )


WIDTH: Final = 100
_HEADS: Final = ("policy", "EM %", "drop", "95 %", "lost", "gained", "saved %", "no probes", "misses %")


def print_report(report: SetReport, console: Console) -> None:
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


def build_table(heads: Sequence[str], *, width: int | None = None) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="dim", width=width)
    table.add_column(heads[0], ratio=None if width is None else 1, overflow="fold")
    for head in heads[1:]:
        table.add_column(head, justify="right", no_wrap=True)
    return table


def _table(report: SetReport, width: int) -> Table:
    table = build_table(_HEADS, width=width)
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
        Text(format_interval(line.em_drop_interval)),
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
        f"hindsight: picked on these, so better than achievable in advance. Oracles read what no policy may. "
        f"{fitted[0].upper()}{fitted[1:]}."
    )


def dump_lines(reports: Iterable[SetReport]) -> str:
    return "".join(dump_json(as_plain(line)) + "\n" for report in reports for line in report.lines)


def dump_json(value: Any, *, indent: int | None = None) -> str:
    """Strict JSON: no NaN; characters beyond ASCII unescaped, lone surrogates escaped."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent)
    broken = not text.isprintable() and any("\ud800" <= character <= "\udfff" for character in text)
    return json.dumps(value, allow_nan=False, indent=indent) if broken else text


def as_plain(value: Any) -> Any:
    """Records as JSON values: intervals become [low, high], NaN becomes null, and no text can act as a formula."""
    if isinstance(value, str):
        return f"'{value}" if computes(value) else value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Interval):
        return [as_plain(value.low), as_plain(value.high)]
    if is_dataclass(value):
        return {field.name: as_plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {as_plain(str(key)): as_plain(item) for key, item in value.items()}
    return [as_plain(item) for item in value] if isinstance(value, (list, tuple)) else value

"""The report of a replay: one self-contained HTML page, with figures and JSON beside it."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Final

from suffice.files import write_whole
from suffice.replay.report.plot import COLOURS, FAINT, INK, PAPER, PlotFiles, draw_classes, draw_frontier
from suffice.replay.report.text import (
    assign_letters,
    build_report,
    describe_percent,
    describe_points,
    describe_result,
    dump_json,
    dump_lines,
    find_headline,
    format_interval,
    group_lines,
)
from suffice.replay.study.sets import PolicyResult, SetPart, SetReport
from suffice.sanitize import plural, printable


class Html(str):
    """Text that is already HTML; only `tag`, `join_html` and `_figure` may create it."""

    __slots__ = ()


def tag(name: str, *children: str, **attributes: str) -> Html:
    """An element. Children that are not Html are escaped; `class_` becomes `class`, and `_` becomes `-`."""
    written = "".join(f' {key.strip("_").replace("_", "-")}="{_escape(value)}"' for key, value in attributes.items())
    return Html(f"<{name}{written}>{join_html(children)}</{name}>")


def join_html(children: Iterable[str]) -> Html:
    return Html("".join(child if isinstance(child, Html) else _escape(child) for child in children))


def format_html_table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, caption: str, names: int = 1) -> Html:
    """A table whose first `names` columns are text, the others numbers. A row with one cell is a heading."""
    kinds = ["name" if k < names else "number" for k in range(len(heads))]
    head = tag("tr", *(tag("th", text, class_=kind, scope="col") for text, kind in zip(heads, kinds, strict=True)))
    body: list[Html] = []
    for row in rows:
        if len(row) == 1:
            body.append(tag("tr", tag("th", row[0], class_="group", colspan=f"{len(heads)}", scope="rowgroup")))
            continue
        cells = [
            tag("th", text, class_=kind, scope="row") if k == 0 else tag("td", text, class_=kind)
            for k, (text, kind) in enumerate(zip(row, kinds, strict=True))
        ]
        body.append(tag("tr", *cells))
    inner = tag("table", tag("caption", caption), tag("thead", head), tag("tbody", *body))
    return tag("div", inner, class_="wide", role="region", tabindex="0", aria_label=caption)


def _escape(text: str) -> str:
    return html.escape(printable(text), quote=True)


_HEADS: Final = (
    "policy",
    "tokens saved %",
    "drop",
    "95 %",
    "misses %",
    "EM %",
    "lost",
    "gained",
    "saved, 95 %",
    "saved without probes %",
    "stopped %",
    "hopeless %",
)
_KINDS: Final = {"samples": "repeated samples", "reasoning": "chains of thought", "rounds": "rounds"}


@dataclass(frozen=True, slots=True)
class _SetFigures:
    report: SetReport
    name: str  # of its files, without a suffix
    frontier: PlotFiles
    classes: PlotFiles | None


def write_report(reports: Sequence[SetReport], folder: Path, *, command: str, made: str = "") -> list[Path]:
    """Write the page, the figures and the JSON into a folder; return the files, the page first.

    made  the date to display; "" leaves it out, so that equal results give equal bytes

    Everything is rendered before the first file is written. Raise ConfigError without matplotlib, ValueError without
    sets.
    """
    if not reports:
        raise ValueError("report: needs at least one set")
    names = _file_names([report.set for report in reports])
    drawn = [_SetFigures(r, name, draw_frontier(r), draw_classes(r)) for r, name in zip(reports, names, strict=True)]
    texts = {
        "lines.jsonl": dump_lines(reports),
        "report.json": dump_json([build_report(report) for report in reports], indent=1) + "\n",
        "report.html": _page(drawn, command, made),
    }
    written = []
    for one in drawn:
        written += one.frontier.write(folder, f"{one.name}.frontier")
        written += one.classes.write(folder, f"{one.name}.classes") if one.classes is not None else []
    for name, text in texts.items():  # the page last, so that all files it links exist
        write_whole(folder / name, text)
        written.append(folder / name)
    return written[::-1]


def _file_names(sets: Sequence[str]) -> list[str]:
    names: list[str] = []
    for name in sets:
        plain = re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-")[:80] or "set"
        taken = {other.lower() for other in names} | {"report", "lines"}
        candidates = (plain if k == 1 else f"{plain}-{k}" for k in range(1, len(sets) + 3))
        names.append(next(candidate for candidate in candidates if candidate.lower() not in taken))
    return names


def _page(drawn: Sequence[_SetFigures], command: str, made: str) -> str:
    targets = sorted({describe_points(one.report.max_em_drop) for one in drawn})
    title = f"Replay: at most {' or '.join(targets)} of Exact Match"
    head = tag(
        "head",
        Html('<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'),
        tag("title", title),
        tag("style", _template("report.css")),
    )
    body = [
        tag("h1", title),
        tag("p", f"Recorded runs, replayed under stopping policies. {made}".strip(), class_="aside"),
        *(_overview(drawn) if len(drawn) > 1 else ()),
        *(part for one in drawn for part in _set(one)),
        tag("h2", "How it was measured"),
        _template("measured.html"),
        tag("h3", "The command"),
        tag("pre", tag("code", command)),
    ]
    return f"<!doctype html>\n{tag('html', head, tag('body', tag('main', *body)), lang='en')}\n"


def _template(name: str) -> Html:
    return Html(resources.files("suffice.replay.report").joinpath("templates", name).read_text(encoding="utf-8"))


def _overview(drawn: Sequence[_SetFigures]) -> list[Html]:
    rows = []
    for one in drawn:
        report = one.report
        first = report.lines[0] if report.lines else None
        row = [tag("a", report.set, href=f"#{one.name}"), f"{first.n_episodes:,}" if first else ""]
        row.append(describe_percent(first.full_em if first else None))
        for line in (
            find_headline(report, "ours", "frozen") or find_headline(report, "given", "fixed"),
            find_headline(report, "published", "frozen"),
            find_headline(report, "published", "hindsight"),
        ):
            row.append(describe_percent(line.token_reduction if line else None))
            row.append(_drop(line, report.max_em_drop) if line else describe_percent(None))
        oracle = next((line for line in report.lines if line.policy == "oracle_agree"), None)
        rows.append([*row, describe_percent(oracle.token_reduction if oracle else None)])
    heads = ["set", "runs", "full EM %"]
    for name in ("ours", "published, frozen,", "published, hindsight,"):
        heads += [f"{name} saves %", "drop"]
    heads.append("oracle_agree saves %")
    return [tag("h3", "All sets"), format_html_table(heads, rows, caption="Drops in points of Exact Match.")]


def _drop(line: PolicyResult, target: float) -> str:
    if line.em_drop <= target or line.family in ("full", "oracle"):
        return describe_percent(line.em_drop)
    return tag("span", describe_percent(line.em_drop), class_="bad", title="above the target")


def _set(one: _SetFigures) -> list[Html]:
    report = one.report
    first = report.lines[0] if report.lines else None
    runs = f"{plural(first.n_episodes, 'run')} of {plural(first.n_questions, 'question')}, " if first else ""
    parts = [
        tag("h2", report.set, id=one.name),
        tag(
            "p", f"{runs}{_KINDS[report.kind]}; target: at most {describe_points(report.max_em_drop)}.", class_="aside"
        ),
        tag("p", _made(report), class_="aside"),
        *(tag("p", note, class_="note") for note in report.notes),
        tag("div", *(tag("p", sentence) for sentence in describe_result(report)), class_="reading"),
        _figure(one.frontier, one.name, f"Tokens saved over the drop of Exact Match, {report.set}", _CAPTION),
        _lines(report),
        *_specs(report),
    ]
    if report.by_class:
        parts.append(tag("h3", "By class"))
        if one.classes is not None:
            caption = "The largest classes; the tables have all of them."
            parts.append(_figure(one.classes, f"{one.name}-c", f"Drop and saving by class, {report.set}", caption))
        parts += _parts(report.by_class, "class")
    if report.by_step:
        parts += [tag("h3", "By the step at which runs halted"), *_parts(report.by_step, "halted at step")]
    return parts


_CAPTION: Final = (
    "Small dots: every setting that was tried, measured on these questions; the line joins the best of a family. "
    "Letters: the lines of the table, the main ones with 95\u00a0% intervals; hollow where the point was picked in "
    "hindsight."
)


def _figure(figure: PlotFiles, name: str, label: str, caption: str) -> Html:
    svg = figure.svg[figure.svg.index("<svg") :]  # `plot` has escaped its text
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\b(id="|xlink:href="#|href="#|url\(#)', rf"\1{name}-", svg)
    svg = re.sub(r'<svg ([^>]*?)width="[^"]*" height="[^"]*"', r"<svg \1", svg, count=1)
    for variable, colour in {"ink": INK, "faint": FAINT, "paper": PAPER, **COLOURS}.items():
        svg = svg.replace(colour, f"var(--{variable}, {colour})")
    drawing = Html(svg.replace("<svg ", f'<svg role="img" aria-label="{_escape(label)}" ', 1).strip())
    return tag("figure", drawing, tag("figcaption", caption))


def _lines(report: SetReport) -> Html:
    named = {id(line): letter for letter, line in zip(assign_letters(report.lines), report.lines, strict=True)}
    rows: list[list[str]] = []
    for heading, lines in group_lines(report.lines):
        rows.append([heading])
        rows += [_row(line, named[id(line)], report.max_em_drop) for line in lines]
    caption = "Drop, lost and gained in points of Exact Match. Red: above the target."
    return format_html_table(_HEADS, rows, caption=caption)


def _row(line: PolicyResult, letter: str, target: float) -> list[str]:
    name = f"{letter}  {line.policy}" if letter else line.policy
    note = tag("span", f" {line.note}", class_="aside") if line.note else ""
    strong = "main" if line.family == "ours" and line.choice == "frozen" else "plain"
    return [
        join_html([tag("span", name, class_=strong), note]),
        tag("span", describe_percent(line.token_reduction), class_=strong),
        _drop(line, target),
        format_interval(line.em_drop_interval),
        describe_percent(line.miss_share, 0),
        describe_percent(line.em),
        describe_percent(line.lost),
        describe_percent(line.gained),
        format_interval(line.token_reduction_interval),
        describe_percent(line.token_reduction_without_probes),
        describe_percent(line.stopped, 0),
        describe_percent(line.hopeless, 0),
    ]


def _specs(report: SetReport) -> list[Html]:
    lines = [line for line in report.lines if line.spec]
    listed = (tag("li", f"{line.policy}: ", tag("code", dump_json(dict(line.spec or {})))) for line in lines)
    return [tag("details", tag("summary", "The policies, to be copied"), tag("ul", *listed))] if lines else []


def _parts(parts: Mapping[str, Sequence[SetPart]], what: str) -> list[Html]:
    heads = [what, "runs", "questions", "full EM %", "drop, points", "lost", "gained", "tokens saved %"]
    tables: list[Html] = []
    for policy, rows in parts.items():
        most = max((part.n_episodes for part in rows), default=1)
        cells = [
            [
                part.name,
                join_html([f"{part.n_episodes:,}", _bar(part.n_episodes / max(1, most))]),
                f"{part.n_questions:,}",
                *map(describe_percent, (part.full_em, part.em_drop, part.lost, part.gained, part.token_reduction)),
            ]
            for part in rows
        ]
        first = {} if tables else {"open": ""}
        inner = format_html_table(heads, cells, caption="Drop, lost and gained in points of Exact Match.")
        tables.append(tag("details", tag("summary", policy), inner, **first))
    return tables


def _bar(share: float) -> Html:
    filled = tag("span", "", class_="bar", style=f"width:{5.5 * share:.2f}em")
    return tag("span", filled, class_="track", aria_hidden="true")


def _made(report: SetReport) -> str:
    fitted = (
        f"Models and points come from {', '.join(report.fitted_on)} and were frozen before these runs were read."
        if report.fitted_on
        else "Models were fitted and points picked on folds of the questions; each run is reported by a fold that "
        "never saw its question."
    )
    if not report.probe_tokens:
        return f"{fitted} No tokens are charged for probes."
    return f"{fitted} Every probe that a policy asked for is charged at {plural(report.probe_tokens, 'token')}."

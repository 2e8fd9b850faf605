"""The report of a replay: one self-contained HTML page, with figures and JSON beside it."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from suffice.errors import ConfigError
from suffice.extras import how_to_install
from suffice.files import write_whole
from suffice.replay.report.plot import COLOURS, FAINT, INK, PAPER, PlotFiles, draw_classes, draw_frontier
from suffice.replay.report.text import (
    as_plain,
    assign_letters,
    describe_percent,
    describe_points,
    describe_result,
    dump_json,
    dump_lines,
    find_headline,
    format_interval,
    group_lines,
)
from suffice.replay.study.sets import PolicyResult, SetReport
from suffice.sanitize import plural, printable

if TYPE_CHECKING:
    from markupsafe import Markup

_KINDS: Final = {"samples": "repeated samples", "reasoning": "chains of thought", "rounds": "rounds"}


@dataclass(frozen=True, slots=True)
class _SetFigures:
    report: SetReport
    name: str  # of its files, without a suffix
    frontier: PlotFiles
    classes: PlotFiles | None

    @property
    def groups(self) -> list[tuple[str, list[tuple[str, PolicyResult]]]]:
        """Headings of the table with their lines, each with its letter in the figure."""
        lines = self.report.lines
        letters = {id(line): letter for line, letter in zip(lines, assign_letters(lines), strict=True)}
        return [(heading, [(letters[id(line)], line) for line in group]) for heading, group in group_lines(lines)]


def write_report(reports: Sequence[SetReport], folder: Path, *, command: str) -> list[Path]:
    """Write the page, the figures and the JSON into a folder; return the files, the page first.

    Equal results give equal bytes. Everything is rendered before the first file is written. Raise ConfigError without
    matplotlib or jinja2, ValueError without sets.
    """
    if not reports:
        raise ValueError("report: needs at least one set")
    names = _file_names([report.set for report in reports])
    drawn = [_SetFigures(r, name, draw_frontier(r), draw_classes(r)) for r, name in zip(reports, names, strict=True)]
    texts = {
        "lines.jsonl": dump_lines(reports),
        "report.json": dump_json(as_plain(list(reports)), indent=1) + "\n",
        "report.html": _page(drawn, command),
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


def _page(drawn: Sequence[_SetFigures], command: str) -> str:
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
    except ImportError as error:
        raise ConfigError(f"the page needs jinja2: {how_to_install('replay')}; or pass --no-report") from error
    environment = Environment(
        autoescape=True,
        finalize=_show,
        undefined=StrictUndefined,
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "headline": find_headline,
        "inlined": _inline_svg,
        "interval": format_interval,
        "json": dump_json,
        "percent": describe_percent,
        "plural": plural,
        "points": describe_points,
        "sentences": describe_result,
    }
    targets = sorted({describe_points(one.report.max_em_drop) for one in drawn})
    title = f"Replay: at most {' or '.join(targets)} of Exact Match"
    page: str = environment.get_template("report.html").render(drawn=drawn, command=command, title=title, kinds=_KINDS)
    return page


def _show(value: Any) -> Any:
    return printable(value) if type(value) is str else value  # Markup holds printable text already


def _inline_svg(svg: str, name: str, label: str) -> Markup:
    """The drawing with ids of its own and the colours of the page; `plot` has escaped its text."""
    from markupsafe import Markup

    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'\b(id="|xlink:href="#|href="#|url\(#)', rf"\1{name}-", svg)
    svg = re.sub(r'<svg ([^>]*?)width="[^"]*" height="[^"]*"', r"<svg \1", svg, count=1)
    for variable, colour in {"ink": INK, "faint": FAINT, "paper": PAPER, **COLOURS}.items():
        svg = svg.replace(colour, f"var(--{variable}, {colour})")
    label = html.escape(printable(label), quote=True)
    return Markup(svg.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1).strip())  # noqa: S704 (escaped)

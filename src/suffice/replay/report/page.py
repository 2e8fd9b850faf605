"""The report of a replay: one self-contained HTML page, with figures and JSON beside it. Needs the extra `replay`.

The figures show the tokens saved over the drop of Exact Match, also by class. Colours are those of Okabe and Ito
(2008), distinguishable with any colour vision, and every family has its own marker. Equal results give equal bytes: no
dates, no random ids.
"""

from __future__ import annotations

import html
import io
import itertools
import math
import re
import textwrap
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from suffice.errors import ConfigError
from suffice.extras import how_to_install
from suffice.files import whole_file, write_whole
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
from suffice.replay.study.sets import PlotPoint, PolicyResult, SetReport
from suffice.sanitize import plural, printable

if TYPE_CHECKING:
    from markupsafe import Markup

_KINDS: Final = {"samples": "repeated samples", "reasoning": "chains of thought", "rounds": "rounds"}
INK: Final = "#22272e"  # text and axes; the page replaces these three colours
FAINT: Final = "#8a929c"  # axes and grid
PAPER: Final = "#fefefe"  # around and inside markers
COLOURS: Final = {"ours": "#d55e00", "published": "#0072b2", "given": "#009e73", "oracle": "#a3568a"}
_MARKERS: Final = {"ours": "o", "published": "s", "given": "D", "oracle": "*", "full": "X"}
_SPARE: Final = ("#cc79a7", "#56b4e9", "#e69f00", "#999999")
_MOST_CLASSES: Final = 20
_MOST_LINES: Final = 4  # of one name
_FEW: Final = 10  # up to this many lines, all are drawn with intervals
_SETTINGS: Final[dict[str, Any]] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Arial", "Helvetica", "sans-serif"],
    "font.size": 10,
    "text.parse_math": False,  # names may contain a dollar sign
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": True,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": FAINT,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "svg.fonttype": "none",  # keep text accessible, searchable and copyable
}

# matplotlib has no types, so figures and axes are Any.


@dataclass(frozen=True, slots=True)
class PlotFiles:
    png: bytes
    svg: str

    def write(self, folder: Path, name: str) -> list[Path]:
        png, svg = folder / f"{name}.png", folder / f"{name}.svg"
        with whole_file(png) as part:
            part.write_bytes(self.png)
        write_whole(svg, self.svg)
        return [png, svg]


def draw_frontier(report: SetReport) -> PlotFiles:
    names = [*(line.policy for line in report.lines), *report.frontier]
    n_rows = (sum(_wrapped(name, 38).count("\n") + 1 for name in names) + 3) // 2
    with open_figure(f"frontier {report.set}", (8.0, 4.9 + 0.2 * n_rows)) as figure:
        axes = figure.add_subplot()
        low, high = _view(report)
        spare = itertools.cycle(_SPARE)
        _target(axes, report.max_em_drop)
        for label, dots in report.frontier.items():
            if dots:
                _family(axes, label, dots, COLOURS.get(label) or next(spare), high)
        first = {(line.family, line.choice): line for line in reversed(report.lines)}
        lettered = list(zip(assign_letters(report.lines), report.lines, strict=True))
        for letter, line in lettered:
            is_main = len(report.lines) <= _FEW or line is first[line.family, line.choice]
            _chosen(axes, line, letter, low, is_main=is_main)
        _letters(axes, lettered, low)
        if any(line.choice == "hindsight" for line in report.lines):
            axes.plot([], [], label="hollow: picked in hindsight", **_look("s", INK), markerfacecolor=PAPER)
        axes.set_xlim(low, high)
        axes.set_ylim(*_height(report, high))
        axes.set_xlabel("drop of Exact Match, points (left is better)")
        axes.set_ylabel("tokens saved, % (up is better)")
        axes.grid(visible=True)
        axes.set_title(printable(report.set), loc="left", fontweight="bold")
        figure.legend(loc="outside lower left", fontsize=9, ncols=2)
        return render_figure(figure)


def draw_classes(report: SetReport) -> PlotFiles | None:
    names = _classes(report)
    if not names:
        return None
    n_more = sum(_wrapped(name, 32).count("\n") for name in names)
    with open_figure(f"classes {report.set}", (8.0, 1.6 + 0.34 * len(names) + 0.15 * n_more)) as figure:
        left, right = figure.subplots(1, 2, sharey=True)
        families = {line.policy: line.family for line in report.lines}
        unused, spare = {"full": FAINT, **COLOURS}, itertools.cycle(_SPARE)
        n_policies = len(report.by_class)
        for k, (policy, parts) in enumerate(report.by_class.items()):
            family = families.get(policy, "given")
            colour = unused.pop(family, None) or next(spare)
            shift = (k - (n_policies - 1) / 2) * min(0.2, 0.7 / n_policies)
            known = {part.name: part for part in parts}
            rows = [(y + shift, known[name]) for y, name in enumerate(names) if name in known]
            look = _look(_MARKERS[family], colour)
            left.plot([100 * p.em_drop for _, p in rows], [y for y, _ in rows], label=_wrapped(policy), **look)
            right.plot([100 * p.token_reduction for _, p in rows], [y for y, _ in rows], **look)
        _target(left, report.max_em_drop)
        left.axvline(0, color=FAINT, linewidth=0.8)
        left.set_yticks(range(len(names)), [_wrapped(name, 32) for name in names])
        left.invert_yaxis()
        left.set_xlabel("drop of Exact Match, points")
        right.set_xlabel("tokens saved, %")
        right.set_xlim(min(0.0, right.get_xlim()[0]), 102)
        for axes in (left, right):
            axes.grid(visible=True, axis="x")
            axes.tick_params(axis="y", length=0)
        figure.legend(loc="outside lower center", fontsize=9, ncols=min(3, n_policies + 1))
        return render_figure(figure)


def _look(marker: str, colour: str) -> dict[str, Any]:
    return {"marker": marker, "color": colour, "linestyle": "none", "markersize": 6}


@contextmanager
def open_figure(name: str, size_inches: tuple[float, float]) -> Iterator[Any]:
    """A figure whose bytes depend on its content and its name alone. Raise ConfigError without matplotlib."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError(f"figures need matplotlib: {how_to_install('replay')}; or pass --no-report") from error
    settings: Any = {**_SETTINGS, "svg.hashsalt": printable(name)}  # the exact type would list every setting
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        # Text in a script that the font lacks becomes boxes in the PNG; the SVG keeps it.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
        yield Figure(figsize=size_inches, layout="constrained")


def render_figure(figure: Any) -> PlotFiles:
    png, svg = io.BytesIO(), io.StringIO()
    figure.savefig(png, format="png", dpi=150, facecolor="white", metadata={"Software": None})
    figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    # matplotlib writes trailing blanks.
    return PlotFiles(png.getvalue(), re.sub(r"[ \t]+$", "", svg.getvalue(), flags=re.MULTILINE))


def _view(report: SetReport) -> tuple[float, float]:
    """The displayed range of drops, in points: all selected lines and a few times the target."""
    drops = [0.0, max(1.0, 400 * report.max_em_drop)]
    for line in report.lines:
        if line.family != "oracle":
            drops.append(100 * line.em_drop)
            if line.em_drop_interval is not None:
                drops += [100 * line.em_drop_interval.low, 100 * line.em_drop_interval.high]
    known = [drop for drop in drops if math.isfinite(drop)]
    room = 0.05 * (max(known) - min(known))
    return min(known) - room, max(known) + room


def _height(report: SetReport, high: float) -> tuple[float, float]:
    """The lowest and highest displayed saving, in percent: all lines, and all points in view."""
    dots = itertools.chain.from_iterable(report.frontier.values())
    in_view = [100 * dot.token_reduction for dot in dots if 100 * dot.em_drop <= high]
    of_lines = [100 * line.token_reduction for line in report.lines if math.isfinite(line.token_reduction)]
    return min([0.0, *of_lines]) - 2, min(102.0, 1.12 * max([20.0, *of_lines, *in_view]))


def _family(axes: Any, label: str, dots: Sequence[PlotPoint], colour: str, high: float) -> None:
    x, y = [100 * dot.em_drop for dot in dots], [100 * dot.token_reduction for dot in dots]
    points = sorted({(round(a, 2), round(b, 1)) for a, b in zip(x, y, strict=True) if a <= high})  # no duplicates
    look = {"s": 9, "color": colour, "alpha": 0.35, "linewidths": 0, "marker": _MARKERS.get(label, "o")}
    axes.scatter([a for a, _ in points], [b for _, b in points], **look)
    n_outside = sum(drop > high for drop in x)
    beyond = f" ({n_outside:,} right of the figure)" if n_outside else ""
    best = _best(dots)
    axes.step(
        [100 * dot.em_drop for dot in best] + [max(high, 100 * best[-1].em_drop)],
        [100 * dot.token_reduction for dot in best] + [100 * best[-1].token_reduction],
        where="post",
        color=colour,
        linewidth=1.2,
        label=f"{_wrapped(label)}, best of {plural(len(dots), 'setting')}{beyond}",
    )


def _best(dots: Sequence[PlotPoint]) -> list[PlotPoint]:
    best: list[PlotPoint] = []
    for dot in sorted(dots, key=lambda dot: (dot.em_drop, -dot.token_reduction)):
        if not best or dot.token_reduction > best[-1].token_reduction:
            best.append(dot)
    return best


def _chosen(axes: Any, line: PolicyResult, letter: str, low: float, *, is_main: bool) -> None:
    x, y = 100 * line.em_drop, 100 * line.token_reduction
    colour = COLOURS.get(line.family, FAINT)
    hollow = line.choice == "hindsight"
    name = f"{letter}:  {_wrapped(line.policy, 38)}" if letter else _wrapped(line.policy)
    aside = f", at {describe_percent(line.em_drop)} points" if x < low else ""
    across, up = line.em_drop_interval, line.token_reduction_interval
    if line.family == "oracle" or not is_main:
        across = up = None  # no intervals for oracles or in a crowded figure
    size = 13 if line.family == "oracle" else 9 if is_main else 7
    axes.errorbar(
        [x],
        [y],
        xerr=None if across is None else [[max(0, x - 100 * across.low)], [max(0, 100 * across.high - x)]],
        yerr=None if up is None else [[max(0, y - 100 * up.low)], [max(0, 100 * up.high - y)]],
        marker=_MARKERS[line.family],
        markersize=size,
        color=colour,
        markerfacecolor=PAPER if hollow else colour,
        markeredgecolor=colour if hollow else PAPER,
        markeredgewidth=1.8 if hollow else 0.8,
        elinewidth=1.2,
        linestyle="none",
        zorder=4 if line.family == "ours" else 3,
        label=name + aside,
    )


def _letters(axes: Any, lettered: Sequence[tuple[str, PolicyResult]], low: float) -> None:
    at = defaultdict[tuple[float, float], list[tuple[str, float, float]]](list)
    for letter, line in lettered:
        x, y = 100 * line.em_drop, 100 * line.token_reduction
        if letter and x >= low:
            at[round(x, 1), round(y)].append((letter, x, y))
    for group in at.values():
        first, x, y = group[0]
        # Neighbours in the table are often close here too.
        place = (6, 5) if len(group) > 1 or ord(first) % 2 else (-13, -13)
        text = " ".join(letter for letter, _, _ in group)
        axes.annotate(text, (x, y), place, textcoords="offset points", fontweight="bold", fontsize=9, zorder=5)


def _target(axes: Any, max_em_drop: float) -> None:
    label = f"target: {describe_points(max_em_drop)}"
    axes.axvline(100 * max_em_drop, color=INK, linewidth=1, linestyle=(0, (4, 3)), label=label)


def _classes(report: SetReport) -> list[str]:
    sizes: Counter[str] = Counter()
    for parts in report.by_class.values():
        sizes |= Counter({part.name: part.n_episodes for part in parts})  # the larger of both
    return sorted(sizes, key=lambda name: (-sizes[name], name))[:_MOST_CLASSES]


def _wrapped(name: str, width: int = 40) -> str:
    """A name in lines of at most so many characters; only what needs more than `_MOST_LINES` of them is cut."""
    text = printable(name)
    lines = textwrap.wrap(text, width, max_lines=_MOST_LINES, placeholder=" …") or [text]
    wrapped = "\n".join(lines)
    return f"\u200b{wrapped}" if wrapped.startswith("_") else wrapped  # matplotlib hides labels that begin with _


# ---- the page


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
    matplotlib or jinja2.
    """
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

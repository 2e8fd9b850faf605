"""Reports: the table fits, the page needs nothing and cannot be broken by a name, JSON is as promised."""

from __future__ import annotations

import io
import json
import math
import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from suffice.assurance.bounds import Interval
from suffice.replay.report.page import draw_classes, draw_frontier, write_report
from suffice.replay.report.text import (
    GROUPS,
    WIDTH,
    as_plain,
    describe_percent,
    describe_result,
    dump_lines,
    print_report,
)
from suffice.replay.study.sets import SetPart, SetReport
from suffice.sanitize import printable
from tests.replay.report.sample import a_line, a_report

HOSTILE = '<script>alert("x")</script>&amp;\'[red]$x_1$\x1b[31m\u202e_=cmd'
KEYS = [
    "set",
    "policy",
    "n_episodes",
    "n_questions",
    "full_em",
    "em",
    "em_drop",
    "lost",
    "gained",
    "full_tokens",
    "tokens",
    "token_reduction",
    "token_reduction_without_probes",
    "em_drop_interval",
    "frozen",
]
VOID = {"meta", "br", "link"}


class Page(HTMLParser):
    """Tags outside figures, ids, references and text of a page; complains about tags that do not close."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        if "svg" not in self.open:
            self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        self.ids += [value or "" for name, value in attrs if name == "id"]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += data


def renamed(report: SetReport, name: str) -> SetReport:
    """The same result with every name replaced."""
    lines = tuple(replace(line, set=name, policy=f"{name} {k}", note=name) for k, line in enumerate(report.lines))
    parts = (
        SetPart(name=name, n_episodes=3, n_questions=2, full_em=1, em_drop=0, lost=0, gained=0, token_reduction=0.5),
    )
    own = {lines[1].policy: parts}
    return replace(
        report,
        set=name,
        lines=lines,
        by_class=own,
        by_step=own,
        notes=(name,),
        fitted_on=(name,),
        frontier={name: report.frontier["ours"]},
    )


def format_report(report: SetReport, *, width: int = WIDTH) -> str:
    """What is printed where the output is no terminal."""
    out = io.StringIO()
    print_report(report, Console(file=out, width=width, color_system=None, force_terminal=False))
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def page_of(reports: list[SetReport], folder: Path, **options: Any) -> str:
    """The report's page as text."""
    options = {"command": "suffice replay", **options}
    return write_report(reports, folder, **options)[0].read_text(encoding="utf-8")


def test_every_line_stands_in_the_table_under_its_heading_within_the_width() -> None:
    report = a_report()
    text = format_report(report)
    assert max(map(len, text.splitlines())) <= WIDTH == 100
    places = [text.index(f"\n{heading}\n") for _, _, heading in GROUPS if f"\n{heading}\n" in text]
    assert places == sorted(places)
    assert len(places) == 6
    for line in report.lines:
        (row,) = re.findall(rf"^  {re.escape(line.policy)} +[–−\d].*$", text, re.MULTILINE)
        assert describe_percent(line.token_reduction) in row
        assert describe_percent(line.em_drop) in row


def test_a_narrow_terminal_folds_names_and_keeps_every_number() -> None:
    text = format_report(a_report(), width=80)
    assert max(map(len, text.splitlines())) <= 80
    for number in ("84.2", "86.1", "−0.3 to 1.4", "36"):
        assert number in text


@pytest.mark.parametrize("name", [HOSTILE, "x" * 400, "名前" * 60, "", "[bold]", "a\nb\tc"])
def test_no_name_breaks_the_terminal(name: str) -> None:
    text = format_report(renamed(a_report(), name))
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]", text)
    assert all(cell_len(line) <= WIDTH for line in text.splitlines())
    assert "84.2" in text
    if name == "[bold]":
        assert "[bold] 1" in text


def test_colours_are_for_terminals_only() -> None:
    out = io.StringIO()
    print_report(a_report(), Console(file=out, width=WIDTH))
    assert "\x1b" not in out.getvalue()
    print_report(a_report(), Console(file=out, width=WIDTH, force_terminal=True, color_system="standard"))
    assert re.search(r"\x1b\[31m *1\.2", out.getvalue()), "the drop above the target is red"


SENTENCES: dict[str, tuple[dict[str, Any], str]] = {
    "sure": (
        {"em_drop": 0.001, "em_drop_interval": Interval(-0.004, 0.006)},
        "within the target, and so is the whole interval",
    ),
    "unsure": ({"em_drop": 0.006}, "the interval reaches 1.4 points: these questions are too few"),
    "missed": ({"em_drop": 0.02}, "misses the target by 1 point."),
    "no interval": ({"em_drop": 0.0, "em_drop_interval": None}, "too few questions for an interval"),
    "gained": ({"em_drop": -0.004}, "Exact Match rises by 0.4 points (77.3 % to 77.7 %; 95 %: −1.3 to 0.4)"),
    "same": ({"em_drop": 0.0002}, "Exact Match stays the same"),
    "dearer": ({"token_reduction": -0.03}, "ours saves nothing (−3.0 % of the tokens)"),
    "probes": ({"token_reduction": 0.4, "token_reduction_without_probes": 0.5}, "Probes cost 10 points of the saving"),
    "splits": ({"miss_share": 0.125}, "in 12 % of the splits"),
}


@pytest.mark.parametrize("case", SENTENCES)
def test_the_result_is_told_in_words(case: str) -> None:
    changes, expected = SENTENCES[case]
    report = a_report(lines=(a_line("m", "ours", "frozen", **changes),))
    payload = describe_result(report)
    assert payload[0].startswith("At most 1 point of Exact Match: ours saves ")
    assert expected in " ".join(payload).replace("\u00a0", " ")


def test_the_headline_is_the_first_line_and_never_picked_by_its_result() -> None:
    worse, better = (a_line("m", "ours", "frozen", token_reduction=saved) for saved in (0.2, 0.9))
    assert "saves 20.0" in describe_result(a_report(lines=(worse, better)))[0]
    assert "hindsight" in " ".join(describe_result(a_report()))
    only_published = a_report(lines=(a_line("beta", "published", "frozen"),))
    assert describe_result(only_published)[0].startswith("At most 1 point of Exact Match: beta saves 50.0")
    assert describe_result(a_report(lines=())) == []


@given(share=st.floats(-2, 2))
def test_a_percentage_is_the_share_rounded_and_zero_has_no_sign(share: float) -> None:
    text = describe_percent(share)
    assert abs(float(text.replace("\u2212", "-")) - 100 * share) <= 0.05 + 1e-9
    assert text != "\u22120.0"
    assert describe_percent(math.nan) == describe_percent(None) == "–"


def test_json_has_the_promised_keys_first_and_is_strict() -> None:
    report = a_report(lines=(*a_report().lines, a_line("=1+1", em=math.nan, em_drop_interval=None, note="@x")))
    objects = [json.loads(line, parse_constant=pytest.fail) for line in dump_lines([report]).splitlines()]
    assert len(objects) == len(report.lines)
    for result, line in zip(objects, report.lines, strict=True):
        assert list(result)[: len(KEYS)] == KEYS
        assert result.keys() > {"family", "choice", "spec", "token_reduction_interval", "miss_share", "note"}
        assert result["frozen"] == (line.choice != "hindsight")
        assert result["token_reduction"] == line.token_reduction
    assert objects[1]["em_drop_interval"] == pytest.approx([-0.003, 0.014])
    assert objects[-1]["em"] is None
    assert objects[-1]["em_drop_interval"] is None
    assert (objects[-1]["policy"], objects[-1]["note"]) == ("'=1+1", "'@x")
    assert objects[-1]["em_drop"] == 0.005, "numbers are never quoted"


@given(text=st.text(max_size=20))
def test_json_of_any_name_is_one_line(text: str) -> None:
    (line,) = dump_lines([a_report(lines=(a_line(text),))]).split("\n")[:-1]
    line.encode()
    assert json.loads(line)["policy"] in (text, f"'{text}")


@pytest.mark.slow
def test_the_page_needs_nothing_and_everything_in_it_has_its_place(tmp_path: Path) -> None:
    text = page_of([a_report(), a_report("second")], tmp_path, command="suffice replay <x> && y")
    page = Page(text)
    assert "script" not in page.tags
    assert not re.search(r"@import|url\((?!#)", text)
    for name, value in page.attributes:
        if name in ("src", "href", "xlink:href"):
            assert value.startswith("#"), "nothing is fetched"
        assert not name.startswith("on")
    assert [count for count in Counter(page.ids).values() if count > 1] == []
    used = set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', text))
    assert {first or second for first, second in used} <= set(page.ids)
    first = "At most 1 point of Exact Match: ours saves 84.2\u00a0%"
    for expected in (first, "suffice replay <x> && y", "Physics"):
        assert expected in page.text
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text


@pytest.mark.slow
def test_no_name_changes_the_structure_of_the_page(tmp_path: Path) -> None:
    plain = Page(page_of([renamed(a_report(), "plain")], tmp_path / "plain"))
    for k, name in enumerate((HOSTILE, "</style></svg></table>", '" onload="x', "-->]]>", "\ud800\x00")):
        text = page_of([renamed(a_report(), name)], tmp_path / f"{k}", command=name)
        page = Page(text)
        assert page.tags == plain.tags
        assert printable(name)[:30] in page.text
        assert {name for name, _ in page.attributes} == {name for name, _ in plain.attributes}


@pytest.mark.slow
def test_figures_are_valid_say_what_they_show_and_are_the_same_every_time(tmp_path: Path) -> None:
    report = a_report()
    for drawn in (draw_frontier(report), draw_classes(report)):
        assert drawn is not None
        assert drawn.png.startswith(b"\x89PNG")
        displayed = "".join(ElementTree.fromstring(drawn.svg).itertext())
        assert "target: 1 point" in displayed
        assert "beta" in displayed
    hostile = draw_classes(renamed(report, "<b>&$x_1^2$"))
    assert hostile is not None
    assert "<b>&$x_1^2$" in "".join(ElementTree.fromstring(hostile.svg).itertext())
    first, second = tmp_path / "1", tmp_path / "2"
    for folder in (first, second):
        write_report([report], folder, command="x")
    files = sorted(path.name for path in first.iterdir())
    assert files == sorted(path.name for path in second.iterdir())
    assert all((first / name).read_bytes() == (second / name).read_bytes() for name in files)
    assert set(files) >= {"report.html", "report.json", "lines.jsonl", "made_up.frontier.png", "made_up.frontier.svg"}


def test_a_result_of_which_little_is_known_is_shown_all_the_same(tmp_path: Path) -> None:
    bare = a_line("never", "full", em_drop_interval=None, token_reduction_interval=None, em=math.nan, em_drop=math.nan)
    for lines in ((), (bare,)):
        report = a_report(lines=lines, frontier={}, by_class={}, by_step={}, notes=())
        assert "Target: at most 1 point" in format_report(report)
        assert "<h2" in page_of([report], tmp_path)
        assert draw_classes(report) is None


def test_nothing_is_written_when_a_figure_cannot_be_drawn(tmp_path: Path) -> None:
    broken = a_report("broken", lines=(a_line("x", em_drop_interval=Interval("a", 1)),))  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        write_report([a_report(), broken], tmp_path, command="x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_files_of_sets_stay_in_their_folder_and_apart(tmp_path: Path) -> None:
    bare: dict[str, Any] = {"lines": (), "frontier": {}, "by_class": {}, "by_step": {}}
    names = ["a/b", "a b", "../../x", "A-B", "", "report", "名前"]
    written = write_report([a_report(name, **bare) for name in names], tmp_path / "out", command="x")
    assert len({path.name.lower() for path in written}) == len(written) == 3 + 2 * len(names)
    assert {path.parent for path in written} == {tmp_path / "out"}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(path.name for path in written)
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


def test_one_object_a_line_has_every_field() -> None:
    assert as_plain(a_line("x")).keys() >= {"stopped", "hopeless", "token_reduction_without_cache"}

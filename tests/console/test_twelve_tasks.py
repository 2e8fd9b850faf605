"""Twelve questions that the walkthrough does not ask: who reads labels alone is there in three clicks from Home.

A click is a link, a button or a fold whose words somebody who has read no documentation would choose; what it shows
is in the page that was served. No click goes by an address.
"""

from __future__ import annotations

import csv
import html
import io
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Final

import pytest

from suffice.formatting import format_bounds, format_large, format_percent, format_points, format_usd
from suffice.store.database.presence import switch_reason
from suffice.wiring.keys import kill_file
from tests.console.made import filled_site
from tests.console.visitor import Got, Visitor

MOST_CLICKS: Final = 3
TABLE: Final = Path(__file__).parents[2] / "docs" / "console" / "README.md"
CLICKS: Final = {
    "how_safe_is_it_now": 0,
    "how_far_is_a_new_route": 1,
    "why_was_an_alert_sent_and_to_whom": 1,
    "what_exactly_is_promised_on_a_route": 2,
    "which_requests_lost": 2,
    "stop_all_savings_now": 2,
    "export_this_month": 2,
    "invite_a_reviewer": 2,
    "be_careful_with_one_class_of_questions": 2,
    "what_do_people_say_of_stopped_runs": 2,
    "which_settings_does_a_route_have": 2,
    "who_last_changed_the_settings_of_a_route": 3,
}
UNSEEN: Final = ("script", "style", "template", "title")


@dataclass
class Node:
    """One element of a page."""

    tag: str
    attributes: dict[str, str]
    parent: Node | None
    children: list[Node | str] = field(default_factory=list)

    def nodes(self) -> Iterator[Node]:
        yield self
        for one in self.children:
            if isinstance(one, Node):
                yield from one.nodes()

    def ancestors(self) -> Iterator[Node]:
        above = self.parent
        while above is not None:
            yield above
            above = above.parent

    @property
    def text(self) -> str:
        """All its words, with those that are folded away."""
        parts = [one if isinstance(one, str) else one.text for one in self.children]
        return " ".join(" ".join(parts).split())

    @property
    def is_seen(self) -> bool:
        """Whether it shows: in no closed fold, no dialog and nothing hidden."""
        below = self
        for above in self.ancestors():
            if above.tag in ("dialog", *UNSEEN) or "hidden" in above.attributes:
                return False
            if above.tag == "details" and "open" not in above.attributes and below.tag != "summary":
                return False
            below = above
        return self.attributes.get("type") != "hidden"


class Tree(HTMLParser):
    """A page as its elements."""

    VOID: Final = ("meta", "link", "input", "img", "br", "path", "rect", "line", "polyline", "circle", "hr")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.root = self.at = Node("page", {}, None)
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        made = Node(tag, {name: value or "" for name, value in attrs}, self.at)
        self.at.children.append(made)
        if tag not in self.VOID:
            self.at = made

    def handle_endtag(self, tag: str) -> None:
        at: Node | None = self.at
        while at is not None and at.tag != tag:
            at = at.parent
        if at is not None and at.parent is not None:
            self.at = at.parent

    def handle_data(self, data: str) -> None:
        self.at.children.append(data)


class Newcomer:
    """Somebody at the first page, who goes by the words on it."""

    def __init__(self, visitor: Visitor) -> None:
        self.visitor, self.n_clicks = visitor, 0
        self.got = visitor.get("/console")
        self.page = Tree(self.got.text).root

    def click(self, words: str, *, within: str = "", **fields: str) -> Got:
        """Click the one link, button or fold with these words, in the part of this id; fields are filled in before."""
        self.n_clicks += 1
        assert self.n_clicks <= MOST_CLICKS, words
        target = self._named(words, within)
        if target.tag == "summary":
            assert target.parent is not None
            target.parent.attributes["open"] = ""
        elif target.tag == "a":
            address, _, part = target.attributes["href"].partition("#")
            if address:
                self._show(self.visitor.get(html.unescape(address)))
            self._unfold(part)
        else:
            self._send(target, fields)
        return self.got

    def _named(self, words: str, within: str) -> Node:
        parts = [one for one in self.page.nodes() if not within or one.attributes.get("id") == within]
        assert parts, f"no part {within}"
        ways = [one for one in parts[0].nodes() if one.tag in ("a", "button", "summary") and one.is_seen]
        targets = [one for one in ways if one.text == words] or [one for one in ways if one.text.startswith(words)]
        assert targets, f"nothing that shows says {words!r}"
        same = {one.attributes.get("href", "") for one in targets}
        assert len(same) == 1, f"{words!r} leads to several places: {same}"
        return targets[0]

    def _send(self, button: Node, fields: dict[str, str]) -> None:
        by_id = button.attributes.get("form")
        form = next(
            one
            for one in (self.page.nodes() if by_id else button.ancestors())
            if one.tag == "form" and (not by_id or one.attributes.get("id") == by_id)
        )
        values = {
            one.attributes["name"]: one.attributes.get("value", "")
            for one in form.nodes()
            if one.tag in ("input", "textarea") and "name" in one.attributes
        }
        assert fields.keys() <= values.keys()
        self._show(self.visitor.post(html.unescape(form.attributes["action"]), values | fields))

    def _show(self, got: Got) -> None:
        if got.status == 303:
            got = self.visitor.get(got.headers["location"])
        assert got.status == 200, got.text
        self.got = got
        if got.headers["content-type"].startswith("text/html"):
            self.page = Tree(got.text).root

    def _unfold(self, part: str) -> None:
        for one in self.page.nodes():
            if part and one.attributes.get("id") == part and one.tag == "details":
                one.attributes["open"] = ""

    def sees(self, pattern: str, within: str = "") -> bool:
        seen = [
            one.text
            for one in self.page.nodes()
            if one.is_seen and (not within or within in (each.attributes.get("id") for each in one.ancestors()))
        ]
        return any(re.search(pattern, text) for text in seen)


@pytest.fixture
def newcomer(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Newcomer]:
    with filled_site(tmp_path) as visitor:
        made = Newcomer(visitor)
        yield made
        assert made.n_clicks == CLICKS[request.node.name.removeprefix("test_")]


def test_how_safe_is_it_now(newcomer: Newcomer) -> None:
    assert newcomer.sees(r"^(Yes|No|Not proved|On average|Only experiments)\b", "safe"), "without a click"


def test_what_exactly_is_promised_on_a_route(newcomer: Newcomer) -> None:
    newcomer.click("math")
    newcomer.click("How this is known", within="safe")
    promise = newcomer.visitor.get("/api/routes").json["routes"][0]["promise"]
    assert newcomer.sees("^Promise$", "safe")
    assert newcomer.sees(re.escape(promise), "safe")


def test_who_last_changed_the_settings_of_a_route(newcomer: Newcomer) -> None:
    newcomer.click("math")
    newcomer.click("All changes, with who made them")
    newcomer.click("Thresholds and settings")
    assert newcomer.sees("policy published .*as it came out", "changes")


def test_which_requests_lost(newcomer: Newcomer) -> None:
    newcomer.click("math")
    newcomer.click("algebra", within="loses")
    assert newcomer.sees("ep_00000"), "the runs of the class that lost most"


def test_stop_all_savings_now(newcomer: Newcomer) -> None:
    newcomer.click("Stop all stopping", within="stop")
    assert newcomer.sees("Every request of every route runs in full", "stop")
    button = next(one for one in newcomer.page.nodes() if one.tag == "button" and one.text == "Stop all stopping")
    newcomer.n_clicks += 1
    newcomer._send(button, {"reason": "answers look wrong"})
    assert switch_reason(kill_file(newcomer.visitor.app.context.settings)) == "answers look wrong (admin)"
    assert newcomer.n_clicks <= MOST_CLICKS


def test_export_this_month(newcomer: Newcomer) -> None:
    newcomer.click("Report of a month")
    got = newcomer.click("Export as CSV")
    rows = list(csv.DictReader(io.StringIO(got.body.decode("utf-8-sig"))))
    assert [(row["route"], row["requests"]) for row in rows] == [("math", "40")]
    assert {"saving low", "em drop high", "max em drop", "saved usd"} < rows[0].keys()
    assert_equal_to_page(rows[0], newcomer)
    assert "attachment" in got.headers["content-disposition"]


def assert_equal_to_page(row: dict[str, str], newcomer: Newcomer) -> None:
    """Every figure of an exported route is the one that the report's page prints."""
    (displayed,) = [one for one in newcomer.page.nodes() if one.tag == "tr" and one.text.startswith(row["route"])]
    cells = {one.attributes.get("data-l", "Route"): one.text for one in displayed.nodes() if one.tag in ("td", "th")}
    figure = {name: float(value) if value else None for name, value in row.items() if name not in ("month", "route")}
    assert (cells["Requests"], cells["Stopped"]) == (row["requests"], row["stopped"])
    saved = f"{format_large(figure['saved tokens'])} tokens, {format_large(figure['saved certified tokens'])} of them"
    ends = format_bounds(figure["saving low"], figure["saving high"])
    for part in (format_percent(figure["saving"]), ends, saved):
        assert part in cells["Tokens saved"], part
    assert cells["Money saved"] == ("–" if figure["saved usd"] is None else format_usd(figure["saved usd"]))
    ends = format_bounds(figure["em drop low"], figure["em drop high"], "points", 2)
    for part in (format_points(figure["em drop"]), ends):
        assert part in cells["EM drop"], part
    assert cells["Budget"] == f"{100 * (figure['max em drop'] or 0):.2f} points"


def test_invite_a_reviewer(newcomer: Newcomer) -> None:
    newcomer.click("Review", within="places")
    newcomer.click("Invite a reviewer")
    assert newcomer.sees("Add a person")
    assert newcomer.sees("^reviewer$")


def test_a_reviewer_is_invited_from_the_settings_and_by_the_palette(tmp_path: Path) -> None:
    with filled_site(tmp_path) as visitor:
        newcomer = Newcomer(visitor)
        newcomer.click("Settings", within="places")
        assert newcomer.sees("^People and keys$")
        newcomer.click("Invite a reviewer", within="people")
        assert newcomer.sees("^reviewer$")
        entries = [(one["title"], one["href"]) for one in visitor.get("/api/find?q=invite").json["entries"]]
        assert ("Invite a reviewer", "/console/change/people/add") in entries
        assert visitor.get("/api/find?q=people").json["entries"][0]["href"] == "/console/settings#people"


def test_be_careful_with_one_class_of_questions(newcomer: Newcomer) -> None:
    newcomer.click("math")
    row = next(one for one in newcomer.page.nodes() if one.tag == "tr" and one.text.startswith("geometry"))
    row.attributes["id"] = "row"
    newcomer.click("be careful here", within="row")
    values = {one.attributes.get("name"): one.attributes.get("value") for one in newcomer.page.nodes()}
    assert values["class"] == "geometry"
    chosen = [one.attributes["value"] for one in newcomer.page.nodes() if "selected" in one.attributes]
    assert {"math", "observe"} <= set(chosen)
    form = {"route": "math", "class": "geometry", "kind": "observe", "reason": "a launch"}
    assert newcomer.visitor.post("/console/overrides/set", {**form, "csrf": newcomer.visitor.token()}).status == 303
    newcomer._show(newcomer.visitor.get("/console/route?route=math"))
    row = next(one for one in newcomer.page.nodes() if one.tag == "tr" and one.text.startswith("geometry"))
    assert re.search(r"runs in full\s+by admin until 20\d\d-", row.text), row.text
    assert "be careful here" not in row.text


def test_a_class_that_is_held_can_be_held_more_where_it_is_listed(tmp_path: Path) -> None:
    with filled_site(tmp_path) as visitor:
        newcomer = Newcomer(visitor)
        newcomer._show(visitor.get("/console/routes"))
        way = newcomer._named("be careful here", "").attributes["href"]
        held = visitor.get("/api/routes").json["routes"][0]["phase"]["classes"]
        assert held == [["as it came out", 1]]
        assert ("route=math" in way, "class=as+it+came+out" in way) == (True, True)


def test_how_far_is_a_new_route(newcomer: Newcomer) -> None:
    newcomer.click("math")
    steps = [one for one in newcomer.page.nodes() if one.tag == "ol" and one.attributes.get("class") == "ramp"]
    assert [len([each for each in one.nodes() if each.tag == "li"]) for one in steps] == [4]
    assert [one.attributes.get("class") for one in steps[0].nodes() if "aria-current" in one.attributes] == ["is-here"]


def test_what_do_people_say_of_stopped_runs(newcomer: Newcomer) -> None:
    newcomer.click("math")
    newcomer.click("User feedback", within="feedback")
    assert newcomer.sees("Measure|No feedback yet", "feedback")


def test_which_settings_does_a_route_have(newcomer: Newcomer) -> None:
    newcomer.click("Settings", within="places")
    newcomer.click("[routes.math]")
    assert newcomer.sees("^samples 8 set$")
    assert newcomer.sees("^review.keep_text false default$"), "a table of it is in the same fold"
    folds = [one.text.split()[0] for one in newcomer.page.nodes() if one.tag == "summary" and one.text.startswith("[")]
    assert folds == sorted(set(folds))
    assert not [one for one in folds if one.startswith("[routes.math.")]


def test_why_was_an_alert_sent_and_to_whom(newcomer: Newcomer) -> None:
    newcomer.click("All alerts", within="needs")
    assert newcomer.sees("Sinks")
    assert newcomer.sees("^(Nobody|Sink)")


def test_the_page_of_the_tasks_says_what_was_counted() -> None:
    rows = re.findall(r"^\| (\d) \| (.+?) \|$", TABLE.read_text("utf-8"), re.MULTILINE)
    assert {int(n): len(tasks.split(" · ")) for n, tasks in rows} == Counter(CLICKS.values())


def test_a_fold_hides_and_a_dialog_is_no_way() -> None:
    page = Tree(
        "<details><summary>More</summary><a href=/x>Hidden</a></details><dialog><a href=/y>No</a></dialog>"
    ).root
    assert [one.text for one in page.nodes() if one.tag in ("a", "summary") and one.is_seen] == ["More"]

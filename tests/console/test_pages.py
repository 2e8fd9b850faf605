"""Pages and the API show what the log says, alike, and whatever somebody else wrote there is text."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

from suffice.assurance.certify import FleetRequirement, RouteWealth
from suffice.console import exports, render
from suffice.console.app import ENDPOINTS, ConsoleApp, endpoints_of_view
from suffice.console.auth import ROLES
from suffice.console.context import View
from suffice.console.render import HERE
from suffice.console.views.routes import routes
from suffice.gateway.kill import set_switch
from suffice.store.database.decisions import Decisions
from suffice.store.database.presence import Announcement
from suffice.wiring.keys import kill_file
from tests.console.conftest import Site
from tests.console.made import HOSTILE, fill, filled_site
from tests.console.visitor import Visitor, people_of, settings_in, site

PAGES = (
    "/console",
    "/console?days=all",
    "/console/routes",
    "/console/route?route=math",
    "/console/runs",
    "/console/runs?end=differs&label=labelled",
    "/console/runs/ep_00000",
    "/console/review",
    "/console/incidents",
    "/console/alerts",
    "/console/changes",
    "/console/settings",
    "/console/nothing",
    "/console/runs/ep_none",
    "/console/route?route=%3Cb%3E",
)
TAGS = {path.name: path.read_text() for path in (HERE / "templates").glob("*.html")}


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Visitor]:
    """An admin before a log whose every text wants to be more than text."""
    with filled_site(tmp_path_factory.mktemp("hostile"), texts=HOSTILE) as visitor:
        yield visitor


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Visitor]:
    """An admin before a log of usual runs."""
    with filled_site(tmp_path_factory.mktemp("usual")) as visitor:
        yield visitor


class Tags(HTMLParser):
    """What a browser would make of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def tags(page: str) -> list[tuple[str, dict[str, str | None]]]:
    parser = Tags()
    parser.feed(page)
    return parser.tags


@pytest.mark.parametrize("place", PAGES)
def test_what_others_wrote_is_text_on_every_page(hostile: Visitor, place: str) -> None:
    pairs = tags(hostile.get(place).text)
    for tag, attributes in pairs:
        assert tag not in ("iframe", "base", "style", "template", "math", "x", "object", "embed"), tag
        assert not [name for name in attributes if name.startswith("on") or name in ("style", "srcdoc")], attributes
        for name in ("href", "src", "action", "hx-get"):
            value = attributes.get(name)
            assert value is None or value.startswith(("/console", "#")), (tag, value)
    scripts = [attributes.get("src") for tag, attributes in pairs if tag == "script"]
    assert all(one is not None and one.startswith("/console/static/") for one in scripts)
    assert sum(tag == "form" for tag, _ in pairs) == hostile.get(place).text.count("<form ")


def test_every_pair_of_text_and_ground_can_be_told_apart_in_both_themes() -> None:
    style = (HERE / "static" / "console.css").read_text()
    palettes = [dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", one)) for one in style.split("color-scheme:")]
    themes = [one for one in palettes if one]
    assert len(themes) == 3, "light, dark by the system, dark by choice"
    assert themes[1] == themes[2]
    for theme in themes:
        grounds = [name for name in theme if name in ("surface", "sunk") or name.endswith("ground")]
        assert len(grounds) == 7
        for text in ("text", "muted", "accent", "good", "warn", "bad"):
            for ground in grounds:
                assert contrast(theme[text], theme[ground]) >= 4.5, (text, ground)
        assert contrast(theme["surface"], theme["accent"]) >= 4.5, "a button's own text"


def contrast(one: str, other: str) -> float:
    """Of two colours, by WCAG 2.2."""
    darker, lighter = sorted(luminance(color) for color in (one, other))
    return (lighter + 0.05) / (darker + 0.05)


def luminance(color: str) -> float:
    parts = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (one / 12.92 if one <= 0.03928 else ((one + 0.055) / 1.055) ** 2.4 for one in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_no_template_lets_text_through_unescaped_or_carries_code() -> None:
    for name, text in TAGS.items():
        assert not re.search(r"\|\s*safe|autoescape|<style|style=|\son[a-z]+=|javascript:|hx-on", text), name
        assert not re.search(r"<script(?![^>]*\ssrc=)", text), name
    assert len(TAGS) > 10


@pytest.mark.parametrize("place", PAGES)
def test_every_page_can_be_used_without_seeing_it(usual: Visitor, place: str) -> None:
    page = usual.get(place).text
    pairs = tags(page)
    names = [tag for tag, _ in pairs]
    assert names.count("main") == names.count("h1") == names[: names.index("body")].count("title") == 1, place
    assert page.startswith('<!doctype html>\n<html lang="en"')
    ids = [attributes["id"] for _, attributes in pairs if attributes.get("id")]
    assert len(ids) == len(set(ids))
    for tag, attributes in pairs:
        if tag == "svg":
            assert attributes.get("aria-label") or attributes.get("aria-hidden"), "a picture says what it shows"
        if tag == "img":
            assert "alt" in attributes
    # Every field stands inside its label, and every chart above its table.
    for field in re.findall(r"<(?:input(?! type=\"hidden\")|select|textarea)[^>]*>", page):
        before = page[: page.index(field)]
        assert before.rfind("<label") > before.rfind("</label>"), field
    for figure in re.findall(r"<figure.*?</figure>", page, re.DOTALL):
        assert "<table" in figure
        assert 'aria-hidden="true"' in figure


def test_the_page_and_the_api_say_the_same(usual: Visitor) -> None:
    overview, page = usual.get("/api/overview").json, usual.get("/console").text
    assert overview["history"]["total"]["sums"]["n_requests"] == 40
    assert "40 requests" in page
    (math,) = [one for one in overview["routes"] if one["name"] == "math"]
    assert math["phase"]["level"] == 3
    assert "level 3 of" in page
    route = usual.get("/api/route?route=math").json
    assert [one["kind"] for one in route["decided"]][:2] == ["policy_published", "epoch_began"]
    assert "alarm: signals" in usual.get("/console/route?route=math").text
    one = usual.get("/api/episodes/ep_00000").json
    assert one["differs"] is True
    assert "differs from the full run" in usual.get("/console/runs/ep_00000").text


@pytest.mark.parametrize(
    ("query", "fits"),
    [
        ("end=stopped", lambda one: one["stopped"]),
        ("end=audit", lambda one: one["audit"]),
        ("end=differs", lambda one: one["differs"]),
        ("label=labelled", lambda one: one["correct"] is not None),
        ("class=algebra", lambda one: one["query_class"] == "algebra"),
        ("route=math&limit=7", lambda one: one["route"] == "math"),
    ],
)
def test_filters_show_what_fits_and_all_of_it(usual: Visitor, query: str, fits: object) -> None:
    assert callable(fits)
    everything = usual.get("/api/episodes?limit=500").json["lines"]
    wanted, place = [], f"/api/episodes?{query}"
    while True:
        lines = usual.get(place).json
        wanted += lines["lines"]
        if lines["older"] is None:
            break
        place = f"/api/episodes?{query}&before={lines['older']}"
    assert [one["episode_id"] for one in wanted] == [one["episode_id"] for one in everything if fits(one)]
    assert 0 < len(wanted) <= len(everything) == 40


@pytest.mark.parametrize(
    "place",
    [
        "/api/overview?days=3",
        "/api/episodes?end=x",
        "/api/episodes?before=-1",
        "/api/episodes?before=9" + "9" * 30,
        "/api/episodes?limit=501",
        "/api/changes?kind=x",
        "/api/episodes?label=x",
        "/api/episodes?before=%D9%A3",
    ],
)
def test_what_is_not_offered_is_refused_with_what_is(usual: Visitor, place: str) -> None:
    got = usual.get(place)
    assert got.status == 400
    assert re.search("allowed|whole number", got.json["error"]["message"])


@pytest.mark.parametrize("place", ["/console", "/console/routes", "/console/alerts"])
def test_every_page_begins_with_what_holds_on_the_whole_deployment(here: Site, place: str) -> None:
    visitor = here.visitor("rita")
    assert b"NO GATEWAY: no process serves this log now" in visitor.get(place).body
    held = Announcement((kill_file(here.settings),), process="serve")
    assert b"NO GATEWAY" not in visitor.get(place).body
    set_switch(kill_file(here.settings), "<b>wrong</b>", "ann")
    text = visitor.get(place).body.decode()
    held.release()
    waits = f"(gateway PID {os.getpid()} has not confirmed)"
    assert f"KILLED: nothing is stopped on any route {waits}: &lt;b&gt;wrong&lt;/b&gt; (ann)" in text
    assert text.index("KILLED") < text.index("<h1")
    assert b"KILLED" not in here.visitor().get("/console/login").body, "nobody who has not logged in is told"


def test_an_empty_log_says_what_to_do_next(here: Site) -> None:
    admin = here.visitor("admin")
    for place in (
        "/console",
        "/console/routes",
        "/console/runs",
        "/console/changes",
        "/console/review",
        "/console/incidents",
        "/console/alerts",
        "/console/route?route=math",
        "/console/settings",
    ):
        got = admin.get(place)
        assert got.status == 200, place
    assert "Point a client" in admin.get("/console").text
    assert 'class="empty"' in admin.get("/console/runs").text


def test_a_console_without_its_extra_says_which_and_the_api_works(here: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    admin = here.visitor("admin")
    monkeypatch.setattr(render, "can_render", lambda: False)
    got = admin.get("/console")
    assert (got.status, b"jinja2&gt;=" in got.body) == (501, True)
    assert here.visitor().get("/console/login").status == 501
    assert admin.get("/api/overview").status == 200


def test_a_part_of_a_page_that_is_asked_for_alone_is_a_page(here: Site) -> None:
    view = View(path="/part", read=routes, template="_routes.html", title="All routes")
    admin = here.visitor("admin")
    visitor = Visitor(ConsoleApp(here.app.context, endpoints_of_view(view, (view,))), cookies=admin.cookies)
    page, part = visitor.get("/console/part").text, visitor.get("/console/part", hx_request="true").text
    assert page.startswith("<!doctype html>")
    assert "<h1>All routes</h1>" in page
    assert "<html" not in part
    assert part.strip() in page


def test_exports_run_in_no_spreadsheet(hostile: Visitor) -> None:
    for place in ("/console/episodes.csv", "/console/changes.csv"):
        assert hostile.get(place).status == 405, "an export is written down: no page of a stranger may ask for one"
        got = hostile.post(place, {"csrf": hostile.token()})
        assert got.headers["content-type"].startswith("text/csv")
        assert "attachment" in got.headers["content-disposition"]
        import csv
        import io

        rows = list(csv.reader(io.StringIO(got.body.decode("utf-8-sig"))))
        assert len(rows) > 3
        for row in rows[1:]:
            for cell in row:
                plain = re.fullmatch(r"-?\d+(\.\d+)?([eE][-+]?\d+)?", cell)
                assert plain or not cell.lstrip().startswith(("=", "+", "-", "@", "\t", "\r")), cell
    assert exports.format_csv_cell("=1") == "'=1"


def test_the_description_of_the_api_covers_all_of_it_and_its_references_hold(here: Site) -> None:
    description = here.visitor("admin").get("/api/openapi.json").json
    wanted = {(door.path, door.method.lower()) for door in ENDPOINTS if door.path.startswith("/api")}
    assert {(path, method) for path, methods in description["paths"].items() for method in methods} == wanted
    text = here.visitor("admin").get("/api/openapi.json").text
    names = set(re.findall(r'"\$ref":"#/components/schemas/([^"]+)"', text))
    assert names <= set(description["components"]["schemas"])
    assert {"Overview", "RoutePage", "EpisodePage", "Changes"} <= set(description["components"]["schemas"])
    assert all(one["x-role"] in ROLES for path in description["paths"].values() for one in path.values())


def test_static_files_are_kept_for_ever_under_an_address_of_their_content(here: Site) -> None:
    page = here.visitor("admin").get("/console").text
    places = set(re.findall(r'(?:src|href)="(/console/static/[^"]+)"', page))
    assert len(places) >= 5
    total = len(page)
    for place in places:
        got = here.visitor().get(place)
        assert (got.status, "immutable" in got.headers["cache-control"]) == (200, True)
        total += len(got.body)
    assert total < 300_000, "the first page with everything on it"
    for wrong in ("/console/static/0/nothing.js", "/console/static/0/..", "/console/static/0/people.py"):
        assert here.visitor().get(wrong).status == 404


def test_what_is_promised_of_all_routes_together_is_one_line_of_the_first_page(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    secret = people_of(settings).first() or ""
    fill(tmp_path, settings, now_s=time.time(), texts=())
    with Decisions(tmp_path / "log.db", now=time.time, monotonic_s=time.monotonic) as writer:
        promised = FleetRequirement(
            number=1,
            wealth=25.0,
            confidence=0.95,
            n_routes=1,
            n_certified=0,
            evidence=(RouteWealth(route="nowhere", epoch=1, wealth=0.0, own=20.0),),
            reason="",
            author="w",
        )
        writer.write(None, [promised])
    with site(settings) as app:
        visitor = Visitor(app)
        visitor.login(secret)
        line = "fleet: 0 of 1 routes certified; expected wrong among them at most 5 %"
        assert line in visitor.get("/console").text
        assert visitor.get("/api/overview").json["fleet"] == line

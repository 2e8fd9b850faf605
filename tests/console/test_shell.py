"""The shell around every page: one scope in the URL, the palette, the button that stops all stopping."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from suffice.console.scope import CUSTOM, TimeRange, parse_scope
from suffice.errors import BadRequest
from suffice.gateway.kill import set_switch
from suffice.store.database.presence import switch_reason
from suffice.store.people.audit_view import entries
from suffice.wiring.keys import kill_file
from tests.console.conftest import Site
from tests.console.made import filled_site
from tests.console.visitor import Visitor

NOON_S = 1_790_000_000 // 86_400 * 86_400 + 43_200  # 2026-09-21
DAY = NOON_S // 86_400
FIVE = ("Home", "Routes", "Runs", "Changes", "Review")


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Visitor]:
    with filled_site(tmp_path_factory.mktemp("shell")) as visitor:
        yield visitor


def range_of(**query: str) -> TimeRange:
    return parse_scope({name.rstrip("_"): value for name, value in query.items()}, NOON_S).range


def test_a_preset_covers_whole_days_and_today() -> None:
    week = range_of(days="7")
    assert (week.since_hour, week.until_hour) == (24 * (DAY - 6), 24 * (DAY + 1))
    assert range_of() == range_of(days="30"), "the usual range needs no field"
    day = range_of(days="1")
    assert day.until_hour - day.since_hour == 25, "the running hour is part of it"
    assert range_of(days="all").since_hour == 0


def test_a_range_of_ones_own_includes_both_of_its_ends() -> None:
    days = range_of(from_="2026-09-01", to="2026-09-03")
    assert (days.name, days.n_hours, days.label) == (CUSTOM, 72, "2026-09-01 to 2026-09-03")
    hours = range_of(from_="2026-09-01T05", to="2026-09-01T07")
    assert (hours.n_hours, hours.label) == (3, "2026-09-01T05 to 2026-09-01T07")
    assert range_of(from_="2026-09-01", to="2026-09-01").label == "2026-09-01"
    assert range_of(days="7", from_="2026-09-01").name == "7", "a preset that is chosen counts"


def test_a_comparison_is_as_long_as_the_range() -> None:
    for compare, back in (("previous", 72), ("week", 168), ("month", 672), ("2026-08-01", 31 * 24)):
        scope = parse_scope({"from": "2026-09-01", "to": "2026-09-03", "compare": compare}, NOON_S)
        assert scope.compare is not None
        assert scope.compare.n_hours == scope.range.n_hours
        assert scope.range.since_hour - scope.compare.since_hour == back


@pytest.mark.parametrize(
    "query",
    [
        {"days": "3"},
        {"from": "yesterday"},
        {"from": "2026-09-03", "to": "2026-09-01"},
        {"from": "2026-13-01"},
        {"compare": "never"},
        {"route": "r" * 500},
    ],
)
def test_a_scope_that_is_not_offered_is_refused_by_its_name(query: dict[str, str]) -> None:
    with pytest.raises(BadRequest) as refused:
        parse_scope(query, NOON_S)
    assert refused.value.param in query


def test_every_place_keeps_the_scope_of_the_page_that_leads_to_it(usual: Visitor) -> None:
    page = usual.get("/console?route=math&days=7&compare=week").text
    places = re.findall(r'<a href="([^"]+)"[^>]*data-key="\d">(\w+)</a>', page)
    assert tuple(name for _, name in places) == FIVE
    for href, _ in places:
        assert "route=math&amp;days=7&amp;compare=week" in href
        got = usual.get(href.replace("&amp;", "&"))
        assert got.status == 200
    assert 'option value="math" selected' in page
    assert 'option value="7" selected' in page


def test_addresses_of_before_lead_to_the_same_page(usual: Visitor) -> None:
    for old, new in (
        ("/console/episodes?end=audit&route=math", "/console/runs?end=audit&route=math"),
        ("/console/episodes/ep_00000", "/console/runs/ep_00000"),
        ("/console/policies/weighed?route=math", "/console/policies/assessment?route=math"),
        ("/api/policies/weighed?route=math", "/api/policies/assessment?route=math"),
        ("/console/experiments/shown?name=e", "/console/experiments/result?name=e"),
        ("/api/experiments/shown?name=e", "/api/experiments/result?name=e"),
    ):
        got = usual.get(old)
        assert (got.status, got.headers["location"]) == (308, new)
    assert not [path for path in usual.get("/api/openapi.json").json["paths"] if "weighed" in path or "shown" in path]
    assert usual.get("/console/route?name=math").status == 200


def test_the_palette_finds_pages_routes_runs_and_what_may_be_done(usual: Visitor, here: Site) -> None:
    def listed(visitor: Visitor, text: str) -> list[tuple[str, str]]:
        return [(one["kind"], one["title"]) for one in visitor.get(f"/api/find?q={text}").json["entries"]]

    assert ("page", "Experiments") in listed(usual, "exper")
    assert listed(usual, "ep_0001")[:2] == [("run", "Run ep_00010"), ("run", "Run ep_00011")]
    assert ("action", "Pause math") in listed(usual, "pause%20math")
    assert ("setting", "routes.math.max_em_drop") in listed(usual, "max_em_drop")
    assert listed(usual, "no-such-thing") == []
    for one in usual.get("/api/find?q=").json["entries"]:
        assert usual.get(one["href"].partition("#")[0]).status == 200, one
    rita = here.visitor("rita")
    assert not [kind for kind, _ in listed(rita, "") if kind in ("action", "setting")], "she may change nothing of it"
    part = usual.get("/console/find?q=math", hx_request="true").text
    assert "<html" not in part


def test_stopping_is_stopped_everywhere_with_a_reason_and_one_row(here: Site) -> None:
    admin, file = here.visitor("admin"), kill_file(here.settings)
    log = here.app.context.path
    form = {"csrf": admin.token(), "back": "/console/routes"}
    assert "Stop all stopping" in admin.get("/console/routes").text
    assert admin.post("/console/stop-all", form | {"reason": " "}).status == 400
    assert switch_reason(file) is None, "not without a reason"
    got = admin.post("/console/stop-all", form | {"reason": "answers look wrong"})
    assert (got.status, got.headers["location"]) == (303, "/console/routes")
    assert switch_reason(file) == "answers look wrong (admin)"
    assert "Stopping is off" in admin.get("/console/routes").text
    assert admin.post("/console/stop-all", form | {"reason": "again"}).status == 409
    (row,) = entries(log, kind="kill_switched")
    assert "answers look wrong (admin)" in row.body
    assert admin.post("/console/release-all", form | {"reason": "it was the scorer"}).status == 303
    assert switch_reason(file) is None
    assert [one.after.split(":")[0] for one in entries(log, kind="kill_switched")] == ["pulled", "released"]
    assert admin.post("/console/release-all", form | {"reason": "again"}).status == 409


def test_who_may_not_stop_stopping_is_not_offered_it(here: Site) -> None:
    rita = here.visitor("rita")
    assert "Stop all stopping" not in rita.get("/console").text
    assert rita.post("/console/stop-all", {"csrf": rita.token(), "reason": "x"}).status == 403
    set_switch(kill_file(here.settings), "elsewhere", "ann")
    assert "KILLED" in rita.get("/console").text, "yet she sees that somebody did"

"""The four questions of a page: what its sentences claim, and how far a new route has come."""

from __future__ import annotations

import html
import random
import re
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from suffice.assurance.estimate import IntervalEstimate
from suffice.assurance.forecast import ForecastAction
from suffice.cli.inspect.route_status import read_statuses
from suffice.console.scope import TimeRange
from suffice.console.views.answers import answer_questions
from suffice.console.views.history import describe_saving
from suffice.console.views.precision import describe_needed, says_nothing
from suffice.console.views.route_state import ramp_of
from suffice.report.sentences import summarize
from suffice.review.route_guarantee import RouteGuarantee
from suffice.settings import Route
from suffice.store.database.location import log_location
from suffice.store.database.writer import LogWriter
from suffice.store.routes.deployments import Phase, RouteDeployment, phase_of
from suffice.types import Pause, Publication
from suffice.wiring.routes import setup_of
from tests.console.made import decided, filled_site
from tests.console.test_standing import ARM, EPOCH, LEARNED, MADE
from tests.console.visitor import Visitor, people_of, settings_in, site
from tests.control.made import run
from tests.control.test_upkeep import append

WEEK = TimeRange(name="7", since_hour=0, until_hour=168)


def estimate(value: float, low: float, high: float) -> IntervalEstimate:
    return IntervalEstimate(value=value, low=low, high=high, n=57, method="")


def state(name: str, promise_state: str, *, drop: IntervalEstimate | None = None, beside: tuple[str, ...] = ()) -> Any:
    return SimpleNamespace(name=name, promise_state=promise_state, em_drop=drop, max_em_drop=0.02, beside=beside)


def safety(*states: Any, drop: IntervalEstimate | None = None) -> tuple[str, str]:
    sums = SimpleNamespace(n_requests=9, n_priced=0)
    total = SimpleNamespace(em_drop=drop, saving=None, would_save=None, sums=sums)
    history: Any = SimpleNamespace(total=total, budget=0.02, markers=(), is_empty=False)
    answers = answer_questions(history, WEEK, states, 0)
    assert answers.needs == "Nothing."
    return answers.tone, answers.safe


def test_safe_is_said_only_where_all_that_acts_is_certified() -> None:
    assert safety(state("a", "certified"), state("b", "observe"))[0] == "good"
    assert safety(state("a", "certified"))[1].startswith("Yes: a keeps its EM budget, certified")
    for worse in ("uncertified", "unknown", "candidate", "budgeted"):
        tone, sentence = safety(state("a", "certified"), state("b", worse))
        assert tone == "warn", worse
        assert "Yes" not in sentence
        assert "b" in sentence.partition(";")[0]
    assert safety(state("a", "paused")) == (
        "good",
        "Yes: nothing is stopped now; the EM drop in the last 7 days is not known yet.",
    )


def history_of(drop: IntervalEstimate | None) -> Any:
    sums = SimpleNamespace(n_requests=9, n_priced=0)
    total = SimpleNamespace(em_drop=drop, saving=estimate(0.3, 0.2, 0.4), would_save=None, sums=sums, saved_tokens=None)
    return SimpleNamespace(total=total, budget=0.02, markers=(), is_empty=False)


@pytest.mark.parametrize(("low", "high", "n"), [(-0.4558, 0.4558, 57), (-0.389, 0.404, 83), (-0.15, 0.06, 400)])
def test_the_observations_that_are_needed_would_make_the_interval_useful(low: float, high: float, n: int) -> None:
    wide = estimate((low + high) / 2, low, high)
    needed = int(re.sub(",", "", re.search(r"of about ([\d,]+) pairs", describe_needed(wide, "pair"))[1]))  # type: ignore[index]
    times = (57 / needed) ** 0.5
    assert says_nothing(wide)
    assert needed > 57
    assert not says_nothing(estimate(0.0, 0.98 * low * times, 0.98 * high * times))
    assert describe_needed(estimate(0.0, -1.0, 1.0), "pair") == "57 pairs so far"


def test_a_loss_above_the_budget_and_trials_are_said_whatever_is_certified() -> None:
    lost = estimate(0.05, 0.03, 0.07)
    tone, sentence = safety(state("a", "certified", drop=lost), state("b", "uncertified"))
    assert (tone, sentence[:39]) == ("bad", "No: a lost more than the EM budget; the")
    assert "a rollout on a are not covered" in safety(state("a", "certified", beside=("a rollout",)))[1]
    assert safety(state("a", "searching", beside=("a rollout",)))[0] == "warn"


def test_an_interval_that_includes_everything_is_no_figure() -> None:
    nothing, known = estimate(0.3276, -0.4558, 0.4558), estimate(0.0108, 0.0, 0.0208)
    assert says_nothing(nothing)
    assert not says_nothing(known)
    assert not says_nothing(estimate(-0.2, -0.4, -0.15)), "a sure harm is known, however wide"
    assert says_nothing(estimate(0.15, -0.08, 0.38)), "a gain of 8 points or a loss of 38"
    needed = "not known yet: 57 of about 1,200 audits needed"
    assert needed in safety(state("a", "certified"), drop=nothing)[1]
    assert needed in describe_saving(history_of(nothing), WEEK)
    assert "32.76" not in describe_saving(history_of(nothing), WEEK)
    assert "+1.08 points (0.00 to +2.08)" in describe_saving(history_of(known), WEEK)
    assert "was +1.08 points, of 2.00 allowed" in safety(state("a", "certified"), drop=known)[1]


def phase(**changes: Any) -> Phase:
    made = phase_of(RouteDeployment(epoch=EPOCH, publication=MADE, last=MADE, n_epochs=1), attended=True)
    return replace(made, **changes)


@pytest.mark.parametrize(
    ("here", "acts", "name", "detail"),
    [
        ({"phase": "burst", "level": 0, "n_requests": 100, "n_burst": 400}, False, "All in full", "100 of 400 runs"),
        ({"phase": "searching", "level": 0}, False, "Proved", "about 40 more audits"),
        ({}, False, "Acts", "proved, and not acted on"),
        ({}, True, "Highest level", "about 40 more audits to the next"),
    ],
)
def test_one_step_of_a_new_route_is_under_way(here: dict[str, Any], acts: bool, name: str, detail: str) -> None:
    steps = ramp_of(phase(**here), LEARNED, acts=acts)
    (now,) = [one for one in steps if one.state == "here"]
    assert now.name == name
    assert now.detail.startswith(detail)
    states = [one.state for one in steps]
    assert states == sorted(states, key=["done", "here", "ahead"].index)
    assert all((one.share == 1.0) == (one.state == "done") for one in steps if one.state != "here")


def test_a_route_that_is_through_or_that_nobody_certifies_has_no_step_under_way() -> None:
    assert {one.state for one in ramp_of(phase(level=40, n_levels=40), LEARNED, acts=True)} == {"done"}
    arm = phase_of(RouteDeployment(epoch=EPOCH, publication=ARM, last=ARM, n_epochs=1))
    effort = Route(upstream="up", effort="low", mode="enforce")
    assert [one.state for one in ramp_of(arm, effort, acts=True)] == ["done"] * 3
    assert ramp_of(arm, None, acts=True) == ()
    held = RouteDeployment(
        epoch=EPOCH,
        publication=MADE,
        last=MADE,
        n_epochs=1,
        pause=Pause(route="r", number=1, cause="person", reason="x", author="ann"),
    )
    steps = ramp_of(phase_of(held), LEARNED, acts=False)
    assert [one.state for one in steps] == ["done", "here", "ahead", "ahead"], "a paused route acts on nothing"
    assert steps[1].detail.startswith("paused")


def test_a_capped_level_is_shown_as_what_acts_wherever_it_is_named(tmp_path: Path) -> None:
    with filled_site(tmp_path) as visitor:
        pages = ("/console", "/console/routes", "/console/policies", "/console/route?route=math")
        assert not [one for one in pages if "capped" in visitor.get(one).text]
        form = {"route": "math", "kind": "cap", "level": "1", "reason": "a launch", "csrf": visitor.token()}
        assert visitor.post("/console/overrides/set", form).status == 303
        for one in pages:
            page = visitor.get(one).text
            assert re.search(r"level 1 (of \d+|active), capped", page), one
            assert re.search(r"by override 1 of admin, until [\d :-]+ UTC: a launch", page), one
            assert not re.search(r"level 3 of \d+</span>(?! <span class=\"pill good\">certified)", page), one
        settings = settings_in(tmp_path)
        state = visitor.get("/api/route?route=math").json["route"]
        (status,) = read_statuses(log_location(settings.store), settings, "math")
        assert (state["served_level"], state["cap_reason"]) == (status.served_level, status.cap_reason)
        certified = replace(status, guarantee=RouteGuarantee(state="certified"))
        assert "level 1 of 8 (capped by override 1 of admin" in summarize(certified).now


@pytest.mark.parametrize(
    ("cap", "ceiling", "reason"),
    [
        (3, None, "a forecast: level 3 at most (the drop grows)"),
        (7, None, ""),
        (None, 3, "people's ratings"),
        (None, 8, ""),
    ],
)
def test_what_caps_a_level_is_said_where_it_does(
    tmp_path: Path, cap: int | None, ceiling: int | None, reason: str
) -> None:
    *before, made = decided("math", "as it came out", setup_of(settings_in(tmp_path), "math"))
    assert isinstance(made, Publication)
    action = ForecastAction(
        route="math", epoch=2, at=30, level=5, cap=cap, in_doubt=True, reason=f"level {cap} at most (the drop grows)"
    )
    append(tmp_path / "log.db", *before, action, replace(made, cap=cap, ceiling=ceiling))
    with site(settings_in(tmp_path)) as app:
        visitor = Visitor(app)
        visitor.login(people_of(settings_in(tmp_path)).reset("admin"))
        for place in ("/console/routes", "/console/policies", "/console/route?route=math"):
            page = html.unescape(visitor.get(place).text)
            assert ("level 3" in page, ", capped</span>" in page) == (True, bool(reason)), place
            assert not reason or f"(by {reason})</span>" in page, place


def test_the_page_of_a_route_names_who_left_its_audits_as_the_status_does(tmp_path: Path) -> None:
    settings, rng = settings_in(tmp_path), random.Random(5)
    log = LogWriter(settings.store, now=lambda: time.time() - 7_200)
    for number, (sender, left, unread) in enumerate(
        [("app", True, True), ("app", True, False), ("app", False, False), ("<b>", True, True), ("calm", False, False)]
    ):
        request, outcome = run(5_000 + number, rng)
        ended = replace(outcome, end_reason="client_left", finished_unread=unread) if left else outcome
        assert log.append(replace(request, route="math", sender=sender))
        assert log.append(ended)
    assert log.drain(20)
    log.close()
    with filled_site(tmp_path) as visitor:
        (status,) = read_statuses(log_location(settings.store), settings, "math")
        state, page = visitor.get("/api/route?route=math").json, visitor.get("/console/route?route=math").text
    assert state["leavers"] == [msgspec.to_builtins(one) for one in status.report.leavers]
    assert [tuple(one.values()) for one in state["leavers"]] == [("app", 3, 2, 1, 1), ("<b>", 1, 1, 1, 0)]
    assert "app: 3 audits, 2 left, 1 finished unread, 1 counted as lost" in page
    assert "&lt;b&gt;: 1 audit, 1 left, 1 finished unread, 0 counted as lost" in page
    assert "calm: 1 audit" not in page

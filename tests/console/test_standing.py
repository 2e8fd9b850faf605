"""What is missing on a route, or before anything is there: no effort and no average is taken for levels that climb."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from suffice.console.render import HERE
from suffice.console.views.overview import STARTS_S, notices
from suffice.report.sentences import describe_missing
from suffice.settings import Route
from suffice.store.routes.deployments import Phase, RouteDeployment, phase_of
from suffice.types import BudgetAccount, Epoch, EvidenceSummary, Publication
from tests.console.visitor import Visitor, people_of, settings_in, site
from tests.control.made import run
from tests.control.test_upkeep import append

EPOCH = Epoch(route="r", number=1, at=0, since_seq=0, reason="cold start", author="w")
MADE = Publication(
    route="r",
    number=1,
    epoch=1,
    at=100,
    version="v-1@3",
    fit="v-1",
    level=3,
    n_levels=41,
    certified=True,
    share=0.1,
    reason="x",
    author="w",
    evidence=EvidenceSummary(max_em_drop=0.02, confidence=0.95, n_missing=40),
)
ARM = replace(MADE, version="effort=low", fit="", level=1, n_levels=2, arm="effort=low")
AVERAGE = replace(
    MADE,
    certified=False,
    spending=BudgetAccount(
        floor=2,
        affordable=9,
        n_audits=10,
        n_waiting=0,
        em_drop=0.01,
        max_em_drop=0.02,
        clipped=0.0,
    ),
)
EFFORT = Route(upstream="up", effort="low", mode="enforce")
LEARNED = Route(upstream="up", kind="samples", samples=8, mode="enforce")


def phase(made: Publication | None, epoch: Epoch = EPOCH) -> Phase:
    return phase_of(RouteDeployment(epoch=epoch, publication=made, last=made, n_epochs=1), attended=True)


@pytest.mark.parametrize(
    ("route", "made", "sentence"),
    [
        (LEARNED, MADE, "About 40 more audits"),
        (EFFORT, ARM, "Nothing: effort=low is proved."),
        (EFFORT, None, "effort=low is not proved: suffice status counts its pairs."),
        (LEARNED, AVERAGE, "Certified is level 2; above it the drop is kept on average, with no confidence."),
    ],
)
def test_what_is_missing_is_said_of_what_the_route_is(route: Route, made: Publication | None, sentence: str) -> None:
    assert describe_missing(phase(made), route, None).startswith(sentence)


def test_of_a_start_by_share_it_is_said_when_it_is_expected_to_act() -> None:
    begun = replace(EPOCH, ramps=True, burst=1_200)
    assert describe_missing(phase(None, begun), LEARNED, None).startswith("Expected is a first stop after about 120")
    on_half = replace(MADE, exposure=0.5, share=0.5)
    assert describe_missing(phase(on_half, begun), LEARNED, None).startswith("Expected is it to stop runs among all")


def test_a_worker_that_starts_with_the_gateway_is_not_missed_at_once() -> None:
    alone: Any = SimpleNamespace(
        name="r",
        promise_state="burst",
        alerts=(),
        sums=SimpleNamespace(n_requests=9),
        phase=SimpleNamespace(phase="burst", attended=False, n_labels_wanted=0, failing=()),
    )
    read_to: Any = SimpleNamespace(lag="")

    def texts(now_s: float) -> list[str]:
        look: Any = SimpleNamespace(now_s=now_s, begun_s=1_000.0, settings=SimpleNamespace(routes={"r": LEARNED}))
        return [one.text for one in notices((alone,), read_to, look, ())]

    assert texts(1_000.0 + STARTS_S) == []
    assert texts(1_001.0 + STARTS_S) == ["r: no control loop looks after it now"]


def test_a_page_calls_an_average_certified_nowhere() -> None:
    assert phase(AVERAGE).phase == "budgeted"
    pieces = (HERE / "templates" / "pieces.html").read_text("utf-8")
    pill = pieces.partition("one.phase.phase == 'budgeted'")[2].partition("{%")[0].partition("{% el")[0]
    assert "budgeted" in pill
    assert "pill good" not in pill


def test_a_log_with_decisions_and_no_request_says_what_to_do_first_and_one_without_any_lately_says_so(
    tmp_path: Path,
) -> None:
    settings, database = settings_in(tmp_path), tmp_path / "log.db"
    secret = people_of(settings).first() or ""
    append(database, EPOCH)
    with site(settings) as app:
        visitor = Visitor(app)
        visitor.login(secret)
        assert "No request has come yet" in visitor.get("/console").text
        assert visitor.get("/api/overview").json["is_empty"] is True
        request, outcome = run(1, random.Random(1))
        append(database, request, outcome)
        page = visitor.get("/console").text
        assert "No request has come yet" not in page
        assert "No request of this time has been summed up" in page

"""Requests that run now are listed, and can be asked for their answer or to think on, by who may."""

from __future__ import annotations

from dataclasses import replace

from suffice.assurance.bounds import Interval
from suffice.console.context import LiveRequests
from suffice.console.views.policies import plot_interval
from suffice.episode.stream_relay import LiveRunView
from suffice.rollout.results import ArmComparison
from tests.console.conftest import Site

RUNS = [
    LiveRunView(
        id=f"ep_{n}",
        route="math",
        model="m",
        mode="enforce",
        kind="reasoning",
        began_at_s=float(n),
        tokens=100 * n,
        state=state,
        wish=None,
    )
    for n, state in ((4, "looping"), (3, "sampling"), (2, "thinking"), (1, "answering"))
]


def with_runs(here: Site) -> list[tuple[str, str, str]]:
    wishes: list[tuple[str, str, str]] = []

    def ask(name: str, wish: str, author: str) -> str | None:
        wishes.append((name, wish, author))
        return None if name == "ep_2" else "it has ended, or another replica has it"

    context = here.app.context
    context.services = replace(context.services, live=LiveRequests(runs=lambda: RUNS, ask=ask))
    return wishes


def test_what_runs_is_listed_and_asked_by_who_may(here: Site) -> None:
    wishes, admin = with_runs(here), here.visitor("admin")
    page = admin.get("/console/runs/live").text
    assert all(page.count(f"Answer now: ep_{n}") == 1 for n in (2, 3, 4))
    assert "Answer now: ep_1" not in page, "an answer that has begun is not cut"
    assert [one["id"] for one in admin.get("/api/runs/live").json["lines"]] == ["ep_1", "ep_2", "ep_3", "ep_4"]
    form = {"csrf": admin.token(), "run": "ep_2", "back": "/console/runs/live"}
    assert admin.post("/console/runs/answer-now", form).headers["location"] == "/console/runs/live"
    assert wishes == [("ep_2", "answer_now", "console admin")]
    assert admin.post("/api/runs/think-more", {**form, "run": "ep_9"}).code == "cannot_be_asked"
    rita = here.visitor("rita")
    assert "Answer now" not in rita.get("/console/runs/live").text
    assert rita.post("/api/runs/answer-now", {**form, "csrf": rita.token()}).status == 403


def test_a_console_beside_no_gateway_says_so(here: Site) -> None:
    assert "No gateway here" in here.visitor("admin").get("/console/runs/live").text


def comparison(metric: str, low: float, high: float, margin: float | None) -> ArmComparison:
    return ArmComparison(
        arm="b",
        metric=metric,
        paired=False,
        n=9,
        effect=(low + high) / 2,
        between=Interval(low, high),
        confidence=0.95,
        margin=margin,
        verdict="inconclusive",
    )


def test_an_interval_lies_where_it_is_and_its_zone_on_the_side_of_losses() -> None:
    em = plot_interval(comparison("em", -0.02, 0.01, 0.01), is_primary=True)
    tokens = plot_interval(comparison("tokens", -400.0, -100.0, 50.0), is_primary=False)
    assert em is not None
    assert tokens is not None
    assert em.low < em.loss_from < em.loss_to == 500 < em.high
    assert tokens.high < 500 == tokens.loss_from < tokens.loss_to
    assert all(0 <= place <= 1_000 for place in (em.low, em.high, tokens.low, tokens.high))

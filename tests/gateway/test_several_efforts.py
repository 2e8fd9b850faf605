"""A route with several efforts: each request gets the one that its class, the load and the certificate leave it."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from suffice.agent.plan import AgentPlan, ClassPlan, PlannedDraw
from suffice.assurance.load_level import Admission
from suffice.review.route_guarantee import pin_publication
from suffice.rollout.experiment import units_of
from suffice.serving.deploy import deploy_route
from suffice.serving.route import BuiltRoute
from suffice.serving.variants import Variants
from suffice.settings import Route, Settings, Upstream, parse_settings
from suffice.settings.environment import override_settings
from suffice.settings.tables import ModelFacts
from suffice.store.routes.deployments import RouteDeployment
from suffice.telemetry import Metrics
from suffice.types import Publication
from suffice.upstream.drivers import effort_problem
from suffice.wiring.routes import build_route
from tests.gateway.conftest import Serve
from tests.gateway.served import Served, chat
from tests.gateway.test_arms import VLLM, Model
from tests.gateway.test_log_follower import began, decide, published
from tests.gateway.test_overrides import held

ARMS = "effort=high", "effort=medium", "effort=low"
ROUTE: dict[str, Any] = {
    "mode": "enforce",
    "scorer": "number",
    "probe": {},
    "effort": ["high", "medium", "low"],
    "audit_share": 0.0,
}


def proved(settings: Settings, level: int, **changes: Any) -> Publication:
    arm = ARMS[level - 1]
    known: dict[str, Any] = {"version": arm, "fit": "", "n_levels": 4, "arm": arm}
    return published(settings, level, **(known | changes))


def served(level: int, plan: AgentPlan | None = None, **changes: Any) -> BuiltRoute:
    upstreams = {"up": {"url": "http://127.0.0.1:1", "driver": "openai"}}
    settings = parse_settings({"upstreams": upstreams, "routes": {"r": {"upstream": "up", **ROUTE}}})
    made = proved(settings, level, **changes)
    base = build_route("r", settings.routes["r"], upstream=settings.upstreams["up"])
    return deploy_route(base, RouteDeployment(publication=made, plan=plan))


async def sent_effort(g: Served, text: str = "a question") -> str | None:
    answer = await g.ask(chat(text))
    assert answer.status == 200
    await g.quiet()
    effort: str | None = g.fake.completions[-1].body.get("reasoning_effort")
    return effort


async def test_the_client_gets_the_effort_that_is_proved(serve: Serve) -> None:
    async with serve(Model(), route=ROUTE, **VLLM) as g:
        assert await sent_effort(g) is None, "nothing is proved"
        await decide(g, began(), proved(g.gateway.settings, 3))
        assert await sent_effort(g) == "low"
        await decide(g, proved(g.gateway.settings, 2, number=2))
        assert await sent_effort(g) == "medium"
        report = (await g.ask(chat(suffice={}))).report
        assert (report["certified"], report["policy_version"]) == (True, "effort=medium")


async def test_while_a_class_is_held_in_full_others_get_what_is_proved_for_any_classes_until_the_rest_is(
    serve: Serve,
) -> None:
    async with serve(Model(), route=ROUTE, **VLLM) as g:
        await decide(g, began(), proved(g.gateway.settings, 3, any_level=2))
        assert await sent_effort(g) == "low"
        await held(g, kind="observe", query_class="choice")
        assert await sent_effort(g, "Which one?\nA) 3\nB) 4") is None
        assert await sent_effort(g) == "medium"
        mixture = (("choice", (0,)),)
        await decide(g, proved(g.gateway.settings, 3, number=2, any_level=2, mixture=mixture))
        assert await sent_effort(g) == "low"
        await decide(g, proved(g.gateway.settings, 3, number=3))
        assert await sent_effort(g) is None, "publications of earlier releases were not tested so"


async def test_audits_draw_each_effort_as_often_and_say_with_which_odds(serve: Serve) -> None:
    async with serve(Model(), route=ROUTE | {"audit_share": 1.0}, **VLLM) as g:
        for number in range(80):
            assert (await g.ask(chat(f"question {number}"))).status == 200
        await g.quiet()
        outcomes = [one.episode.outcome for one in await g.episodes(80)]
        odds = {str(one.pair_arm): one.pair_propensity for one in outcomes}
        assert odds == {"full": pytest.approx(0.1)} | dict.fromkeys(ARMS, pytest.approx(0.3))
        n = Counter(one.pair_arm for one in outcomes)
        assert all(12 <= n[arm] <= 38 for arm in ARMS), n
        sent = Counter(one.body.get("reasoning_effort") for one in g.fake.completions)
        assert sent == Counter({"high": n[ARMS[0]], "medium": n[ARMS[1]], "low": n[ARMS[2]], None: 80 + n["full"]})


@pytest.mark.parametrize(("level", "arm"), [(None, ARMS[2]), (3, ARMS[2]), (2, ARMS[1]), (1, ARMS[0]), (0, "")])
def test_the_load_moves_between_the_proved_efforts(level: int | None, arm: str) -> None:
    placed = served(3).placed(Admission(level=level, certified=True, reason="x"))
    assert (placed.serving.arm, placed.certified) == (arm, bool(arm))
    assert placed.certified == (placed.serving.version == arm)


@pytest.mark.parametrize("level", [1, 2, 3])
def test_a_reply_promises_what_its_own_effort_keeps(level: int) -> None:
    promised = served(3).placed(Admission(level=level, certified=True, reason="x")).guarantee()
    assert promised.state == "certified"
    assert f"asked with {ARMS[level - 1]} " in promised.sentence


def test_no_ceiling_gives_back_an_effort_that_another_took_away() -> None:
    lowest = served(3).serving.capped(1)
    assert lowest.capped(2) is lowest
    assert lowest.capped(None) is lowest
    assert lowest.capped(0).voucher == ""


@pytest.mark.parametrize("change", [{"arm": ARMS[0]}, {"arm": "effort=minimal"}, {"setup": "another"}])
def test_a_publication_whose_level_is_another_effort_is_not_acted_on(change: dict[str, Any]) -> None:
    assert served(2).certified
    assert not served(2, **change).certified


def test_a_pin_never_serves_an_effort_that_is_not_proved_any_more() -> None:
    settings = parse_settings({"upstreams": {"up": {"url": "http://u"}}, "routes": {"r": {"upstream": "up", **ROUTE}}})
    now, before = proved(settings, 1, number=3), proved(settings, 3)
    assert pin_publication(now, before) == now
    assert pin_publication(replace(now, level=3, arm=ARMS[2]), before).arm == ARMS[2]


def test_classes_get_the_efforts_that_the_agent_planned() -> None:
    low, medium = (PlannedDraw(settings="", share=1.0, ceiling=ceiling) for ceiling in (None, 2))
    full = PlannedDraw(settings="full", share=0.5, ceiling=0)
    draws = {"easy": (low,), "hard": (medium,), "odd": (replace(medium, share=0.5), full)}
    classes = tuple(
        ClassPlan(query_class=name, draws=each, saving=0.3, em_drop=0.0, n_audits=9) for name, each in draws.items()
    )
    plan = AgentPlan(route="r", number=1, epoch=1, at=10, classes=classes, token_price=0.1, reason="x", author="w")
    variants, got = Variants(salt="salt", metrics=Metrics()), Counter[tuple[str, str]]()
    for at in range(400):
        for name in draws:
            mine = served(3, plan).for_request("a question", "m", name)
            one, arms = variants.place(mine, lambda at=at: units_of("", request=f"request {at}"))  # type: ignore[misc]
            got[name, one.serving.arm] += 1
            assert [draw.arm for draw in arms] == ([] if name != "odd" else ["" if one.serving.arm else "full"])
    assert (got["easy", ARMS[2]], got["hard", ARMS[1]]) == (400, 400)
    assert got["odd", ARMS[1]] + got["odd", ""] == 400
    assert 150 <= got["odd", ""] <= 250


def test_each_effort_of_the_list_must_be_one_that_the_model_takes() -> None:
    upstream = Upstream(url="http://u", models={"*": ModelFacts(efforts=("high", "low"))})
    for efforts, problem in {("high", "low"): "", ("high", "medium"): "medium", ("max", "low"): "max"}.items():
        route = Route(upstream="up", model="m", effort=efforts)  # type: ignore[arg-type]
        result = effort_problem(route, upstream)
        assert problem in result if result else not problem


def test_a_list_can_be_set_by_a_variable() -> None:
    raw = {"upstreams": {"up": {"url": "http://u"}}, "routes": {"r": {"upstream": "up"}}}
    for written, efforts in {'["high", "low"]': ("high", "low"), "low": ("low",)}.items():
        merged, _ = override_settings(raw, {"SUFFICE__ROUTES__R__EFFORT": written})
        assert parse_settings(merged).routes["r"].efforts == efforts

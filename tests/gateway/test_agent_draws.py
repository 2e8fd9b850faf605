"""The gateway draws what the agent planned: by keyed hash, as logged, and inside what is certified."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from suffice.agent.plan import (
    AGENT,
    AgentPlan,
    ClassPlan,
    PlannedDraw,
    alternatives,
    describe_class_plan,
    with_settings,
)
from suffice.assurance.load_level import Admission
from suffice.policy.base import build_policy
from suffice.rollout.experiment import units_of
from suffice.serving.route import NEVER, BuiltRoute, CertifiedArm, Levels
from suffice.serving.variants import Variants
from suffice.settings import Route, parse_settings
from suffice.store.routes.deployments import RouteDeployment
from suffice.telemetry import Metrics
from suffice.wiring.routes import build_route
from tests.gateway.test_log_follower import published

PLAN = ClassPlan(
    query_class="",
    draws=(
        PlannedDraw(settings="growth=1.3", share=0.9, ceiling=None),
        PlannedDraw(settings="", share=0.06, ceiling=3),
        PlannedDraw(settings="full", share=0.04, ceiling=0),
    ),
    saving=0.3,
    em_drop=0.001,
    n_audits=400,
)


def settings(**fields: object) -> Route:
    table = {key: value for key, value in {"upstream": "up", "probe": {}, **fields}.items() if value is not None}
    return parse_settings({"upstreams": {"up": {"url": "http://127.0.0.1:1"}}, "routes": {"r": table}}).routes["r"]


def planned(plan: ClassPlan = PLAN, *, ceiling: int | None = None) -> BuiltRoute:
    serving = Levels(folds=((NEVER,) * 9,), version="v", needs=(), ceiling=ceiling)
    return replace(build_route("r", settings()), plan=plan, serving=serving)


def test_draws_have_the_logged_shares_and_repeat() -> None:
    variants, route = Variants(salt="salt", metrics=Metrics()), planned()
    drawn = Counter[str]()
    for at in range(5_000):
        served, arms = variants.place(route, lambda at=at: units_of("", request=f"request {at}"))  # type: ignore[misc]
        (arm,) = arms
        assert arm.experiment == AGENT
        assert arm.propensity + sum(share for _, share in arm.others) == pytest.approx(1)
        assert served.settings.steps.growth == (1.3 if arm.arm == "growth=1.3" else 1.15)
        assert served.serving.ceiling == {"growth=1.3": None, "": 3, "full": 0}[arm.arm]
        drawn[arm.arm] += 1
    for one in PLAN.draws:
        assert drawn[one.settings] / 5_000 == pytest.approx(one.share, abs=0.015)
    first, again = (variants.place(route, lambda: units_of("", request="request 7")) for _ in range(2))
    assert first == again


def test_an_effort_is_drawn_by_class_as_planned() -> None:
    """An arm has no levels: a class gets it, gets full runs, or draws between the two."""
    full, arm = PlannedDraw(settings="full", share=0.9, ceiling=0), PlannedDraw(settings="", share=0.1, ceiling=None)
    shares = {"easy": (replace(arm, share=1.0),), "hard": (full, arm), "odd": (replace(full, settings="", share=1.0),)}
    classes = tuple(replace(PLAN, query_class=name, draws=each) for name, each in shares.items())
    plan = AgentPlan(route="r", number=1, epoch=1, at=10, classes=classes, token_price=0.1, reason="x", author="w")
    table = {"upstream": "up", "mode": "enforce", "effort": "low", "probe": {}}
    upstreams = {"up": {"url": "http://127.0.0.1:1", "driver": "openai"}}
    known = parse_settings({"upstreams": upstreams, "routes": {"r": table}})
    made = published(known, 1, version="effort=low", fit="", n_levels=2, arm="effort=low")
    held = RouteDeployment(publication=made, plan=plan)
    serving = CertifiedArm(arm="effort=low", arms=("effort=low",), version="effort=low", needs=())
    route = replace(build_route("r", known.routes["r"]), active=held, serving=serving)
    variants, used = Variants(salt="salt", metrics=Metrics()), Counter[str]()
    for at in range(2_000):
        for name in shares:
            mine = route.for_request("a question", "m", name)
            served, arms = variants.place(mine, lambda at=at: units_of("", request=f"request {at}"))  # type: ignore[misc]
            assert (served.serving.arm == "effort=low") == served.certified == served.acts
            assert [one.arm for one in arms] == ([] if name != "hard" else ["" if served.certified else "full"])
            used[name] += served.certified
    assert (used["easy"], used["odd"]) == (2_000, 0)
    assert used["hard"] / 2_000 == pytest.approx(0.1, abs=0.02)


def test_a_plan_never_raises_a_ceiling() -> None:
    variants = Variants(salt="salt", metrics=Metrics())
    for at in range(50):
        served, _ = variants.place(planned(ceiling=2), lambda at=at: units_of("", request=f"{at}"))  # type: ignore[misc]
        assert served.serving.ceiling in (0, 2)


def test_a_plan_that_cannot_be_drawn_changes_nothing() -> None:
    broken = replace(PLAN, draws=(PlannedDraw(settings="speed=9", share=1.0, ceiling=None),))
    metrics = Metrics()
    route = planned(broken)
    served, arms = Variants(salt="salt", metrics=metrics).place(route, lambda: units_of("", request="request"))
    assert (served, arms) == (route, ())
    assert metrics.value("suffice_failopen_total", site="arms") == 1


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({}, ("", "growth=1.3", "growth=1.6")),
        ({"agent": "off"}, ("",)),
        ({"probe": None}, ("",)),
        ({"policy": {"policy": "never"}}, ("",)),
        ({"kind": "samples", "samples": 6, "latency_price": 0.01}, ("", "wave=1", "wave=2")),
        ({"kind": "samples", "samples": 6}, ("",)),
    ],
)
def test_what_may_be_varied(fields: dict[str, object], names: tuple[str, ...]) -> None:
    route = settings(**fields)
    assert alternatives(route) == names
    for name in names:
        assert alternatives(with_settings(route, name))[0] == ""


def test_people_read_the_draws_of_a_class() -> None:
    assert describe_class_plan(PLAN) == (
        "no class: 90 % growth=1.3 up to the certified level, 6 % up to level 3, 4 % in full;"
        " saves 30%, loses 0.10 points"
    )


def test_a_route_at_level_0_of_its_version_stops_nothing_and_so_probes_no_live_run() -> None:
    base = build_route("r", settings(mode="enforce"))
    levels = Levels(folds=((NEVER, build_policy({"policy": "fixed-budget", "max_tokens": 9})),), version="v", needs=())
    route = base.served_by(levels)
    assert route.may_stop
    for level in (0, 1):
        placed = route.placed(Admission(level=level, certified=True, reason="x"))
        assert (placed.acts, placed.may_stop) == (True, level > 0)
    assert not route.in_full().may_stop

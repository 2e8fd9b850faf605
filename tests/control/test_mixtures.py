"""A mixture of levels by query class is one more level: what is served is what is tested."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import replace

import msgspec
import numpy as np
import pytest

from suffice.agent.mixture import mixture_of
from suffice.agent.plan import FULL, AgentPlan, ClassPlan, PlannedDraw
from suffice.control.evidence.versions import read_back
from suffice.review.holds import NO_OVERRIDES, ActiveOverrides, Override, OverrideEnd
from suffice.serving.deploy import deploy_route
from suffice.serving.route import BuiltRoute
from suffice.settings import Route
from suffice.store.routes.deployments import RouteDeployment
from suffice.store.rows.events import Event
from suffice.types import Outcome, Publication, Query, Request
from suffice.wiring.routes import build_route
from tests.control.made import CONTROL, ROUTE, Story, began, label, rows, run, story

BUDGET = 0.1
FIXED = msgspec.structs.replace(ROUTE, max_em_drop=BUDGET, audit_share=1.0, agent="off")  # the traffic is all audits
QUIET = msgspec.structs.replace(CONTROL, refit_requests=5_000)
AVERAGE = msgspec.structs.replace(FIXED, promise="budgeted")
N = 900
TURNS = {"law": 0.16, "maths": 0.6}  # of a class's votes turn round behind three like samples


def mixed_traffic(n: int, *, first: int = 0) -> list[Event]:
    """Of four questions three are law, where the full vote is right, and one is maths, where the first answers are."""
    rng, events = random.Random(first + 1), list[Event]()
    for number in range(first, first + n):
        name = "maths" if number % 4 == 0 else "law"
        request, outcome = run(number, rng, sure=True, query=Query(query_class=name))
        events += [request, outcome]
        if rng.random() < TURNS[name]:
            answers = ["11"] * 3 + ["77"] * 5
            steps = tuple(replace(step, answer=own) for step, own in zip(outcome.steps, answers, strict=True))
            events[-1] = replace(outcome, steps=steps, answer="77")
            events.append(label(number, gold="77" if name == "law" else "11"))
    return events


def of_an_alias(events: list[Event], answered: str = "m") -> list[Event]:
    """Maths is asked under a name of its own."""
    requests = [one for one in events if isinstance(one, Request)]
    maths = {one.episode_id for one in requests if one.query is not None and one.query.query_class == "maths"}

    def renamed(one: Event) -> Event:
        if isinstance(one, Request) and one.episode_id in maths:
            return replace(one, model="alias")
        return replace(one, model=answered) if isinstance(one, Outcome) and one.episode_id in maths else one

    return list(map(renamed, events))


def in_full(number: int = 1, query_class: str = "maths") -> Override:
    return Override(
        route="r",
        number=number,
        kind="observe",
        reason="a complaint",
        author="ann",
        set_at_s=0.0,
        expires_at_s=1e9,
        query_class=query_class,
    )


def read(*parts: Iterable[Event], route: Route = FIXED) -> Story:
    held = began(route, promise=route.promise, confidence=route.confidence)
    log = rows([event for part in parts for event in part])
    return story(route, control=QUIET, held=held).feed(log).settle()


@pytest.fixture(scope="module")
def pooled() -> Story:
    return read(mixed_traffic(N))


def truth(history: Story, made: Publication, full: str = "") -> float:
    """The EM drop of all audits at the published level, with one class in full."""
    outcomes = history.loop.certifier.outcomes()
    assert outcomes is not None
    z = outcomes[1]
    names = np.array([audit.query_class for audit in history.loop.state.audits[: len(z)]])
    return float(np.where(names == full, 0, z[:, made.level]).mean())


def served(history: Story, made: Publication, holding: ActiveOverrides, plan: AgentPlan | None = None) -> BuiltRoute:
    version = read_back(made.fit, history.artefacts[made.fit]).version
    base = replace(build_route("r", FIXED), setup=made.setup, holding=holding)
    held = RouteDeployment(epoch=history.loop.state.epoch, publication=made, last=made, plan=plan, n_epochs=1)
    return deploy_route(base, held, version)


def ceiling(route: BuiltRoute, query_class: str) -> int | None:
    serving = route.for_request("q", "m", query_class).serving
    return serving.ceiling


def test_a_class_that_a_person_holds_in_full_takes_its_gains_out_of_the_certificate(pooled: Story) -> None:
    before = pooled.published[-1]
    assert truth(pooled, before) < BUDGET < truth(pooled, before, full="maths"), "the case that was seen"
    here = read(mixed_traffic(N), [in_full()], mixed_traffic(100, first=N))
    made = here.published[-1]
    assert made.level < before.level
    assert "is proved with classes at levels of their own" in made.reason
    assert truth(here, made, full="maths") < BUDGET
    assert made.mixture == ((("maths", (0,)),) if made.level else ())


def test_gains_of_an_alias_that_has_moved_prove_nothing_for_the_others() -> None:
    before = read(of_an_alias(mixed_traffic(N)))
    assert {name for name, _, _ in before.published[-1].upstream} == {"alias", "m"}
    here = read(of_an_alias(mixed_traffic(N)), of_an_alias(mixed_traffic(100, first=N), answered="m-2"))
    made = here.published[-1]
    assert {name for name, _, _ in made.upstream} == {"m"}
    assert made.level < before.published[-1].level
    assert truth(here, made, full="maths") < BUDGET < truth(here, before.published[-1], full="maths")


def test_on_average_too_nothing_above_the_proved_mixture_acts_while_a_class_is_held_in_full() -> None:
    before = read(mixed_traffic(N), route=AVERAGE).published[-1]
    here = read(mixed_traffic(N), [in_full()], mixed_traffic(100, first=N), route=AVERAGE)
    made = here.published[-1]
    assert before.spending is not None
    assert truth(here, before, full="maths") > BUDGET, "the case that was seen, up to the floor under a certificate"
    assert made.level < before.spending.floor
    assert truth(here, made, full="maths") < BUDGET


def test_the_level_returns_when_the_override_ends(pooled: Story) -> None:
    end = OverrideEnd(route="r", number=1, reason="settled", author="ann", ended_at_s=0.0)
    here = read(mixed_traffic(N), [in_full()], mixed_traffic(100, first=N), [end], mixed_traffic(100, first=N + 100))
    assert [made.level for made in here.published][-1] == pooled.published[-1].level
    assert here.published[-1].mixture == ()


def test_an_override_that_was_set_before_the_epoch_is_known(pooled: Story) -> None:
    holds = story(FIXED, control=QUIET).loop.holds.after(in_full(), 0.0)
    here = story(FIXED, control=QUIET, overrides=holds).feed(rows(mixed_traffic(N))).settle()
    assert here.published[0].mixture == (("maths", (0,)),)
    assert here.published[-1].level < pooled.published[-1].level


@pytest.mark.slow
def test_a_replay_tests_the_same_mixtures() -> None:
    log = rows([*mixed_traffic(N), in_full(), *mixed_traffic(200, first=N)])
    history = story(FIXED, control=QUIET).feed(log).settle()
    again = story(FIXED, control=QUIET, expected=history.published, artefacts=history.artefacts).feed(log).settle()
    assert again.published == []
    assert again.loop.held.publication == history.published[-1]


def test_until_a_mixture_is_tested_no_class_is_above_what_any_mixture_may_have(pooled: Story) -> None:
    made = pooled.published[-1]
    assert made.any_level < made.level, "half of the gains may be taken away"
    holding = replace(NO_OVERRIDES, classes={"maths": 0})
    assert ceiling(served(pooled, made, NO_OVERRIDES), "law") is None
    assert ceiling(served(pooled, made, holding), "law") == made.any_level
    assert ceiling(served(pooled, made, holding), "maths") == 0
    tested = replace(made, mixture=mixture_of(holding.classes, None, level=made.level))
    assert ceiling(served(pooled, tested, holding), "law") is None
    old = replace(made, any_level=0)
    assert ceiling(served(pooled, old, holding), "law") == 0, "publications of earlier releases were not tested so"


def test_the_agents_plan_is_part_of_the_mixture(pooled: Story) -> None:
    made = pooled.published[-1]
    draws = PlannedDraw(settings="", share=0.9, ceiling=None), PlannedDraw(settings="full", share=0.1, ceiling=0)
    mine = ClassPlan(query_class="maths", draws=draws, saving=0.1, em_drop=0.0, n_audits=9)
    plan = AgentPlan(
        route="r", number=1, epoch=1, at=N, classes=(mine,), token_price=0.1, reason="it is dear", author="w"
    )
    assert mixture_of({}, plan, level=5) == (("maths", (0, 5)),)
    assert mixture_of({"maths": 3, "law": 7}, plan, level=5) == (("maths", (0, 3)),)
    assert ceiling(served(pooled, made, NO_OVERRIDES, plan), "law") == made.any_level
    here = read(mixed_traffic(N), [plan], mixed_traffic(100, first=N))
    assert here.published[-1].level < made.level


def test_what_is_announced_is_what_the_agents_draws_save() -> None:
    """Three of four requests are law; the agent runs three of four of these in full."""
    route = msgspec.structs.replace(FIXED, audit_share=0.5)
    draws = (
        PlannedDraw(settings="", share=0.25, ceiling=None),
        PlannedDraw(settings=FULL, share=0.75, ceiling=0),
    )
    plan = AgentPlan(
        route="r",
        number=1,
        epoch=1,
        at=N,
        classes=(ClassPlan(query_class="law", draws=draws, saving=0.0, em_drop=0.0, n_audits=1),),
        token_price=0.1,
        reason="",
        author="",
    )
    alone, here = (read(mixed_traffic(N), part, mixed_traffic(100, first=N), route=route) for part in ([], [plan]))
    assert here.published[-1].level == alone.published[-1].level
    announced, whole = here.published[-1].evidence.share, alone.published[-1].evidence.share
    assert announced is not None
    assert whole is not None
    assert whole > 0.1
    assert announced == pytest.approx(whole * (1 / 4 + 3 / 4 * 0.25), rel=0.1)

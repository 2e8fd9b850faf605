"""A class that a pooled certificate harms is served lower levels, alone, until fresh audits let it back."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import cache
from pathlib import Path

import msgspec
import pytest

from suffice.assurance.load_level import Admission
from suffice.control.evidence.versions import read_back
from suffice.serving.deploy import deploy_route
from suffice.serving.route import BuiltRoute
from suffice.store.routes.deployments import read_decided
from suffice.store.rows.events import Event
from suffice.types import Publication, Query
from suffice.wiring.routes import build_route
from suffice.wiring.worker import open_worker
from tests.control.made import CONTROL, ROUTE, Story, began, rows, run, story
from tests.control.test_worker import fill, settings_for

BUDGET = 0.1
FIXED = msgspec.structs.replace(ROUTE, max_em_drop=BUDGET, audit_share=1.0)  # the traffic below is all audits
QUIET = msgspec.structs.replace(CONTROL, refit_requests=5_000)
N_HARMED, N_WELL = 1_100, 900


def class_traffic(n: int, *, harmed: bool, first: int = 0) -> list[Event]:
    """One question in five is about law; if it is harmed, a third of those turn round behind three like samples."""
    rng, events = random.Random(first + 1), list[Event]()
    for number in range(first, first + n):
        law = number % 5 == 0
        request, outcome = run(number, rng, sure=True, query=Query(query_class="law" if law else "easy"))
        if law and harmed and rng.random() < 0.35:
            answers = ["11"] * 3 + ["77"] * 5
            steps = tuple(replace(step, answer=own) for step, own in zip(outcome.steps, answers, strict=True))
            outcome = replace(outcome, steps=steps, answer="77")
        events += [request, outcome]
    return events


@cache
def events() -> list[Event]:
    return [*class_traffic(N_HARMED, harmed=True), *class_traffic(N_WELL, harmed=False, first=N_HARMED)]


@pytest.fixture(scope="module")
def history() -> Story:
    return story(FIXED, control=QUIET).feed(rows(events())).settle()


def held(history: Story) -> list[Publication]:
    return [made for made in history.published if made.classes]


@pytest.mark.slow
def test_the_harmed_class_goes_a_third_of_the_levels_down_and_no_other_does(history: Story) -> None:
    first = held(history)[0]
    assert first.at <= N_HARMED
    assert first.reason.startswith("class law loses more than 20 points: now held back")
    assert first.level > 0, "the pool keeps its certificate"
    assert first.classes == (("law", max(0, first.level - 14)),), "a third of 41 levels"
    assert all({name for name, _ in made.classes} <= {"law"} for made in history.published)
    assert all(own < made.level for made in held(history) for _, own in made.classes)


def test_it_is_let_back_by_fresh_audits_of_its_own(history: Story) -> None:
    back = next(made for made in history.published if made.number > held(history)[0].number and not made.classes)
    assert back.at > N_HARMED, "while it is harmed, nothing proves the opposite"
    assert "class law may stop again" in back.reason


@pytest.mark.slow
def test_a_replay_holds_the_same_classes(history: Story) -> None:
    again = (
        story(FIXED, control=QUIET, expected=history.published, artefacts=history.artefacts)
        .feed(rows(events()))
        .settle()
    )
    assert again.published == []
    assert again.loop.held.publication == history.published[-1]


@pytest.fixture(scope="module")
def active_route(history: Story) -> BuiltRoute:
    """The route as a gateway serves it while a class is held."""
    made = held(history)[0]
    base = replace(build_route("r", FIXED, None), setup=made.setup)
    version = read_back(made.fit, history.artefacts[made.fit]).version
    return deploy_route(base, replace(began(FIXED), publication=made, last=made), version)


def test_a_gateway_serves_the_held_class_at_its_level_and_others_at_theirs(
    history: Story, active_route: BuiltRoute
) -> None:
    made = held(history)[0]
    own = dict(made.classes)["law"]
    for query_class, level in (("law", own), ("easy", made.level), ("", made.level)):
        mine = active_route.for_request("some key", "m", query_class)
        served = mine.placed(Admission(level=made.level, certified=True, reason=""))
        assert served.serving.version == f"{made.fit}@{level}"
        assert served.certified
    slack = active_route.for_request("k", "m", "law").placed(Admission(level=0, certified=True, reason=""))
    assert slack.serving.version == f"{made.fit}@0", "a ceiling, and no floor"


@pytest.mark.slow
def test_what_a_worker_writes_into_a_real_log_holds_the_class(tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    routes = {"r": msgspec.structs.replace(settings.routes["r"], max_em_drop=BUDGET, audit_share=1.0)}
    settings = msgspec.structs.replace(settings, routes=routes, control=QUIET)
    fill(tmp_path, events()[: 2 * N_HARMED])
    with open_worker(settings) as here:
        assert here.once("certify")
    assert [name for name, _ in read_decided(tmp_path / "log.db").of("r").classes] == ["law"]

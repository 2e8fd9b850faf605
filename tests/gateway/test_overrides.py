"""What people hold is what the next request gets, over real sockets; it ends by itself, with no worker anywhere."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from suffice.review.decide import DecisionRows, IncidentForm, OverrideForm
from suffice.review.holds import ActiveOverrides, Override, in_effect
from suffice.serving.deploy import apply_pin
from suffice.settings import Settings
from suffice.store.people.deciding import decide_incident, end_override, kept_question, set_override
from suffice.store.routes.deployments import NOTHING
from suffice.types import Pause, Resumption
from suffice.wiring.worker import open_decisions
from suffice_testing import Samples
from tests.gateway.conftest import Serve
from tests.gateway.served import Served, chat
from tests.gateway.test_log_follower import FOUR, ROUTE, began, decide, drawn, published
from tests.review.test_override import override, publication

UNCERTIFIED = {
    "kind": "samples",
    "samples": 15,
    "wave": 1,
    "scorer": "number",
    "mode": "enforce",
    "audit_share": 0.0,
    "policy": {"policy": "stable-answer", "streak": 3},
    "uncertified": True,
}


def hold(settings: Settings, now_s: float, **wanted: Any) -> Override:
    known: dict[str, Any] = {"reason": "quarter end", "author": "ann", "days": 1.0}
    publication = wanted.pop("publication", None)
    with open_decisions(settings) as writer:
        result = set_override(
            writer, "r", settings.routes["r"], OverrideForm(**(known | wanted)), now_s=now_s, publication=publication
        )
    assert isinstance(result, Override), result
    return result


def end(settings: Settings, now_s: float, number: int) -> None:
    with open_decisions(settings) as writer:
        end_override(writer, "r", settings.routes["r"], number, "over", "ann", now_s=now_s)


@asynccontextmanager
async def followed(g: Served) -> AsyncIterator[None]:
    """Tell the gateway what the block has written, and wait until it has looked; it may have noticed by itself."""
    before = g.gateway.deployment.routes
    yield
    g.gateway.deployment.notify()
    async with asyncio.timeout(30):
        while g.gateway.deployment.routes is before:  # noqa: ASYNC110 - there is no event
            await asyncio.sleep(0.005)


async def held(g: Served, **wanted: Any) -> Override:
    async with followed(g):
        return await asyncio.to_thread(hold, g.gateway.settings, g.gateway.wall_s(), **wanted)


async def test_a_cap_a_pin_and_full_runs_are_what_the_next_request_gets(serve: Serve) -> None:
    async with serve(FOUR, route=ROUTE) as g:
        await decide(g, began(), published(g.gateway.settings, 2))
        assert await drawn(g) == 3
        await held(g, kind="cap", level=1)
        assert await drawn(g) == 5
        assert g.gateway.metrics.value("suffice_overrides", route="r") == 1
        assert g.gateway.metrics.value("suffice_open_incidents", route="r") == 0
        await held(g, kind="observe")
        assert await drawn(g) == 8
        async with followed(g):
            await asyncio.to_thread(end, g.gateway.settings, g.gateway.wall_s(), 2)
        assert await drawn(g) == 5
        async with followed(g):
            await asyncio.to_thread(end, g.gateway.settings, g.gateway.wall_s(), 1)
        assert await drawn(g) == 3
        requests = [item.episode.request for item in await g.episodes(5)]
    assert all(request.certified for request in requests)


async def test_an_override_ends_by_itself(serve: Serve) -> None:
    async with serve(FOUR, route=ROUTE) as g:
        await decide(g, began(), published(g.gateway.settings, 2))
        await held(g, kind="cap", level=1, days=1.0)
        assert await drawn(g) == 5
        now_s = g.gateway.wall_s()
        async with followed(g):
            g.gateway.wall_s = lambda: now_s + 86_401.0
        assert await drawn(g) == 3


async def test_a_class_of_questions_is_held_back_and_the_others_too_until_the_rest_is_proved(serve: Serve) -> None:
    async with serve(FOUR, route=ROUTE) as g:
        await decide(g, began(), published(g.gateway.settings, 2, any_level=1))
        assert await drawn(g) == 3
        await held(g, kind="observe", query_class="choice")
        await g.ask(chat("Which one?\nA) 3\nB) 4"))
        assert len(g.fake.completions) == 3 + 8
        assert await drawn(g) == 5
        mixture = (("choice", (0,)),)
        await decide(g, published(g.gateway.settings, 2, number=2, any_level=1, mixture=mixture))
        assert await drawn(g) == 3


async def test_a_route_with_a_policy_of_its_owners_runs_in_full_while_it_is_held(serve: Serve) -> None:
    async with serve(FOUR, route=UNCERTIFIED) as g:
        assert await drawn(g) == 3
        await held(g, kind="observe", query_class="choice")
        await g.ask(chat("Which one?\nA) 3\nB) 4"))
        assert len(g.fake.completions) == 3 + 8
        route = g.gateway.deployment.route("r")
        assert route is not None
        output = route.for_request("q", "m", "choice").guarantee().sentence
        assert output == "none is needed: no certificate covers this request, which runs in full"
        assert route.for_request("q", "m", "number").guarantee().state == "uncertified"
        assert await drawn(g) == 3
        await held(g, kind="observe")
        assert await drawn(g) == 8


async def test_a_pause_rests_a_route_with_a_policy_of_its_owners_too(serve: Serve) -> None:
    async with serve(FOUR, route=UNCERTIFIED) as g:
        assert await drawn(g) == 3
        await decide(g, Pause(route="r", number=1, cause="person", reason="x", author="ann"))
        assert await drawn(g) == 8
        await decide(g, Resumption(route="r", number=1, reason="x", author="ann"))
        assert await drawn(g) == 3


async def test_a_smaller_budget_runs_in_full_until_something_proves_it(serve: Serve) -> None:
    async with serve(FOUR, route=ROUTE) as g:
        await decide(g, began(), published(g.gateway.settings, 2))
        await held(g, kind="budget", max_em_drop=0.01)
        assert await drawn(g) == 8
        proof = replace(published(g.gateway.settings, 1).evidence, max_em_drop=0.01)
        await decide(g, published(g.gateway.settings, 1, number=2, evidence=proof))
        assert await drawn(g) == 5


async def test_rolling_back_acts_at_the_earlier_level_and_a_new_epoch_voids_it(serve: Serve) -> None:
    async with serve(FOUR, route=ROUTE) as g:
        report = g.gateway.settings
        pause = Pause(route="r", number=1, cause="critical_em", reason="low", author="w")
        await decide(g, began(), published(report, 1), published(report, 2, number=2), pause)
        assert await drawn(g) == 8
        assert g.gateway.metrics.value("suffice_open_incidents", route="r") == 1

        def back() -> None:
            requested = IncidentForm(incident="r:p1", decision="roll_back", reason="seen", author="ann", days=1.0)
            with open_decisions(report) as writer:
                result = decide_incident(
                    writer, report.routes["r"], "r", requested, now_s=g.gateway.wall_s(), publication=1
                )
            assert isinstance(result, DecisionRows), result

        async with followed(g):
            await asyncio.to_thread(back)
        assert await drawn(g) == 5
        await decide(g, began(2), published(report, 2, number=3, epoch=2))
        assert await drawn(g) == 8, "a pin of an ended epoch is void, and void is in full"


async def test_a_kept_question_stands_in_a_row_of_its_own(serve: Serve) -> None:
    async with serve(FOUR, route={**ROUTE, "review": {"keep_text": True, "text_days": 2.0}}) as g:
        await g.ask(chat("what is 2 + 2?"))
        (one,) = await g.episodes(1)
        name, now_s = one.episode.request.episode_id, g.gateway.wall_s()
        assert kept_question(g.database, name, now_s=now_s) == "what is 2 + 2?"
        assert kept_question(g.database, name, now_s=now_s + 2 * 86_400.0) is None


async def test_no_question_is_kept_by_default(serve: Serve) -> None:
    async with serve(Samples(["it is 4"]), route=ROUTE) as g:
        await g.ask(chat("what is 2 + 2?"))
        (one,) = await g.episodes(1)
        assert kept_question(g.database, one.episode.request.episode_id, now_s=0.0) is None
        assert b"what is 2" not in g.database.read_bytes()


def test_a_pin_goes_no_further_than_what_is_certified_today() -> None:
    pin = override(1, "pin", level=5, pinned=publication(number=1, level=5))
    holding = in_effect([pin], 1.0)
    today = publication(number=4, level=3, share=0.2, classes=(("choice", 1),))
    now = replace(NOTHING, publication=today, last=today, n_epochs=2)
    result = apply_pin(now, holding).publication
    assert result is not None
    assert (result.number, result.level, result.share, result.classes) == (1, 3, 0.2, (("choice", 1),))
    other = publication(number=4, level=3, fit="another")
    result = apply_pin(replace(now, publication=other), holding).publication
    assert result is not None
    assert result.level == 5
    for nothing in (replace(today, level=0), None):
        assert apply_pin(replace(now, publication=nothing), holding).level == 0
    assert apply_pin(replace(now, n_epochs=3), holding).level == 0, "of an ended epoch"
    assert apply_pin(now, ActiveOverrides()) is now


@pytest.mark.parametrize(("level", "n"), [(1, 5), (2, 3)])
async def test_a_pin_holds_its_level_wherever_the_load_would_move_it(serve: Serve, level: int, n: int) -> None:
    slack = {"queue": 1_000.0, "operating_point": 0.5, "slack_point": 0.0}
    async with serve(FOUR, route={**ROUTE, "pressure": slack}) as g:
        await decide(g, began(), published(g.gateway.settings, 2))
        assert await drawn(g) == 5, "load leaves it at the safer half"
        await held(g, kind="pin", level=level)
        assert await drawn(g) == n

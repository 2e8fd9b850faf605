"""An owner's policy that is proved is what clients get; without a proof, or with one of something else, full runs."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from suffice.settings import parse_settings
from suffice.store.routes.rollouts import own_version
from suffice.types import Pause, Publication
from suffice.wiring.routes import check_routes
from suffice_testing import FakeRequest, Reply, Samples, cut
from tests.control.test_story import until
from tests.gateway.conftest import Serve
from tests.gateway.served import Served, chat
from tests.gateway.test_arms import beside, work
from tests.gateway.test_log_follower import began, decide, drawn, published

ROUTE: dict[str, Any] = {
    "kind": "samples",
    "samples": 15,
    "wave": 1,
    "scorer": "number",
    "mode": "enforce",
    "audit_share": 0.0,
    "policy": {"policy": "beta", "threshold": 0.9},
}
FOUR = Samples(["it is 4"])
N_DRAWN = 3  # equal answers are enough for a lead that is sure at 0.9


def proof(g: Served, **changes: Any) -> Publication:
    """What the control loop says when it has proved the settings' own policy."""
    address = own_version(g.gateway.settings.routes["r"]).address
    known: dict[str, Any] = {"version": address, "fit": "", "n_levels": 2, **changes}
    return published(g.gateway.settings, known.pop("level", 1), **known)


async def test_full_runs_until_it_is_proved_then_the_policy_and_full_runs_when_its_epoch_ends(serve: Serve) -> None:
    async with serve(FOUR, route=ROUTE) as g:
        assert await drawn(g) == 8
        await decide(g, began(), proof(g))
        assert await drawn(g) == N_DRAWN
        answer = await g.ask(chat(suffice={}))
        assert (answer.report["certified"], answer.report["stopped"]) == (True, True)
        assert g.gateway.metrics.value("suffice_certified_level", route="r") == 1
        await decide(g, began(2))
        assert await drawn(g) == 8
        assert g.gateway.metrics.value("suffice_certified_level", route="r") == 0


async def test_a_proof_that_is_lost_and_a_pause_run_in_full(serve: Serve) -> None:
    async with serve(FOUR, route=ROUTE) as g:
        await decide(g, began(), proof(g))
        await decide(g, proof(g, number=2, level=0, certified=False))
        assert await drawn(g) == 8
        await decide(g, proof(g, number=3))
        assert await drawn(g) == N_DRAWN
        await decide(g, Pause(route="r", number=1, cause="person", reason="x", author="ann"))
        assert await drawn(g) == 8


@pytest.mark.parametrize(
    "change",
    [
        {"version": "pv-000000000000"},
        {"version": ""},
        {"setup": "another"},
        {"certified": False},
        {"upstream": ()},
        {"upstream": (("gpt", "gpt", ""),)},
    ],
    ids=str,
)
async def test_what_was_proved_of_something_else_is_not_acted_on(serve: Serve, change: dict[str, Any]) -> None:
    async with serve(FOUR, route=ROUTE) as g:
        await decide(g, began(), proof(g, **change))
        assert await drawn(g) == 8


async def test_another_model_suspends_the_route(serve: Serve) -> None:
    name = ["m"]

    def says(_: FakeRequest) -> Reply:
        return Reply(answer=cut("it is 4"), extra={"model": name[0]})

    async with serve(says, route=ROUTE) as g:
        await decide(g, began(), proof(g))
        name[0] = "m-2"
        assert await drawn(g) == N_DRAWN, "its answer is the first that anybody sees of it"
        assert await drawn(g) == 8
        assert not g.gateway.deployment.routes[0].certified


async def test_an_alias_that_moves_runs_in_full_and_no_other_name_does(serve: Serve) -> None:
    behind = {"m": "m", "alias": "m"}

    def says(requested: FakeRequest) -> Reply:
        return Reply(answer=cut("it is 4"), extra={"model": behind[requested.body["model"]]})

    async with serve(says, route=ROUTE) as g:
        await decide(g, began(), proof(g, upstream=(("alias", "m", ""), ("m", "m", ""))))
        assert await drawn(g, model="alias") == N_DRAWN
        behind["alias"] = "m-2"
        assert await drawn(g, model="alias") == N_DRAWN, "its answer is the first that anybody sees of it"
        assert await drawn(g, model="alias") == 8
        assert await drawn(g) == N_DRAWN


async def test_an_audit_runs_in_full_whatever_is_proved(serve: Serve) -> None:
    async with serve(FOUR, route=ROUTE | {"audit_share": 1.0}) as g:
        await decide(g, began(), proof(g, share=1.0))
        assert await drawn(g) == 8
        assert (await g.episode()).request.audit


async def test_who_acts_uncertified_needs_no_proof_and_gets_none(serve: Serve) -> None:
    async with serve(FOUR, route=ROUTE | {"uncertified": True}) as g:
        assert await drawn(g) == N_DRAWN
        answer = await g.ask(chat(suffice={}))
        assert (answer.report["certified"], answer.report["stopped"]) == (False, True)


async def test_from_full_runs_to_the_proof_to_stops(serve: Serve) -> None:
    """The whole way on a real log: every run is an audit, the worker proves the policy, the gateway follows."""
    route = {**ROUTE, "max_em_drop": 0.12, "confidence": 0.8}
    del route["audit_share"]
    async with serve(FOUR, route=route) as g:
        settings = beside(g)
        await work(g, settings)
        await until(lambda: g.gateway.deployment.routes[0].in_burst)
        for begin in range(0, 60, 6):
            await asyncio.gather(*(g.ask(chat(f"question {begin + at}?")) for at in range(6)))
        episodes = await g.episodes(60)
        assert all(one.episode.request.audit and not one.episode.outcome.stopped for one in episodes)
        report = await work(g, settings)
        assert "level 1 published" in report
        await until(lambda: g.gateway.deployment.routes[0].certified)
        now = g.gateway.deployment.routes[0]
        assert now.active.publication is not None
        assert now.active.publication.is_owned
        drew = [await drawn(g) for _ in range(12)]
        assert N_DRAWN in drew, "all but audits stop early"
        assert set(drew) <= {N_DRAWN, 8}


def test_its_owner_is_told_what_a_proof_would_lack() -> None:
    settings = parse_settings(
        {
            "upstreams": {"up": {"url": "http://127.0.0.1:1", "driver": "openai"}},
            "routes": {"r": {"upstream": "up", "mode": "enforce", "policy": {"policy": "deer"}}},
        }
    )
    waits, never = [one for one in check_routes(settings) if one.startswith("routes.r")]
    assert "runs in full until its own audits have proved its policy" in waits
    assert "is never certified without a [routes.r.probe] table" in never

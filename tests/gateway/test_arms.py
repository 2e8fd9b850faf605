"""A certified effort or budget is what clients get; without a certificate, or with one of something else, full runs."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any

import msgspec
import pytest

from suffice.settings import Settings, parse_settings
from suffice.types import Pause, Publication
from suffice.wiring.routes import check_routes
from suffice.wiring.worker import open_worker
from suffice_testing import FakeRequest, Reply, cut
from tests.control.test_story import until
from tests.gateway.conftest import Serve
from tests.gateway.served import Served, chat
from tests.gateway.test_log_follower import began, decide, published

VLLM: dict[str, Any] = {"upstream": {"driver": "vllm", "slots": 8}, "fake": {"dialect": "vllm"}}
ROUTE: dict[str, Any] = {
    "mode": "enforce",
    "scorer": "number",
    "probe": {},
    "budget_tokens": 3,
    "audit_share": 0.0,
}
ARM = "budget_tokens=3"


class Model:
    """Thinks for eight words and says what it would have said at once. `name` is what it calls itself."""

    def __init__(self) -> None:
        self.name = "m"

    def __call__(self, seen: FakeRequest) -> Reply:
        number = hashlib.blake2b(seen.text.encode(), digest_size=1).digest()[0]
        return Reply(
            reasoning=cut("let me think of this for some time "),
            answer=cut(f"it is {number}"),
            extra={"model": self.name},
        )


def arm(g: Served, **changes: Any) -> Publication:
    known: dict[str, Any] = {"version": ARM, "fit": "", "n_levels": 2, "arm": ARM}
    known |= changes
    return published(g.gateway.settings, known.pop("level", 1), **known)


async def budget(g: Served, text: str = "a question", **fields: Any) -> int | None:
    """The budget of thought that the upstream was told of for one more request."""
    answer = await g.ask(chat(text, **fields))
    assert answer.status == 200
    await g.quiet()
    requested: int | None = g.fake.completions[-1].body.get("thinking_token_budget")
    return requested


async def test_full_runs_until_it_is_published_then_the_arm_and_full_runs_when_its_epoch_ends(serve: Serve) -> None:
    async with serve(Model(), route=ROUTE, **VLLM) as g:
        assert await budget(g) is None, "not certified: not acted on"
        await decide(g, began(), arm(g))
        assert await budget(g) == 3
        answer = await g.ask(chat(suffice={}))
        assert (answer.report["certified"], answer.report["policy_version"]) == (True, ARM)
        assert f"asked with {ARM}" in answer.report["promise"]
        assert answer.headers["x-suffice-policy-version"] == ARM
        assert g.gateway.metrics.value("suffice_certified_level", route="r") == 1
        await decide(g, began(2))
        assert await budget(g) is None
        assert (await g.ask(chat(suffice={}))).report["certified"] is False
        assert g.gateway.metrics.value("suffice_certified_level", route="r") == 0


async def test_a_level_that_is_taken_back_and_a_pause_run_in_full(serve: Serve) -> None:
    async with serve(Model(), route=ROUTE, **VLLM) as g:
        await decide(g, began(), arm(g))
        await decide(g, arm(g, number=2, level=0, certified=False, version=""))
        assert await budget(g) is None
        await decide(g, arm(g, number=3))
        assert await budget(g) == 3
        await decide(g, Pause(route="r", number=1, cause="person", reason="x", author="ann"))
        assert await budget(g) is None


@pytest.mark.parametrize(
    "change",
    [
        {"arm": "budget_tokens=2"},
        {"arm": "effort=low"},
        {"arm": ""},
        {"setup": "another"},
        {"certified": False},
        {"upstream": (("gpt", "gpt", ""),)},
        {"upstream": ()},
    ],
    ids=str,
)
async def test_what_was_proved_of_something_else_is_not_acted_on(serve: Serve, change: dict[str, Any]) -> None:
    async with serve(Model(), route=ROUTE, **VLLM) as g:
        await decide(g, began(), arm(g, **change))
        assert await budget(g) is None


async def test_the_clients_own_word_stands_and_another_model_suspends_the_route(serve: Serve) -> None:
    model = Model()
    async with serve(model, route=ROUTE, **VLLM) as g:
        await decide(g, began(), arm(g))
        assert await budget(g, thinking_token_budget=6) == 6
        model.name = "m-2"
        assert await budget(g) == 3, "its answer is the first that anybody sees of it"
        assert await budget(g) is None
        assert not g.gateway.deployment.routes[0].certified


async def test_an_audit_runs_in_full_and_asks_again_with_the_arm_and_no_live_run_is_probed(serve: Serve) -> None:
    async with serve(Model(), route=ROUTE | {"audit_share": 1.0}, **VLLM) as g:
        await decide(g, began(), arm(g))
        await g.ask(chat())
        outcome = await g.outcome()
        assert "thinking_token_budget" not in g.fake.completions[0].body
        assert outcome.pair_arm in (ARM, "full")
        assert [call.purpose for call in outcome.calls] == ["main", "probe"], "a second call, and no trial answer"
    async with serve(Model(), route=ROUTE, **VLLM) as g:
        await budget(g)
        live = (await g.episodes(2))[-1].episode
        assert not live.request.audit
        assert [call.purpose for call in live.outcome.calls] == ["main"]


async def test_under_slack_the_load_may_leave_the_arm_out(serve: Serve) -> None:
    pressure = {"queue": 1.0, "operating_point": 0.0}
    async with serve(Model(), route=ROUTE | {"pressure": pressure}, **VLLM) as g:
        await decide(g, began(), arm(g))
        assert await budget(g) is None
        assert (await g.ask(chat(suffice={}))).report["certified"] is False


async def test_from_pairs_to_the_certificate_to_short_thoughts(serve: Serve) -> None:
    """The whole way on a real log: audits are asked twice, the worker proves, the gateway follows."""
    route = ROUTE | {"audit_share": 1.0, "max_em_drop": 0.12, "confidence": 0.8}
    async with serve(Model(), route=route, **VLLM) as g:
        settings = beside(g)
        await work(g, settings)
        for number in range(100):
            assert (await g.ask(chat(f"question {number}?"))).status == 200
            await g.quiet()
        report = await work(g, settings)
        assert report.startswith(f"level 1 published ({ARM}: EM lower by 0.00 points")
        await until(lambda: g.gateway.deployment.routes[0].active.plan is not None)  # the last row of the look
        route_now = g.gateway.deployment.routes[0]
        assert (route_now.certified, route_now.serving.arm) == (True, ARM)
        g.gateway.deployment.routes = (msgspec_replace(route_now, audit_share=0.0),)
        assert await budget(g, "one more?") == 3
        answer = await g.ask(chat("and one?", suffice={}))
        assert answer.report["certified"] is True
        assert answer.usage["completion_tokens"] < 8


def beside(g: Served) -> Settings:
    """The same settings with a quicker control loop."""
    plain = msgspec.to_builtins(g.gateway.settings)
    return parse_settings(plain | {"control": {"tick_requests": 20}})


def msgspec_replace(route: Any, **changes: Any) -> Any:
    """A built route with other settings; its evidence stays what it is."""
    from dataclasses import replace

    return replace(route, settings=msgspec.structs.replace(route.settings, **changes))


async def work(g: Served, settings: Settings) -> str:
    log: Any = g.gateway.log
    await asyncio.to_thread(log.drain)

    def run() -> str:
        with open_worker(settings) as here:
            reports = here.once("certify")
        assert reports is not None
        return reports[0].summary

    output = await asyncio.to_thread(run)
    g.gateway.deployment.notify()
    return output


def test_a_route_whose_arm_can_never_be_proved_is_warned_of() -> None:
    settings = parse_settings(
        {
            "upstreams": {"up": {"url": "http://127.0.0.1:1", "driver": "openai"}},
            "routes": {"r": {"upstream": "up", "effort": "low", "mode": "enforce"}},
        }
    )
    assert any("cannot be proved without a [routes.r.probe] table" in one for one in check_routes(settings))

"""A traffic spike over real sockets: the level follows within seconds and comes back; full runs shed what does not fit.

The control loop is stood in for: the route is told what is certified, and when its brake holds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from suffice.gateway.context import GatewayState
from suffice.gateway.load_control import RouteOperation
from suffice.policy.base import build_policy
from suffice.serving.route import Levels
from suffice.store.routes.deployments import RouteDeployment
from suffice_testing import FakeUpstream, Reply, ServerBehaviour
from suffice_testing.prompt import cut
from tests.gateway.conftest import Serve
from tests.gateway.served import Answer, Served, chat
from tests.gateway.test_log_follower import published

SLOTS = 4
RUN_S = 0.06  # of one sample at the model server: 4 slots finish 67 a second
QUIET_PER_S, SPIKE_PER_S = 3, 15
# All samples agree, so that the threshold alone says how many are drawn: 8, 6 or 4.
LEVELS = tuple(
    build_policy(policy)
    for policy in ({"policy": "never"}, {"policy": "beta", "threshold": 0.99}, {"policy": "beta", "threshold": 0.95})
)
ROUTE: dict[str, Any] = {
    "kind": "samples",
    "samples": 15,
    "scorer": "number",
    "policy": {"policy": "beta"},
    "mode": "enforce",
    "audit_share": 0.0,
}


def certified(gw: GatewayState) -> None:
    """What the control loop does once levels have passed."""
    held = RouteDeployment(publication=published(gw.settings, len(LEVELS) - 1, fit="v", version="v@2"))
    levels = Levels(folds=(LEVELS,), version="v", needs=gw.deployment.routes[0].serving.needs)
    gw.deployment.routes = tuple(replace(route, active=held, serving=levels) for route in gw.deployment.routes)
    operation(gw).certified = len(LEVELS) - 1


def operation(gw: GatewayState) -> RouteOperation:
    return gw.deployment.load.of("r", gw.deployment.routes[0].settings)


def server() -> FakeUpstream:
    return FakeUpstream(Reply(answer=cut("it is 4"), first_delay_s=RUN_S), ServerBehaviour(slots=SLOTS))


async def load(g: Served, per_s: float, until: Callable[[int], bool], within_s: float) -> list[asyncio.Task[Answer]]:
    """Requests at an even rate until something holds, which is told how many there were. Fails when it takes longer."""
    requested: list[asyncio.Task[Answer]] = []
    end_s = asyncio.get_running_loop().time() + within_s
    while not until(len(requested)):
        assert asyncio.get_running_loop().time() < end_s, "it did not come to that in time"
        requested.append(asyncio.create_task(g.ask(chat(f"question {len(requested)}", suffice={}))))
        await asyncio.sleep(1 / per_s)
    return requested


def arrived(requested: list[asyncio.Task[Answer]]) -> list[asyncio.Task[Answer]]:
    """Those of a spike that surely came before the level moved: the last half second's may have been on their way."""
    assert len(requested) > SPIKE_PER_S / 2, "there are some"
    return requested[: -int(SPIKE_PER_S / 2)]


async def scraped(g: Served) -> dict[str, float]:
    """The route's metrics, as Prometheus gets them."""
    async with g.session.get(g.url + "/metrics", headers={"accept-encoding": "identity"}) as reply:
        text = await reply.text()
    lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in lines}


def levels_of(answers: list[Answer]) -> set[str]:
    return {answer.headers["x-suffice-policy-version"].rpartition("@")[2] for answer in answers}


@pytest.mark.slow
async def test_a_fivefold_spike_takes_the_certified_level_within_ten_seconds_and_gives_it_back(serve: Serve) -> None:
    pressure = {"queue": 1.0, "operating_point": 0.5, "hold_s": 2.0}
    async with serve(server(), change=certified, upstream={"slots": SLOTS}, route=ROUTE | {"pressure": pressure}) as g:
        here = operation(g.gateway)
        quiet = await load(g, QUIET_PER_S, lambda n: n == 6, 4)
        assert (await scraped(g))['suffice_operating_level{route="r"}'] == 1
        spike = await load(g, SPIKE_PER_S, lambda n: here.operation.stance == "spike", 10)
        assert "queue" in here.operation.reason
        thrifty = await load(g, SPIKE_PER_S, lambda n: n == 15, 5)
        at_top = await scraped(g)
        assert at_top['suffice_operating_level{route="r"}'] == 2
        assert at_top['suffice_upstream_queue_ratio{upstream="up"}'] > 0.7
        after = await load(g, QUIET_PER_S, lambda n: here.operation.stance == "usual", 20)
        assert levels_of(await asyncio.gather(*quiet, *arrived(spike))) == {"1"}
        assert levels_of(await asyncio.gather(*thrifty)) == {"2"}
        answers = await asyncio.gather(*quiet, *spike, *thrifty, *after)
        assert all(answer.status == 200 and answer.report["certified"] is True for answer in answers)

        last = await scraped(g)
        moves = {name: value for name, value in last.items() if name.startswith("suffice_operating_moves_total{")}
        assert moves == {
            'suffice_operating_moves_total{route="r",stance="spike"}': 1,
            'suffice_operating_moves_total{route="r",stance="usual"}': 1,
        }
        assert last['suffice_operating_level{route="r"}'] == 1
        assert last['suffice_generated_tokens_per_second{route="r"}'] > 0
        assert last['suffice_latency_p95_seconds{route="r"}'] >= RUN_S


async def braked(g: Served) -> RouteOperation:
    """Serve stopped runs for a moment, then let the brake fire while the slots are all taken."""
    here = operation(g.gateway)
    await asyncio.gather(*(g.ask(chat(f"warm {n}")) for n in range(12)))
    ratio = here.ratio(g.gateway.monotonic_s())
    assert ratio == pytest.approx(15 / 4), "four of fifteen samples were drawn"
    here.fall_back(g.gateway.monotonic_s())
    return here


async def crowd(g: Served, n: int) -> list[Answer]:
    """Many at once, and as many again when the gateway has seen how full the slots are."""
    first = asyncio.gather(*(g.ask(chat(f"first {at}", suffice={})) for at in range(n)))
    while (g.gateway.deployment.load.queue("up") or 0) < 1:  # noqa: ASYNC110 - there is no event
        await asyncio.sleep(0.02)
    then = await asyncio.gather(*(g.ask(chat(f"then {at}", suffice={})) for at in range(n)))
    return [*await first, *then]


@pytest.mark.slow
async def test_quality_first_turns_part_of_the_new_requests_away_and_runs_the_rest_in_full(serve: Serve) -> None:
    route = ROUTE | {"fallback_capacity": 1.2, "on_fallback": "quality_first"}
    async with serve(server(), change=certified, upstream={"slots": SLOTS}, route=route) as g:
        here = await braked(g)
        answers = await crowd(g, 40)
        shed = [answer for answer in answers if answer.status == 429]
        taken = [answer for answer in answers if answer.status == 200]
        assert len(shed) >= 10
        assert len(taken) >= 1
        assert len(shed) + len(taken) == len(answers)
        assert {answer.report["steps"] for answer in taken} == {8}, "in full"
        error = shed[0].json["error"]
        assert (error["type"], error["code"], error["param"]) == ("rate_limit_error", "fallback_capacity", None)
        assert all(5 <= int(answer.headers["retry-after"]) <= 15 for answer in shed)
        assert (await scraped(g))['suffice_shed_total{route="r"}'] == len(shed)

        episodes = [one.episode for one in await g.episodes(12 + len(answers))]
        turned = [one for one in episodes if one.outcome.end_reason == "rejected"]
        assert len(turned) == len(shed)
        assert {(e.request.route, e.request.ungoverned, e.outcome.status, e.outcome.calls) for e in turned} == {
            ("r", "shed", 429, ())
        }
        assert not any(e.request.audit for e in turned), "a request that never ran draws no lot"

        here.resume()
        again = await asyncio.gather(*(g.ask(chat(f"again {at}", suffice={})) for at in range(8)))
        assert {answer.status for answer in again} == {200}
        assert {answer.report["steps"] for answer in again} == {4}


@pytest.mark.slow
async def test_availability_first_takes_everybody_at_the_next_safer_level_and_calls_nothing_certified(
    serve: Serve,
) -> None:
    route = ROUTE | {"fallback_capacity": 1.2, "on_fallback": "availability_first"}
    async with serve(server(), change=certified, upstream={"slots": SLOTS}, route=route) as g:
        await braked(g)
        answers = await crowd(g, 12)
        assert {answer.status for answer in answers} == {200}
        assert {(a.report["certified"], a.report["stopped"], a.report["steps"]) for a in answers} == {(False, True, 6)}
        assert levels_of(answers) == {"1"}


async def test_a_failure_of_the_measurement_leaves_the_level_where_it_is_and_is_counted(serve: Serve) -> None:
    def broken(gw: GatewayState) -> None:
        certified(gw)
        gw.upstreams["up"].n_open = None  # type: ignore[assignment]

    async with serve(Reply(answer=cut("it is 4")), change=broken, route=ROUTE) as g:
        async with asyncio.timeout(30):
            while g.failed_open("load") < 2:  # noqa: ASYNC110 - there is no event
                await asyncio.sleep(0.05)
        g.gateway.upstreams["up"].n_open = 0
        assert (await g.ask(chat(suffice={}))).report["steps"] == 4

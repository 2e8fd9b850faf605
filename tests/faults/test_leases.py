"""What is certified acts only while somebody looks: over real sockets, with every way in which looks stay away."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import pytest

from suffice.cli.inspect.route_status import read_statuses
from suffice.gateway.lease import LEAST_S, TOLERANCE_S
from suffice.settings import Control
from suffice.store.database.decisions import Decisions
from suffice.store.database.views import open_reader, read_kinds
from suffice.store.database.watches import Look, write_looks
from suffice.store.people.alerts import AlertLog, Notice, read_alert_log
from suffice.store.rows.events import ReplicaState
from suffice.store.rows.watching import WatchLapse
from suffice.types import BudgetAccount, Publication
from suffice.wiring import replicas, startup
from tests.control.test_story import until
from tests.gateway import test_arms, test_fixed_policy, test_several_efforts
from tests.gateway.conftest import Serve
from tests.gateway.served import Served, chat, post
from tests.gateway.test_arms import VLLM, Model
from tests.gateway.test_log_follower import FOUR, ROUTE, began, decide, drawn, published

RULES = Control(lease_s=60.0, lease_requests=20)
STOPPED, FULL = 3, 8  # samples of a request: a full vote ends when no sample can change it


@dataclass
class Clock:
    """Seconds that pass only when a test says so."""

    s: float = 1_000.0

    def __call__(self) -> float:
        return self.s


async def certified(g: Served, *, rules: Control = RULES, made: Publication | None = None) -> Clock:
    """Publish a level that acts, with the gateway's leases on a clock of the test's."""
    clock = Clock()
    leases = g.gateway.deployment.leases
    leases.monotonic_s, leases.rules = clock, rules
    leases._of.clear()
    await decide(g, began(), made or published(g.gateway.settings, 2))
    return clock


async def look(g: Served, *, problem: str = "", job: str = "certify", at_s: float | None = None) -> None:
    """Note a look as a worker does, and wait until the gateway has read it."""

    def write() -> None:
        with Decisions(g.database, now=lambda: 0.0, monotonic_s=lambda: 0.0) as here, here.transaction() as log:
            looks = [Look(route="r", part="" if job == "certify" else job, problem=problem, seq=1, n=1)]
            write_looks(log, "certify", looks, at_s=g.gateway.wall_s() if at_s is None else at_s)

    leases = g.gateway.deployment.leases
    seen = leases.of("r").watch, leases.failing
    await asyncio.to_thread(write)
    g.gateway.deployment.notify()
    async with asyncio.timeout(30):
        while (leases.of("r").watch, leases.failing) == seen:  # noqa: ASYNC110 - there is no event
            await asyncio.sleep(0.01)


async def report_of(g: Served) -> Any:
    answer = await g.ask(chat("a question", suffice={}))
    assert answer.status == 200
    await g.quiet()
    return answer.report


async def readiness(g: Served) -> tuple[int, Any]:
    async with g.session.get(g.url + "/readyz") as answer:
        return answer.status, await answer.json()


async def rows(g: Served, n: int) -> list[WatchLapse]:
    async with asyncio.timeout(30):
        while True:
            with open_reader(g.database) as log:
                result = [one.event for one in read_kinds(log, "watch_changed")]
            lapses = [one for one in result if isinstance(one, WatchLapse)]
            if len(lapses) >= n:
                return lapses
            await asyncio.sleep(0.05)


def gauge(g: Served, name: str, **labels: str) -> float | None:
    return g.gateway.metrics.registry.get_sample_value(name, labels)


async def test_a_dead_worker_ends_the_lease_and_reply_metric_readiness_and_alert_say_so(serve: Serve) -> None:
    async with serve(FOUR, route=ROUTE) as g:
        clock = await certified(g)
        await look(g)
        assert (await drawn(g), (await report_of(g))["certified"]) == (STOPPED, True)
        clock.s += RULES.lease_s - 0.1
        assert await drawn(g) == STOPPED
        clock.s += 0.1
        assert await drawn(g) == FULL
        output = await report_of(g)
        assert output["certified"] is False
        assert output["promise"].startswith(
            "none is needed: nobody watches the route now, and every request runs in full"
        )
        assert "for 60 s and 3 requests" in output["promise"]
        (row,) = await rows(g, 1)
        assert (row.route, row.lapsed, row.n_requests) == ("r", True, 3)
        assert gauge(g, "suffice_certified_level", route="r") == 0
        g.gateway.deployment.export_gauges()
        assert gauge(g, "suffice_watch_lapsed", route="r") == 1
        assert gauge(g, "suffice_watch_age_seconds", route="r") == 60
        assert gauge(g, "suffice_promise_state", route="r", state="unwatched") == 1
        status, ready = await readiness(g)
        assert (status, ready["unwatched"]) == (200, ["r"])
        with open_reader(g.database) as log:
            (alert,) = read_alert_log(log, AlertLog(repeat_s=3_600.0)).raised
        assert (alert.notice.kind, alert.ended) == ("unwatched", None)


async def test_a_lease_ends_without_any_request_and_heals_with_the_next_look(serve: Serve) -> None:
    async with serve(FOUR, route=ROUTE) as g:
        clock = await certified(g)
        await look(g)
        clock.s += 3_600
        assert [one.lapsed for one in await rows(g, 1)] == [True], "no request came, and the alert is there"
        await look(g)
        assert await drawn(g) == STOPPED
        assert [one.lapsed for one in await rows(g, 2)] == [True, False]
        assert gauge(g, "suffice_certified_level", route="r") == 2
        with open_reader(g.database) as log:
            (alert,) = read_alert_log(log, AlertLog(repeat_s=3_600.0)).raised
        assert alert.ended is not None


async def test_a_busy_route_is_served_as_certified_for_so_many_requests_and_no_more(serve: Serve) -> None:
    async with serve(FOUR, route=ROUTE) as g:
        clock = await certified(g)
        await look(g)
        clock.s += LEAST_S
        counts = [await drawn(g) for _ in range(RULES.lease_requests + 5)]
        assert counts == [STOPPED] * RULES.lease_requests + [FULL] * 5
        await look(g)
        assert await drawn(g) == STOPPED


async def test_gateways_share_the_requests_of_a_lease(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serve(FOUR, route=ROUTE) as g:
        clock = await certified(g)
        state = ReplicaState(gateway="other", number=1, name="east", software="0", secret="s")
        monkeypatch.setattr(replicas, "read_replicas", lambda _: [state] * 4)
        await until(lambda: g.gateway.deployment.leases.n_gateways == 4)
        await look(g)
        clock.s += LEAST_S
        counts = [await drawn(g) for _ in range(8)]
        assert counts == [STOPPED] * 5 + [FULL] * 3


async def test_a_very_busy_route_does_not_flap_between_two_looks(serve: Serve) -> None:
    async with serve(FOUR, route=ROUTE) as g:
        clock = await certified(g, rules=Control(lease_requests=1))
        for _ in range(3):
            await look(g)
            clock.s += LEAST_S - 0.1
            assert [await drawn(g) for _ in range(4)] == [STOPPED] * 4


@pytest.mark.parametrize("problem", ["ValueError", "KeyError", "MemoryError", "StoreError: the disk is full"])
async def test_a_look_that_fails_renews_nothing_and_is_listed_at_once(serve: Serve, problem: str) -> None:
    async with serve(FOUR, route=ROUTE) as g:
        clock = await certified(g)
        await look(g)
        await look(g, problem=problem)
        assert await drawn(g) == STOPPED
        assert (await readiness(g))[1]["failing"] == [f"certify of route r: {problem}"]
        g.gateway.deployment.export_gauges()
        assert gauge(g, "suffice_failing_jobs", task="certify") == 1
        clock.s += 30
        await look(g, problem=problem)
        clock.s += 30
        assert await drawn(g) == FULL
        await look(g)
        assert await drawn(g) == STOPPED
        assert "failing" not in (await readiness(g))[1]
        g.gateway.deployment.export_gauges()
        assert gauge(g, "suffice_failing_jobs", task="certify") == 0


async def test_a_part_that_fails_is_listed_and_ends_no_lease(serve: Serve) -> None:
    async with serve(FOUR, route=ROUTE) as g:
        clock = await certified(g)
        await look(g)
        await look(g, problem="ValueError", job="agent")
        assert (await readiness(g))[1]["failing"] == ["agent of route r: ValueError"]
        clock.s += RULES.lease_s - 1
        await look(g)
        clock.s += RULES.lease_s - 1
        assert await drawn(g) == STOPPED


async def test_a_gateway_that_starts_long_after_the_last_look_serves_in_full(serve: Serve) -> None:
    async with serve(FOUR, route=ROUTE) as g:
        await certified(g)
        await look(g, at_s=g.gateway.wall_s() - RULES.lease_s - TOLERANCE_S - 60)
        assert await drawn(g) == FULL
        assert "before this gateway began" in (await report_of(g))["promise"]
        await look(g)
        assert await drawn(g) == STOPPED


@pytest.mark.parametrize("ahead_s", [-240.0, 240.0, 86_400.0])
async def test_clocks_of_hosts_may_differ(serve: Serve, ahead_s: float) -> None:
    async with serve(FOUR, route=ROUTE) as g:
        clock = await certified(g)
        for _ in range(3):
            await look(g, at_s=g.gateway.wall_s() + ahead_s)
            assert await drawn(g) == STOPPED
            clock.s += RULES.lease_s - 1
        clock.s += 1
        assert await drawn(g) == FULL


async def test_a_log_without_any_look_is_served_for_one_lease(serve: Serve) -> None:
    async with serve(FOUR, route=ROUTE) as g:
        clock = await certified(g)
        assert await drawn(g) == STOPPED
        clock.s += RULES.lease_s
        assert await drawn(g) == FULL
        assert "since this gateway began" in (await report_of(g))["promise"]


async def test_while_the_log_cannot_be_read_leases_stand_still(serve: Serve) -> None:
    async with serve(FOUR, route=ROUTE) as g:
        clock = await certified(g)
        await look(g)
        deployment = g.gateway.deployment
        unread = [True]
        deployment.leases.is_unread = lambda: unread[0]
        deployment.leases.check()
        clock.s += 3_600
        deployment.leases.check()
        assert await drawn(g) == STOPPED, "store.last_good_s says for how long"
        unread[0] = False
        clock.s += RULES.lease_s - 1
        assert await drawn(g) == STOPPED
        clock.s += 1
        assert await drawn(g) == FULL


async def test_a_gateway_takes_back_what_an_earlier_one_reported(serve: Serve) -> None:
    async with serve(FOUR, route=ROUTE) as g:
        await certified(g)
        g.gateway.deployment.leases.know({"r": "an earlier gateway saw no look"})
        await look(g)
        assert await drawn(g) == STOPPED
        assert [one.lapsed for one in await rows(g, 1)] == [False]


async def test_status_says_that_nobody_watches_and_what_fails(serve: Serve) -> None:
    async with serve(FOUR, route=ROUTE) as g:
        clock = await certified(g)
        await look(g)
        assert await drawn(g) == STOPPED
        await g.episodes(1)
        await look(g, problem="ValueError")
        clock.s += RULES.lease_s
        await rows(g, 1)
        (status,) = await asyncio.to_thread(read_statuses, g.database, g.gateway.settings, None)
        assert (status.promise_state, status.promise.partition(":")[0]) == ("unwatched", "none is needed")
        assert "no look at the route was completed for 60 s" in status.promise
        assert status.control is not None
        (failure,) = status.control.failing
        assert failure.startswith("certify of route r has failed once since ")
        assert failure.endswith(": ValueError")


async def test_a_written_policy_that_was_proved_runs_in_full_when_its_lease_ends(serve: Serve) -> None:
    async with serve(FOUR, route=test_fixed_policy.ROUTE) as g:
        clock = await certified(g, made=test_fixed_policy.proof(g))
        assert await drawn(g) == test_fixed_policy.N_DRAWN
        clock.s += RULES.lease_s
        assert await drawn(g) == FULL
        assert (await report_of(g))["certified"] is False


async def test_a_certified_effort_is_not_asked_for_when_its_lease_ends(serve: Serve) -> None:
    async with serve(Model(), route=test_several_efforts.ROUTE, **VLLM) as g:
        clock = await certified(g, made=test_several_efforts.proved(g.gateway.settings, 3))
        assert await test_several_efforts.sent_effort(g) == "low"
        clock.s += RULES.lease_s
        assert await test_several_efforts.sent_effort(g) is None
        assert (await report_of(g))["certified"] is False
        await look(g)
        assert await test_several_efforts.sent_effort(g) == "low"


async def test_a_certified_budget_is_not_asked_for_when_its_lease_ends(serve: Serve) -> None:
    async with serve(Model(), route=test_arms.ROUTE, **VLLM) as g:
        clock = await certified(g, made=test_arms.arm(g))
        assert await test_arms.budget(g) == 3
        clock.s += RULES.lease_s
        assert await test_arms.budget(g) is None
        assert (await report_of(g))["certified"] is False
        await look(g)
        assert await test_arms.budget(g) == 3


async def test_a_route_with_a_promise_on_average_runs_in_full_when_its_lease_ends(serve: Serve) -> None:
    account = BudgetAccount(
        floor=1, affordable=2, n_audits=900, n_waiting=0, em_drop=0.01, max_em_drop=0.02, clipped=0.0
    )
    async with serve(FOUR, route=ROUTE | {"promise": "budgeted"}) as g:
        made = published(g.gateway.settings, 2, certified=False, spending=account)
        clock = await certified(g, made=made)
        assert await drawn(g) == STOPPED
        loop = CallersLoop(g, "a question")
        assert await loop.steps(2) == ("continue", False)
        clock.s += RULES.lease_s
        assert await loop.step() == ("continue", False)
        assert await drawn(g) == FULL
        assert (await report_of(g))["promise"].startswith("none is needed: nobody watches the route now")
        await rows(g, 1)
        assert gauge(g, "suffice_certified_level", route="r") == 0
        await look(g)
        assert await drawn(g) == STOPPED


@dataclass
class CallersLoop:
    """A loop that asks `/v1/decide` after each step; all of its steps have the same answer."""

    g: Served
    question: str
    n: int = 0
    episode_id: str = ""

    async def step(self) -> tuple[Any, Any]:
        self.n += 1
        output = {"episode_id": self.episode_id} if self.episode_id else {"question": self.question, "model": "m"}
        body = {"route": "r", **output, "step": {"index": self.n, "answer": "4", "tokens": 10}}
        answer = await post(self.g.session, self.g.url + "/v1/decide", body, {})
        assert answer.status == 200, answer.raw
        self.episode_id = answer.json["episode_id"]
        return answer.json["action"], answer.json["certified"]

    async def steps(self, n: int) -> tuple[Any, Any]:
        return [await self.step() for _ in range(n)][-1]


async def test_a_callers_loop_is_not_stopped_when_the_lease_has_ended(serve: Serve) -> None:
    async with serve(FOUR, route=ROUTE) as g:
        clock = await certified(g)
        assert await CallersLoop(g, "one").steps(3) == ("stop", True)
        clock.s += RULES.lease_s
        assert await CallersLoop(g, "two").steps(3) == ("continue", False)


async def test_a_callers_loop_that_is_open_when_the_lease_ends_is_not_stopped_until_the_next_look(serve: Serve) -> None:
    async with serve(FOUR, route=ROUTE) as g:
        clock = await certified(g)
        loops = CallersLoop(g, "one"), CallersLoop(g, "two")
        for loop in loops:
            assert await loop.steps(2) == ("continue", True)
        clock.s += RULES.lease_s
        assert await loops[0].step() == ("continue", True), "it began as certified, and nobody watches now"
        await look(g)
        assert await loops[1].step() == ("stop", True)


@pytest.mark.parametrize("worker_notifies", [False, True])
async def test_the_gateway_itself_alerts_people_where_no_worker_does(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, worker_notifies: bool
) -> None:
    sent = list[Notice]()

    class Kept:
        name = "kept"

        def send(self, notice: Notice, *, at_s: float, link: str | None) -> str | None:
            sent.append(notice)
            return None

    monkeypatch.setattr(startup, "sinks_of", lambda _: (Kept(),))
    async with serve(FOUR, route=ROUTE) as g:
        clock = await certified(g)
        await look(g)
        clock.s += RULES.lease_s
        if worker_notifies:
            g.gateway.deployment.leases._jobs["notify"] = 1, clock.s
        await rows(g, 1)
        async with asyncio.timeout(30):
            while not sent and not worker_notifies:  # noqa: ASYNC110 - there is no event
                await asyncio.sleep(0.01)
    assert [one.kind for one in sent] == ([] if worker_notifies else ["unwatched"])
    assert all("no worker looks at r" in one.sentence for one in sent)

"""Two gateways on one log of which one does not see what was decided: for how long, and who can tell."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest

from suffice.errors import StoreError
from suffice.gateway.log_follower import Follower
from suffice.serving.route import BuiltRoute
from suffice.store.database.views import read_episodes
from suffice.types import Episode
from suffice_testing import FakeUpstream
from tests.faults.test_without_log import until
from tests.gateway.conftest import Serve
from tests.gateway.served import Served, chat
from tests.gateway.test_log_follower import FOUR, ROUTE, VERSION, began, decide, published


async def answered(g: Served, upstream: FakeUpstream) -> tuple[str, int]:
    """The version that an answer says it was served by, which is what its row says, too; and its samples."""
    before = len(upstream.completions)
    headers = (await g.ask(chat(f"question {before}"))).headers
    drawn, name = len(upstream.completions) - before, headers["x-suffice-episode-id"]
    async with asyncio.timeout(30):
        while not (rows := [e.request for e in episodes(g) if e.request.episode_id == name]):  # noqa: ASYNC110 - no event
            await asyncio.sleep(0.02)
    assert [row.policy_version for row in rows] == [headers["x-suffice-policy-version"]]
    return rows[0].policy_version, drawn


def episodes(g: Served) -> list[Episode]:
    return [one.episode for one in read_episodes(g.database)]


async def test_a_gateway_that_does_not_see_a_decision_says_what_it_serves_and_serves_it_for_so_long_at_most(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked, look, store = set[int](), Follower.read_changes, {"last_good_s": 4.0}
    old, new = f"{VERSION.address}@2", f"{VERSION.address}@1"

    def seen(follower: Follower) -> Mapping[str, BuiltRoute] | None:
        if id(follower._gw) in blocked:
            raise StoreError("the log: what lies between it and this machine is gone")
        return look(follower)

    monkeypatch.setattr(Follower, "read_changes", seen)
    async with serve(FOUR, route=ROUTE, store=store) as one:
        async with serve(FOUR, route=ROUTE, store=store, upstream={"url": one.fake.url}) as other:
            report = one.gateway.settings
            await decide(one, began(), published(report, 2))
            other.gateway.deployment.notify()
            await until(other, lambda gw: gw.deployment.routes[0].active.level == 2)
            blocked.add(id(other.gateway))
            await decide(one, published(report, 1, number=2))
            assert await answered(one, one.fake) == (new, 5)
            assert await answered(other, one.fake) == (old, 3), "as it was certified when it last saw the log"
            await until(other, lambda gw: gw.deployment.serves == "full", within_s=20.0)
            assert (await answered(other, one.fake))[1] == 8, "after so long nothing of what it knew acts"
            assert other.gateway.metrics.value("suffice_log_unread_seconds") >= 4
            blocked.clear()
            other.gateway.deployment.notify()
            await until(other, lambda gw: not gw.deployment.serves)
            assert await answered(other, one.fake) == (new, 5)

"""The kill switch for every replica of a log: a row, followed within a second; each replica's own file works alone."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from suffice.cli.main import main
from suffice.store.database.views import read_events
from suffice.store.routes.deployments import describe_condition
from suffice.store.rows.events import KillSwitchState
from tests.gateway.conftest import Serve
from tests.gateway.served import Served
from tests.gateway.test_kill import VOTES
from tests.gateway_process import nested_toml

URL = "/v1/admin/kill"


async def changed(g: Served, *, on: bool) -> float:
    began_s = time.monotonic()
    async with asyncio.timeout(20):
        while g.gateway.deployment.kill.on is not on:  # noqa: ASYNC110 - there is no event
            await asyncio.sleep(0.005)
    return time.monotonic() - began_s


async def send(g: Served, method: str, body: Any = None) -> tuple[int, Any]:
    async with g.session.request(method, g.url + URL, json=body) as reply:
        return reply.status, json.loads(await reply.read())


def switch(folder: Path, name: str) -> dict[str, Any]:
    return {"server": {"kill_file": str(folder / f"{name}.kill"), "replica": name}}


async def test_an_order_at_one_replica_is_followed_by_the_others_within_a_second(serve: Serve, tmp_path: Path) -> None:
    async with serve(route=VOTES, **switch(tmp_path, "a")) as one:
        async with serve(route=VOTES, upstream={"url": one.fake.url}, **switch(tmp_path, "b")) as other:
            assert await send(one, "GET") == (200, {"on": False, "reason": None})
            assert await send(one, "POST", {"reason": "odd answers"}) == (
                200,
                {"on": True, "reason": "odd answers (the API)"},
            )
            assert (tmp_path / "a.kill").exists()
            assert await changed(other, on=True) < 1
            assert not (tmp_path / "b.kill").exists(), "its own file is its own"
            assert await send(other, "GET") == (200, {"on": True, "reason": "odd answers (the API)"})
            assert (await send(one, "DELETE"))[1]["on"] is False
            assert await changed(other, on=False) < 1
        rows = [one.event for one in read_events(one.database) if isinstance(one.event, KillSwitchState)]
    assert [row.on for row in rows if row.ordered] == [True, False]


async def test_an_order_holds_for_a_replica_that_starts_later_and_the_command_takes_it_back(
    serve: Serve, tmp_path: Path
) -> None:
    async with serve(route=VOTES, **switch(tmp_path, "a")) as one:
        await send(one, "POST", {"reason": "odd answers"})
        one.gateway.log.drain()
        async with serve(route=VOTES, upstream={"url": one.fake.url}, **switch(tmp_path, "b")) as other:
            assert await changed(other, on=True) < 1
            raw: dict[str, Any] = {"upstreams": {"up": {"url": one.fake.url}}, "routes": {"r": {"upstream": "up"}}}
            raw |= {"store": {"url": f"sqlite:///{one.database}"}, **switch(tmp_path, "a")}
            (tmp_path / "s.toml").write_text(nested_toml(raw))
            command = ["unkill", "--config", str(tmp_path / "s.toml"), "--wait", "0"]
            done = await asyncio.to_thread(CliRunner().invoke, main, command)
            assert done.exit_code == 0, done.output
            assert await changed(one, on=False) < 1
            assert await changed(other, on=False) < 1


async def test_a_replica_without_the_log_is_switched_off_over_its_own_endpoint(serve: Serve, tmp_path: Path) -> None:
    async with serve(route=VOTES, **switch(tmp_path, "a")) as one:
        one.gateway.deployment.log_problem = "the database is down"
        assert (await send(one, "POST", {"reason": "x"}))[1]["on"] is True
        assert (await send(one, "DELETE"))[1]["on"] is False


async def test_a_reason_is_needed(serve: Serve) -> None:
    async with serve(route=VOTES) as one:
        for body in ({"why": "x"}, {"reason": ""}, {"reason": 3}, {"reason": "x" * 501}):
            status, said = await send(one, "POST", body)
            assert (status, said["error"]["param"]) == (400, "reason")
        assert not one.gateway.deployment.kill.on


async def test_status_says_which_replica_serves_what_where_they_differ(serve: Serve, tmp_path: Path) -> None:
    other_policy = {**VOTES, "policy": {"policy": "stable-answer", "streak": 4}}
    async with serve(route=VOTES, **switch(tmp_path, "a")) as one:
        settings = {"server": {"replica": "b"}}  # announced beside the log
        async with serve(route=other_policy, upstream={"url": one.fake.url}, **settings):
            await asyncio.sleep(1.2)
            switches = (tmp_path / "a.kill", one.database.with_suffix(".kill"))
            said = describe_condition(one.database, switches[0], switches, routes=("r",), checks=False)
    skew = next(line for line in said if line.startswith("VERSION SKEW"))
    assert skew.startswith("VERSION SKEW: route r is served in 2 versions: ")
    assert "a: " in skew
    assert "b: " in skew

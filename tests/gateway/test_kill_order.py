"""The kill switch for every replica of a log: a row, followed within a second; each replica's own file works alone."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from suffice.cli.main import main
from suffice.gateway.kill import KillSwitch, set_switch
from suffice.settings import Store
from suffice.store.database.views import read_events
from suffice.store.database.writer import LogWriter
from suffice.store.people.alerts import alerts_of
from suffice.store.routes.deployments import describe_condition, read_kill_order
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


async def test_a_release_at_another_replica_removes_the_file_of_the_order(serve: Serve, tmp_path: Path) -> None:
    async with serve(route=VOTES, **switch(tmp_path, "a")) as one:
        async with serve(route=VOTES, upstream={"url": one.fake.url}, **switch(tmp_path, "b")) as other:
            for reason in ("odd answers", "again"):
                await send(one, "POST", {"reason": reason})
                assert await changed(other, on=True) < 1
                assert await send(other, "DELETE") == (200, {"on": False, "reason": None})
                assert await changed(one, on=False) < 1
                assert not (tmp_path / "a.kill").exists()


async def test_what_a_person_made_stays_after_a_release_and_is_told_everywhere(serve: Serve, tmp_path: Path) -> None:
    async with serve(route=VOTES, **switch(tmp_path, "a")) as one:
        async with serve(route=VOTES, upstream={"url": one.fake.url}, **switch(tmp_path, "b")) as other:
            (tmp_path / "a.kill").write_text("I look into it (ann)\n")
            await changed(one, on=True)
            one.gateway.log.drain()
            await send(other, "POST", {"reason": "odd answers"})
            assert await changed(other, on=True) < 1
            by_hand = [{"gateway": "a", "reason": "I look into it (ann)"}]
            status, reported = await send(other, "DELETE")
            assert (status, reported["on"], reported["by_hand"]) == (200, False, by_hand)
            async with asyncio.timeout(20):
                while (order := one.gateway.deployment.kill.order) is None or order.on:  # noqa: ASYNC110 - no event
                    await asyncio.sleep(0.01)
            status, reported = await send(one, "DELETE")
            assert (status, reported["on"], reported["by_hand"]) == (200, True, by_hand)
            async with one.session.get(f"{one.url}/readyz") as reply:
                assert (await reply.json())["killed_by"] == "file"
            async with one.session.get(f"{one.url}/metrics") as reply:
                assert "suffice_kill_switch_local 1.0" in await reply.text()
            switches = (tmp_path / "a.kill", one.database.with_suffix(".kill"))
            condition = describe_condition(one.database, switches[1], switches, routes=("r",), checks=False)
            assert any(line.startswith("KILLED BY HAND: ") and "(a)" in line for line in condition)
            one.gateway.log.drain()
            report = [
                alerts_of(row.event) for row in read_events(one.database) if isinstance(row.event, KillSwitchState)
            ]
            assert any(one is not None and "pulled at a: still on" in one.sentence for one in report)
            assert (tmp_path / "a.kill").exists()


def test_orders_count_in_the_order_of_the_log_whatever_the_clocks_say(tmp_path: Path) -> None:
    database = tmp_path / "log.db"
    log = LogWriter(Store(url=f"sqlite:///{database}"), now=time.time)
    try:
        for stamp, on in ((500, True), (200, False)):
            log.append(KillSwitchState(on=on, reason="x (ann)", stamp=stamp, ordered=True))
        log.drain()
    finally:
        log.close()
    order, file = read_kill_order(database), tmp_path / "suffice.kill"
    assert order is not None
    set_switch(file, "x", "ann", order=500)
    switch = KillSwitch(file)
    states = [switch.on]
    switch.follow(order)
    states.append(switch.on)
    assert states == [True, False]
    assert not file.exists()
    set_switch(file, "a later one", "ann", order=600)
    later = KillSwitch(file)
    later.order = order
    later.follow(order)
    assert later.on, "an order that is known removes nothing"


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
            command = [
                "unkill",
                "--config",
                str(tmp_path / "s.toml"),
                "--reason",
                "the drill is over",
                "--author",
                "ann",
                "--wait",
                "0",
            ]
            done = await asyncio.to_thread(CliRunner().invoke, main, command)
            assert done.exit_code == 0, done.output
            order = read_kill_order(one.database)
            assert order is not None
            assert (order.on, order.reason) == (False, "the drill is over (ann)")
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
            status, reported = await send(one, "POST", body)
            assert (status, reported["error"]["param"]) == (400, "reason")
        assert not one.gateway.deployment.kill.on


async def test_status_says_which_replica_serves_what_where_they_differ(serve: Serve, tmp_path: Path) -> None:
    other_policy = {**VOTES, "policy": {"policy": "stable-answer", "streak": 4}}
    async with serve(route=VOTES, **switch(tmp_path, "a")) as one:
        settings = {"server": {"replica": "b"}}  # announced beside the log
        async with serve(route=other_policy, upstream={"url": one.fake.url}, **settings):
            await asyncio.sleep(1.2)
            switches = (tmp_path / "a.kill", one.database.with_suffix(".kill"))
            reported = describe_condition(one.database, switches[0], switches, routes=("r",), checks=False)
    skew = next(line for line in reported if line.startswith("VERSION SKEW"))
    assert skew.startswith("VERSION SKEW: route r is served in 2 versions: ")
    assert "a: " in skew
    assert "b: " in skew

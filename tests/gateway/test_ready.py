"""`/readyz` looks at the gateway itself, and at its upstreams only where the settings say so; a metric always does."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import aiohttp
import pytest

from suffice.server import serve_in_loop
from suffice.settings import Settings, parse_settings
from suffice_testing import FakeUpstream, Fault, Reply, ServerBehaviour


def settings(folder: Path, *, needs: bool = True, **urls: str) -> Settings:
    return parse_settings(
        {
            "upstreams": {name: {"url": url, "retries": 0} for name, url in urls.items()},
            "store": {"url": f"sqlite:///{folder}/log.db"},
            "control": {"enabled": False},
            "server": {"ready_needs_upstream": needs},
        }
    )


def nowhere() -> str:
    """An address at which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return f"http://127.0.0.1:{taken.getsockname()[1]}"


async def ready(url: str) -> tuple[int, dict[str, str]]:
    async with aiohttp.ClientSession() as session, session.get(url + "/readyz") as answer:
        return answer.status, await answer.json()


async def test_a_restarting_model_server_takes_no_gateway_out_and_shows_in_the_metrics(tmp_path: Path) -> None:
    assert not Settings().server.ready_needs_upstream
    down = nowhere()
    async with (
        FakeUpstream(Reply()) as fake,
        serve_in_loop(settings(tmp_path, needs=False, one=down, two=fake.url)) as url,
        aiohttp.ClientSession() as session,
    ):
        assert await ready(url) == (200, {"status": "ready"})
        async with session.get(url + "/metrics") as scraped:
            lines = (await scraped.text()).splitlines()
    assert 'suffice_upstream_reachable{upstream="one"} 0.0' in lines
    assert 'suffice_upstream_reachable{upstream="two"} 1.0' in lines
    async with serve_in_loop(settings(tmp_path, needs=False, one=down)) as url:
        assert await ready(url) == (200, {"status": "ready"})


async def test_where_asked_a_gateway_is_not_ready_while_no_upstream_answers(tmp_path: Path) -> None:
    down = nowhere()
    async with serve_in_loop(settings(tmp_path, one=down)) as url:
        assert await ready(url) == (503, {"status": "not ready", "reason": "no upstream answers"})
    async with FakeUpstream(Reply()) as fake, serve_in_loop(settings(tmp_path, one=down, two=fake.url)) as url:
        assert await ready(url) == (200, {"status": "ready"})


@pytest.mark.parametrize("code", [401, 404, 500, 503])
async def test_any_answer_counts(tmp_path: Path, code: int) -> None:
    says = Reply(faults=(Fault(status=code, status_body=b"{}"),))
    async with FakeUpstream(says) as fake, serve_in_loop(settings(tmp_path, up=fake.url)) as url:
        assert (await ready(url))[0] == 200


async def test_whoever_asks_often_makes_no_calls(tmp_path: Path) -> None:
    n_connections = 0

    async def count(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal n_connections
        n_connections += 1
        writer.close()

    async with await asyncio.start_server(count, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with serve_in_loop(settings(tmp_path, up=f"http://127.0.0.1:{port}")) as url:
            answers = await asyncio.gather(*[ready(url) for _ in range(50)])
    assert {code for code, _ in answers} == {503}, "a port that takes connections and answers nothing is no server"
    assert n_connections <= 2


async def test_a_call_that_succeeds_says_enough(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """And one line in the log says that an upstream is down, and one that it answers again, however many calls."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    body = {"model": "m", "messages": [{"role": "user", "content": "?"}]}
    async with (
        serve_in_loop(settings(tmp_path, up=f"http://127.0.0.1:{port}")) as url,
        aiohttp.ClientSession() as session,
    ):
        for _ in range(20):
            async with session.post(url + "/v1/chat/completions", json=body) as answer:
                assert answer.status == 502
                assert str(port) not in await answer.text()
        assert (await ready(url))[0] == 503
        async with FakeUpstream(Reply(), ServerBehaviour(port=port)):
            async with session.post(url + "/v1/chat/completions", json=body) as answer:
                assert answer.status == 200
            assert (await ready(url))[0] == 200
    lines = [one.getMessage() for one in caplog.records if "upstream up" in one.getMessage()]
    assert len(lines) == 2
    assert f"upstream up (127.0.0.1:{port}): a call failed: " in lines[0]
    assert "ConnectionRefusedError" in lines[0]
    assert lines[1] == f"upstream up (127.0.0.1:{port}) is reachable again"

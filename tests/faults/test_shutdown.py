"""F15 and P4: a gateway that is told to end answers what it has begun, tells the rest, and writes all of it down."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from suffice.server import serve_in_loop
from suffice.store.database.views import read_episodes, read_events
from suffice.types import Request
from suffice_testing import FakeRequest, FakeUpstream, Reply
from tests.fake_models import EchoNonce
from tests.gateway.served import CHAT, chat, settings_for
from tests.gateway_process import GatewayProcess

ENDLESS = Reply(reasoning=("so\n",) * 5_000, answer=("4",), delay_s=0.02)
SHORT = Reply(reasoning=("so\n",) * 60, answer=("4",), delay_s=0.02)


def says(seen: FakeRequest) -> Reply:
    return SHORT if "short" in seen.text else ENDLESS


@contextlib.contextmanager
def gateway_process(folder: Path, **server: Any) -> Iterator[GatewayProcess]:
    routes = {
        "off": {"upstream": "up", "mode": "off", "match": {"header": "off"}},
        "votes": {"upstream": "up", "kind": "samples", "samples": 2, "match": {"header": "votes"}},
        "r": {"upstream": "up"},
    }
    with FakeUpstream.in_thread(says) as fake:
        settings = {"server": server, "upstreams": {"up": {"url": fake.url}}, "routes": routes}
        with GatewayProcess.serving(folder, settings) as gateway:
            yield gateway


class Streams:
    """Clients that read streams, and what became of them."""

    def __init__(self, url: str) -> None:
        self._url, self.n_begun = url, 0
        self.tasks: list[asyncio.Task[str]] = []

    async def start(self, session: aiohttp.ClientSession, text: str, n: int) -> None:
        """Start `n` of them, on every kind of route, and wait until each has its first bytes."""
        at = self.n_begun
        for i in range(n):
            headers = {"x-suffice-route": ("off", "r")[i % 2]}
            self.tasks.append(asyncio.create_task(self._read(session, text, headers)))
        async with asyncio.timeout(30):
            while self.n_begun < at + n:  # noqa: ASYNC110 - plainest
                await asyncio.sleep(0.01)

    async def _read(self, session: aiohttp.ClientSession, text: str, headers: dict[str, str]) -> str:
        result = b""
        async with session.post(self._url + CHAT, json=chat(text, stream=True), headers=headers) as response:
            assert response.status == 200
            async for part in response.content.iter_any():
                self.n_begun += not result
                result += part
        return result.decode()


def client() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(60))


def ends_on_disk(database: Path) -> Counter[str]:
    """Ends of all requests; every request has one, and it was not made up at a later start."""
    with contextlib.closing(sqlite3.connect(database)) as connection:
        rows = dict(connection.execute("SELECT kind, count(*) FROM events GROUP BY kind").fetchall())
    assert rows["request"] == rows["outcome"]
    return Counter(e.episode.outcome.end_reason for e in read_episodes(database))


async def refused_soon(url: str) -> float:
    """Seconds until a new connection is refused."""
    start_s = time.monotonic()
    host, _, port = url.removeprefix("http://").partition(":")
    async with asyncio.timeout(30):
        while True:
            try:
                _, writer = await asyncio.open_connection(host, int(port))
            except (ConnectionRefusedError, ConnectionResetError):  # reset: it closed its socket while we connected
                return time.monotonic() - start_s
            writer.close()
            await asyncio.sleep(0.01)


def test_fifty_live_streams_end_or_are_told_and_every_outcome_is_on_disk(tmp_path: Path) -> None:
    with gateway_process(tmp_path, grace_s=4.0) as gateway:

        async def clients() -> list[str]:
            async with client() as session:
                streams = Streams(gateway.url)
                await streams.start(session, "endless", 26)
                await streams.start(session, "short", 24)
                gateway.signal(signal.SIGTERM)
                assert await refused_soon(gateway.url) < 10
                return await asyncio.gather(*streams.tasks)

        result = asyncio.run(clients())
        assert gateway.end() == 0
    for text in result[:26]:
        assert text.count('data: {"error"') == 1
        assert '"code":"shutting_down"' in text
        assert text.endswith("\n\n")
        assert "[DONE]" not in text
    for text in result[26:]:
        assert text.endswith("data: [DONE]\n\n")
    assert ends_on_disk(gateway.database) == {"shutdown": 26, "done": 24}


def n_requests(database: Path) -> int:
    """How many requests are in the log, with an outcome or without."""
    return sum(isinstance(one.event, Request) for one in read_events(database))


def test_bodies_and_votes_are_told_too(tmp_path: Path) -> None:
    with gateway_process(tmp_path, grace_s=0.3) as gateway:

        async def one(session: aiohttp.ClientSession, route: str, *, stream: bool) -> tuple[int, str]:
            request = {"json": chat(stream=stream), "headers": {"x-suffice-route": route}}
            async with session.post(gateway.url + CHAT, **request) as response:  # type: ignore[arg-type]
                try:
                    return response.status, (await response.read()).decode()
                except aiohttp.ClientPayloadError:
                    return response.status, "torn"

        async def clients() -> list[tuple[int, str]]:
            async with client() as session:
                work = [
                    asyncio.create_task(one(session, route, stream=stream))
                    for route, stream in [("off", False), ("r", False), ("votes", False), ("votes", True)]
                ]
                async with asyncio.timeout(60):
                    while n_requests(gateway.database) < len(work):  # noqa: ASYNC110 - another process has no event
                        await asyncio.sleep(0.05)
                gateway.signal(signal.SIGTERM)
                return await asyncio.gather(*work)

        result = asyncio.run(clients())
        assert gateway.end() == 0
    assert [(status, "shutting_down" in text) for status, text in result] == [(503, True)] * 4
    assert ends_on_disk(gateway.database) == {"shutdown": 4}


@pytest.mark.slow(keep=1)
@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_it_at_once_and_all_the_same_in_good_order(tmp_path: Path, first: signal.Signals) -> None:
    with gateway_process(tmp_path, grace_s=60.0) as gateway:

        async def clients() -> tuple[list[str], float]:
            async with client() as session:
                streams = Streams(gateway.url)
                await streams.start(session, "endless", 6)
                gateway.signal(first)
                await refused_soon(gateway.url)
                start_s = time.monotonic()
                gateway.signal(signal.SIGTERM)
                gateway.signal(signal.SIGINT)
                result = await asyncio.gather(*streams.tasks)
                assert gateway.end() == 0
                return result, time.monotonic() - start_s

        result, took_s = asyncio.run(clients())
        assert took_s < 40  # of 60 s of grace
        assert all("shutting_down" in text for text in result)
    assert ends_on_disk(gateway.database) == {"shutdown": 6}


def test_clients_that_do_not_read_hold_nothing_up(tmp_path: Path) -> None:
    with gateway_process(tmp_path, grace_s=0.2) as gateway:
        raw = b'{"model":"m","stream":true,"messages":[{"role":"user","content":"endless"}]}'
        host, _, port = gateway.url.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port))) as deaf:
            head = f"POST {CHAT} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
            deaf.sendall(f"{head}content-length: {len(raw)}\r\n\r\n".encode() + raw)
            deaf.recv(10)
            assert gateway.end(within_s=20) == 0
    assert ends_on_disk(gateway.database) == {"shutdown": 1}


async def test_it_is_not_ready_from_the_first_moment_on(tmp_path: Path) -> None:
    async with FakeUpstream(SHORT) as fake, client() as session:
        async with serve_in_loop(settings_for(fake.url, tmp_path)) as url:
            async with session.get(url + "/readyz") as response:
                assert response.status == 200
            kept = await asyncio.open_connection(*url.removeprefix("http://").split(":"))
            work = asyncio.create_task(Streams(url)._read(session, "short", {}))
            async with asyncio.timeout(60):
                while not fake.completions:  # noqa: ASYNC110 - there is no event
                    await asyncio.sleep(0.005)
            leaving = asyncio.create_task(asks_until_closed(*kept))
            await asyncio.sleep(0.05)
        answers = await leaving
        assert (await work).endswith("[DONE]\n\n")
        assert answers[0].startswith(b"HTTP/1.1 200")
        assert answers[-1].startswith(b"HTTP/1.1 503")
        assert b"connection: close" in answers[-1]
        assert all(b"connection: close" not in answer for answer in answers[:-1])


async def asks_until_closed(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> list[bytes]:
    """The answers to /readyz on one connection, to its end."""
    answers: list[bytes] = []
    while True:
        writer.write(b"GET /readyz HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n")
        answer = b""
        while b"}" not in answer and (data := await reader.read(4096)):
            answer += data
        if not answer:
            writer.close()
            return answers
        answers.append(answer)
        await asyncio.sleep(0.01)


@pytest.mark.slow
async def test_twenty_rolling_restarts_under_load_cost_no_call(tmp_path: Path) -> None:
    """One gateway after the other on one port; clients ask again only when their connection was refused."""
    n_restarts, n_clients = 20, 4
    over = asyncio.Event()
    n_calls = 0
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

    async def ask_on(session: aiohttp.ClientSession, who: int) -> None:
        nonlocal n_calls
        while not over.is_set():
            body = chat(f"nonce=n{who}c{n_calls}x")
            try:
                async with session.post(f"http://127.0.0.1:{port}{CHAT}", json=body) as response:
                    answer = await response.json()
            except aiohttp.ClientConnectorError as refused:
                if not isinstance(refused.os_error, ConnectionRefusedError):
                    raise
                await asyncio.sleep(0.005)
                continue
            assert response.status == 200
            assert answer["choices"][0]["message"]["content"] == f"{body['messages'][0]['content'][6:]} "
            n_calls += 1

    async with FakeUpstream(EchoNonce(n_reasoning=2, n_answer=1, delay_s=0.003)) as fake, client() as session:
        settings = settings_for(fake.url, tmp_path)
        work = [asyncio.create_task(ask_on(session, n)) for n in range(n_clients)]
        for _ in range(n_restarts):
            async with serve_in_loop(settings, port=port):
                before = n_calls
                async with asyncio.timeout(20):
                    while n_calls < before + 10:  # noqa: ASYNC110 - plainest
                        await asyncio.sleep(0.005)
        over.set()
        await asyncio.gather(*work)
    assert n_calls >= n_restarts * 10
    assert ends_on_disk(tmp_path / "log.db") == {"done": n_calls}

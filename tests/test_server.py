"""A gateway that is served inside a running loop hears of its worker's decisions at once, not at its next look."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from suffice import server
from suffice.gateway import log_follower
from suffice.gateway.log_follower import Follower
from suffice.settings import Settings, parse_settings
from suffice_testing import FakeUpstream, Samples
from tests.gateway.test_log_follower import ROUTE, began, published, write


async def test_what_a_worker_beside_it_decides_is_in_force_before_the_next_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_follower, "LOOK_S", 60.0)
    looks, apply = list[object](), Follower.apply

    def count(self: Follower, changes: Any) -> None:
        apply(self, changes)
        looks.append(changes)

    monkeypatch.setattr(Follower, "apply", count)
    tells, waits = list[Callable[[], None]](), list[float]()

    @asynccontextmanager
    async def beside(_: Settings, notify: Callable[[], None], *, first_s: float) -> AsyncIterator[None]:
        tells.append(notify)
        waits.append(first_s)
        yield

    monkeypatch.setattr(server, "run_worker_process", beside)
    async with FakeUpstream(Samples(["it is 4"])) as fake, aiohttp.ClientSession() as session:
        settings = parse_settings(
            {
                "upstreams": {"up": {"url": fake.url, "driver": "llama.cpp"}},
                "routes": {"r": {"upstream": "up", **ROUTE}},
                "store": {"url": f"sqlite:///{tmp_path}/log.db"},
            }
        )

        async def level(url: str) -> float:
            async with session.get(url + "/metrics") as response:
                lines = (await response.text()).splitlines()
            result = [line for line in lines if line.startswith('suffice_certified_level{route="r"}')]
            return float(result[0].rpartition(" ")[2]) if result else 0.0

        async with server.serve_in_loop(settings, worker_after_s=0.25) as url:
            assert waits == [0.25]
            async with asyncio.timeout(30):
                while len(looks) < 2:  # noqa: ASYNC110 - those of its start; the next is a minute away
                    await asyncio.sleep(0.02)
            await asyncio.to_thread(write, settings, began(), published(settings, 2))
            await asyncio.sleep(0.2)
            assert await level(url) == 0, "nobody has told it"
            tells[0]()
            async with asyncio.timeout(30):
                while await level(url) != 2:  # noqa: ASYNC110 - there is no event
                    await asyncio.sleep(0.02)
        async with server.serve_in_loop(settings):
            assert len(waits) == 1, "none unless it is asked for"

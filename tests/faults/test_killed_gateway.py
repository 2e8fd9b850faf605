"""A gateway process is killed with 200 open streaming audits, over HTTP: the certificate is kept."""

from __future__ import annotations

import asyncio
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from suffice.settings import Settings, parse_settings
from suffice.store.database.views import open_reader, read_episodes, read_kinds
from suffice.store.routes.deployments import read_decided
from suffice.types import Publication
from suffice.wiring.worker import open_worker
from suffice_testing import FakeRequest, FakeUpstream, Reply, cut
from tests.gateway.served import chat
from tests.gateway_process import GatewayProcess

BEFORE, OPEN, IN_FLIGHT, LATER = 1_600, 200, 260, 700
ROUTE = {
    "upstream": "up",
    "kind": "samples",
    "samples": 6,
    "wave": 1,
    "scorer": "number",
    "mode": "enforce",
    "max_em_drop": 0.12,
    "confidence": 0.8,
    "audit_share": 1.0,  # the traffic is all audits
    "agent": "off",
}
CONTROL = {"enabled": False, "tick_requests": 20, "burst_requests": 500, "refit_requests": 5_000, "window_audits": 600}


def answer(_: FakeRequest) -> Reply:
    """All samples of a question agree, so that no stop loses."""
    return Reply(answer=cut("it is 4"), extra={"model": "m"}, delay_s=0.05)


def settings_for(folder: Path, url: str) -> dict[str, Any]:
    return {
        "upstreams": {"up": {"url": url, "driver": "llama.cpp", "slots": 2 * IN_FLIGHT}},
        "routes": {"r": ROUTE},
        "store": {"url": f"sqlite:///{folder / 'log.db'}"},
        "control": CONTROL,
    }


def look(settings: Settings) -> None:
    with open_worker(settings) as here:
        assert here.once("certify") is not None


async def ask(url: str, numbers: Iterable[int]) -> Counter[int]:
    """Ask, IN_FLIGHT at once; return how many answers have which status, 0 if the gateway is gone."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=IN_FLIGHT)) as session:

        async def status(number: int) -> int:
            body = chat(f"question {number}?", stream=True)
            try:
                async with session.post(f"{url}/v1/chat/completions", json=body) as answer:
                    await answer.read()
                    return answer.status
            except aiohttp.ClientError:
                return 0

        return Counter(await asyncio.gather(*(status(number) for number in numbers)))


def n_rows(folder: Path) -> Counter[str]:
    with closing(sqlite3.connect(folder / "log.db")) as log:
        return Counter(dict(log.execute("SELECT kind, count(*) FROM events GROUP BY kind")))


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(120):
        while not holds():  # noqa: ASYNC110 - there is no event
            await asyncio.sleep(0.05)


@pytest.mark.slow
async def test_a_gateway_that_is_killed_with_200_open_streaming_audits_keeps_its_certificate(tmp_path: Path) -> None:
    with FakeUpstream.in_thread(answer) as fake:
        raw = settings_for(tmp_path, fake.url)
        settings = parse_settings(raw)
        with GatewayProcess.serving(tmp_path, raw) as gateway:
            look(settings)
            asking = asyncio.create_task(ask(gateway.url, range(10 * BEFORE)))
            await until(lambda: n_rows(tmp_path)["request"] >= BEFORE)
            gateway.process.kill()
            gateway.process.wait()
            counted = n_rows(tmp_path)
            assert (await asking).keys() == {200, 0}
        n_open = counted["request"] - counted["outcome"]
        assert n_open >= OPEN
        look(settings)
        level = read_decided(tmp_path / "log.db").of("r").level
        assert level > 0
        with GatewayProcess.serving(tmp_path, raw) as gateway:
            assert await ask(gateway.url, range(20 * BEFORE, 20 * BEFORE + LATER)) == {200: LATER}
        look(settings)
    ends = Counter(item.episode.outcome.end_reason for item in read_episodes(tmp_path / "log.db"))
    assert ends == {"done": counted["outcome"] + LATER, "lost": n_open}
    with open_reader(tmp_path / "log.db") as log:
        assert read_kinds(log, "alarm_raised") == []
        made = [one.event for one in read_kinds(log, "policy_published")]
    since = [one.level for one in made if isinstance(one, Publication) and one.at > counted["outcome"]]
    assert min([level, *since]) == level, "nothing was lowered when they died, nor afterwards"

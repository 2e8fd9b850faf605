"""Clients of several gateways, and what became of each of their calls and of their feedback."""

from __future__ import annotations

import asyncio
import json
import random
import time
from dataclasses import dataclass, field
from typing import Literal, Self

import aiohttp

from tests.replicas.cluster import Member

ROUTES = ("votes", "stopped", "full")
END = b"data: [DONE]\n\n"
FEEDBACK_TRIES = 6


@dataclass(slots=True)
class Call:
    nonce: str
    route: str
    gateway: str
    began_s: float  # monotonic
    ended_s: float = 0.0
    episode: str | None = None  # as the reply's header names it
    end: Literal["open", "done", "torn", "refused", "failed"] = "open"
    status: int = 0


@dataclass(slots=True)
class History:
    """Everything that clients know."""

    calls: list[Call] = field(default_factory=list)
    acknowledged: list[str] = field(default_factory=list)  # ids of feedback
    n_feedback_failed: int = 0
    feedback: list[tuple[float, int]] = field(default_factory=list)  # monotonic time and status of each attempt

    def ended(self, end: str) -> list[Call]:
        return [call for call in self.calls if call.end == end]


@dataclass
class Load:
    """`async with Load(gateways, n_streams=40) as load:` keeps so many streams open until the block ends.

    always_close  a connection per call, as behind a balancer
    url           ask there instead of a random gateway
    """

    gateways: list[Member]
    n_streams: int
    seed: int = 1
    p_feedback: float = 0.5
    url: str = ""
    history: History = field(default_factory=History)

    async def __aenter__(self) -> Self:
        self._over = asyncio.Event()
        self._rng = random.Random(self.seed)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, force_close=True), timeout=aiohttp.ClientTimeout(600, sock_read=120)
        )
        self._tasks = [asyncio.create_task(self._client(n)) for n in range(self.n_streams)]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._over.set()
        await asyncio.gather(*self._tasks)
        await self._session.close()

    async def _client(self, who: int) -> None:
        n = 0
        while not self._over.is_set():
            n += 1
            gateway = self._rng.choice(self.gateways)
            call = Call(f"nonce{who}x{n}x", self._rng.choice(ROUTES), gateway.name, time.monotonic())
            self.history.calls.append(call)
            await self._ask(call, self.url or gateway.url)
            if call.end == "done" and call.episode and self._rng.random() < self.p_feedback:
                await self._rate(call)
            if call.end != "done":
                await asyncio.sleep(0.1)

    async def _ask(self, call: Call, url: str) -> None:
        body = {
            "model": call.route,
            "stream": True,
            "messages": [{"role": "user", "content": f"how much is {call.nonce}?"}],
        }
        last = b""
        try:
            async with self._session.post(
                f"{url}/v1/chat/completions", json=body, headers={"x-suffice-route": call.route}
            ) as reply:
                call.episode, call.status = reply.headers.get("x-suffice-episode-id"), reply.status
                async for part in reply.content.iter_any():
                    last = (last + part)[-200:]
                whole = reply.status == 200 and last.endswith(END)
                call.end = "done" if whole else "failed" if reply.status != 200 or b'"error"' in last else "torn"
        except aiohttp.ClientConnectorError:
            call.end = "refused"
        except (aiohttp.ClientError, TimeoutError, OSError):
            call.end = "torn"
        call.ended_s = time.monotonic()

    async def _rate(self, call: Call) -> None:
        body = {"feedback_id": f"f-{call.nonce}", "episode_id": call.episode, "rating": 4, "source": "user"}
        for _ in range(FEEDBACK_TRIES):
            url = self.url or self._rng.choice(self.gateways).url
            try:
                async with self._session.post(f"{url}/v1/feedback", json=body) as reply:
                    answer = await reply.read()
                    self.history.feedback.append((time.monotonic(), reply.status))
                    if reply.status == 200 and json.loads(answer).get("accepted") is not False:
                        self.history.acknowledged.append(body["feedback_id"])  # type: ignore[arg-type]
                        return
            except (aiohttp.ClientError, TimeoutError, OSError):
                pass
            await asyncio.sleep(0.2)
        self.history.n_feedback_failed += 1

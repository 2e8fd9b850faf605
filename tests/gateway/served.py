"""A gateway over a real socket in front of a fake upstream, and what tests ask of the two.

The same protocol classes and options as `suffice serve`, without its signal handlers and its slow
clean shutdown, so that a test costs milliseconds. Knows sockets; refuses to know expectations.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from uvicorn.server import ServerState

from suffice import server as product
from suffice.gateway.app import App
from suffice.gateway.context import GatewayState
from suffice.settings import Settings, Store, parse_settings
from suffice.store.database.location import local_path, log_location
from suffice.store.database.log import EventLog
from suffice.store.database.views import EpisodeWithLabels, read_episodes
from suffice.types import Episode, Outcome
from suffice.wiring.gateway import build_gateway
from suffice_testing import Answerer, FakeUpstream, Reply, Script, ServerBehaviour

CHAT = "/v1/chat/completions"


@dataclass(slots=True)
class Answer:
    """One HTTP answer, as raw as it came."""

    status: int
    headers: Mapping[str, str]
    raw: bytes
    torn: bool = False  # the connection broke inside the body

    @property
    def json(self) -> Any:
        return json.loads(self.raw)

    @property
    def chunks(self) -> list[Any]:
        """The parsed data of every frame but `[DONE]`."""
        return [json.loads(data) for data in self.data if data != "[DONE]"]

    @property
    def data(self) -> list[str]:
        """The data lines, in order. Raises when the stream holds half a frame."""
        text = self.raw.decode("utf-8-sig").replace("\r\n", "\n")
        assert not text or text.endswith("\n\n"), f"a torn frame at the end: {text[-80:]!r}"
        return [line[5:].strip() for line in text.split("\n") if line.startswith("data:")]

    @property
    def done(self) -> bool:
        return bool(self.data) and self.data[-1] == "[DONE]"

    @property
    def text(self) -> str:
        """The answer's content, of a body or of a stream."""
        return self._joined("content")

    @property
    def thought(self) -> str:
        return self._joined("reasoning_content")

    def _joined(self, key: str) -> str:
        if "event-stream" in self.headers.get("content-type", ""):
            deltas = [choice.get("delta") or {} for chunk in self.chunks for choice in chunk.get("choices") or ()]
            return "".join(delta.get(key) or "" for delta in deltas)
        return self.json["choices"][0]["message"].get(key) or ""

    @property
    def usage(self) -> Any:
        if "event-stream" in self.headers.get("content-type", ""):
            return next((c["usage"] for c in reversed(self.chunks) if c.get("usage")), None)
        return self.json.get("usage")

    @property
    def finish(self) -> str | None:
        if "event-stream" in self.headers.get("content-type", ""):
            reasons = [c.get("finish_reason") for chunk in self.chunks for c in chunk.get("choices") or ()]
            return next((r for r in reasons if r), None)
        reason: str | None = self.json["choices"][0]["finish_reason"]
        return reason

    @property
    def report(self) -> Any:
        """The object `suffice`, wherever it stands; None: it was not sent."""
        if "event-stream" in self.headers.get("content-type", ""):
            return next((c["suffice"] for c in self.chunks if "suffice" in c), None)
        return self.json.get("suffice")

    @property
    def errors(self) -> list[Any]:
        return [c["error"] for c in self.chunks if "error" in c]


@dataclass(slots=True)
class Served:
    """A running gateway, its upstream and its log."""

    url: str
    fake: FakeUpstream
    gateway: GatewayState
    database: Any  # a path; on a server what `log_location` says
    session: aiohttp.ClientSession
    n_base_tasks: int = 0
    direct_headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    async def ask(
        self, body: Mapping[str, Any] | bytes, *, headers: Mapping[str, str] | None = None, url: str | None = None
    ) -> Answer:
        """One chat request, through the gateway or to another base address."""
        return await post(self.session, (url or self.url) + CHAT, body, headers or {})

    async def direct(self, body: Mapping[str, Any] | bytes) -> Answer:
        """The same, straight to the upstream."""
        return await self.ask(body, url=self.fake.url)

    async def episodes(self, n: int, *, within_s: float = 30.0) -> list[EpisodeWithLabels]:
        """All `n` episodes, once that many are on disk; fails when there are more or fewer."""
        result: list[EpisodeWithLabels] = []
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                while len(result) < n:
                    await asyncio.sleep(0.02)
                    result = list(read_episodes(self.database))
        await asyncio.sleep(0.03)
        result = list(read_episodes(self.database))
        assert len(result) == n, f"{len(result)} episodes on disk, {n} requests"
        assert len({e.episode.request.episode_id for e in result}) == n
        return result

    async def episode(self) -> Episode:
        """The only episode."""
        return (await self.episodes(1))[0].episode

    async def outcome(self) -> Outcome:
        """The only outcome."""
        return (await self.episode()).outcome

    def failed_open(self, site: str) -> float:
        """How often Suffice failed at this place and went on."""
        return self.gateway.metrics.value("suffice_failopen_total", site=site)

    async def quiet(self) -> None:
        """Wait until nothing runs any more, here and upstream."""
        await self.fake.idle()
        async with asyncio.timeout(30):
            while self.gateway.metrics.value("suffice_live_requests") > 0:  # noqa: ASYNC110 - there is no event
                await asyncio.sleep(0.005)

    @property
    def good_file(self) -> Path:
        """Its last-good file."""
        path = local_path(self.gateway.settings.store)
        return path.with_name(f"{path.name}.good")

    async def kept(self, *words: str) -> Path:
        """The last-good file, once it is there and has these words. It is written after a change is in force."""
        file = self.good_file
        async with asyncio.timeout(30):
            while not file.exists() or not all(one in file.read_text("utf-8") for one in words):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        return file


async def post(
    session: aiohttp.ClientSession, url: str, body: Mapping[str, Any] | bytes, headers: Mapping[str, str]
) -> Answer:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    sent = {"content-type": "application/json", **headers}
    async with session.post(url, data=raw, headers=sent, allow_redirects=False) as response:
        parts, torn = bytearray(), False
        try:
            async for part in response.content.iter_any():
                parts += part
        except aiohttp.ClientPayloadError:
            torn = True
        return Answer(response.status, {k.lower(): v for k, v in response.headers.items()}, bytes(parts), torn)


def chat(text: str = "How much is 2 + 2?", **fields: Any) -> dict[str, Any]:
    """A chat request's body."""
    return {"model": "m", "messages": [{"role": "user", "content": text}], **fields}


def settings_for(fake_url: str, tmp_path: Path, **changes: Any) -> Settings:
    """Settings with one upstream `up` and one route `r`; nested tables are merged over the defaults."""
    raw: dict[str, Any] = {
        "server": {"retry_window_s": 0.0},  # tests ask the same question again, and mean a new request
        "upstreams": {"up": {"url": fake_url, "driver": "llama.cpp"}},
        "routes": {"r": {"upstream": "up"}},
        "store": {"url": f"sqlite:///{tmp_path}/log.db", "flush_ms": 5},
    }
    raw["server"] |= changes.pop("server", {})
    raw["upstreams"]["up"] |= changes.pop("upstream", {})
    raw["store"] |= changes.pop("store", {})
    raw |= {"keys": changes.pop("keys")} if "keys" in changes else {}
    raw["routes"] = changes.pop("routes", None) or {"r": raw["routes"]["r"] | changes.pop("route", {})}
    assert not changes, changes
    return parse_settings(raw)


@contextlib.asynccontextmanager
async def served(
    tmp_path: Path,
    says: Reply | Script | Answerer | FakeUpstream | None = None,
    *,
    change: Callable[[GatewayState], None] | None = None,
    log: EventLog | None = None,
    fake: Mapping[str, Any] | None = None,
    on: Store | None = None,
    **changes: Any,
) -> AsyncIterator[Served]:
    """Serve a gateway in this loop.

    says     what the fake upstream says, or a fake that is made already
    change   may replace parts of the gateway before it serves: how faults are put into it
    fake     options of the fake upstream
    on       where the log is; None: a file in the folder
    changes  `server`, `upstream`, `route` or `routes`: tables merged into the settings
    """
    upstream = says if isinstance(says, FakeUpstream) else FakeUpstream(says, ServerBehaviour(**(fake or {})))
    async with upstream:
        if on is not None:
            place = {"url": on.url, "schema_name": on.schema_name, "local_files": str(tmp_path / "log")}
            changes["store"] = place | changes.get("store", {})
        settings = settings_for(upstream.url, tmp_path, **changes)
        async with build_gateway(settings, log=log) as app:
            if change is not None:
                change(app.gateway)
            async with (
                _listening(app, settings) as url,
                aiohttp.ClientSession(
                    auto_decompress=False,
                    skip_auto_headers=("Accept-Encoding", "User-Agent"),
                    connector=aiohttp.TCPConnector(limit=0),
                ) as session,
            ):
                yield Served(url, upstream, app.gateway, log_location(settings.store), session)


@contextlib.asynccontextmanager
async def _listening(app: App, settings: Settings) -> AsyncIterator[str]:
    config = product._config(app, settings)
    config.load()
    state = ServerState()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: config.http_protocol_class(config=config, server_state=state, app_state={}),  # type: ignore[call-arg]
        host="127.0.0.1",
        port=0,
    )
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for connection in list(state.connections):
            connection.shutdown()
        if state.tasks:
            await asyncio.wait(set(state.tasks), timeout=1.0)
        for task in list(state.tasks):
            task.cancel()
        await asyncio.gather(*state.tasks, return_exceptions=True)
        for connection in list(state.connections):
            transport = getattr(connection, "transport", None)
            if transport is not None:
                transport.abort()
        await asyncio.sleep(0)

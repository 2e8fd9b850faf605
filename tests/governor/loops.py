"""Loops and settings for these rooms, and what tests ask of a log. Knows no expectation."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from suffice.governor import AsyncEpisode, Episode, Governor
from suffice.server import serve_in_loop
from suffice.settings import Settings, parse_settings
from suffice.store.database.views import EpisodeWithLabels, read_episodes
from suffice.types import Decision, Outcome

ROUTE = "loop"
STABLE = {"policy": "stable-answer", "streak": 2}


def settings(folder: Path, **route: Any) -> Settings:
    """One route of kind rounds; it acts and has no audits, unless `route` says otherwise."""
    table: dict[str, Any] = {
        "kind": "rounds",
        "scorer": "text",
        "policy": STABLE,
        "mode": "enforce",
        "uncertified": True,
        "audit_share": 0.0,
        "upstream": "up",
    }
    server = {"retry_window_s": 0.0} | route.pop("server", {})
    return parse_settings(
        {
            "server": server,  # tests ask the same question again, and mean a new run
            "upstreams": {"up": {"url": "http://127.0.0.1:9"}},
            "routes": {ROUTE: table | route},
            "store": {"url": f"sqlite:///{folder}/log.db", "flush_ms": 1},
        }
    )


def local(folder: Path, **route: Any) -> Governor:
    """A governor in this process."""
    return Governor.open(settings(folder, **route), route=ROUTE)


def episodes(folder: Path, n: int) -> list[EpisodeWithLabels]:
    """All episodes of a closed log; fails when there are not exactly `n`, each with one outcome."""
    result = list(read_episodes(folder / "log.db"))
    assert len({e.episode.outcome.episode_id for e in result}) == len(result) == n
    return result


def outcome(folder: Path) -> Outcome:
    """The only one."""
    return episodes(folder, 1)[0].episode.outcome


def drive(ep: Episode, answers: Sequence[str | None], **step: Any) -> list[Decision]:
    """A loop that leaves when it is told to, else at its end."""
    decisions = []
    for answer in answers:
        decisions.append(ep.step(answer=answer, tokens=10, **step))
        if decisions[-1].stop:
            break
    return decisions


async def adrive(ep: AsyncEpisode, answers: Sequence[str | None]) -> list[Decision]:
    """The same, awaited."""
    decisions = []
    for answer in answers:
        decisions.append(await ep.step(answer=answer, tokens=10))
        if decisions[-1].stop:
            break
    return decisions


@dataclass(slots=True)
class Server:
    """A running server, and the way to end it."""

    url: str = ""
    loop: asyncio.AbstractEventLoop | None = None
    stop: asyncio.Event = field(default_factory=asyncio.Event)


@contextlib.contextmanager
def served(where: Settings) -> Iterator[str]:
    """`suffice serve` in a thread, on a real socket; its base URL."""
    server, ready = Server(), threading.Event()

    async def host() -> None:
        server.loop, server.stop = asyncio.get_running_loop(), asyncio.Event()
        async with _serving(where) as server.url:
            ready.set()
            await server.stop.wait()

    thread = threading.Thread(target=lambda: asyncio.run(host()), daemon=True)
    thread.start()
    assert ready.wait(20)
    assert server.loop is not None
    try:
        yield server.url
    finally:
        server.loop.call_soon_threadsafe(server.stop.set)
        thread.join(20)
        assert not thread.is_alive()


@contextlib.asynccontextmanager
async def _serving(where: Settings) -> AsyncIterator[str]:
    async with serve_in_loop(where) as url:
        yield url


class Broken:
    """A policy that raises."""

    name = "never"
    needs: tuple[str, ...] = ()

    def decide(self, _signals: object) -> Decision:
        """Raise."""
        raise ZeroDivisionError

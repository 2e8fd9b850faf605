"""The first page live: read once for all who watch, sent only when something has changed, ended with the gateway."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from suffice.console.context import MOST_WATCHERS, Live


@dataclass
class World:
    """What there is to see, and how often somebody looked."""

    mark: int = 0
    n_looks: int = 0
    n_parts: int = 0
    ends: bool = False
    fails: bool = False
    windows: list[str] = field(default_factory=list)

    async def look(self, window: str) -> object:
        self.n_looks += 1
        if self.fails:
            raise OSError
        return self.mark

    async def part(self, window: str) -> bytes:
        self.n_parts += 1
        self.windows.append(window)
        return f"<p>\n{self.mark}</p>".encode()

    def live(self) -> Live:
        return Live(look=self.look, part=self.part, every_s=0.02, closing=lambda: self.ends)


async def told(stream: AsyncIterator[bytes]) -> bytes:
    async with asyncio.timeout(30):
        return await anext(stream)


async def test_who_watches_is_told_what_changed_and_it_is_read_once_for_all() -> None:
    world = World()
    live = world.live()
    watchers = [live.watch("30", lambda: True) for _ in range(3)]
    assert [await told(one) for one in watchers] == [b"retry: 5000\n\n"] * 3
    waiting = [asyncio.create_task(told(one)) for one in watchers]
    while world.n_looks < 3:  # noqa: ASYNC110 - a count tells nobody
        await asyncio.sleep(0.01)
    assert world.n_parts == 0, "nothing has changed"
    world.mark = 7
    assert [await one for one in waiting] == [b"event: overview\ndata: <p>\ndata: 7</p>\n\n"] * 3
    assert world.n_parts == 1
    for one in watchers:
        await one.aclose()  # type: ignore[attr-defined]
    await asyncio.sleep(0.1)
    looked = world.n_looks
    await asyncio.sleep(0.1)
    assert world.n_looks == looked, "nobody watches, nothing is read"


async def test_watching_ends_with_the_gateway_and_with_the_session() -> None:
    world, holds = World(), True
    stream = world.live().watch("7", lambda: holds)
    await told(stream)
    waits = asyncio.create_task(anext(stream, b"the end"))
    await asyncio.sleep(0.05)
    world.ends = True
    async with asyncio.timeout(30):
        assert await waits == b"the end"
    assert [part async for part in World().live().watch("7", lambda: False)] == [b"retry: 5000\n\n"]


async def test_a_look_that_fails_leaves_the_page_as_it_is_and_the_next_one_is_told() -> None:
    world = World()
    stream = world.live().watch("1", lambda: True)
    await told(stream)
    waits = asyncio.create_task(told(stream))
    while not world.n_looks:  # noqa: ASYNC110 - as above
        await asyncio.sleep(0.01)
    world.fails = True
    await asyncio.sleep(0.1)
    assert not waits.done()
    world.fails, world.mark = False, 3
    assert b"data: 3</p>" in await waits
    await stream.aclose()  # type: ignore[attr-defined]


async def test_only_so_many_watch_at_once() -> None:
    live = World().live()
    streams = [live.watch("1", lambda: True) for _ in range(MOST_WATCHERS)]
    for one in streams:
        await told(one)
    assert live.is_full
    for one in streams:
        await one.aclose()  # type: ignore[attr-defined]
    assert not live.is_full

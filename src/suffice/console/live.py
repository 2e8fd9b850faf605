"""The first page while somebody watches: read once for all who do, and sent only when something has changed.

    every few seconds ──▶ mark of the log's sums and decisions ──▶ changed? ──▶ one page part ──▶ everybody

Nobody watches, nothing is read. A browser that does not take what it is sent gets the latest only.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

from suffice.telemetry import LOG

MOST_WATCHERS: Final = 50
CLOSING_S: Final = 0.5  # how soon watchers are told that the gateway ends
PING: Final = b": here\n\n"
PING_S: Final = 15.0


class Live:
    """Everybody who watches.

    look      a mark of what is to be seen in a window; another mark: something has changed
    part      the part of the page for a window
    every_s   between two looks
    closing   is the gateway ending?
    """

    def __init__(
        self,
        *,
        look: Callable[[str], Awaitable[object]],
        part: Callable[[str], Awaitable[bytes]],
        every_s: float,
        closing: Callable[[], bool],
    ) -> None:
        self._look, self._part, self._every_s, self._closing = look, part, every_s, closing
        self._watchers: dict[asyncio.Queue[bytes | None], str] = {}
        self._marks: dict[str, object] = {}
        self._task: asyncio.Task[None] | None = None

    @property
    def is_full(self) -> bool:
        return len(self._watchers) >= MOST_WATCHERS

    async def watch(self, window: str, holds: Callable[[], bool]) -> AsyncIterator[bytes]:
        """Events for one watcher, until the gateway ends or they may look no more.

        holds  may they still look?
        """
        queue: asyncio.Queue[bytes | None] = asyncio.Queue(maxsize=1)
        self._watchers[queue] = window
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())
        try:
            yield b"retry: 5000\n\n"
            while holds():
                try:
                    async with asyncio.timeout(PING_S):
                        event = await queue.get()
                except TimeoutError:
                    yield PING
                    continue
                if event is None:
                    return
                yield event
        finally:
            self._watchers.pop(queue, None)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        next_s = loop.time() + self._every_s
        while self._watchers:
            await asyncio.sleep(min(CLOSING_S, self._every_s))
            if self._closing():
                for queue in list(self._watchers):
                    _put(queue, None)
                return
            if loop.time() >= next_s:
                await self._tell()
                next_s = loop.time() + self._every_s
        self._marks.clear()

    async def _tell(self) -> None:
        for window in sorted(set(self._watchers.values())):
            try:
                mark = await self._look(window)
                if self._marks.get(window) == mark:
                    continue
                known = window in self._marks
                self._marks[window] = mark
                if not known:
                    continue  # the page that began to watch has just shown this
                event = _event(await self._part(window))
            except Exception as error:  # noqa: BLE001 - the page that is shown stays as it is
                LOG.warning("console: the first page could not be told what is new (%s)", type(error).__name__)
                continue
            for queue, wanted in list(self._watchers.items()):
                if wanted == window:
                    _put(queue, event)


def _put(queue: asyncio.Queue[bytes | None], event: bytes | None) -> None:
    with contextlib.suppress(asyncio.QueueEmpty):
        queue.get_nowait()
    queue.put_nowait(event)


def _event(part: bytes) -> bytes:
    lines = b"".join(b"data: " + line + b"\n" for line in part.splitlines() if line.strip())
    return b"event: overview\n" + lines + b"\n"

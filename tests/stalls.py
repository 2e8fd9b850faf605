"""How long a test's event loop was held up, so that a bound on time is one on our code and not on the machine."""

from __future__ import annotations

import asyncio
import contextlib
import time
from types import TracebackType
from typing import Self

TICK_S = 0.01
LATE_S = 0.1  # less is the work of the loop itself


class StallMeter:
    """Measures, while it is entered, how much later than asked for the loop went on.

    total_s  the sum of all delays above 0.1 s, in seconds; a bound of 1 s becomes `1 + meter.total_s`
    """

    def __init__(self) -> None:
        self.total_s = 0.0
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._tick())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._task is not None
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    async def _tick(self) -> None:
        while True:
            began_s = time.monotonic()
            await asyncio.sleep(TICK_S)
            late_s = time.monotonic() - began_s - TICK_S
            if late_s > LATE_S:
                self.total_s += late_s

"""A gateway at rest rests: whoever serves one stream a day does not pay for looking around ten times a second."""

from __future__ import annotations

import asyncio
import selectors
import time
from pathlib import Path

import pytest

from suffice.server import serve_in_loop
from suffice_testing import FakeUpstream, Reply
from tests.gateway.served import settings_for

AT_REST_S = 3.0
# It looks for the kill switch, load, decisions and clients that do not read, at two moments a second; on a busy machine
# timers that fall together come one after the other. Without their grid it was 26.
WAKE_UPS_A_S = 5
NAP_S = 0.001


class Counting(selectors.DefaultSelector):
    """Counts how often the event loop has slept."""

    n = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """One more, unless it returned at once: then there was something to do."""
        began_s = time.monotonic()
        ready = super().select(timeout)
        self.n += time.monotonic() - began_s > NAP_S
        return ready


@pytest.mark.slow
def test_a_gateway_that_nobody_asks_wakes_up_a_few_times_a_second(tmp_path: Path) -> None:
    naps = Counting()

    async def rest() -> float:
        async with FakeUpstream(Reply()) as fake, serve_in_loop(settings_for(fake.url, tmp_path)):
            await asyncio.sleep(1)
            before, began_s = naps.n, time.monotonic()
            await asyncio.sleep(AT_REST_S)
            return (naps.n - before) / (time.monotonic() - began_s)

    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(naps)) as runner:
        a_second = runner.run(rest())
    assert a_second <= WAKE_UPS_A_S

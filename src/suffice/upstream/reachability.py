"""Whether a model server answers: learnt from every call, asked only when nobody has called lately."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final

from suffice.telemetry import LOG

KNOWN_S: Final = 5.0  # how long an answer or a failure is believed; readiness asks the server no more often
LOG_EVERY_S: Final = 30.0  # between two lines in the log about the same server


class Reachability:
    """What is known of one server. Any HTTP answer, an error's too, counts as reachable.

    address  host and port, for the log; clients are never told
    """

    def __init__(self, name: str, address: str, monotonic_s: Callable[[], float]) -> None:
        self._name, self._address, self._now_s = name, address, monotonic_s
        self._answers: bool | None = None  # None: nobody has called it yet
        self._answered_s = self._probed_s = self._logged_s = float("-inf")
        self._n_unlogged = 0  # failures since the last line in the log
        self._outage_logged = False
        self._probing: asyncio.Task[None] | None = None

    def note_answer(self) -> None:
        """It answered."""
        self._answers, self._answered_s = True, self._now_s()
        if self._outage_logged:
            self._outage_logged = False
            LOG.warning("upstream %s (%s) answers again", self._name, self._address)

    def note_failure(self, reason: str) -> None:
        """A call came to nothing: log it, at most once in `LOG_EVERY_S`."""
        self._answers, now_s = False, self._now_s()
        self._n_unlogged += 1
        if now_s - self._logged_s < LOG_EVERY_S:
            return
        n = self._n_unlogged
        failed = "a call failed" if n == 1 else f"{n} calls failed since the last such line, the latest so"
        LOG.warning("upstream %s (%s): %s: %s", self._name, self._address, failed, reason)
        self._logged_s, self._n_unlogged, self._outage_logged = now_s, 0, True

    async def known(self, probe: Callable[[], Coroutine[Any, Any, None]]) -> bool:
        """Does it answer? Where no call says so, `probe` finds out: one at a time, and one in `KNOWN_S`."""
        now_s = self._now_s()
        if self._answers and now_s - self._answered_s < KNOWN_S:
            return True
        if self._probing is None or (self._probing.done() and now_s - self._probed_s >= KNOWN_S):
            self._probing, self._probed_s = asyncio.create_task(probe()), now_s
        await asyncio.shield(self._probing)
        return self._answers is not False

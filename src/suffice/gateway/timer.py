"""What a gateway looks at again and again, by a timer of its event loop; a look that fails leaves all as it is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from suffice.telemetry import LOG, Metrics


@contextmanager
def watched(look: Callable[[], None], metrics: Metrics, *, site: str, every_s: float) -> Iterator[None]:
    """A block in which something is looked at every `every_s` seconds, in the running event loop.

    site  under which a look that fails is counted
    """
    loop = asyncio.get_running_loop()
    timer: asyncio.TimerHandle

    def look_again() -> None:
        nonlocal timer
        timer = loop.call_later(every_s, look_again)
        try:
            look()
        except Exception as error:  # noqa: BLE001 - everything stays where it is
            LOG.error("%s: a look failed (%s)", site, type(error).__name__)
            metrics.inc("suffice_failopen_total", site)

    timer = loop.call_later(every_s, look_again)
    try:
        yield
    finally:
        timer.cancel()

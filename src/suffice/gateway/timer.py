"""What a process looks at again and again, by a timer of its event loop; a look that fails leaves all as it is.

Looks fall on one grid of the loop's clock, whoever asks for them: a process at rest wakes up once for all of them. To
wake up costs it more than what it then does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from suffice.telemetry import LOG, Metrics


@contextmanager
def run_periodically(look: Callable[[], None], metrics: Metrics, *, site: str, every_s: float) -> Iterator[None]:
    """A block in which something is looked at every `every_s` seconds, in the running event loop.

    site  under which a look that fails is counted
    """
    loop = asyncio.get_running_loop()
    timer: asyncio.TimerHandle

    def look_again() -> None:
        nonlocal timer
        timer = loop.call_later(_until_next_s(loop.time(), every_s), look_again)
        try:
            look()
        except Exception as error:  # noqa: BLE001 - everything stays where it is
            LOG.error("%s: a look failed (%s)", site, type(error).__name__)
            metrics.inc("suffice_failopen_total", site)

    timer = loop.call_later(_until_next_s(loop.time(), every_s), look_again)
    try:
        yield
    finally:
        timer.cancel()


def _until_next_s(now_s: float, every_s: float) -> float:
    """Seconds to the next multiple of `every_s`; a timer that came a little early is not set for the same one again."""
    left_s = every_s - now_s % every_s
    return left_s if left_s > every_s / 10 else left_s + every_s

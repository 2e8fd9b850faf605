"""A server that lives in an event loop of its own, in a thread, for tests that are synchronous."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager


@contextlib.contextmanager
def threaded(serve: Callable[[], AbstractAsyncContextManager[str]]) -> Iterator[str]:
    """What `serve()` gives when it is entered: an address."""
    ready, addresses = threading.Event(), list[str]()
    loop, stop = asyncio.new_event_loop(), asyncio.Event()

    async def host() -> None:
        async with serve() as address:
            addresses.append(address)
            ready.set()
            await stop.wait()

    def work() -> None:
        loop.run_until_complete(host())
        loop.close()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield addresses[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        assert not thread.is_alive()

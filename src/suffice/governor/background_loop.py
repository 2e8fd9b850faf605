"""An asynchronous helper for loops that are not: it lives in an event loop of its own, in a thread beside them.

Knows threads and refuses to know what the helper does.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Any, TypeVar

T = TypeVar("T")


class Beside:
    """Opens a helper in a thread of its own and waits there for what it does; usable from any thread."""

    def __init__(self, helper: AbstractAsyncContextManager[object]) -> None:
        self._loop, self._stack = asyncio.new_event_loop(), AsyncExitStack()
        self._thread = threading.Thread(target=self._loop.run_forever, name="suffice-beside", daemon=True)
        self._thread.start()
        self.wait(self._stack.enter_async_context(helper))

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        """Do this in the helper's loop and return what it gives; raises what it raises."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def close(self) -> None:
        """Close the helper and end its thread; closing it again does nothing."""
        if self._loop.is_closed():
            return
        self.wait(self._stack.aclose())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

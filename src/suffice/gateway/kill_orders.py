"""Watches the log for orders about the kill switch, apart from everything else that a gateway reads from it.

The log's follower reads the same orders with the rest, where this thread fails.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from typing import Final

from suffice.errors import StoreError
from suffice.gateway.context import GatewayState
from suffice.store.database.protocol import Database
from suffice.store.routes.deployments import read_kill_order
from suffice.store.rows.events import KillSwitchState
from suffice.telemetry import LOG

RETRY_S: Final = 2.0  # while the log cannot be read


@contextlib.contextmanager
def watch_orders(gw: GatewayState, database: Database) -> Iterator[None]:
    """Apply orders of the log to the kill switch, in this loop, while the block runs."""
    loop, is_over = asyncio.get_running_loop(), threading.Event()

    def apply(order: KillSwitchState) -> None:
        gw.deployment.kill.follow(order)
        gw.deployment.check_kill()

    def work() -> None:
        while not is_over.is_set():
            try:
                for order in _orders(database, is_over):
                    with contextlib.suppress(RuntimeError):  # the loop has ended
                        loop.call_soon_threadsafe(apply, order)
            except Exception as error:  # noqa: BLE001 - the follower reads them, too
                if not isinstance(error, StoreError):  # which the follower reports
                    LOG.error("kill switch: orders cannot be watched (%s)", type(error).__name__)
            is_over.wait(RETRY_S)

    thread = threading.Thread(target=work, name="suffice-orders", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()


def _orders(database: Database, is_over: threading.Event) -> Iterator[KillSwitchState]:
    """Yield each newest order of the log. Raise StoreError."""
    latest = None
    for log in database.watch(is_over):
        order = read_kill_order(log)
        if order is not None and order != latest:
            latest = order
            yield order

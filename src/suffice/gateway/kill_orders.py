"""Watches the log for orders about the kill switch, apart from everything else that a gateway reads from it.

PostgreSQL notifies; a file is looked at five times a second. A pooler in transaction mode swallows notifications, so a
server is asked twice a second, too. The log's follower reads the same orders with the rest, where this thread fails.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Final

from suffice.errors import StoreError
from suffice.gateway.context import GatewayState
from suffice.store.database.location import LogDatabase
from suffice.store.database.postgres import CHANNEL, PostgresDatabase
from suffice.store.database.sqlite import SqliteDatabase
from suffice.store.routes.deployments import read_kill_order
from suffice.store.rows.events import KillSwitchState
from suffice.telemetry import LOG

FILE_LOOK_S: Final = 0.2
SERVER_LOOK_S: Final = 0.5  # without a notification
RETRY_S: Final = 2.0  # while the log cannot be read


@contextlib.contextmanager
def watch_orders(gw: GatewayState, database: LogDatabase) -> Iterator[None]:
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


def _orders(database: LogDatabase, is_over: threading.Event) -> Iterator[KillSwitchState]:
    """Yield each newest order of the log. Raise StoreError."""
    if isinstance(database, PostgresDatabase):
        looks = _looks_at_server(database, is_over)
    else:
        looks = _looks_at_file(database, is_over)
    latest = None
    for order in looks:
        if order is not None and order != latest:
            latest = order
            yield order


def _looks_at_file(database: SqliteDatabase, is_over: threading.Event) -> Iterator[KillSwitchState | None]:
    written = None
    while not is_over.is_set():
        now_s = time.time()
        if not database.is_unchanged(written, now_s=now_s):
            with database.reader() as connection:
                written = database.find_last_write(connection, now_s=now_s)
                order = read_kill_order(connection)
            yield order
        is_over.wait(FILE_LOOK_S)


def _looks_at_server(database: PostgresDatabase, is_over: threading.Event) -> Iterator[KillSwitchState | None]:
    with database.listener(CHANNEL) as connection:
        while not is_over.is_set():
            with connection:
                order = read_kill_order(connection)
            yield order
            connection.wait_for_notice(SERVER_LOOK_S)

"""Keeps the replicas of one log in view: takes over the requests of dead ones, and shows which versions they serve."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from suffice.errors import StoreError
from suffice.gateway.context import GatewayState
from suffice.rollout.assign import keyed
from suffice.settings import Settings
from suffice.store.database.presence import read_presences, version_skew
from suffice.store.database.writer import LogWriter
from suffice.telemetry import LOG

LOOK_S: Final = 5.0  # between two looks at the other replicas


def replica_name(settings: Settings) -> str:
    return settings.server.replica or f"{socket.gethostname()}:{os.getpid()}"


def announced_as(settings: Settings, secret: str) -> dict[str, Any]:
    """Return the fields of this process's `Presence` that do not change."""
    return {
        "replica": replica_name(settings),
        "software": version("suffice"),
        "secret": keyed("", salt=secret, purpose=b"fingerprint", n_bytes=4).hex(),
    }


@asynccontextmanager
async def watch_replicas(gw: GatewayState, log: LogWriter, switches: tuple[Path, ...]) -> AsyncIterator[None]:
    async def watch() -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            await asyncio.to_thread(look)

    def look() -> None:
        try:
            if n_lost := log.recover():
                LOG.warning("store: %d requests of gateways that have died are recorded as lost", n_lost)
        except StoreError as error:
            LOG.warning("%s", error)
        processes = read_presences(switches)
        skew = version_skew(processes)
        gw.metrics.set("suffice_replicas", sum(one.process == "serve" for one in processes))
        for route in gw.deployment.routes:
            gw.metrics.set("suffice_version_skew", len(skew.get(route.name, "x")) - 1, route.name)

    task = asyncio.create_task(watch())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

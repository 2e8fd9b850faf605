"""Watches the replicas of one log: records the versions that they serve, and the requests of dead ones as lost."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from importlib.metadata import version
from typing import Final

from suffice.errors import StoreError
from suffice.gateway.context import GatewayState
from suffice.rollout.assign import keyed
from suffice.settings import Settings
from suffice.store.database.writer import LogWriter
from suffice.store.routes.replicas import read_replicas, version_skew
from suffice.store.rows.events import ReplicaState
from suffice.telemetry import LOG

LOOK_S: Final = 5.0  # between two looks at the other replicas


def replica_name(settings: Settings) -> str:
    return settings.server.replica or f"{socket.gethostname()}:{os.getpid()}"


class ReplicaWatch:
    def __init__(self, gw: GatewayState, log: LogWriter) -> None:
        self._gw, self._log = gw, log
        self._state = ReplicaState(
            gateway=secrets.token_hex(6),
            number=0,
            name=replica_name(gw.settings),
            software=version("suffice"),
            secret=keyed("", salt=gw.salt, purpose=b"fingerprint", n_bytes=4).hex(),
        )

    def look(self) -> None:
        """Record what this gateway serves if that has changed, and compare it with the others. May run in a thread."""
        gw = self._gw
        versions = {route.name: route.policy_version for route in gw.deployment.routes}
        if versions != self._state.versions or not self._state.number:
            self._state = replace(self._state, number=self._state.number + 1, versions=versions)
            self._log.append(self._state)
        try:
            if n_lost := self._log.recover():
                LOG.warning("store: %d requests of gateways that have died are recorded as lost", n_lost)
            replicas = read_replicas(self._log.path)
        except StoreError as error:
            LOG.warning("%s", error)
            return
        skew = version_skew(replicas)
        gw.metrics.set("suffice_replicas", len(replicas))
        for name in versions:
            gw.metrics.set("suffice_version_skew", max(0, len(skew.get(name, ())) - 1), name)


@asynccontextmanager
async def watch_replicas(gw: GatewayState, log: LogWriter) -> AsyncIterator[None]:
    watch = ReplicaWatch(gw, log)

    async def work() -> None:
        while True:
            await asyncio.to_thread(watch.look)
            await asyncio.sleep(LOOK_S)

    task = asyncio.create_task(work())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

"""Watches the replicas of one log: the versions that they serve, the requests of dead ones, what their keys use."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from importlib.metadata import version
from typing import Final

import msgspec

from suffice.errors import StoreError
from suffice.gateway.clients import RESERVED_S, KeyLimits, KeyTraffic, reserve
from suffice.gateway.context import GatewayState
from suffice.rollout.assign import keyed
from suffice.settings import Key
from suffice.store.database.presence import replica_name
from suffice.store.database.views import usage_of_others
from suffice.store.database.writer import LogWriter
from suffice.store.routes.deployments import read_replicas, version_skew
from suffice.store.rows.events import KeyUsage, ReplicaState
from suffice.telemetry import LOG

LOOK_S: Final = 5.0  # between two looks at the other replicas
SHARE_S: Final = 1.0  # between two exchanges of what keys use
TRAFFIC: Final = "traffic/"  # prefix of the notes with it


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
        versions = {route.name: route.serving.version for route in gw.deployment.routes}
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
        gw.deployment.leases.n_gateways = max(1, len(replicas))
        for name in versions:
            gw.metrics.set("suffice_version_skew", max(0, len(skew.get(name, ())) - 1), name)


class LimitExchange:
    """Lets the limits of keys count over all gateways of a log. `exchange` runs in a thread, the rest in the loop.

    spent_to  place in the log up to which what keys have spent is counted
    """

    def __init__(self, limits: KeyLimits, log: LogWriter, spent_to: int, monotonic_s: Callable[[], float]) -> None:
        self._limits = limits
        self._log = log
        self._spent_to = spent_to
        self._monotonic_s = monotonic_s
        self._id = secrets.token_hex(6)

    async def share(self) -> None:
        """Count what keys spent at other gateways, and reserve a part of their limits. Raise StoreError."""
        limits, now_s = self._limits, self._monotonic_s()
        own, permits = limits.traffic(now_s=now_s), dict(limits.permits)
        spent, reserved, n_gateways = await asyncio.to_thread(self.exchange, own, permits)
        limits.restore(spent)
        limits.hold(reserved, n_gateways=n_gateways, now_s=now_s)

    def exchange(
        self, own: Mapping[str, KeyTraffic], permits: Mapping[str, Key]
    ) -> tuple[list[KeyUsage], Mapping[str, KeyTraffic], int]:
        spent, self._spent_to = usage_of_others(self._log.path, self._spent_to, owner=self._log.owner)
        reserved, n_gateways = own, 1

        def answer(notes: list[str]) -> str:
            nonlocal reserved, n_gateways
            others = [msgspec.json.decode(note, type=dict[str, KeyTraffic]) for note in notes]
            reserved, n_gateways = reserve(own, others, permits), 1 + len(others)
            return msgspec.json.encode(reserved).decode()

        if (notes := self._log.database.notes) is not None:
            notes.exchange(TRAFFIC, self._id, answer, lasts_s=RESERVED_S)
        return spent, reserved, n_gateways


@asynccontextmanager
async def share_limits(gw: GatewayState, log: LogWriter, spent_to: int) -> AsyncIterator[None]:
    exchange = LimitExchange(gw.clients.limits, log, spent_to, gw.monotonic_s)

    async def share() -> None:
        try:
            if gw.clients.limits.permits:
                await exchange.share()
        except (StoreError, msgspec.DecodeError) as error:
            gw.metrics.inc("suffice_failopen_total", "limits")
            LOG.warning("limits of keys are not shared with the other gateways: %s", error)

    async def work() -> None:
        while True:
            await asyncio.sleep(SHARE_S)
            await share()

    await share()
    async with _beside(work()):
        yield


@asynccontextmanager
async def watch_replicas(gw: GatewayState, log: LogWriter) -> AsyncIterator[None]:
    watch = ReplicaWatch(gw, log)

    async def work() -> None:
        while True:
            await asyncio.to_thread(watch.look)
            await asyncio.sleep(LOOK_S)

    async with _beside(work()):
        yield


@asynccontextmanager
async def _beside(work: Coroutine[None, None, None]) -> AsyncIterator[None]:
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

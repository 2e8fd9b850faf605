"""Runs a worker in a child process of the gateway, and restarts it when it dies.

A fit uses a core for seconds; in another process, at low priority, it delays no request. The child reads the settings
from its standard input and exits when that closes, so it ends with the gateway. It writes a line after each decision.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.util import find_spec
from typing import Final

import msgspec

from suffice.settings import Settings
from suffice.telemetry import LOG

FIRST_S: Final = 5.0  # before the first start: a new gateway has nothing to decide
RESTART_S: Final = (1.0, 60.0)  # before a restart, doubling; reset after a child that lived longer than the longest
END_S: Final = 5.0  # for a child to exit by itself
_ENTRY: Final = "from suffice.cli.server.worker_main import main; main()"


@asynccontextmanager
async def run_worker_process(
    settings: Settings, notify: Callable[[], None], *, first_s: float = FIRST_S
) -> AsyncIterator[Callable[[Settings], None]]:
    """Run a worker beside the block, if needed; `notify` is called in this loop after each of its decisions.

    Yields a function that replaces the worker by one with other settings.
    """
    wanted, changed = [settings], asyncio.Event()

    def restart(settings: Settings) -> None:
        wanted[0] = settings
        changed.set()

    task = asyncio.create_task(_run_wanted(wanted, changed, notify, first_s))
    try:
        yield restart
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _run_wanted(
    wanted: list[Settings], changed: asyncio.Event, notify: Callable[[], None], first_s: float
) -> None:
    """Run a worker with the settings that are wanted, one worker at a time."""
    while True:
        changed.clear()
        worker = asyncio.create_task(_supervise(wanted[0], notify, first_s)) if _needs_worker(wanted[0]) else None
        try:
            await changed.wait()
        finally:
            if worker is not None:
                worker.cancel()
                await asyncio.gather(worker, return_exceptions=True)
        first_s = 0.0


def _needs_worker(settings: Settings) -> bool:
    learned = any(route.certifies_itself for route in settings.routes.values())
    learned = learned and find_spec("sklearn") is not None
    return settings.control.enabled and (learned or settings.has_upkeep)


async def _supervise(settings: Settings, notify: Callable[[], None], first_s: float) -> None:
    loop, pause_s = asyncio.get_running_loop(), RESTART_S[0]
    await asyncio.sleep(first_s)
    while True:
        began_s = loop.time()
        try:
            status = await _run(settings, notify)
        except OSError as error:
            status = -1
            LOG.error("control: the worker could not be started (%s)", error.strerror or error)
        pause_s = RESTART_S[0] if loop.time() - began_s > RESTART_S[1] else min(RESTART_S[1], 2 * pause_s)
        LOG.error("control: the worker ended (status %d); started again in %.0f s", status, pause_s)
        await asyncio.sleep(pause_s)


async def _run(settings: Settings, notify: Callable[[], None]) -> int:
    paths = os.pathsep.join(path for path in sys.path if path)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _ENTRY, stdin=PIPE, stdout=PIPE, env={**os.environ, "PYTHONPATH": paths}
    )
    try:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(msgspec.json.encode(settings) + b"\n")
        with contextlib.suppress(ConnectionError):  # it has exited already; its status says why
            await process.stdin.drain()
        while await process.stdout.readline():
            notify()
        return await process.wait()
    finally:
        await asyncio.shield(_end(process))


async def _end(process: Process) -> None:
    if process.stdin is not None:
        process.stdin.close()
    try:
        async with asyncio.timeout(END_S):
            await process.wait()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()

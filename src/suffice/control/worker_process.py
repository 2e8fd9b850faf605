"""Runs workers in child processes of the gateway or of `suffice worker`, and restarts each when it dies.

A fit uses a core for seconds; in another process, at low priority, it delays no request. The jobs that watch what acts
have a process of their own, so that no look waits behind another job. A child reads the settings from its standard
input and exits when that closes, so it ends with its parent. It writes a line after each decision.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from importlib.util import find_spec
from typing import Final, Literal, TypeAlias

import msgspec

from suffice.settings import Settings
from suffice.telemetry import LOG

FIRST_S: Final = 5.0  # before the first start: a new gateway has nothing to decide
RESTART_S: Final = (1.0, 60.0)  # before a restart, doubling; reset after a child that lived longer than the longest
END_S: Final = 5.0  # for a child to exit by itself
_ENTRY: Final = "from suffice.cli.server.worker_main import main; main()"
Part: TypeAlias = Literal["watch", "chores"]  # of the jobs: those that watch what acts, and all others


@asynccontextmanager
async def run_worker_process(
    settings: Settings, notify: Callable[[], None], *, first_s: float = FIRST_S
) -> AsyncIterator[Callable[[Settings], None]]:
    """Run workers beside the block, if needed; `notify` is called in this loop after each of their decisions.

    Yields a function that replaces the workers by others with other settings.
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
    """Run workers with the settings that are wanted, one of each part at a time."""
    while True:
        changed.clear()
        supervised = [_supervise(wanted[0], notify, first_s, part) for part in _needed_parts(wanted[0])]
        workers = [asyncio.create_task(one) for one in supervised]
        try:
            await changed.wait()
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
        first_s = 0.0


def _needed_parts(settings: Settings) -> tuple[Part, ...]:
    if not settings.control.enabled:
        return ()
    routes = settings.routes.values()
    certifies = any(one.certifies_itself for one in routes) and find_spec("sklearn") is not None
    if certifies or any(one.critical_em is not None for one in routes):
        return "watch", "chores"
    return ("chores",) if settings.has_upkeep else ()


@contextlib.contextmanager
def run_in_thread(settings: Settings, part: Part, *, prints: str) -> Iterator[None]:
    """Supervise a worker process from a thread beside the block, in a process without an event loop.

    prints  how it prints what it decided: "text" or "json"
    """
    loop = asyncio.new_event_loop()
    task = loop.create_task(_supervise(settings, lambda: None, 0.0, part, prints))

    def run() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            loop.run_until_complete(task)

    thread = threading.Thread(target=run, name=f"suffice-{part}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        loop.call_soon_threadsafe(task.cancel)
        thread.join()
        loop.close()


async def _supervise(
    settings: Settings, notify: Callable[[], None], first_s: float, part: Part, prints: str = ""
) -> None:
    loop, pause_s = asyncio.get_running_loop(), RESTART_S[0]
    await asyncio.sleep(first_s)
    while True:
        began_s = loop.time()
        try:
            status = await _run(settings, notify, part, prints)
        except OSError as error:
            status = -1
            LOG.error("control: the worker (%s) could not be started (%s)", part, error.strerror or error)
        pause_s = RESTART_S[0] if loop.time() - began_s > RESTART_S[1] else min(RESTART_S[1], 2 * pause_s)
        LOG.error("control: the worker (%s) ended (status %d); started again in %.0f s", part, status, pause_s)
        await asyncio.sleep(pause_s)


async def _run(settings: Settings, notify: Callable[[], None], part: Part, prints: str) -> int:
    paths = os.pathsep.join(path for path in sys.path if path)
    command = sys.executable, "-c", _ENTRY, part, *([prints] if prints else [])
    process = await asyncio.create_subprocess_exec(
        *command, stdin=PIPE, stdout=None if prints else PIPE, env={**os.environ, "PYTHONPATH": paths}
    )
    try:
        assert process.stdin is not None
        process.stdin.write(msgspec.json.encode(settings) + b"\n")
        with contextlib.suppress(ConnectionError):  # it has exited already; its status says why
            await process.stdin.drain()
        while process.stdout is not None and await process.stdout.readline():
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

"""Judges loops in this process, with a log of its own: the same runs and the same rows as the server's.

Many threads at once: a run has a lock, and what runs share (lots, counts, what a route learns) has one.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Any, TypeVar

from suffice.episode.probe import SITE
from suffice.episode.rounds import RoundsRun, StepReport
from suffice.errors import ConfigError, StoreError
from suffice.gateway import lifecycle, rounds_service
from suffice.gateway.context import GatewayState
from suffice.gateway.feedback_form import id_conflict, seal_feedback
from suffice.gateway.rounds_service import RunStart
from suffice.governor.episode import LabelReceipt, RunInfo
from suffice.settings import Metric, Settings
from suffice.store.database.log import LateLog, Receipt
from suffice.store.database.sqlite import SqliteLog
from suffice.store.rows.records import FeedbackEvent
from suffice.types import Decision, EndReason, Feedback
from suffice.wiring import build_library, embedders

T = TypeVar("T")


class BackgroundLoop:
    """Opens a helper in a thread of its own and waits there for what it does; usable from any thread."""

    def __init__(self, helper: AbstractAsyncContextManager[object]) -> None:
        self._loop, self._stack = asyncio.new_event_loop(), AsyncExitStack()
        self._thread = threading.Thread(target=self._loop.run_forever, name="suffice-background", daemon=True)
        self._thread.start()
        self.wait(self._stack.enter_async_context(helper))

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def close(self) -> None:
        """Close the helper and end its thread; closing it again does nothing."""
        if self._loop.is_closed():
            return
        self.wait(self._stack.aclose())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class LocalRun:
    def __init__(
        self, run: RoundsRun, close: Callable[[RoundsRun, EndReason], None], embedder: BackgroundLoop | None
    ) -> None:
        self._run, self._close, self._embedder = run, close, embedder
        self._lock = threading.Lock()
        request = run.ledger.request
        self.info = RunInfo(
            id=run.id,
            mode=request.mode,
            policy_version=request.policy_version,
            certified=request.certified,
            feedback_token=run.ledger.disclosure.feedback_token,
        )

    @property
    def degraded(self) -> tuple[str, ...]:
        return tuple(self._run.ledger.degraded)

    @property
    def return_step(self) -> int | None:
        return self._run.return_step

    def take(self, index: int, told: StepReport, *, done: bool) -> Decision:
        """Take a step in; `done` ends the run with it."""
        with self._lock:
            decision = self._run.take(index, told, self._vector(index, told))
            if done:
                self._close(self._run, "done")
            return decision

    def _vector(self, index: int, told: StepReport) -> tuple[float, ...]:
        """What the route's embedder makes of the step, if it has one; it is waited for."""
        if self._embedder is None:
            return ()
        try:
            return self._embedder.wait(self._run.vector_of(index, told))
        except Exception:  # noqa: BLE001 - without its vector a step is judged all the same
            self._run.ledger.fail_open(SITE)
            return ()

    def end(self, *, aborted: bool) -> None:
        with self._lock:
            self._close(self._run, "client_left" if aborted else "done")


class LocalBackend:
    def __init__(self, settings: Settings, route: str) -> None:
        if route not in settings.routes:
            known = ", ".join(sorted(settings.routes)) or "none is configured"
            raise ConfigError(f"route: unknown route {route[:80]!r}; known: {known}")
        vectors = embedders(settings)
        self._lock = threading.Lock()
        self._library = build_library(settings, vectors, lock=self._lock)
        self._gw: GatewayState = self._library.gateway
        self._embedder = BackgroundLoop(vectors[route]) if route in vectors else None
        self._route = route
        self.blocks = self._embedder is not None
        self._open: dict[str, LocalRun] = {}

    @property
    def gateway(self) -> GatewayState:
        """The running parts: metrics, log, routes."""
        return self._gw

    @property
    def failed_open(self) -> dict[str, int]:
        metrics = self._gw.metrics.registry.collect()
        samples = [s for metric in metrics if metric.name == "suffice_failopen" for s in metric.samples]
        return {s.labels["site"]: int(s.value) for s in samples if s.name.endswith("_total")}

    def open(self, opening: RunStart) -> LocalRun:
        with self._lock:
            route = next(r for r in self._gw.deployment.routes if r.name == self._route)
            opened = rounds_service.open_run(self._gw, route, opening, endpoint="library")
            run = LocalRun(opened, self._close_run, self._embedder)
            self._open[run.info.id] = run
            return run

    def _close_run(self, run: RoundsRun, end: EndReason) -> None:
        with self._lock:
            rounds_service.close_run(self._gw, run, end)
            self._open.pop(run.id, None)

    @property
    def declared(self) -> Mapping[str, Metric]:
        return self._gw.settings.metrics

    def feedback(self, given: Sequence[Feedback]) -> tuple[LabelReceipt, ...]:
        """Store pieces of feedback; waits until all are on disk. Raises StoreError, and BadRequest for a reused id."""
        rows = [seal_feedback(one, sender="", door="library", salt=self._gw.salt) for one in given]
        try:
            receipts = _waited(lambda: asyncio.run(self._append(rows)))
        except StoreError:
            self._gw.metrics.inc("suffice_feedback_total", "failed")
            raise
        for number, receipt in enumerate(receipts, 1):
            if receipt.conflict:
                raise id_conflict(f"row {number}, " if len(rows) > 1 else "")
            self._gw.metrics.inc("suffice_feedback_total", "duplicate" if receipt.duplicate else "accepted")
        return tuple(LabelReceipt(duplicate=receipt.duplicate, joined=receipt.joined) for receipt in receipts)

    async def _append(self, rows: Sequence[Feedback]) -> list[Receipt]:
        events = [FeedbackEvent(row, self._gw.sampling.recalled(row)) for row in rows]
        return await asyncio.gather(*map(self._gw.log.append_durable, events))

    def flush(self, timeout_s: float) -> bool:
        log = self._gw.log
        return log.drain(timeout_s) if isinstance(log, SqliteLog | LateLog) else True

    def close(self) -> None:
        with self._lock:
            left = list(self._open.values())
        for run in left:
            run.end(aborted=True)
        if self._embedder is not None:
            self._embedder.close()
        with self._lock:
            lifecycle.write_counts(self._gw, all_of_them=True)
        self._library.close()


def _waited(work: Callable[[], list[Receipt]]) -> list[Receipt]:
    """Run what needs an event loop of its own, also where this thread has one already."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return work()
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(work).result()

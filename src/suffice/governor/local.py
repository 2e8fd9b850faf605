"""Judges loops in this process, with a log of its own: the same runs and the same rows as the server's.

Many threads at once: a run has a lock, and what runs share (lots, counts, what a route learns) has one.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from suffice.episode.rounds import RoundsRun, StepReport
from suffice.episode.vectors import SITE
from suffice.errors import ConfigError, StoreError
from suffice.gateway import request_log, rounds_service
from suffice.gateway.context import Gateway
from suffice.gateway.feedback_form import id_conflict, seal_feedback
from suffice.governor.backend import LabelReceipt, RunStart
from suffice.governor.background_loop import Beside
from suffice.settings import Metric, Settings
from suffice.store.database.deferred_log import LateLog
from suffice.store.database.log import Receipt
from suffice.store.database.sqlite import SqliteLog
from suffice.store.rows.records import FeedbackEvent
from suffice.types import Decision, EndReason, Feedback, Mode
from suffice.wiring import build_library, embedders


class LocalRun:
    """One run in this process."""

    def __init__(self, run: RoundsRun, close: Callable[[RoundsRun, EndReason], None], embedder: Beside | None) -> None:
        self._run, self._close, self._embedder = run, close, embedder
        self._lock = threading.Lock()
        self._request = run.ledger.request

    @property
    def id(self) -> str:
        """The episode's id."""
        return self._run.id

    @property
    def mode(self) -> Mode:
        """Of the route."""
        return self._request.mode

    @property
    def policy_version(self) -> str:
        """Pinned for the whole run."""
        return self._request.policy_version

    @property
    def certified(self) -> bool:
        """Is that version certified on this route?"""
        return self._request.certified

    @property
    def feedback_token(self) -> str:
        """What lets its holder rate the run's answer."""
        return self._run.ledger.feedback_token

    @property
    def degraded(self) -> tuple[str, ...]:
        """Places where Suffice failed open."""
        return tuple(self._run.ledger.degraded)

    @property
    def return_step(self) -> int | None:
        """The step whose answer is the one to use."""
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
        """End the run."""
        with self._lock:
            self._close(self._run, "client_left" if aborted else "done")


class LocalDesk:
    """Everything that governs one route in this process. Raises as `wiring.build_library` does."""

    def __init__(self, settings: Settings, route: str) -> None:
        if route not in settings.routes:
            known = ", ".join(sorted(settings.routes)) or "none is configured"
            raise ConfigError(f"route: unknown route {route[:80]!r}; known: {known}")
        vectors = embedders(settings)
        self._lock = threading.Lock()
        self._library = build_library(settings, vectors, lock=self._lock)
        self._gw: Gateway = self._library.gateway
        self._embedder = Beside(vectors[route]) if route in vectors else None
        self._route = route
        self.blocks = self._embedder is not None
        self._open: dict[str, LocalRun] = {}

    @property
    def gateway(self) -> Gateway:
        """The running parts: metrics, log, routes."""
        return self._gw

    @property
    def failed_open(self) -> dict[str, int]:
        """How often Suffice failed, by place."""
        found = self._gw.metrics.registry.collect()
        samples = [s for metric in found if metric.name == "suffice_failopen" for s in metric.samples]
        return {s.labels["site"]: int(s.value) for s in samples if s.name.endswith("_total")}

    def open(self, opening: RunStart) -> LocalRun:
        """Begin a run."""
        asked = rounds_service.RoundsRequest(
            question=opening.question,
            key=opening.key,
            model=opening.model,
            metadata=opening.metadata,
            query_class=opening.query_class,
            planned_steps=opening.planned_steps,
            endpoint="library",
        )
        with self._lock:
            route = next(r for r in self._gw.routes if r.name == self._route)
            run = LocalRun(rounds_service.open_run(self._gw, route, asked), self._close_run, self._embedder)
            self._open[run.id] = run
            return run

    def _close_run(self, run: RoundsRun, end: EndReason) -> None:
        with self._lock:
            rounds_service.close_run(self._gw, run, end)
            self._open.pop(run.id, None)

    @property
    def declared(self) -> Mapping[str, Metric]:
        """The metrics that feedback may give."""
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
        """Wait until everything so far is on disk."""
        log = self._gw.log
        return log.drain(timeout_s) if isinstance(log, SqliteLog | LateLog) else True

    def close(self) -> None:
        """Break off what is open, write everything down, and close the log."""
        with self._lock:
            left = list(self._open.values())
        for run in left:
            run.end(aborted=True)
        if self._embedder is not None:
            self._embedder.close()
        with self._lock:
            request_log.write_counts(self._gw, all_of_them=True)
        self._library.close()


def _waited(work: Callable[[], list[Receipt]]) -> list[Receipt]:
    """Run what needs an event loop of its own, also where this thread has one already."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return work()
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(work).result()

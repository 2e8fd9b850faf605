"""The governor: opens runs of your own loop, takes labels, and closes what it opened."""

from __future__ import annotations

import asyncio
import os
import uuid
import weakref
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Required, Self, TypedDict, Unpack

from suffice.errors import BadRequest, ClosedError
from suffice.gateway.feedback import MOST_ROWS
from suffice.gateway.feedback_form import read_feedback
from suffice.gateway.rounds_service import RunStart
from suffice.governor.episode import AsyncEpisode, Backend, Episode, EpisodeCore, LabelReceipt, in_thread
from suffice.governor.local import LocalBackend
from suffice.governor.remote import RemoteBackend
from suffice.settings import Settings
from suffice.wiring import load_settings

N_THREADS = 16  # in which an event loop's episodes ask a server
TIMEOUT_S = 2.0  # a server that takes longer for one step is left alone for the rest of the run


class FeedbackFields(TypedDict, total=False):
    """What may be said of a run's answer."""

    source: Required[str]  # who says so: "user", "exact-match", "reviewer" …; "behaviour" for an event
    correct: bool | None
    gold: str | None
    answer: str | None
    rating: int | None  # 1 to 5
    thumbs: str | None  # "up" or "down"
    comment: str | None
    reason: str | None
    metrics: Mapping[str, bool | float | str] | None  # that the settings declare, questions of a survey among them
    event: str | None  # "regenerate": asked again; "abandon": left
    user: str | None  # the person, by any name; only a keyed hash of it is stored
    propensity: float | None  # share of people who are asked, where you ask some by lot
    feedback_id: str | None  # makes sending again safe: the same id counts once; None: a fresh one


class RunContext:
    """A run that begins when its block is entered: `with` or `async with`."""

    def __init__(self, governor: Governor, opening: RunStart) -> None:
        self._governor, self._opening = governor, opening
        self._core: EpisodeCore | None = None

    def __enter__(self) -> Episode:
        return Episode(self._begin())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._core is not None:
            self._core.end(aborted=kind is not None)

    async def __aenter__(self) -> AsyncEpisode:
        threads = self._governor.threads
        return AsyncEpisode(await in_thread(threads, self._begin), threads)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        core = self._core
        if core is not None:
            await in_thread(self._governor.threads, lambda: core.end(aborted=kind is not None))

    def _begin(self) -> EpisodeCore:
        if self._core is not None:
            raise ClosedError("episode: this run was begun before; each call of gov.episode() begins one")
        self._core = self._governor.begin(self._opening)
        return self._core


class Governor:
    """Governs one route's loops. Make one for a process with `open` or `connect`, and use it from any thread.

    Close it, or use it in a `with` block: what still waits for the disk is written then. A process that
    ends without that writes it too, unless it is killed.
    """

    def __init__(self, backend: Backend, route: str) -> None:
        self._backend, self._route, self._pid = backend, route, os.getpid()
        self.threads: Executor | None = ThreadPoolExecutor(N_THREADS, "suffice") if backend.blocks else None
        self._finish = weakref.finalize(self, _close, backend, self.threads, self._pid)

    @classmethod
    def open(cls, settings: str | Path | Settings, *, route: str) -> Governor:
        """Govern in this process, with a log of its own.

        settings  a TOML or YAML file, or settings that were read already
        Raises ConfigError for settings that cannot work, and StoreError for a folder that does not exist. A log that
        cannot be opened raises nothing: one warning says so, and loops go on by the last-good file, or in full.
        """
        read = settings if isinstance(settings, Settings) else load_settings(settings)
        return cls(LocalBackend(read, route), route)

    @classmethod
    def connect(cls, url: str, *, route: str, api_key: str | None = None, timeout_s: float = TIMEOUT_S) -> Governor:
        """Govern by asking a server, `suffice serve`, which keeps the log. Nothing is sent before the first run.

        timeout_s  for one call; a server that takes longer, or cannot be reached, costs this run its governing
                   and nothing else
        Raises ConfigError for an address that cannot be one.
        """
        return cls(RemoteBackend(url, route, api_key=api_key, timeout_s=timeout_s), route)

    @property
    def failed_open(self) -> dict[str, int]:
        """How often Suffice failed, by place. Each cost tokens and no answer; worth an alert."""
        return self._backend.failed_open

    def episode(
        self,
        question: str,
        *,
        key: str | None = None,
        metadata: Mapping[str, str] | None = None,
        query_class: str = "",
        planned_steps: int | None = None,
        model: str = "",
    ) -> RunContext:
        """One run on a question, for a `with` or an `async with` block.

        The audit is drawn when the block is entered, before the first step. Leaving the block ends the
        run; an exception breaks it off, which in an audit counts as a disagreement.

        question       groups repeats, by keyed hash; its text is not stored
        key            what the run belongs to: a conversation, a job. The same question under the same key, within
                       `server.retry_window_s`, is a retry: it runs in full
        metadata       what you declare of the question, such as its task; stored as it is
        query_class    a word for what kind of question it is, if you know; may get thresholds of its own
        planned_steps  at which the loop ends by itself; None: open
        model          name of the model that answers
        """
        return RunContext(
            self,
            RunStart(
                question=question,
                key=key,
                model=model,
                query_class=query_class,
                planned_steps=planned_steps,
                metadata={str(k): str(v) for k, v in (metadata or {}).items()},
            ),
        )

    def begin(self, opening: RunStart) -> EpisodeCore:
        self._usable()
        return EpisodeCore(self._backend.open(opening), self._usable)

    def feedback(self, episode_id: str, **fields: Unpack[FeedbackFields]) -> LabelReceipt:
        """Say how good a run's answer was, at any time; returns when that is on disk. Needs `source`.

        Waits up to 5 s; in an event loop use `afeedback`. Raises StoreError when it is not on disk (send it
        again), BadRequest for fields that cannot be, and ClosedError.
        """
        metrics = fields.get("metrics")
        given = {**fields, "episode_id": episode_id, "metrics": None if metrics is None else dict(metrics)}
        (receipt,) = self.feedback_batch([given])
        return receipt

    def feedback_batch(self, rows: Sequence[Mapping[str, Any]]) -> tuple[LabelReceipt, ...]:
        """Many pieces of feedback at once, at most 1,000: objects as `POST /v1/feedback` takes them.

        A row without `feedback_id` gets a fresh one. All of them are checked before any is stored. Raises as `feedback`
        does; a BadRequest names the row.
        """
        self._usable()
        if not 1 <= len(rows) <= MOST_ROWS:
            raise BadRequest(f"feedback: got {len(rows)} rows; 1 to {MOST_ROWS:,} in one call", param="feedback")
        checked = []
        for number, row in enumerate(rows, 1):
            try:
                given = {**row, "feedback_id": row.get("feedback_id") or uuid.uuid4().hex}
                checked.append(read_feedback(given, self._backend.declared))
            except BadRequest as error:
                where = f"row {number}, " if len(rows) > 1 else ""
                raise BadRequest(f"{where}{error}", status=error.status, param=error.param, code=error.code) from None
        return self._backend.feedback(checked)

    async def afeedback(self, episode_id: str, **fields: Unpack[FeedbackFields]) -> LabelReceipt:
        """As `feedback`, without holding up the event loop."""
        return await asyncio.to_thread(self.feedback, episode_id, **fields)

    async def afeedback_batch(self, rows: Sequence[Mapping[str, Any]]) -> tuple[LabelReceipt, ...]:
        """As `feedback_batch`, without holding up the event loop."""
        return await asyncio.to_thread(self.feedback_batch, rows)

    def flush(self, timeout_s: float = 5.0) -> bool:
        """Wait until everything so far is on disk; False: it took longer. Raises ClosedError."""
        self._usable()
        return self._backend.flush(timeout_s)

    def close(self) -> None:
        """Break off the runs that are open, write everything down, release everything.

        Closing it again, or in a forked process, does nothing.
        """
        self._finish()

    async def aclose(self) -> None:
        """As `close`, without holding up the event loop."""
        await asyncio.to_thread(self.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def _usable(self) -> None:
        if os.getpid() != self._pid:
            raise ClosedError(
                f"governor for {self._route!r}: opened in process {self._pid} and used in {os.getpid()};"
                " open one in each process, after the fork"
            )
        if not self._finish.alive:
            raise ClosedError(f"governor for {self._route!r}: it is closed; open another one")


def _close(backend: Backend, threads: Executor | None, pid: int) -> None:
    """Runs once: at `close`, when the governor is let go of, or when the process ends."""
    if os.getpid() != pid:
        return  # a fork holds copies of locks and connections that are its parent's
    backend.close()
    if threads is not None:
        threads.shutdown(wait=False)

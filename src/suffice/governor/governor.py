"""The governor: opens runs of a caller's own loop and takes labels.

An error of Suffice continues the loop; a mistake of the caller raises.
"""

from __future__ import annotations

import asyncio
import os
import threading
import uuid
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Required, Self, TypedDict, TypeVar, Unpack

from suffice.episode.rounds import StepReport
from suffice.errors import BadRequest, ClosedError, SufficeError
from suffice.gateway.feedback import MOST_ROWS
from suffice.gateway.feedback_form import read_feedback
from suffice.gateway.rounds_service import RunStart
from suffice.governor.backends import Backend, BackendRun, LabelReceipt, LocalBackend, RemoteBackend
from suffice.settings import Settings
from suffice.telemetry import LOG
from suffice.types import Decision
from suffice.wiring.files import load_settings

T = TypeVar("T")
AnyEpisode = TypeVar("AnyEpisode", "Episode", "AsyncEpisode")

N_THREADS = 16  # in which asynchronous episodes call a server
TIMEOUT_S = 2.0  # for one step; a slower server is not called again in this run


# --------------------------------------------------------------------------- one run


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundRecord:
    index: int  # 1 is the first
    answer: str | None
    tokens: int
    ctx_tokens: int
    text: str
    action: str | None  # the caller's name for this kind of step
    decision: Decision


class GovernorState:
    """What a governor must release at its end, which its finalizer can do because nothing here refers to it."""

    def __init__(self, backend: Backend, route: str) -> None:
        self.backend = backend
        self.route = route
        self.pid = os.getpid()
        self.threads = ThreadPoolExecutor(N_THREADS, "suffice") if backend.blocks else None
        self.open: set[EpisodeBase] = set()
        self._closed = False

    def check(self) -> None:
        """Raise ClosedError after close, and in a forked process."""
        if os.getpid() != self.pid:
            raise ClosedError(
                f"governor for {self.route!r}: opened in process {self.pid} and used in {os.getpid()};"
                " open one in each process, after the fork"
            )
        if self._closed:
            raise ClosedError(f"governor for {self.route!r}: it is closed; open another one")

    async def in_thread(self, work: Callable[[], T]) -> T:
        if self.threads is None:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self.threads, work)

    def close(self) -> None:
        if os.getpid() != self.pid:
            return  # in a fork: locks and connections belong to the parent
        self._closed = True
        for episode in list(self.open):
            episode.end(aborted=True)
        self.backend.close()
        if self.threads is not None:
            self.threads.shutdown(wait=False)


class EpisodeBase:
    """State and properties common to `Episode` and `AsyncEpisode`. Thread-safe."""

    def __init__(self, state: GovernorState, run: BackendRun) -> None:
        self._state = state
        self._run = run
        self._lock = threading.Lock()
        self._ended: str | None = None  # why the run ended; None: it is open
        self.history: tuple[RoundRecord, ...] = ()
        self.id = run.id  # made up here if the server could not be called
        self.mode = run.mode  # of the route; "off" if no policy judges the steps
        self.policy_version = run.policy_version  # "" if no policy judges the steps
        self.certified = run.certified
        self.feedback_token = run.feedback_token  # lets its holder rate the answer without a key; "": none
        state.open.add(self)

    @property
    def return_step(self) -> int | None:
        """The step whose answer to use, from 1; None: no step gave an answer."""
        return self._run.return_step

    @property
    def answer(self) -> str | None:
        """The `answer` of `return_step`, or its text if it gave none."""
        step = self.return_step
        if step is None or step > len(self.history):
            return None
        record = self.history[step - 1]
        return record.answer if record.answer is not None else record.text or None

    @property
    def stopped(self) -> bool:
        return bool(self.history) and self.history[-1].decision.stop

    @property
    def tokens(self) -> int:
        return sum(record.tokens for record in self.history)

    @property
    def degraded(self) -> tuple[str, ...]:
        return self._run.degraded

    def _take(self, step: StepFields, *, done: bool) -> Decision:
        report = _report(step)
        self._state.check()
        with self._lock:
            if self._ended is not None:
                message = f"episode.step: this run is over: {self._ended}; open the next one with gov.episode()"
                raise ClosedError(message)
            index = len(self.history) + 1
            try:
                decision = self._run.take(index, report, done=done)
            except SufficeError:
                raise
            except Exception as error:  # noqa: BLE001 - a broken optimiser costs tokens, never an answer
                LOG.error("episode %s: a step was not judged (%s)", self.id, type(error).__name__)
                reason = f"Suffice failed ({type(error).__name__}); the loop continues"
                decision = Decision(action="continue", reason=reason)
            record = RoundRecord(
                index=index,
                answer=report.answer,
                tokens=report.tokens,
                ctx_tokens=report.ctx_tokens,
                text=report.text,
                action=report.action,
                decision=decision,
            )
            self.history += (record,)
            if done:
                self._note_end(f"step {index} was its last")
            return decision

    def end(self, *, aborted: bool) -> None:
        """End the run if it is open. In a forked process it does nothing: the run belongs to the parent."""
        if os.getpid() != self._state.pid:
            return
        with self._lock:
            if self._ended is not None:
                return
            self._note_end("it was aborted" if aborted else "its block has ended")
            try:
                self._run.end(aborted=aborted)
            except SufficeError:
                raise
            except Exception as error:  # noqa: BLE001 - the caller has its answer; only the record is incomplete
                LOG.error("episode %s: its end was not recorded (%s)", self.id, type(error).__name__)

    def _note_end(self, reason: str) -> None:
        self._ended = reason
        self._state.open.discard(self)


class StepFields(TypedDict, total=False):
    tokens: Required[int]  # generated in this step
    answer: str | None  # current answer; None: the route's scorer reads it from `text`; "": none
    text: str  # new in this step: read by signals, stored only if the route keeps texts for reviewers
    confidence: float | None  # probability of the answer, in [0, 1]
    logprobs: Sequence[float]  # of the answer's tokens, natural log
    entropy: float | None  # likewise, in nats
    logprob: float | None  # mean log-probability of the step's own tokens, at most 0
    stated_confidence: float | None  # the model's own estimate, in [0, 1]
    reported_done: bool | None  # the model's own flag that it is done
    action: str | None  # the kind of step: "search", "revise", "tool" …
    ctx_tokens: int  # prompt tokens read at this step
    sources: Sequence[str]  # passages that the step read, stored as `text` is


def _report(step: StepFields) -> StepReport:
    """Raise BadRequest for `sources` given as one string, whose letters would count as passages."""
    sources = step.get("sources", ())
    if isinstance(sources, str):
        raise BadRequest("step.sources: got one text; needs a list of texts", param="step.sources")
    given: dict[str, Any] = {**step, "logprobs": tuple(step.get("logprobs", ())), "sources": tuple(sources)}
    return StepReport(**given)


class Episode(EpisodeBase):
    """One run, opened by `with gov.episode(question) as ep`."""

    def step(self, *, done: bool = False, **step: Unpack[StepFields]) -> Decision:
        """Report one step of the loop. Leave the loop if the decision's `.stop` is true. `tokens` is required.

        done  this was the loop's last step; the run ends here

        Raise ClosedError if the run is over and BadRequest for an invalid value. Any other failure continues the loop.
        """
        return self._take(step, done=done)


class AsyncEpisode(EpisodeBase):
    """One run, opened by `async with gov.episode(question) as ep`."""

    async def step(self, *, done: bool = False, **step: Unpack[StepFields]) -> Decision:
        """As `Episode.step`; a server is called in a thread, so the event loop is not blocked."""
        return await self._state.in_thread(lambda: self._take(step, done=done))


class RunContext:
    def __init__(self, governor: Governor, state: GovernorState, start: RunStart) -> None:
        self._governor = governor  # lives as long as the block
        self._state, self._start = state, start
        self._episode: Episode | AsyncEpisode | None = None

    def __enter__(self) -> Episode:
        return self._begin(Episode)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._episode is not None:
            self._episode.end(aborted=kind is not None)

    async def __aenter__(self) -> AsyncEpisode:
        return await self._state.in_thread(lambda: self._begin(AsyncEpisode))

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        await self._state.in_thread(lambda: self.__exit__(kind))

    def _begin(self, kind: type[AnyEpisode]) -> AnyEpisode:
        self._state.check()
        if self._episode is not None:
            raise ClosedError("episode: this run was begun before; each call of gov.episode() begins one")
        episode = kind(self._state, self._state.backend.open(self._start))
        self._episode = episode
        return episode


# --------------------------------------------------------------------------- the governor


class FeedbackFields(TypedDict, total=False):
    source: Required[str]  # "user", "exact-match", "reviewer" …; "behaviour" for an event
    correct: bool | None
    gold: str | None
    answer: str | None
    rating: int | None  # 1 to 5
    thumbs: str | None  # "up" or "down"
    comment: str | None
    reason: str | None
    metrics: Mapping[str, bool | float | str] | None  # declared in the settings, survey questions included
    event: str | None  # "regenerate" or "abandon"
    user: str | None  # the person, by any name; only a keyed hash of it is stored
    propensity: float | None  # share of people surveyed, if you survey at random
    feedback_id: str | None  # idempotency key: the same id counts once; None: a fresh one


class Governor:
    """Governs the loops of one route. Create one per process with `open` or `connect`; any thread may use it.

    Close it, or use it in a `with` block, so that pending records are written. They are also written when the process
    ends, unless it is killed.
    """

    def __init__(self, backend: Backend, route: str) -> None:
        self._state = GovernorState(backend, route)
        self._finish = weakref.finalize(self, self._state.close)

    @classmethod
    def open(cls, settings: str | Path | Settings, *, route: str) -> Governor:
        """Govern in this process, with a log of its own.

        settings  a TOML or YAML file, or a Settings object

        Raise ConfigError for invalid settings and StoreError for a missing folder. A log that cannot be opened is only
        a warning: loops follow the last-good file or run in full.
        """
        read = settings if isinstance(settings, Settings) else load_settings(settings)
        return cls(LocalBackend(read, route), route)

    @classmethod
    def connect(cls, url: str, *, route: str, api_key: str | None = None, timeout_s: float = TIMEOUT_S) -> Governor:
        """Govern through a server, `suffice serve`, which keeps the log. Nothing is sent before the first run.

        timeout_s  for one call; if the server is slower or unreachable, the run goes on without it

        Raise ConfigError for an invalid address.
        """
        return cls(RemoteBackend(url, route, api_key=api_key, timeout_s=timeout_s), route)

    @property
    def failed_open(self) -> dict[str, int]:
        """Number of failures by place. Each cost tokens and no answer; alert on them."""
        return self._state.backend.failed_open

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
        """Return a run on a question, for a `with` or an `async with` block.

        Entering the block draws the audit, before the first step. Leaving the block ends the run; an exception aborts
        it, which counts as a disagreement in an audit.

        question       groups repeats by keyed hash; its text is not stored
        key            what the run belongs to, such as a conversation or job. The same question under the same key
                       within `server.retry_window_s` is a retry, which runs in full
        metadata       features of the question, such as its task; stored as given
        query_class    class of the question, if known; may get thresholds of its own
        planned_steps  number of steps at which the loop ends anyway; None: open
        model          name of the model that answers
        """
        start = RunStart(
            question=question,
            key=key,
            model=model,
            query_class=query_class,
            planned_steps=planned_steps,
            metadata={str(k): str(v) for k, v in (metadata or {}).items()},
        )
        return RunContext(self, self._state, start)

    def feedback(self, episode_id: str, **fields: Unpack[FeedbackFields]) -> LabelReceipt:
        """Label a run's answer, at any time, and return once the label is on disk. `source` is required.

        Blocks for up to 5 s; use `afeedback` in an event loop. Raise StoreError if the label is not on disk (send it
        again), BadRequest for invalid fields, and ClosedError.
        """
        metrics = fields.get("metrics")
        row = {**fields, "episode_id": episode_id, "metrics": None if metrics is None else dict(metrics)}
        (receipt,) = self.feedback_batch([row])
        return receipt

    def feedback_batch(self, rows: Sequence[Mapping[str, Any]]) -> tuple[LabelReceipt, ...]:
        """Store up to 1,000 labels, given as `POST /v1/feedback` takes them.

        A row without `feedback_id` gets a fresh one. All rows are checked before any is stored. Raises as `feedback`
        does; a BadRequest names the row.
        """
        self._state.check()
        if not 1 <= len(rows) <= MOST_ROWS:
            raise BadRequest(f"feedback: got {len(rows)} rows; 1 to {MOST_ROWS:,} in one call", param="feedback")
        checked = []
        for number, row in enumerate(rows, 1):
            try:
                named = {**row, "feedback_id": row.get("feedback_id") or uuid.uuid4().hex}
                checked.append(read_feedback(named, self._state.backend.declared))
            except BadRequest as error:
                where = f"row {number}, " if len(rows) > 1 else ""
                raise BadRequest(f"{where}{error}", status=error.status, param=error.param, code=error.code) from None
        return self._state.backend.feedback(checked)

    async def afeedback(self, episode_id: str, **fields: Unpack[FeedbackFields]) -> LabelReceipt:
        """As `feedback`, without blocking the event loop."""
        return await asyncio.to_thread(self.feedback, episode_id, **fields)

    async def afeedback_batch(self, rows: Sequence[Mapping[str, Any]]) -> tuple[LabelReceipt, ...]:
        """As `feedback_batch`, without blocking the event loop."""
        return await asyncio.to_thread(self.feedback_batch, rows)

    def flush(self, timeout_s: float = 5.0) -> bool:
        """Wait until everything so far is on disk; return False after the timeout. Raise ClosedError."""
        self._state.check()
        return self._state.backend.flush(timeout_s)

    def close(self) -> None:
        """Abort open runs, write pending records and release resources; twice, or in a forked process, does nothing."""
        self._finish()

    async def aclose(self) -> None:
        """As `close`, without blocking the event loop."""
        await asyncio.to_thread(self.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

"""One run of a caller's loop, in its plain and in its asynchronous form over one core.

The core knows which step comes next, what was told so far and when the run is over; who judges a step
is behind `BackendRun`. A failure of ours continues the loop; a mistake of the caller's raises.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, Protocol, Required, TypedDict, TypeVar, Unpack

from suffice.episode.rounds import StepReport
from suffice.errors import BadRequest, ClosedError, SufficeError
from suffice.gateway.rounds_service import RunStart
from suffice.settings import Metric
from suffice.telemetry import LOG
from suffice.types import Decision, Feedback, Mode

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelReceipt:
    """A label's receipt: it is on disk, and stays there."""

    duplicate: bool  # a label with this `feedback_id` was there before, and this one changed nothing
    joined: bool  # the run that it names is known; if not, it joins when that arrives


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInfo:
    """What is fixed for a whole run."""

    id: str  # where a server could not be asked, one that it does not know
    mode: Mode = "off"  # of the route; "off" where nobody judges
    policy_version: str = ""  # "" where nobody judges
    certified: bool = False
    feedback_token: str = ""  # lets its holder rate the run's answer; "": none is given out


class BackendRun(Protocol):
    """One run, as seen from the caller's loop. Calls come one at a time."""

    @property
    def info(self) -> RunInfo: ...
    @property
    def degraded(self) -> tuple[str, ...]: ...
    @property
    def return_step(self) -> int | None: ...

    def take(self, index: int, told: StepReport, *, done: bool) -> Decision:
        """Take a step in; `done` ends the run with it."""
        ...

    def end(self, *, aborted: bool) -> None:
        """End the run; ending it again does nothing."""
        ...


class Backend(Protocol):
    """Opens runs and takes labels. Safe for threads.

    Both implementations, `local` and `remote`, fail open: no method raises because of signals, policies, logs or
    networks.
    """

    @property
    def blocks(self) -> bool:
        """Do its calls wait for a network? Then an event loop sends them to a thread."""
        ...

    @property
    def failed_open(self) -> dict[str, int]: ...
    @property
    def declared(self) -> Mapping[str, Metric] | None:
        """The metrics that feedback may give; None: somebody else knows them."""
        ...

    def open(self, opening: RunStart) -> BackendRun: ...
    def feedback(self, given: Sequence[Feedback]) -> tuple[LabelReceipt, ...]:
        """Store pieces of feedback; waits until all are on disk. Raises StoreError."""
        ...

    def flush(self, timeout_s: float) -> bool: ...
    def close(self) -> None:
        """Break off what is open and release everything; closing it again does nothing."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundRecord:
    """One step as the caller told it, and what was decided after it."""

    index: int  # 1 is the first
    answer: str | None
    tokens: int
    ctx_tokens: int
    text: str
    action: str | None  # what the caller calls this kind of step
    decision: Decision


class EpisodeCore:
    """What both forms share. Safe for threads: steps come one at a time.

    usable  raises ClosedError where the governor may not be used any more
    """

    def __init__(self, run: BackendRun, usable: Callable[[], None]) -> None:
        self.run, self.usable = run, usable
        self.history: tuple[RoundRecord, ...] = ()
        self.ended: str | None = None  # why; None: the run is open
        self._lock = threading.Lock()

    def take(self, told: StepReport, *, done: bool) -> Decision:
        """Take the next step in."""
        self.usable()
        with self._lock:
            if self.ended is not None:
                raise ClosedError(f"episode.step: this run is over: {self.ended}; open the next one with gov.episode()")
            index = len(self.history) + 1
            decision = self._judged(index, told, done=done)
            self.history += (
                RoundRecord(
                    index=index,
                    answer=told.answer,
                    tokens=told.tokens,
                    ctx_tokens=told.ctx_tokens,
                    text=told.text,
                    action=told.action,
                    decision=decision,
                ),
            )
            if done:
                self.ended = f"step {index} was its last"
            return decision

    def end(self, *, aborted: bool) -> None:
        """End the run, if it is open; not in a fork, whose copy of it is its parent's."""
        try:
            self.usable()
        except ClosedError:
            return  # closing the governor has ended it
        with self._lock:
            if self.ended is not None:
                return
            self.ended = "it was broken off" if aborted else "its block was left"
            try:
                self.run.end(aborted=aborted)
            except SufficeError:
                raise
            except Exception as error:  # noqa: BLE001 - the caller has its answer; only our record is poorer
                LOG.error("episode %s: its end was not recorded (%s)", self.run.info.id, type(error).__name__)

    def _judged(self, index: int, told: StepReport, *, done: bool) -> Decision:
        try:
            return self.run.take(index, told, done=done)
        except SufficeError:
            raise
        except Exception as error:  # noqa: BLE001 - a broken optimiser costs tokens, never an answer
            LOG.error("episode %s: a step was not judged (%s)", self.run.info.id, type(error).__name__)
            return Decision(action="continue", reason=f"Suffice failed ({type(error).__name__}); the loop goes on")


class StepFields(TypedDict, total=False):
    """What a loop tells of one of its steps."""

    tokens: Required[int]  # generated in this step
    answer: str | None  # that would be used now; None: read from `text` by the route's scorer; "": none
    text: str  # the step's own text: read by signals, stored only where the route keeps texts for reviewers
    confidence: float | None  # probability of the answer, in [0, 1]
    logprobs: Sequence[float]  # of the answer's tokens, natural log
    entropy: float | None  # likewise, in nats
    logprob: float | None  # mean log-probability of the step's own tokens, at most 0
    stated_confidence: float | None  # what the model said of itself, in [0, 1]
    said_done: bool | None  # the model's own flag that it is done
    action: str | None  # what this kind of step is called: "search", "revise", "tool" …
    ctx_tokens: int  # prompt tokens read at this step
    sources: Sequence[str]  # passages that were found for it, for a reviewer: dropped where no texts are kept


def _report(fields: StepFields) -> StepReport:
    """Raises BadRequest for what can only be a mistake: of one text, the letters would be taken for passages."""
    sources = fields.get("sources", ())
    if isinstance(sources, str):
        raise BadRequest("step.sources: got one text; needs a list of texts", param="step.sources")
    given: dict[str, Any] = {**fields, "logprobs": tuple(fields.get("logprobs", ())), "sources": tuple(sources)}
    return StepReport(**given)


class EpisodeView:
    """What can be read of a run, in its plain and in its asynchronous form."""

    def __init__(self, core: EpisodeCore) -> None:
        self._core = core

    @property
    def id(self) -> str:
        """Names this run in the log and in feedback."""
        return self._core.run.info.id

    @property
    def history(self) -> tuple[RoundRecord, ...]:
        """The steps so far, oldest first."""
        return self._core.history

    @property
    def return_step(self) -> int | None:
        """The step whose answer is the one to use, from 1; None: no step gave an answer."""
        return self._core.run.return_step

    @property
    def answer(self) -> str | None:
        """The answer to use, as that step told it: its `answer`, or its text where it gave none."""
        step, history = self.return_step, self._core.history
        if step is None or step > len(history):
            return None
        record = history[step - 1]
        return record.answer if record.answer is not None else record.text or None

    @property
    def stopped(self) -> bool:
        """Did the policy say at the last step that the run ends?"""
        return bool(self._core.history) and self._core.history[-1].decision.stop

    @property
    def tokens(self) -> int:
        """Generated so far, by what the steps told."""
        return sum(record.tokens for record in self._core.history)

    @property
    def mode(self) -> Mode:
        """Of the route; "off" where nobody judges."""
        return self._core.run.info.mode

    @property
    def policy_version(self) -> str:
        """Pinned for the whole run."""
        return self._core.run.info.policy_version

    @property
    def certified(self) -> bool:
        return self._core.run.info.certified

    @property
    def feedback_token(self) -> str:
        """Lets a browser rate this run's answer at the gateway without a key; "": none is given out."""
        return self._core.run.info.feedback_token

    @property
    def degraded(self) -> tuple[str, ...]:
        """Places where Suffice failed open in this run."""
        return self._core.run.degraded


class Episode(EpisodeView):
    """One run; made by `with gov.episode(question) as ep`."""

    def step(self, *, done: bool = False, **step: Unpack[StepFields]) -> Decision:
        """Tell one step of the loop; `.stop` says whether to leave it. Needs `tokens`; see `StepFields`.

        done  this was the loop's last step: the run ends here

        Raises ClosedError when the run is over, and BadRequest for a value that can only be a mistake. Whatever
        else goes wrong continues the loop.
        """
        return self._core.take(_report(step), done=done)


class AsyncEpisode(EpisodeView):
    """One run; made by `async with gov.episode(question) as ep`."""

    def __init__(self, core: EpisodeCore, threads: Executor | None) -> None:
        super().__init__(core)
        self._threads = threads

    async def step(self, *, done: bool = False, **step: Unpack[StepFields]) -> Decision:
        """As `Episode.step`; a server is asked in a thread, so the event loop never waits."""
        told = _report(step)
        return await in_thread(self._threads, lambda: self._core.take(told, done=done))


async def in_thread(threads: Executor | None, work: Callable[[], T]) -> T:
    """Do what may wait in a thread; None: it does not wait, and is done here."""
    if threads is None:
        return work()
    return await asyncio.get_running_loop().run_in_executor(threads, work)

"""What a governor asks of whoever judges its loops: this process, or a server.

Two implementations, `local` and `remote`; both fail open, so none of these methods raises because of
signals, policies, logs or networks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from suffice.episode.rounds import StepReport
from suffice.settings import Metric
from suffice.types import Decision, Feedback, Mode


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStart:
    """What is said when a loop begins."""

    question: str
    key: str | None
    model: str
    metadata: Mapping[str, str]
    query_class: str
    planned_steps: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelReceipt:
    """A label's receipt: it is on disk, and stays there."""

    duplicate: bool  # a label with this `feedback_id` was there before, and this one changed nothing
    joined: bool  # the run that it names is known; if not, it joins when that arrives


class BackendRun(Protocol):
    """One run, as seen from the caller's loop. Calls come one at a time."""

    @property
    def id(self) -> str:
        """The episode's id."""
        ...

    @property
    def mode(self) -> Mode:
        """Of the route; "off" where nobody judges."""
        ...

    @property
    def policy_version(self) -> str:
        """Pinned for the whole run; "" where nobody judges."""
        ...

    @property
    def certified(self) -> bool:
        """Is that version certified on this route?"""
        ...

    @property
    def feedback_token(self) -> str:
        """What lets its holder rate the run's answer; "": none is given out."""
        ...

    @property
    def degraded(self) -> tuple[str, ...]:
        """Places where Suffice failed open."""
        ...

    @property
    def return_step(self) -> int | None:
        """The step whose answer is the one to use; None: no answer yet."""
        ...

    def take(self, index: int, told: StepReport, *, done: bool) -> Decision:
        """Take a step in; `done` ends the run with it."""
        ...

    def end(self, *, aborted: bool) -> None:
        """End the run; ending it again does nothing."""
        ...


class Backend(Protocol):
    """Opens runs and takes labels. Safe for threads."""

    blocks: bool  # its calls wait for a network: an event loop sends them to a thread

    @property
    def failed_open(self) -> dict[str, int]:
        """How often Suffice failed, by place; each cost tokens and no answer."""
        ...

    def open(self, opening: RunStart) -> BackendRun:
        """Begin a run."""
        ...

    @property
    def declared(self) -> Mapping[str, Metric] | None:
        """The metrics that feedback may give; None: somebody else knows them."""
        ...

    def feedback(self, given: Sequence[Feedback]) -> tuple[LabelReceipt, ...]:
        """Store pieces of feedback; waits until all are on disk. Raises StoreError."""
        ...

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything so far is on disk; False: it took too long."""
        ...

    def close(self) -> None:
        """Break off what is open and release everything; closing it again does nothing."""
        ...

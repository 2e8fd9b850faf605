"""What one chain of thought has shown so far, and what its client asked to see of it. Plain records."""

from __future__ import annotations

from dataclasses import dataclass

from suffice.episode.segment import Phase


@dataclass(frozen=True, slots=True, kw_only=True)
class Wants:
    """What the client asked to see."""

    usage: bool  # a usage chunk, or usage in the body
    object: bool  # the `suffice` object even when nothing was stopped
    joined: bool = False  # chunks that differ in their text alone may reach it as one frame


@dataclass(frozen=True, slots=True)
class StepEnd:
    """Where a step ends: the thought up to there."""

    n_chars: int
    n_tokens: int


@dataclass(slots=True)
class StreamState:
    """What the stream has shown so far."""

    phase: Phase = "start"
    inline: bool = False  # the thought stands in `content`, between tags
    field: str = "reasoning_content"
    id: str | None = None
    model: str | None = None
    created: int | None = None
    finish_reason: str | None = None
    failed: bool = False  # the upstream sent an error frame
    done: bool = False  # [DONE] was seen
    ended: bool = False  # nothing more will come

"""Cuts a streamed chain of thought into steps. Pure: text in, checkpoints out.

It knows where a thought may be cut (at a line, a paragraph or between words, never inside a
character) and on which schedule: each step is longer than the last by a constant factor, so that
probing a long thought costs a bounded share of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from suffice.settings import Steps

Phase = Literal["start", "thinking", "answering"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A place where the thought may be closed."""

    index: int          # 1 is the first
    tokens: int         # generated since the checkpoint before
    tokens_used: int    # generated up to here
    text: str           # the thought since the checkpoint before
    prefix: str         # the whole thought up to here


class Segmenter:
    """Feeds on reasoning text and says where steps end."""

    def __init__(self, settings: Steps) -> None:
        self._settings = settings
        self._need = float(settings.min_tokens)
        self._done = ""        # the thought up to the last checkpoint
        self._text = ""        # the thought since then
        self._tokens = 0       # … and its tokens
        self._used = 0
        self._index = 0

    @property
    def thought(self) -> str:
        """All the reasoning text so far."""
        return self._done + self._text

    def feed(self, text: str, tokens: int) -> Checkpoint | None:
        """Add reasoning text of `tokens` tokens; return the checkpoint that it completes, if any."""
        self._text += text
        self._tokens += tokens
        if self._tokens < self._need:
            return None
        if not (self._at_boundary(text) or self._overdue(text)):
            return None
        return self._cut()

    def close(self) -> Checkpoint | None:
        """The last step, when the model closed its thought by itself; None if nothing is left."""
        if not self._tokens and self._index:
            return None
        return self._cut()

    def _at_boundary(self, text: str) -> bool:
        kind = self._settings.boundary
        if kind == "line":
            return "\n" in text
        if kind == "paragraph":
            return "\n\n" in self._text[-len(text) - 1:]
        return text[-1:].isspace() or text[:1].isspace()

    def _overdue(self, text: str) -> bool:
        return self._tokens >= max(self._settings.max_tokens, self._need) and text[:1].isspace()

    def _cut(self) -> Checkpoint:
        self._index += 1
        self._used += self._tokens
        self._done += self._text
        point = Checkpoint(
            index=self._index, tokens=self._tokens, tokens_used=self._used, text=self._text, prefix=self._done
        )
        self._text, self._tokens = "", 0
        self._need *= self._settings.growth
        return point

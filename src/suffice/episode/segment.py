"""Cuts a streamed chain of thought into steps. Pure: text in, checkpoints out.

It knows where a thought may be cut (at a line, a paragraph or between words, never inside a
character) and on which schedule: each step is longer than the last by a constant factor, so that
probing a long thought costs a bounded share of it.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from suffice.errors import ConfigError
from suffice.settings import Steps
from suffice.types import Step
from suffice.upstream.thought import MOST_CUT_CHARS, safe_cut

Phase = Literal["start", "thinking", "answering"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A place where the thought may be closed."""

    index: int  # 1 is the first
    tokens: int  # generated since the checkpoint before
    tokens_used: int  # generated up to here
    text: str  # the thought since the checkpoint before
    prefix: str  # the whole thought up to here


def missing_step(point: Checkpoint) -> Step:
    """A step whose trial answer is unknown."""
    return Step(index=point.index, tokens=point.tokens, answer=None, answer_source=None, text=point.text, missing=True)


def visible_step(point: Checkpoint, answer: str | None, before: str | None) -> Step:
    """A step whose trial answer is read off the thought itself, at no cost: the last one it wrote.

    answer  the answer in the step's own text
    before  the visible answer at the checkpoint before; it stands until the text gives another
    """
    answer = before if answer is None else answer
    return Step(
        index=point.index,
        tokens=point.tokens,
        answer=answer,
        answer_source=None if answer is None else "text",
        text=point.text,
    )


class StepCutter(Protocol):
    """Anything that cuts a thought into steps. Its texts, one behind the other, are the thought, unchanged."""

    @property
    def thought(self) -> str: ...

    def feed(self, text: str, tokens: int) -> Checkpoint | None:
        """Add reasoning text of `tokens` tokens; return the checkpoint that it completes, if any."""
        ...

    def close(self) -> Checkpoint | None:
        """The last step, when the model closed its thought by itself; None if nothing is left."""
        ...


class Segmenter:
    """Feeds on reasoning text and says where steps end.

    Another boundary is another class that says in `end_in` where its steps end.
    """

    def __init__(self, settings: Steps) -> None:
        self._settings = settings
        self._mark = {"line": "\n", "paragraph": "\n\n"}.get(settings.boundary, "")
        self._need = float(settings.min_tokens)
        self._limit = settings.min_tokens if settings.boundary == "tokens" else settings.max_tokens
        self._done = ""  # the thought up to the last checkpoint
        self._text = ""  # the thought since then
        self._tokens = 0  # … and its tokens
        self._used = 0
        self._index = 0

    @property
    def thought(self) -> str:
        return self._done + self._text

    def feed(self, text: str, tokens: int) -> Checkpoint | None:
        """Add reasoning text of `tokens` tokens; return the checkpoint that it completes, if any.

        A step ends behind its line or paragraph, or before a word. Text behind the end belongs to the
        next step; its tokens cannot be told apart and stay with this one.
        """
        too_long = self._tokens >= self._limit and self._tokens >= self._need
        if too_long and (earlier := self._end_before(text)):
            point = self._cut(earlier)
            self._text += text
            self._tokens = tokens
            return point
        before = len(self._text)
        whole, self._text = self._text, ""  # held by one name alone, it grows in place
        whole += text
        self._text = whole
        self._tokens += tokens
        if self._tokens < self._need:
            return None
        end = self.end_in(self._text, before)
        return None if end is None else self._cut(end)

    def close(self) -> Checkpoint | None:
        """The last step, when the model closed its thought by itself; None if nothing is left."""
        if not self._tokens and self._index:
            return None
        return self._cut(len(self._text))

    def _end_before(self, text: str) -> int:
        """Where a step that is too long ends, given the text that comes next; 0: nowhere yet.

        Between two words; in a script without spaces, when it is twice too long, between two characters.
        """
        if not self._text:
            return 0
        if text[:1].isspace() or self._text[-1].isspace():
            return len(self._text)
        return self._end_between_characters(text) if self._tokens >= 2 * max(self._need, self._limit) else 0

    def _end_between_characters(self, following: str) -> int:
        """The last place before `following` that no character of several parts stretches over.

        No character that anybody reads is longer than MOST_CUT_CHARS, so only so much of the end is looked at.
        """
        start = max(0, len(self._text) - MOST_CUT_CHARS)
        tail, end = self._text[start:], -1
        shorter = len(safe_cut(tail, following))
        while shorter != end:
            end = shorter
            shorter = len(safe_cut(tail[:end], tail[end:] or following))
        return start + end

    def end_in(self, text: str, before: int) -> int | None:
        """Where the last line or paragraph ends that was completed behind `before`; None: nowhere.

        text    of the step so far; the end is a place in it, above 0
        before  its length when it was asked last: only what came since is new
        """
        mark = self._mark
        if not mark:
            return None
        at = text.rfind(mark, max(0, before - len(mark) + 1))
        return None if at < 0 else at + len(mark)

    def _cut(self, end: int) -> Checkpoint:
        self._index += 1
        self._used += self._tokens
        done, self._text = self._text[:end], self._text[end:]
        self._done += done
        point = Checkpoint(index=self._index, tokens=self._tokens, tokens_used=self._used, text=done, prefix=self._done)
        self._tokens = 0
        self._need *= self._settings.growth
        return point


SEGMENTERS: dict[str, Callable[[Steps], StepCutter]] = {
    "line": Segmenter,
    "paragraph": Segmenter,
    "tokens": Segmenter,
}


def build_segmenter(steps: Steps) -> StepCutter:
    """What cuts a thought as the settings say. Raises ConfigError for a boundary that does not exist."""
    name = steps.boundary
    if name in SEGMENTERS:
        return SEGMENTERS[name](steps)
    near = difflib.get_close_matches(name[:100], SEGMENTERS, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ConfigError(f"steps.boundary: unknown name {name!r:.100}; {hint}known: {', '.join(SEGMENTERS)}")

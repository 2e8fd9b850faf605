"""What a reviewer reads beside the answers: the question, and what the steps of a caller's loop read and wrote.

Pure. Knows messages and texts; refuses to know whether anybody wants them kept, and where.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

MOST_CHARS: Final = 200_000  # of a question that is kept, and of a run's sources; what a reviewer can read is less
MOST_SOURCES: Final = 1_000  # of one step


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    step: int  # of the run, from 1
    what: Literal["read", "wrote"]  # a passage that was found for it, or its own text
    text: str


@dataclass(slots=True, kw_only=True)
class Shelf:
    """Sources of one run while it goes on.

    until_s  Unix time after which nobody is shown them
    is_cut   there was more than is kept
    """

    until_s: float
    sources: list[Source] = field(default_factory=list)
    is_cut: bool = False
    _n_chars: int = 0

    def add(self, step: int, *, read: Sequence[str], wrote: str) -> None:
        for text in read:
            self._put(Source(step=step, what="read", text=text))
        self._put(Source(step=step, what="wrote", text=wrote))

    def _put(self, source: Source) -> None:
        if not source.text:
            return
        room = MOST_CHARS - self._n_chars
        self.is_cut = self.is_cut or len(source.text) > room
        if room > 0:
            kept = Source(step=source.step, what=source.what, text=source.text[:room])
            self.sources.append(kept)
            self._n_chars += len(kept.text)


def written_out(messages: Sequence[Any]) -> str:
    """A conversation as text; a single message is its own text. Any: a client's JSON.

    >>> print(written_out([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 2?"}]))
    system: Be brief.
    <BLANKLINE>
    user: 2 + 2?
    """
    told = [(str(m.get("role", "")), _text(m.get("content"))) for m in messages if isinstance(m, dict)]
    return told[0][1] if len(told) == 1 else "\n\n".join(f"{role}: {text}" for role, text in told)


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    return "\n".join(part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str))

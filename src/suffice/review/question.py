"""A question as a person reads it, from the messages that a client sent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

MOST_CHARS = 200_000  # of a question that is kept; what a reviewer can read is less


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
    """The text of a message; of one in parts, its parts of text."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    return "\n".join(part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str))

"""Finds a stop that tore the run: the model wrote on with its thought where its answer should be. Pure."""

from __future__ import annotations

SAME_CHARS = 48  # an answer that begins with so many characters of the thought's own continuation is no answer
_QUOTES = "`'\""


def split_at_close(text: str, close_tag: str) -> tuple[str, str] | None:
    """Return the rest of a thought and the answer behind its closing tag; None if no tag is in the text.

    A tag between quotation marks is one that the answer speaks of.
    """
    rest, tag, answer = text.partition(close_tag)
    if not tag or rest[-1:] in _QUOTES or answer[:1] in _QUOTES:
        return None
    return rest, answer


def goes_on(answer: str, rest_of_thought: str) -> bool:
    """Return whether an answer is how the run's own thought went on."""
    rest = rest_of_thought.strip()[:SAME_CHARS]
    return len(rest) == SAME_CHARS and answer.strip().startswith(rest)

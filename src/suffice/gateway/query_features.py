"""What a chat request tells of its question before the first token, for signals and for the log. Pure.

Knows where a chat body holds the question; refuses to keep any of its text, or what a client declares
about itself: only numbers of its form go on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from suffice.signals.query import query_signals
from suffice.types import Kind, Query


def query_of(body: Mapping[str, Any], kind: Kind, n_samples: int) -> Query:
    """The query of a governed request: its last user message, and the samples that a full run draws.

    The body's `metadata` stays out: it may name a person.
    """
    return query_signals(last_question(body), metadata={}, planned_steps=n_samples if kind == "samples" else None)


def last_question(body: Mapping[str, Any]) -> str | None:
    """The text of the last message of a user; None: there is none, or it is no text."""
    messages = body.get("messages")
    for message in reversed(messages) if isinstance(messages, list) else ():
        if isinstance(message, Mapping) and message.get("role") == "user":
            return _text(message.get("content"))
    return None


def _text(content: object) -> str | None:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return None
    parts = [part.get("text") for part in content if isinstance(part, Mapping)]
    texts = [text for text in parts if isinstance(text, str)]
    return "\n".join(texts) if texts else None

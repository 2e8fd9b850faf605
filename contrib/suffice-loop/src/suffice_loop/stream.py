"""An answer that is read while it is streamed: a step is a paragraph.

For models that go on checking an answer that they have given. A thought in a field of its own is better stopped by the
gateway, which also makes the model answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from suffice_loop.run import AgentRun

PARAGRAPH = "\n\n"


def question_of(body: Mapping[str, Any]) -> str:
    """Return the user's last message of a chat request; "" if it has none."""
    messages = body.get("messages")
    for message in reversed(messages if isinstance(messages, list) else []):
        if isinstance(message, Mapping) and message.get("role") == "user":
            return str(message.get("content") or "")
    return ""


class StreamedAnswer:
    def __init__(self, run: AgentRun) -> None:
        self._run = run
        self._rest, self._n_pieces = "", 0

    async def feed(self, text: str) -> bool:
        """Take the next piece, which counts as one token; return whether the stream is to end behind it."""
        self._rest, self._n_pieces = self._rest + text, self._n_pieces + bool(text)
        while PARAGRAPH in self._rest:
            paragraph, _, self._rest = self._rest.partition(PARAGRAPH)
            if not paragraph.strip():
                continue
            n_pieces, self._n_pieces = self._n_pieces, 0
            if (await self._run.take_async(paragraph, tokens=n_pieces, calls_tool=True)).stop:
                return True
        return False

    async def finish(self) -> None:
        """Report what follows the last paragraph, at the end of the stream."""
        if self._rest.strip():
            await self._run.take_async(self._rest, tokens=self._n_pieces)

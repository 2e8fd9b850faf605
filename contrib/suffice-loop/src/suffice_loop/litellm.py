"""A callback for LiteLLM's proxy: it ends a streamed answer once it suffices, and closes the upstream.

A step is a paragraph of the answer. For models that go on checking an answer that they have given; a thought in a field
of its own is better stopped by the gateway, which also makes the model answer.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from typing import Any

from litellm.integrations.custom_logger import CustomLogger

from suffice import Governor
from suffice_loop.run import AgentRun

PARAGRAPH = "\n\n"


class SufficeCallback(CustomLogger):
    def __init__(self, governor: Governor, *, read_answer: Callable[[str], str | None] | None = None) -> None:
        super().__init__()
        self._governor, self._read_answer = governor, read_answer

    async def async_post_call_streaming_iterator_hook(
        self, user_api_key_dict: Any, response: Any, request_data: dict[str, Any]
    ) -> AsyncGenerator[Any, None]:
        """Pass chunks on up to a stop. The proxy does not close what a callback leaves unread, so this does."""
        question = next((m["content"] for m in reversed(request_data.get("messages", ())) if m["role"] == "user"), "")
        paragraph, n_chunks = "", 0
        with AgentRun(self._governor, str(question), read_answer=self._read_answer) as run:
            try:
                async for chunk in response:
                    choice = chunk.choices[0] if chunk.choices else None
                    text = (choice.delta.content if choice is not None else None) or ""
                    paragraph, n_chunks = paragraph + text, n_chunks + bool(text)
                    stops = False
                    if PARAGRAPH in paragraph:
                        before, _, paragraph = paragraph.rpartition(PARAGRAPH)
                        stops = (await run.take_async(before, tokens=n_chunks, calls_tool=True)).stop
                        n_chunks = 0
                    if stops and choice is not None:
                        choice.finish_reason = "stop"
                    yield chunk
                    if stops:
                        return
                if paragraph.strip():
                    await run.take_async(paragraph, tokens=n_chunks)
            finally:
                await _close(response)


async def _close(response: Any) -> None:
    """Close a stream of whatever type; LiteLLM wraps several, and some have no `aclose`."""
    for stream in (response, getattr(response, "completion_stream", None), getattr(response, "response", None)):
        close = getattr(stream, "aclose", None) or getattr(stream, "close", None)
        if close is not None:
            closing = close()
            if hasattr(closing, "__await__"):
                await closing

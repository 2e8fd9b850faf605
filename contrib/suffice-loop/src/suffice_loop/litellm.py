"""A callback for LiteLLM's proxy: it ends a streamed answer once it suffices, see `suffice_loop.stream`.

The proxy does not close what a callback leaves unread before the answer is garbage; so this one closes it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from typing import Any

from litellm.integrations.custom_logger import CustomLogger

from suffice import Governor
from suffice_loop.run import AgentRun
from suffice_loop.stream import StreamedAnswer, question_of


class SufficeCallback(CustomLogger):
    def __init__(self, governor: Governor, *, read_answer: Callable[[str], str | None] | None = None) -> None:
        super().__init__()
        self._governor, self._read_answer = governor, read_answer

    async def async_post_call_streaming_iterator_hook(
        self, user_api_key_dict: Any, response: Any, request_data: dict[str, Any]
    ) -> AsyncGenerator[Any, None]:
        try:
            with AgentRun(self._governor, question_of(request_data), read_answer=self._read_answer) as run:
                answer = StreamedAnswer(run)
                async for chunk in response:
                    choice = chunk.choices[0] if chunk.choices else None
                    if choice is not None and await answer.feed(choice.delta.content or ""):
                        choice.finish_reason = "stop"
                        yield chunk
                        return
                    yield chunk
                await answer.finish()
        finally:
            await _close(response)


async def _close(response: Any) -> None:
    """Close a stream of whatever type: LiteLLM wraps several, and some have no `aclose`."""
    for stream in (response, getattr(response, "completion_stream", None), getattr(response, "response", None)):
        close = getattr(stream, "aclose", None) or getattr(stream, "close", None)
        closing: Any = close() if close is not None else None
        if hasattr(closing, "__await__"):
            await closing

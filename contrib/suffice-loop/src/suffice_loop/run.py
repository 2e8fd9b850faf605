"""One run of an agent whose framework drives the loop: what all adapters share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Self

from suffice import Decision, Governor


class AgentRun:
    """One governed run, begun here and told of every turn. Any thread may use it, one at a time.

    A turn is one reply of the model. The answer so far is the one that `read_answer` finds in its text, or what the
    route's scorer does. Whoever opens a run ends it, with `end` or as a context manager; an exception aborts it.
    """

    def __init__(
        self,
        governor: Governor,
        question: str,
        *,
        read_answer: Callable[[str], str | None] | None = None,
        **start: Any,
    ) -> None:
        """`start` holds the further arguments of `Governor.episode`, such as `key` and `planned_steps`."""
        # `str`: LangChain's texts are of a subclass, which cannot be written as JSON.
        self.episode = governor.episode(str(question), **start).__enter__()
        self._read_answer = read_answer
        self._is_over = False

    @property
    def stops(self) -> bool:
        """Whether the loop is to end before the model is called again."""
        return self.episode.stopped

    @property
    def answer(self) -> str:
        return self.episode.answer or ""

    def take(self, text: str, *, tokens: int, ctx_tokens: int = 0, calls_tool: bool = False) -> Decision:
        """Report a turn.

        text        what the model wrote beside its calls of tools
        tokens      that it generated
        ctx_tokens  of the prompt
        calls_tool  False: the framework ends the loop by itself here
        """
        self._is_over = not calls_tool
        text = str(text)
        return self.episode.step(
            text=text,
            answer=self._answer_in(text),
            tokens=tokens,
            ctx_tokens=ctx_tokens,
            action="tool" if calls_tool else "answer",
            done=self._is_over,
        )

    def _answer_in(self, text: str) -> str | None:
        """None leaves it to the route's scorer; "" is no answer."""
        if self._read_answer is not None:
            return self._read_answer(text) or ""
        return None if text else ""

    async def take_async(self, text: str, **turn: Any) -> Decision:
        """As `take`, without blocking the event loop."""
        return await asyncio.to_thread(self.take, text, **turn)

    def end(self, *, aborted: bool = False) -> None:
        """End the run; once it is over, this does nothing."""
        self.episode.end(aborted=aborted)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.end(aborted=kind is not None)

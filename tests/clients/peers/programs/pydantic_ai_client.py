"""pydantic-ai: a run with and without a tool; with one, the model is asked twice."""

from __future__ import annotations

from typing import Any

import openai
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

from tests.clients.peers.programs.asking import KEY, QUESTION, Case, Seen, run


async def ask(case: Case, seen: Seen) -> None:
    async with openai.AsyncOpenAI(base_url=case.base_url, api_key=KEY, max_retries=0, timeout=case.timeout_s) as client:
        agent: Any = Agent(OpenAIChatModel(case.model, provider=OpenAIProvider(openai_client=client)))
        if case.tool:

            @agent.tool_plain
            def keep(value: int) -> str:
                """Keep a number."""
                seen.calls("keep", {"value": value})
                return "kept"

        if case.stream:
            async with agent.run_stream(QUESTION) as result:
                async for piece in result.stream_text(delta=True, debounce_by=None):
                    seen.text += piece
                _note(result.all_messages(), seen)
                _count(result.usage, seen)
        else:
            result = await agent.run(QUESTION)
            seen.text = result.output
            _note(result.all_messages(), seen)
            _count(result.usage, seen)


def _note(messages: list[Any], seen: Seen) -> None:
    for message in messages:
        seen.finish = getattr(message, "finish_reason", None) or seen.finish
        for part in message.parts:
            if part.part_kind == "thinking":
                seen.thinks(part.content)


def _count(usage: Any, seen: Seen) -> None:
    report = usage() if callable(usage) else usage
    seen.usage = {
        "prompt": report.input_tokens,
        "completion": report.output_tokens,
        "total": report.total_tokens,
        "reasoning": report.details.get("reasoning_tokens"),
    }


if __name__ == "__main__":
    run(ask)

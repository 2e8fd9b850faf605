"""openai-agents: a run with and without a tool; with one, the model is asked twice."""

from __future__ import annotations

from typing import Any

import openai
from agents import Agent, ModelSettings, OpenAIChatCompletionsModel, Runner, function_tool, set_tracing_disabled

from tests.clients.peers.programs.asking import KEY, QUESTION, Case, Seen, run


async def ask(case: Case, seen: Seen) -> None:
    set_tracing_disabled(disabled=True)

    @function_tool
    def keep(value: int) -> str:
        """Keep a number."""
        seen.calls("keep", {"value": value})
        return "kept"

    async with openai.AsyncOpenAI(base_url=case.base_url, api_key=KEY, max_retries=0, timeout=case.timeout_s) as client:
        agent: Any = Agent(
            name="asker",
            model=OpenAIChatCompletionsModel(model=case.model, openai_client=client),
            model_settings=ModelSettings(include_usage=True),
            tools=[keep] if case.tool else [],
        )
        if case.stream:
            result: Any = Runner.run_streamed(agent, QUESTION)
            async for event in result.stream_events():
                data: Any = getattr(event, "data", None)
                if getattr(data, "type", "") == "response.output_text.delta":
                    seen.text += data.delta
        else:
            result = await Runner.run(agent, QUESTION)
        _note(result, seen)


def _note(result: Any, seen: Seen) -> None:
    seen.text = result.final_output or ""
    for item in result.new_items:
        if item.type == "reasoning_item":
            for piece in item.raw_item.summary:
                seen.thinks(piece.text)
    report = result.context_wrapper.usage
    seen.usage = {
        "prompt": report.input_tokens,
        "completion": report.output_tokens,
        "total": report.total_tokens,
        "reasoning": report.output_tokens_details.reasoning_tokens,
    }


if __name__ == "__main__":
    run(ask)

"""Hooks for the OpenAI Agents SDK: they report each turn, and end the run behind its tools.

>>> with AgentRun(governor, question) as run:
...     result = await Runner.run(governed(agent, run), question, hooks=SufficeHooks(run))
"""

from __future__ import annotations

from typing import Any

from agents import Agent, FunctionToolResult, ItemHelpers, ModelResponse, RunContextWrapper, RunHooks
from agents.agent import ToolsToFinalOutputResult

from suffice_loop.run import AgentRun


class SufficeHooks(RunHooks[Any]):
    def __init__(self, run: AgentRun) -> None:
        self._run = run

    async def on_llm_end(self, context: RunContextWrapper[Any], agent: Agent[Any], response: ModelResponse) -> None:
        texts = [ItemHelpers.extract_text(item) for item in response.output if item.type == "message"]
        await self._run.take_async(
            "".join(text or "" for text in texts),
            tokens=response.usage.output_tokens,
            ctx_tokens=response.usage.input_tokens,
            calls_tool=any(item.type.endswith("_call") for item in response.output),
        )


def governed(agent: Agent[Any], run: AgentRun) -> Agent[Any]:
    """Return the agent with an end behind its tools. An agent that it hands over to needs the same."""

    def decide(context: RunContextWrapper[Any], results: list[FunctionToolResult]) -> ToolsToFinalOutputResult:
        return ToolsToFinalOutputResult(is_final_output=run.stops, final_output=run.answer)

    return agent.clone(tool_use_behavior=decide)

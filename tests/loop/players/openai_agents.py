"""An agent of the OpenAI Agents SDK with the hooks."""

from __future__ import annotations

import asyncio

from agents import Agent, OpenAIChatCompletionsModel, Runner, function_tool, set_tracing_disabled
from openai import AsyncOpenAI

from suffice import Governor
from suffice_loop import AgentRun
from suffice_loop.openai_agents import SufficeHooks, governed
from tests.loop.players.playing import play_all, search


def play(governor: Governor, question: str, url: str, _: str) -> AgentRun:
    model = OpenAIChatCompletionsModel("scripted", AsyncOpenAI(base_url=url, api_key="unused"))
    agent = Agent(name="reader", model=model, tools=[function_tool(search)])
    with AgentRun(governor, question) as run:
        result = asyncio.run(Runner.run(governed(agent, run), question, hooks=SufficeHooks(run), max_turns=50))
    assert result.final_output == run.answer
    return run


if __name__ == "__main__":
    set_tracing_disabled(True)
    play_all(play)

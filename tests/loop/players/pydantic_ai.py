"""An agent of Pydantic AI with the capability."""

from __future__ import annotations

import asyncio

from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

from suffice import Governor
from suffice_loop import AgentRun
from suffice_loop.pydantic_ai import Suffice
from tests.loop.players.playing import play_all, search


def play(governor: Governor, question: str, url: str, _: str) -> AgentRun:
    model = OpenAIChatModel("scripted", provider=OpenAIProvider(base_url=url, api_key="unused"))
    agent = Agent(model, tools=[search])
    with AgentRun(governor, question) as run:
        result = asyncio.run(agent.run(question, capabilities=[Suffice(run)]))
    assert result.output == run.answer
    return run


if __name__ == "__main__":
    play_all(play)

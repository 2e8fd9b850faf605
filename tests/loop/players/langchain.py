"""LangChain's agent with the middleware."""

from __future__ import annotations

from typing import Any

from langchain.agents import create_agent
from langchain_openai import ChatOpenAI

from suffice import Governor
from suffice_loop import AgentRun
from suffice_loop.langchain import SufficeMiddleware
from tests.loop.players.playing import play_all, search


class Kept(SufficeMiddleware):
    """Remembers the run, which the middleware forgets at its end."""

    run: AgentRun

    def after_agent(self, state: Any, runtime: Any) -> None:
        kept = self.run_of(state)
        assert kept is not None
        self.run = kept
        super().after_agent(state, runtime)


def play(governor: Governor, question: str, url: str, _: str) -> AgentRun:
    model, middleware = ChatOpenAI(model="scripted", base_url=url, api_key="unused"), Kept(governor)
    agent = create_agent(model, [search], middleware=[middleware])
    result = agent.invoke({"messages": [{"role": "user", "content": question}]}, {"recursion_limit": 100})
    run = middleware.run
    assert result["messages"][-1].text == run.answer
    return run


if __name__ == "__main__":
    play_all(play)

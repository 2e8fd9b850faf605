"""A graph of LangGraph with the node."""

from __future__ import annotations

from typing import Any

from langchain_openai import ChatOpenAI
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode

from suffice import Governor
from suffice_loop import AgentRun
from suffice_loop.langgraph import SufficeNode
from tests.loop.players.playing import play_all, search


def play(governor: Governor, question: str, url: str, _: str) -> AgentRun:
    model = ChatOpenAI(model="scripted", base_url=url, api_key="unused").bind_tools([search])

    def call_model(state: MessagesState) -> dict[str, Any]:
        return {"messages": [model.invoke(state["messages"])]}

    with AgentRun(governor, question) as run:
        built = StateGraph(MessagesState)
        built.add_node("model", call_model)
        built.add_node("suffice", SufficeNode(run, tools="tools"), destinations=("tools", END))
        built.add_node("tools", ToolNode([search]))
        built.add_edge(START, "model")
        built.add_edge("model", "suffice")
        built.add_edge("tools", "model")
        result = built.compile().invoke({"messages": [{"role": "user", "content": question}]}, {"recursion_limit": 100})
    messages = result["messages"]
    assert messages[-1].text == run.answer
    request = {call["id"] for message in messages for call in getattr(message, "tool_calls", ())}
    assert request == {message.tool_call_id for message in messages if message.type == "tool"}, "a call is left open"
    return run


if __name__ == "__main__":
    play_all(play)

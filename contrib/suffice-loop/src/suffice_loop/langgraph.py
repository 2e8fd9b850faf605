"""A node for graphs of LangGraph, between the model and its tools: it goes to the tools, or to the end.

>>> builder.add_node("suffice", SufficeNode(run, tools="tools"), destinations=("tools", END))
>>> builder.add_edge("model", "suffice")
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from langchain_core.messages import AIMessage, ToolMessage
from langgraph.graph import END
from langgraph.types import Command

from suffice_loop.run import AgentRun

NOT_CALLED = "Not called: the answer suffices."


class SufficeNode:
    """Reports the model's last message. At a stop it adds the answer, and closes the calls that are not made."""

    def __init__(self, run: AgentRun, *, tools: str, end: str = END) -> None:
        self._run, self._tools, self._end = run, tools, end

    def __call__(self, state: Mapping[str, Any]) -> Command[Any]:
        message: AIMessage = state["messages"][-1]
        usage: Any = message.usage_metadata or {}
        self._run.take(
            message.text,
            tokens=usage.get("output_tokens", 0),
            ctx_tokens=usage.get("input_tokens", 0),
            calls_tool=bool(message.tool_calls),
        )
        if not message.tool_calls:
            return Command(goto=self._end)
        if not self._run.stops:
            return Command(goto=self._tools)
        closed = [ToolMessage(NOT_CALLED, tool_call_id=call["id"]) for call in message.tool_calls]
        return Command(goto=self._end, update={"messages": [*closed, AIMessage(self._run.answer)]})

"""Middleware for agents of LangChain: before each call of the model it asks whether the answer suffices.

>>> agent = create_agent(model, tools, middleware=[SufficeMiddleware(governor)])
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Annotated, Any, NotRequired

from langchain.agents.middleware import AgentMiddleware, AgentState, hook_config
from langchain.agents.middleware.types import PrivateStateAttr
from langchain.messages import AIMessage, HumanMessage

from suffice import Governor
from suffice_loop.run import AgentRun

MOST_RUNS = 1_024  # open at once; an agent that raised leaves its run open until then


class SufficeState(AgentState):
    # The id of the run; to a checker without LangChain this is no TypedDict.
    suffice_run: NotRequired[Annotated[str, PrivateStateAttr]]  # type: ignore[valid-type]


class SufficeMiddleware(AgentMiddleware):
    """Governs every run of an agent. The question is the last message of the user."""

    state_schema = SufficeState

    def __init__(self, governor: Governor, *, read_answer: Callable[[str], str | None] | None = None) -> None:
        super().__init__()
        self._governor, self._read_answer = governor, read_answer
        self._runs: OrderedDict[str, AgentRun] = OrderedDict()

    def run_of(self, state: Mapping[str, Any]) -> AgentRun | None:
        return self._runs.get(state.get("suffice_run", ""))

    def before_agent(self, state: Any, runtime: Any) -> dict[str, Any]:
        questions = [message for message in state["messages"] if isinstance(message, HumanMessage)]
        run = AgentRun(self._governor, questions[-1].text if questions else "", read_answer=self._read_answer)
        self._runs[run.episode.id] = run
        while len(self._runs) > MOST_RUNS:
            self._runs.popitem(last=False)[1].end(aborted=True)
        return {"suffice_run": run.episode.id}

    @hook_config(can_jump_to=["end"])
    def before_model(self, state: Any, runtime: Any) -> dict[str, Any] | None:
        run = self.run_of(state)
        if run is None or not run.stops:
            return None
        return {"jump_to": "end", "messages": [AIMessage(run.answer)]}

    def after_model(self, state: Any, runtime: Any) -> None:
        run, message = self.run_of(state), state["messages"][-1]
        if run is None or not isinstance(message, AIMessage):
            return
        usage: Any = message.usage_metadata or {}
        run.take(
            message.text,
            tokens=usage.get("output_tokens", 0),
            ctx_tokens=usage.get("input_tokens", 0),
            calls_tool=bool(message.tool_calls),
        )

    def after_agent(self, state: Any, runtime: Any) -> None:
        run = self._runs.pop(state.get("suffice_run", ""), None)
        if run is not None:
            run.end()

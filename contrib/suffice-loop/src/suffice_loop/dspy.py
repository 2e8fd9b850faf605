"""DSPy's ReAct, governed: at a stop its next turn is the tool `finish`, chosen without the model.

>>> with AgentRun(governor, question) as run:
...     prediction = governed(react, run)(question=question)
"""

from __future__ import annotations

from typing import Any

import dspy

from suffice_loop.run import AgentRun

FINISH = "finish"


class SufficeTurn(dspy.Module):
    """Stands for the predictor of a turn. The answer so far is read in the thought."""

    def __init__(self, turn: dspy.Module, run: AgentRun) -> None:
        super().__init__()
        self.turn, self.run = turn, run

    def forward(self, **inputs: Any) -> dspy.Prediction:
        if self.run.stops:
            return dspy.Prediction(next_thought=self.run.answer, next_tool_name=FINISH, next_tool_args={})
        with dspy.track_usage() as tracker:
            prediction = self.turn(**inputs)
        usages = tracker.get_total_tokens().values()
        self.run.take(
            prediction.next_thought,
            tokens=sum(usage.get("completion_tokens") or 0 for usage in usages),
            ctx_tokens=sum(usage.get("prompt_tokens") or 0 for usage in usages),
            calls_tool=prediction.next_tool_name != FINISH,
        )
        return prediction


def governed(react: dspy.ReAct, run: AgentRun) -> dspy.ReAct:
    """Return a copy of the module for one run. What it learned stays in it."""
    copy = react.deepcopy()
    copy.react = SufficeTurn(copy.react, run)
    return copy

"""DSPy's ReAct, governed."""

from __future__ import annotations

import dspy

from suffice import Governor
from suffice_loop import AgentRun
from suffice_loop.dspy import governed
from tests.loop.players.playing import play_all, search


def play(governor: Governor, question: str, url: str, _: str) -> AgentRun:
    lm = dspy.LM("openai/scripted", api_base=url, api_key="unused", cache=False, num_retries=0)
    with dspy.context(lm=lm), AgentRun(governor, question) as run:
        governed(dspy.ReAct("question -> answer", tools=[search], max_iters=20), run)(question=question)
    return run


if __name__ == "__main__":
    play_all(play)

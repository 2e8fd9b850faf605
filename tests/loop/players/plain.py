"""A loop without a framework."""

from __future__ import annotations

import json
import urllib.request
from typing import Any

from suffice import Governor
from suffice_loop import AgentRun
from tests.loop.players.playing import PASSAGE, play_all


def ask(url: str, messages: list[dict[str, Any]]) -> dict[str, Any]:
    body = {"model": "scripted", "messages": messages, "tools": [{"type": "function", "function": {"name": "search"}}]}
    request = urllib.request.Request(
        f"{url}/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request) as reply:
        answer: dict[str, Any] = json.load(reply)
    return answer


def play(governor: Governor, question: str, url: str, _: str) -> AgentRun:
    messages: list[dict[str, Any]] = [{"role": "user", "content": question}]
    with AgentRun(governor, question) as run:
        while not run.stops:
            reply = ask(url, messages)
            message, usage = reply["choices"][0]["message"], reply["usage"]
            calls = message.get("tool_calls", [])
            run.take(
                message["content"],
                tokens=usage["completion_tokens"],
                ctx_tokens=usage["prompt_tokens"],
                calls_tool=bool(calls),
            )
            if not calls:
                break
            messages += [message, {"role": "tool", "tool_call_id": calls[0]["id"], "content": PASSAGE}]
    return run


if __name__ == "__main__":
    play_all(play)

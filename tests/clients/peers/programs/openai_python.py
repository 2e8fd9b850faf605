"""openai-python: plain, streamed, with a tool."""

from __future__ import annotations

from typing import Any

import openai

from tests.clients.peers.programs.asking import KEY, QUESTION, TOOL, Case, Seen, run


def ask(case: Case, seen: Seen) -> None:
    client = openai.OpenAI(base_url=case.base_url, api_key=KEY, max_retries=0, timeout=case.timeout_s)
    requested: dict[str, Any] = {"model": case.model, "messages": [{"role": "user", "content": QUESTION}]}
    if case.tool:
        requested["tools"] = [{"type": "function", "function": TOOL}]
    if case.stream:
        _streamed(client, requested, seen)
        return
    whole = client.chat.completions.create(**requested)
    message = whole.choices[0].message
    seen.text, seen.finish = message.content or "", whole.choices[0].finish_reason
    seen.thinks(getattr(message, "reasoning_content", None))
    seen.counts(whole.usage)
    for call in message.tool_calls or ():
        seen.calls(call.function.name, call.function.arguments)


def _streamed(client: openai.OpenAI, requested: dict[str, Any], seen: Seen) -> None:
    calls: dict[int, list[str]] = {}
    for chunk in client.chat.completions.create(stream=True, stream_options={"include_usage": True}, **requested):
        seen.counts(chunk.usage)
        for choice in chunk.choices:
            seen.text += choice.delta.content or ""
            seen.thinks(getattr(choice.delta, "reasoning_content", None))
            seen.finish = choice.finish_reason or seen.finish
            for call in choice.delta.tool_calls or ():
                parts = calls.setdefault(call.index, ["", ""])
                parts[0] += call.function.name or ""
                parts[1] += call.function.arguments or ""
    for name, arguments in calls.values():
        seen.calls(name, arguments)


if __name__ == "__main__":
    run(ask)

"""litellm as a client."""

from __future__ import annotations

from typing import Any

import litellm

from tests.clients.peers.programs.asking import KEY, QUESTION, TOOL, Case, Seen, run


def ask(case: Case, seen: Seen) -> None:
    request: dict[str, Any] = {
        "model": f"openai/{case.model}",
        "api_base": case.base_url,
        "api_key": KEY,
        "num_retries": 0,
        "max_retries": 0,
        "timeout": case.timeout_s,
        "messages": [{"role": "user", "content": QUESTION}],
    }
    if case.tool:
        request["tools"] = [{"type": "function", "function": TOOL}]
    if not case.stream:
        _note_whole(litellm.completion(**request), seen)
        return
    parts: list[Any] = []
    try:
        for chunk in litellm.completion(stream=True, stream_options={"include_usage": True}, **request):
            parts.append(chunk)
            seen.counts(getattr(chunk, "usage", None))
            for choice in chunk.choices:
                seen.text += choice.delta.content or ""
                seen.thinks(getattr(choice.delta, "reasoning_content", None))
                seen.finish = choice.finish_reason or seen.finish
    finally:
        if case.tool and parts:
            for call in litellm.stream_chunk_builder(parts).choices[0].message.tool_calls or ():
                seen.calls(call.function.name, call.function.arguments)


def _note_whole(whole: Any, seen: Seen) -> None:
    message = whole.choices[0].message
    seen.text, seen.finish = message.content or "", whole.choices[0].finish_reason
    seen.thinks(getattr(message, "reasoning_content", None))
    seen.counts(whole.usage)
    for call in message.tool_calls or ():
        seen.calls(call.function.name, call.function.arguments)


if __name__ == "__main__":
    run(ask)

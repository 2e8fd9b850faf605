"""anthropic-python's Messages: plain, streamed, with a tool."""

from __future__ import annotations

from typing import Any

import anthropic

from tests.clients.peers.programs.asking import KEY, QUESTION, TOOL, Case, Seen, run


def ask(case: Case, seen: Seen) -> None:
    base_url = case.base_url.removesuffix("/v1")
    client = anthropic.Anthropic(base_url=base_url, api_key=KEY, max_retries=0, timeout=case.timeout_s)
    request: dict[str, Any] = {
        "model": case.model,
        "max_tokens": 1000,
        "messages": [{"role": "user", "content": QUESTION}],
    }
    if case.tool:
        described = {"name": TOOL["name"], "description": TOOL["description"]}
        request["tools"] = [described | {"input_schema": TOOL["parameters"]}]
    if not case.stream:
        _note(client.messages.create(**request), seen)
        return
    with client.messages.stream(**request) as stream:
        for event in stream:
            # Each delta comes twice: as it is, and as what it means.
            if event.type not in ("content_block_delta", *seen.parts[-1:]):
                seen.parts.append(event.type)
            if event.type == "text":
                seen.text += event.text
            elif event.type == "thinking":
                seen.thinks(event.thinking)
        seen.text, seen.reasoning = "", None
        _note(stream.get_final_message(), seen)


def _note(message: Any, seen: Seen) -> None:
    seen.finish = message.stop_reason
    for block in message.content:
        if block.type == "text":
            seen.text += block.text
        elif block.type == "thinking":
            seen.thinks(block.thinking)
        elif block.type == "tool_use":
            seen.calls(block.name, block.input)
    usage = message.usage
    cached = usage.cache_read_input_tokens or 0
    n_prompt = usage.input_tokens + cached
    total = n_prompt + usage.output_tokens
    seen.usage = {"prompt": n_prompt, "completion": usage.output_tokens, "total": total, "reasoning": None}


if __name__ == "__main__":
    run(ask)

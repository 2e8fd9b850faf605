"""openai-python's Responses: plain, streamed, with a tool."""

from __future__ import annotations

from typing import Any

import openai

from tests.clients.peers.programs.asking import KEY, QUESTION, TOOL, Case, Seen, run


def ask(case: Case, seen: Seen) -> None:
    client = openai.OpenAI(base_url=case.base_url, api_key=KEY, max_retries=0, timeout=case.timeout_s)
    request: dict[str, Any] = {"model": case.model, "input": QUESTION}
    if case.tool:
        request["tools"] = [{"type": "function", "strict": False, **TOOL}]
    if not case.stream:
        _note(client.responses.create(**request), seen)
        return
    for event in client.responses.create(stream=True, **request):
        kind = event.type.removeprefix("response.")
        if kind != (seen.parts[-1:] or [""])[0]:
            seen.parts.append(kind)
        if kind == "output_text.delta":
            seen.text += event.delta
        elif kind == "reasoning_text.delta":
            seen.thinks(event.delta)
        elif kind in ("completed", "incomplete"):
            seen.text, seen.reasoning = "", None
            _note(event.response, seen)


def _note(response: Any, seen: Seen) -> None:
    seen.text, seen.finish = response.output_text, response.status
    for item in response.output:
        if item.type == "reasoning":
            for part in item.content or ():
                seen.thinks(part.text)
        elif item.type == "function_call":
            seen.calls(item.name, item.arguments)
    if (usage := response.usage) is not None:
        details = usage.output_tokens_details
        seen.usage = {
            "prompt": usage.input_tokens,
            "completion": usage.output_tokens,
            "total": usage.total_tokens,
            "reasoning": None if details is None else details.reasoning_tokens,
        }


if __name__ == "__main__":
    run(ask)

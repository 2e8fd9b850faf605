"""openai-python's helper `chat.completions.stream`, which puts the chunks together by itself."""

from __future__ import annotations

from typing import Any

import openai

from tests.clients.peers.programs.asking import KEY, QUESTION, TOOL, Case, Seen, run


async def ask(case: Case, seen: Seen) -> None:
    request: dict[str, Any] = {"model": case.model, "messages": [{"role": "user", "content": QUESTION}]}
    if case.tool:
        request["tools"] = [{"type": "function", "function": TOOL}]
    async with openai.AsyncOpenAI(base_url=case.base_url, api_key=KEY, max_retries=0, timeout=case.timeout_s) as client:
        if not case.stream:
            whole: Any = await client.chat.completions.create(**request)
        else:
            async with client.chat.completions.stream(stream_options={"include_usage": True}, **request) as events:
                async for event in events:
                    if event.type not in ("chunk", *seen.parts[-1:]):
                        seen.parts.append(event.type)
                    if event.type == "content.delta":
                        seen.text += event.delta
                whole = await events.get_final_completion()
    message = whole.choices[0].message
    seen.text, seen.finish = message.content or "", whole.choices[0].finish_reason
    seen.thinks(getattr(message, "reasoning_content", None))
    seen.counts(whole.usage)
    for call in message.tool_calls or ():
        seen.calls(call.function.name, call.function.arguments)


if __name__ == "__main__":
    run(ask)

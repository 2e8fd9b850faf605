"""LlamaIndex's OpenAILike."""

from __future__ import annotations

from typing import Any

from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike

from tests.clients.peers.programs.asking import KEY, QUESTION, TOOL, Case, Seen, run


def ask(case: Case, seen: Seen) -> None:
    model = OpenAILike(
        model=case.model,
        api_base=case.base_url,
        api_key=KEY,
        is_chat_model=True,
        is_function_calling_model=True,
        max_retries=0,
        timeout=case.timeout_s,
        additional_kwargs={"stream_options": {"include_usage": True}} if case.stream else {},
    )
    messages = [ChatMessage(role="user", content=QUESTION)]
    offered = {"tools": [{"type": "function", "function": TOOL}]} if case.tool else {}
    last: Any = None
    if case.stream:
        for last in model.stream_chat(messages, **offered):
            seen.text += last.delta or ""
            _note(last, seen, streamed=True)
    else:
        last = model.chat(messages, **offered)
        seen.text = last.message.content or ""
        _note(last, seen, streamed=False)
    for call in model.get_tool_calls_from_response(last, error_on_no_tool_call=False) if case.tool else ():
        seen.calls(call.tool_name, call.tool_kwargs)


def _note(reply: Any, seen: Seen, *, streamed: bool) -> None:
    raw = reply.raw
    for choice in raw.choices:
        seen.finish = choice.finish_reason or seen.finish
    if streamed:
        seen.thinks(reply.additional_kwargs.get("thinking_delta"))
    else:
        for block in reply.message.blocks:
            if type(block).__name__ == "ThinkingBlock":
                seen.thinks(block.content)
    seen.counts(raw.usage)


if __name__ == "__main__":
    run(ask)

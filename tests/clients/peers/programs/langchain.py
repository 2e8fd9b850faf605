"""langchain-openai's ChatOpenAI."""

from __future__ import annotations

from typing import Any

from langchain_openai import ChatOpenAI

from tests.clients.peers.programs.asking import KEY, QUESTION, TOOL, Case, Seen, run


def ask(case: Case, seen: Seen) -> None:
    model: Any = ChatOpenAI(
        model=case.model,
        base_url=case.base_url,
        api_key=KEY,
        max_retries=0,
        timeout=case.timeout_s,
        stream_usage=True,
    )
    if case.tool:
        model = model.bind_tools([{"type": "function", "function": TOOL}])
    message = None
    if case.stream:
        for piece in model.stream(QUESTION):
            seen.text += piece.content
            message = piece if message is None else message + piece
    else:
        message = model.invoke(QUESTION)
        seen.text = message.content
    if message is None:
        return
    seen.finish = message.response_metadata.get("finish_reason")
    seen.thinks(message.additional_kwargs.get("reasoning_content"))
    report = message.usage_metadata
    if report is not None:
        seen.usage = {
            "prompt": report["input_tokens"],
            "completion": report["output_tokens"],
            "total": report["total_tokens"],
            "reasoning": report.get("output_token_details", {}).get("reasoning"),
        }
    for call in message.tool_calls:
        seen.calls(call["name"], call["args"])


if __name__ == "__main__":
    run(ask)

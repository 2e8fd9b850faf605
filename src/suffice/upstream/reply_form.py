"""What form of reply a request asks for, and the fields of the request that say so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from suffice.types import ReplyForm

# Fields that constrain the answer and leave the thought free: OpenAI's, llama.cpp's, vLLM's and SGLang's. llama.cpp's
# `grammar` is not among them, because it constrains the thought too (seen on its server).
CONSTRAINTS = (
    *("response_format", "json_schema", "structured_outputs", "regex", "ebnf"),
    *("guided_json", "guided_regex", "guided_choice", "guided_grammar"),
)
# What a continuation needs of them, so that it can give the same kind of reply.
CARRIED = ("tools", "tool_choice", "parallel_tool_calls", *CONSTRAINTS)
CLIENT_TOOLS = (None, "function", "custom")  # types of tools that the client runs; a server runs the others


def has_field(body: Mapping[str, Any], name: str) -> bool:
    return body.get(name) not in (None, False, [], {}, "")


def reply_form(body: Mapping[str, Any]) -> ReplyForm:
    if has_field(body, "tools"):
        return "tools"
    given = [name for name in CONSTRAINTS if has_field(body, name)]
    if given == ["response_format"] and body["response_format"] == {"type": "text"}:
        return "text"
    return "json" if given else "text"


def are_clients(tools: object) -> bool:
    """Return whether the client runs all of these tools, so that a call ends the reply."""
    listed = tools if isinstance(tools, list) else []
    return all(isinstance(tool, Mapping) and tool.get("type") in CLIENT_TOOLS for tool in listed)


def stop_words(body: Mapping[str, Any]) -> tuple[str, ...]:
    stop = body.get("stop")
    words = [stop] if isinstance(stop, str) else stop if isinstance(stop, list) else []
    return tuple(word for word in words if isinstance(word, str) and word)

"""What one record of a log says, in the words of four kinds of log. Pure: values in, a `LoggedCall` out.

    openai    {"request": …, "response": …}, the Batch API's lines, or a bare chat completion
              (OpenAI API reference, "Chat" and "Batch")
    litellm   StandardLoggingPayload, one a line, and rows of the proxy's spend logs
              (docs.litellm.ai, "StandardLoggingPayload Specification")
    langfuse  observations of type GENERATION, from the API (camel case) or an export (snake case)
              (langfuse.com docs, "Public API" and "Blob Storage Export Field Reference")

vLLM's lines are text and have a reader of their own, `vllm`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import msgspec

from suffice.upstream.wire import REASONING_FIELDS

THINK = ("<think>", "</think>")
FINISHED = frozenset({"success", "completed", "200", ""})


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedCall:
    """One finished call of a model. None: the log does not say."""

    prompt: str  # hash: the same for calls that asked the same; "": unknown
    texts: tuple[str, ...]  # the visible answer of each choice
    thoughts: tuple[str, ...]  # the thought that was shown with it; "": none
    model: str = ""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None  # of all choices together, thoughts included
    reasoning_tokens: int | None = None  # part of them
    at_s: float | None = None  # Unix time at which it began


def prompt_key(asked: object) -> str:
    """A short hash of a prompt or of messages; "" for nothing."""
    if asked in (None, "", []):
        return ""
    return hashlib.blake2b(msgspec.json.encode(asked), digest_size=12).hexdigest()


def openai(item: Mapping[str, Any]) -> LoggedCall | None:
    """A request with its response, a line of a batch's output, or a bare response."""
    request = _mapping(item.get("request")) or _mapping(item.get("body")) or item
    request = _mapping(request.get("body")) or request
    response = _mapping(item.get("response")) or item
    response = _mapping(response.get("body")) or response
    asked = request.get("messages") or request.get("prompt") or request.get("input")
    at = _first(item, "created_at", "timestamp", "time", "start_time", "startTime") or response.get("created")
    return completion(response, asked=asked, at=at)


def litellm(item: Mapping[str, Any]) -> LoggedCall | None:
    """One StandardLoggingPayload, or one row of the spend logs. Failed calls and cache hits are left out."""
    if str(item.get("status") or "").lower() not in FINISHED or item.get("cache_hit") in (True, "True", "true"):
        return None
    response = item.get("response")
    if isinstance(response, str):
        response = _decoded(response) or {"choices": [{"message": {"content": response}}]}
    messages = item.get("messages")
    asked = _decoded(messages) or messages if isinstance(messages, str) else messages
    found = completion(_mapping(response) or {}, asked=asked, at=item.get("startTime"))
    return None if found is None else _counted(found, item, ("prompt_tokens",), ("completion_tokens",))


def langfuse(item: Mapping[str, Any]) -> LoggedCall | None:
    """One observation. Those that are no GENERATION are left out."""
    if str(item.get("type", "GENERATION")).upper() != "GENERATION":
        return None
    asked, output = _value(item.get("input")), _value(item.get("output"))
    if isinstance(asked, Mapping) and "messages" in asked:
        asked = asked["messages"]
    response: Mapping[str, Any]
    if isinstance(output, Mapping) and "choices" in output:
        response = output
    elif isinstance(output, Mapping) and ("content" in output or "role" in output):
        response = {"choices": [{"message": output}]}
    elif isinstance(output, list):
        response = {"choices": [{"message": m} for m in output if isinstance(m, Mapping)]}
    elif isinstance(output, str) and output:
        response = {"choices": [{"message": {"content": output}}]}
    else:
        return None
    found = completion(response, asked=asked, at=_first(item, "startTime", "start_time"))
    if found is None:
        return None
    details = _mapping(_value(_first(item, "usageDetails", "usage_details", "usage"))) or {}
    flat = {**details, **{k: v for k, v in item.items() if k in ("promptTokens", "completionTokens", "model")}}
    return _counted(
        found, flat, ("input", "promptTokens", "prompt_tokens"), ("output", "completionTokens", "completion_tokens")
    )


READERS: Mapping[str, Callable[[Mapping[str, Any]], LoggedCall | None]] = {
    "openai": openai,
    "litellm": litellm,
    "langfuse": langfuse,
}


def detect_log_format(item: Mapping[str, Any]) -> str | None:
    """Which log a record comes from; None: none that is known."""
    if "traceId" in item or ("trace_id" in item and "call_type" not in item) or "usageDetails" in item:
        return "langfuse"
    if "call_type" in item or ("response_cost" in item) or ("spend" in item and "startTime" in item):
        return "litellm"
    if _mapping(item.get("response")) or "choices" in item:
        return "openai"
    return None


# --------------------------------------------------------------------------- what they share


def completion(response: Mapping[str, Any], *, asked: object, at: object) -> LoggedCall | None:
    """A chat or plain completion as OpenAI's API has it; None: it holds no answer.

    asked  the messages or the prompt
    at     when, as a number (seconds) or as ISO 8601
    """
    listed = response.get("choices")
    said = [_said(c) for c in listed if isinstance(c, Mapping)] if isinstance(listed, list) else []
    if not said or not any(text or thought for text, thought in said):
        return None
    found = LoggedCall(
        prompt=prompt_key(asked),
        texts=tuple(text for text, _ in said),
        thoughts=tuple(thought for _, thought in said),
        model=str(response.get("model") or ""),
        at_s=moment(at),
    )
    usage = _mapping(response.get("usage")) or {}
    details = _mapping(usage.get("completion_tokens_details")) or {}
    thought_tokens = parse_count(details.get("reasoning_tokens"))
    return _counted(found, {**usage, "reasoning": thought_tokens}, ("prompt_tokens",), ("completion_tokens",))


def _said(choice: Mapping[str, Any]) -> tuple[str, str]:
    """Visible text and thought of one choice."""
    message = _mapping(choice.get("message")) or {}
    text = _text(message.get("content")) or _text(choice.get("text"))
    thought = next((t for name in REASONING_FIELDS if (t := _text(message.get(name)))), "")
    if not thought and THINK[1] in text:
        thought, _, text = text.partition(THINK[1])
        thought = thought.partition(THINK[0])[2] or thought
    return text, thought


def _text(content: object) -> str:
    """Text of a message's content, which may be a list of parts."""
    if isinstance(content, str):
        return content
    parts = [p.get("text") for p in content if isinstance(p, Mapping)] if isinstance(content, list) else []
    return "".join(p for p in parts if isinstance(p, str))


def _counted(
    call: LoggedCall, counts: Mapping[str, Any], prompt: tuple[str, ...], completed: tuple[str, ...]
) -> LoggedCall:
    """The call with the token counts and the model that stand under these names, where it lacks them."""
    first = next((n for name in prompt if (n := parse_count(counts.get(name))) is not None), None)
    second = next((n for name in completed if (n := parse_count(counts.get(name))) is not None), None)
    return replace(
        call,
        model=call.model or str(counts.get("model") or ""),
        prompt_tokens=first if call.prompt_tokens is None else call.prompt_tokens,
        completion_tokens=second if call.completion_tokens is None else call.completion_tokens,
        reasoning_tokens=parse_count(counts.get("reasoning"))
        if call.reasoning_tokens is None
        else call.reasoning_tokens,
    )


def parse_count(value: object) -> int | None:
    """A token count; None for what is none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return int(value) if 0 <= value < 2**53 else None


def moment(value: object) -> float | None:
    """Unix time of a moment given in seconds, milliseconds or as ISO 8601 (without a zone: UTC); None: unreadable."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value / 1000 if value > 1e11 else float(value) if value > 0 else None
    if not isinstance(value, str):
        return None
    try:
        found = datetime.fromisoformat(value)
    except ValueError:
        return None
    return (found if found.tzinfo is not None else found.replace(tzinfo=UTC)).timestamp()


def _mapping(value: object) -> Mapping[str, Any] | None:
    return value if isinstance(value, Mapping) else None


def _value(value: object) -> object:
    """A value that an export may have written as JSON inside a string."""
    return _decoded(value) or value if isinstance(value, str) and value[:1] in "[{" else value


def _decoded(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError):
        return None


def _first(item: Mapping[str, Any], *names: str) -> Any:
    return next((item[name] for name in names if item.get(name) is not None), None)

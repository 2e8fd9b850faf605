"""The fake model's tokenizer and chat template, and the part of a reply that a request already carries."""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
_ASSISTANT = "<|im_start|>assistant\n"
_MARKS = re.compile(r"<\|im_start\|>\w*|<\|im_end\|>|</?think>")
_MIN_RESTATED_CHARS = 6  # characters; fewer could be a coincidence
_THOUGHT_KEYS = ("reasoning_content", "reasoning", "thinking")


def cut(text: str) -> tuple[str, ...]:
    r"""Cut a text into the fake's tokens: each word with the white space before it.

    >>> cut("The answer is 42.\n")
    ('The', ' answer', ' is', ' 42.', '\n')
    """
    return tuple(re.findall(r"\s*\S+|\s+$", text))


def count_words(text: str) -> list[str]:
    """Return the words as prompt tokens; the template's own marks do not count."""
    return _MARKS.sub(" ", text).split()


def token_ids(text: str) -> list[int]:
    return [zlib.crc32(word.encode("utf-8", "surrogatepass")) % 100_000 for word in count_words(text)]


def prompt_text(content: Any) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, Mapping))
    return ""


def _thought_in(message: Mapping[str, Any]) -> str:
    return next((prompt_text(message[key]) for key in _THOUGHT_KEYS if message.get(key)), "")


def apply_template(messages: Sequence[Any], *, continue_last: bool, opens_thought: bool) -> str:
    lines = []
    readable = [m for m in messages if isinstance(m, Mapping)]
    for position, message in enumerate(readable):
        role, thought = str(message.get("role", "user")), _thought_in(message)
        text = prompt_text(message.get("content"))
        if thought:
            text = f"{THINK_OPEN}{thought}{THINK_CLOSE if text else ''}{text}"
        is_open = continue_last and role == "assistant" and position == len(readable) - 1
        lines.append(f"<|im_start|>{role}\n{text}" + ("" if is_open else "<|im_end|>\n"))
        if is_open:
            return "".join(lines)
    return "".join(lines) + _ASSISTANT + (THINK_OPEN if opens_thought else "")


@dataclass(frozen=True, slots=True)
class Prefix:
    """The part of a reply that the request itself carries, so that the model continues from there."""

    reasoning: str  # thought so far, without tags
    closed: bool  # the closing tag follows it
    answer: str  # answer text after the closing tag
    text: str  # all of it, as in the request


def prefix_of_message(messages: Sequence[Any], *, closes: bool = False) -> Prefix | None:
    """Return what an assistant's last message carries; None if the last message is not an assistant's.

    closes  a thought in a field of its own is closed even if no content follows it
    """
    last = messages[-1] if messages else None
    if not isinstance(last, Mapping) or last.get("role") != "assistant":
        return None
    content, thought = prompt_text(last.get("content")), _thought_in(last)
    if thought:
        return Prefix(thought, bool(content) or closes, content, content)
    if THINK_OPEN not in content and THINK_CLOSE not in content:
        return Prefix("", True, content, content)
    return _split(content)


def prefix_of_prompt(prompt: str) -> Prefix | None:
    """Return what a raw prompt carries after its last assistant mark; None if nothing or without a mark."""
    _, mark, text = prompt.rpartition(_ASSISTANT)
    if not mark or not text.removeprefix(THINK_OPEN).strip():
        return None
    return _split(text)


def _split(text: str) -> Prefix:
    thought, tag, answer = text.lstrip().removeprefix(THINK_OPEN).partition(THINK_CLOSE)
    return Prefix(thought, bool(tag), answer, text)


def restated_thought(messages: Sequence[Any], thought: str) -> str | None:
    """Return the part of `thought` that a re-ask repeats as text, less white space; None for any other request."""
    pair = messages[-2:]
    if [m.get("role") for m in pair if isinstance(m, Mapping)] != ["assistant", "user"]:
        return None
    restated, whole = ("".join(t.split()) for t in (prompt_text(pair[0].get("content")), thought))
    starts = (restated[at:] for at in range(len(restated) - _MIN_RESTATED_CHARS + 1))
    return next((part for part in starts if whole.startswith(part)), None)


def visible_length(text: str) -> int:
    """Count the characters that are not white space, by which thoughts are compared: closing one may trim it."""
    return len("".join(text.split()))


def same_beginning(text: str, beginning: str) -> bool:
    return "".join(text.split()).startswith("".join(beginning.split()))


def without_beginning(tokens: Sequence[str], beginning: str) -> tuple[str, ...]:
    missing = visible_length(beginning)
    for position, token in enumerate(tokens):
        size = visible_length(token)
        if size <= missing:
            missing -= size
            continue
        return (_drop_visible(token, missing), *tokens[position + 1 :])
    return ()


def _drop_visible(token: str, n_chars: int) -> str:
    for position, char in enumerate(token):
        if n_chars == 0:
            return token[position:]
        n_chars -= not char.isspace()
    return ""


def messages_of(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a request of Anthropic's Messages or OpenAI's Responses as a chat's messages.

    >>> messages_of({"instructions": "Be brief.", "input": "Hi"})
    [{'role': 'system', 'content': 'Be brief.'}, {'role': 'user', 'content': 'Hi'}]
    """
    system, turns = body.get("system", body.get("instructions")), body.get("messages", body.get("input"))
    messages = [{"role": "system", "content": prompt_text(system)}] if system else []
    for turn in [{"role": "user", "content": turns}] if isinstance(turns, str) else turns or ():
        if not isinstance(turn, Mapping):
            continue
        if turn.get("type") == "function_call_output":
            messages.append({"role": "tool", "content": prompt_text(turn.get("output"))})
        elif "role" in turn:
            messages += _turns_of(turn)
    return messages


def _turns_of(turn: Mapping[str, Any]) -> list[dict[str, Any]]:
    content, role = turn.get("content"), str(turn["role"])
    parts = [part for part in content if isinstance(part, Mapping)] if isinstance(content, list) else []
    results = [part for part in parts if part.get("type") == "tool_result"]
    messages = [{"role": "tool", "content": prompt_text(part.get("content"))} for part in results]
    thought = "".join(str(part.get("thinking", "")) for part in parts)
    text = prompt_text(content)
    if text or thought:
        messages.append({"role": role, "content": text} | ({"reasoning_content": thought} if thought else {}))
    return messages

"""Puts a streamed completion together again: the object that the upstream would have sent at once.

It knows how the parts of a stream add up, for chat and for plain completions. It refuses to know
why the stream was asked for, who reads the result, and any policy: fields that it has never heard
of are carried over too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from suffice.errors import UpstreamError, UpstreamProtocol
from suffice.upstream.wire import DONE_DATA, decode_json

# Fields that exist only in streams: padding against traffic analysis, progress reports.
_STREAM_ONLY = frozenset({"obfuscation", "prompt_progress"})
_FIRST_WINS = frozenset({"id", "model"})
_LISTED = ("choices", "object", "usage", "error")


class Assembler:
    """Collects the chunks of one stream; `result` is the non-streamed answer.

    >>> assembler = Assembler()
    >>> assembler.add({"choices": [{"index": 0, "delta": {"role": "assistant", "content": "4"}}]})
    >>> assembler.add({"choices": [{"index": 0, "delta": {"content": "2"}, "finish_reason": "stop"}]})
    >>> assembler.result()["choices"][0]["message"]
    {'role': 'assistant', 'content': '42'}
    """

    def __init__(self) -> None:
        self._top: dict[str, Any] = {}
        self._choices: dict[int, _ChoiceParts] = {}
        self._usage: Mapping[str, Any] | None = None
        self._done = False

    @property
    def finished(self) -> bool:
        """Has every choice that was seen got its finish reason?"""
        return bool(self._choices) and all(c.finish_reason is not None for c in self._choices.values())

    @property
    def usage(self) -> Mapping[str, Any] | None:
        """The last usage that was not null, as the upstream wrote it."""
        return self._usage

    def add(self, chunk: Mapping[str, Any] | bytes) -> None:
        """Take the next chunk, parsed or as an event's data. After `[DONE]` nothing counts any more.

        Raises UpstreamProtocol for data that is no JSON, UpstreamError for an error frame.
        """
        if isinstance(chunk, bytes):
            if chunk.strip() == DONE_DATA:
                self._done = True
                return
            chunk = decode_json(chunk) if chunk.strip() else {}
        if self._done or not isinstance(chunk, Mapping):
            return
        if chunk.get("error"):
            raise UpstreamError(f"upstream: the stream carried an error{_named(chunk['error'])}")
        if any(key in chunk for key in _LISTED):  # else it is an event of the vendor's own
            self._add_top(chunk)
            self._add_choices(chunk.get("choices"))

    def _add_top(self, chunk: Mapping[str, Any]) -> None:
        usage = chunk.get("usage")
        if isinstance(usage, Mapping):
            self._usage = usage
        for key, value in chunk.items():
            if key not in _LISTED and key not in _STREAM_ONLY:
                _keep(self._top, key, value, first_wins=key in _FIRST_WINS, join_lists=False)

    def _add_choices(self, choices: Any) -> None:
        for choice in choices if isinstance(choices, list) else ():
            if isinstance(choice, Mapping):
                index = choice.get("index")
                index = index if isinstance(index, int) else 0
                self._choices.setdefault(index, _ChoiceParts()).add(choice)

    def result(self) -> dict[str, Any]:
        """The assembled answer. Raises UpstreamProtocol when the stream held none, or broke off."""
        if not self._choices:
            raise UpstreamProtocol("upstream: the stream held no answer; at least one choice is needed")
        if not self.finished:
            raise UpstreamProtocol("upstream: the stream ended without a finish reason; the answer is torn")
        is_text = any(c.is_text for c in self._choices.values())
        # llama.cpp alone sends timings, and it alone writes "" where OpenAI writes null.
        empty_content = "" if "timings" in self._top else None
        answer = {
            **self._top,
            "object": "text_completion" if is_text else "chat.completion",
            "choices": [
                self._choices[index].result(index, is_text=is_text, empty_content=empty_content)
                for index in sorted(self._choices)
            ],
        }
        if self._usage is not None:
            answer["usage"] = dict(self._usage)
        return answer


class _ChoiceParts:
    """What one choice has collected."""

    def __init__(self) -> None:
        self.finish_reason: str | None = None
        self.is_text = False
        self._text: list[str] = []
        self._message = _Message()
        self._logprobs: dict[str, Any] | None = None
        self._has_logprobs = False
        self._others: dict[str, Any] = {}

    def add(self, choice: Mapping[str, Any]) -> None:
        for key, value in choice.items():
            if key == "delta":
                if isinstance(value, Mapping):
                    self._message.add(value)
            elif key == "text":
                self.is_text = True
                self._text.append(value if isinstance(value, str) else "")
            elif key == "finish_reason":
                self.finish_reason = self.finish_reason if value is None else value
            elif key == "logprobs":
                self._has_logprobs = True
                self._add_logprobs(value)
            elif key != "index":
                _keep(self._others, key, value)

    def _add_logprobs(self, value: Any) -> None:
        if not isinstance(value, Mapping):
            return
        known = self._logprobs = {} if self._logprobs is None else self._logprobs
        for key, part in value.items():
            _keep(known, key, part)

    def result(self, index: int, *, is_text: bool, empty_content: str | None) -> dict[str, Any]:
        body: dict[str, Any] = {"index": index, "finish_reason": self.finish_reason, **self._others}
        if self._has_logprobs:
            body["logprobs"] = self._logprobs
        if is_text:
            body["text"] = "".join(self._text)
        else:
            body["message"] = self._message.result(empty_content)
        return body


class _Message:
    """The deltas of one message. Strings are joined at the end, so many deltas stay cheap."""

    def __init__(self) -> None:
        self._strings: dict[str, list[str]] = {}
        self._content_parts: list[Any] | None = None   # content as a list of parts, as some vendors send it
        self._others: dict[str, Any] = {}
        self._calls: list[dict[str, Any]] = []
        self._has_calls = False
        self._call_of: dict[int, dict[str, Any]] = {}
        self._function: dict[str, Any] | None = None

    def add(self, delta: Mapping[str, Any]) -> None:
        for key, value in delta.items():
            if key in _STREAM_ONLY:
                continue
            if key == "tool_calls":
                self._add_calls(value)
            elif key == "function_call":
                if isinstance(value, Mapping):
                    self._function = {} if self._function is None else self._function
                    _join_function(self._function, value)
            elif key == "content" and isinstance(value, list):
                self._add_parts(value)
            elif key == "role":
                _keep(self._others, key, value, first_wins=True)
            elif isinstance(value, str):
                self._add_string(key, value)
            else:
                _keep(self._others, key, value)

    def _add_string(self, key: str, value: str) -> None:
        if key == "content" and self._content_parts is not None:
            self._add_parts([{"type": "text", "text": value}] if value else [])
            return
        self._strings.setdefault(key, []).append(value)

    def _add_parts(self, parts: list[Any]) -> None:
        if self._content_parts is None:
            before = "".join(self._strings.pop("content", []))
            self._content_parts = [{"type": "text", "text": before}] if before else []
        for part in parts:
            last = self._content_parts[-1] if self._content_parts else None
            if last is not None and _is_text_part(part) and _is_text_part(last):
                self._content_parts[-1] = {**last, "text": last["text"] + part["text"]}
            else:
                self._content_parts.append(part)

    def _add_calls(self, calls: Any) -> None:
        if not isinstance(calls, list):
            return
        for delta in calls:
            if isinstance(delta, Mapping):
                self._has_calls = True
                self._add_call(delta)

    def _add_call(self, delta: Mapping[str, Any]) -> None:
        call = self._call_for(delta)
        for key, value in delta.items():
            if key == "index" or value is None:
                continue
            if key == "function" and isinstance(value, Mapping):
                _join_function(call.setdefault("function", {}), value)
            elif value or key not in call:
                call[key] = value

    def _call_for(self, delta: Mapping[str, Any]) -> dict[str, Any]:
        """The call that a delta belongs to: by index, else by a new id, else the one before."""
        index, name = delta.get("index"), delta.get("id")
        if isinstance(index, int):
            if index not in self._call_of:
                self._call_of[index] = {}
            return self._call_of[index]
        last = self._calls[-1] if self._calls else None
        if last is None or (name and last.get("id") not in (None, name)):
            last = {}
            self._calls.append(last)
        return last

    def result(self, empty_content: str | None) -> dict[str, Any]:
        message: dict[str, Any] = {"role": self._others.get("role") or "assistant", "content": None}
        message |= {key: value for key, value in self._others.items() if key not in ("role", "content")}
        message |= {key: "".join(parts) for key, parts in self._strings.items()}
        if self._content_parts is not None:
            message["content"] = self._content_parts
        if self._has_calls:
            message["tool_calls"] = [self._call_of[i] for i in sorted(self._call_of)] + self._calls
        if self._function is not None:
            message["function_call"] = self._function
        if not message["content"]:
            message["content"] = self._empty(message, empty_content)
        return message

    def _empty(self, message: Mapping[str, Any], empty_content: str | None) -> str | None:
        """What stands for no text: null beside calls and refusals as OpenAI has it, "" otherwise."""
        if "content" in self._strings and not message.get("refusal"):
            return ""
        if self._has_calls or self._function is not None or message.get("refusal"):
            return empty_content
        return ""


def _keep(
    known: dict[str, Any], key: str, value: Any, *, first_wins: bool = False, join_lists: bool = True
) -> None:
    """Lists add up; of other values the last that is not null counts, or the first that says something."""
    if join_lists and isinstance(value, list):
        if not isinstance(known.get(key), list):
            known[key] = []   # ours, so that it may grow in place
        known[key].extend(value)
    elif first_wins:
        if not known.get(key):
            known[key] = value
    elif value is not None or key not in known:
        known[key] = value


def _join_function(function: dict[str, Any], delta: Mapping[str, Any]) -> None:
    """Names and arguments arrive in pieces; a name that is sent again whole is not doubled."""
    for key, value in delta.items():
        before = function.get(key)
        if value is None and key in function:
            continue
        if isinstance(value, str) and isinstance(before, str) and not (key == "name" and value == before):
            function[key] = before + value
        else:
            function[key] = value


def _is_text_part(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str)


def _named(error: Any) -> str:
    """The machine-readable words of an error. Its message stays out: it may quote a key or a prompt."""
    if not isinstance(error, Mapping):
        return ""
    words = [str(error[key])[:64] for key in ("type", "code") if isinstance(error.get(key), str | int)]
    return f" ({', '.join(words)})" if words else ""

"""Assembles a streamed chat or plain completion into the object of a non-streamed response."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from io import StringIO
from typing import Any

from suffice.errors import UpstreamError, UpstreamProtocol
from suffice.upstream.pattern import ARGUMENTS
from suffice.upstream.wire import (
    DONE_DATA,
    MOST_CHOICES,
    Delta,
    Frame,
    SseSplitter,
    decode_json,
    encode_json,
    is_given,
    items_in,
    last_events,
    parse_token_count,
    within,
)

# Fields that exist only in streams: padding against traffic analysis, progress reports.
_STREAM_ONLY = frozenset({"obfuscation", "prompt_progress"})
_FIRST_WINS = frozenset({"id", "model"})
_LISTED = ("choices", "object", "usage", "error")
LIMIT_BYTES = 8 * 2**20
MOST_CALLS = 1_024  # tool calls of one message
_OBJECT_FACTOR = 4  # approximate bytes in memory per byte of JSON
_NEW_KEY_BYTES = 1_024
_NEW_CHOICE_BYTES = 2_048


class Assembler:
    """Collects the chunks of one stream; `result` is the non-streamed response, in at most `limit_bytes` of memory.

    >>> assembler = Assembler()
    >>> assembler.add({"choices": [{"index": 0, "delta": {"role": "assistant", "content": "4"}}]})
    >>> assembler.add({"choices": [{"index": 0, "delta": {"content": "2"}, "finish_reason": "stop"}]})
    >>> assembler.result()["choices"][0]["message"]
    {'role': 'assistant', 'content': '42'}
    """

    def __init__(self, limit_bytes: int = LIMIT_BYTES) -> None:
        self._room = _Room(limit_bytes)
        self._top: dict[str, Any] = {}
        self._choices: dict[int, _ChoiceParts] = {}
        self._usage: Mapping[str, Any] | None = None  # the last one that was not null, as the upstream wrote it
        self._done = False
        self._template, self._is_plain_template = b"", False
        self._call = 0  # index of the template's call, if its text is one of ARGUMENTS

    @property
    def finished(self) -> bool:
        return bool(self._choices) and all(c.finish_reason is not None for c in self._choices.values())

    def add(self, chunk: Mapping[str, Any] | bytes) -> None:
        """Add a chunk, parsed or as data. Raise UpstreamProtocol for bad or too much data, or the server's error."""
        if isinstance(chunk, bytes):
            if chunk.strip() == DONE_DATA:
                self._done = True
                return
            chunk = decode_json(chunk) if chunk.strip() else {}
        if self._done or not isinstance(chunk, Mapping):
            return
        if chunk.get("error"):
            raise UpstreamError(f"upstream: the stream carried an error{_error_words(chunk['error'])}")
        if any(key in chunk for key in _LISTED):  # otherwise it is a vendor's own event
            self._add_top(chunk)
            self._add_choices(items_in(chunk, "choices"))

    def add_repeated(self, template: bytes, field: str, texts: Sequence[str]) -> bool:
        """Add chunks that equal `template` except for one text field; return False if they must be added one by one."""
        if template != self._template:
            chunk = decode_json(template)
            self._template, self._is_plain_template = template, _adds_text_alone(chunk, field)
            self._call = chunk["choices"][0]["delta"]["tool_calls"][0]["index"] if field == ARGUMENTS else 0
        if self._done or not self._is_plain_template or 0 not in self._choices:
            return False
        message = self._choices[0].message
        if field == ARGUMENTS:
            return message.add_arguments(self._call, "".join(texts))
        message.add_text(field, "".join(texts))
        return True

    def _add_top(self, chunk: Mapping[str, Any]) -> None:
        usage = chunk.get("usage")
        if isinstance(usage, Mapping):
            self._usage = usage
        for key, value in chunk.items():
            if key not in _LISTED and key not in _STREAM_ONLY:
                self._room.keep(self._top, key, value, first_wins=key in _FIRST_WINS, join_lists=False)

    def _add_choices(self, choices: list[Any]) -> None:
        for choice in choices:
            if isinstance(choice, Mapping):
                index = choice.get("index")
                index = index if isinstance(index, int) else 0
                if index not in self._choices:
                    self._room.take(_NEW_CHOICE_BYTES)
                    self._choices[index] = _ChoiceParts(self._room)
                self._choices[index].add(choice)
            if max(len(self._choices), len(choices)) > MOST_CHOICES:
                message = f"upstream: an answer has more than {MOST_CHOICES} choices; at most that many are allowed"
                raise UpstreamProtocol(message)

    def result(self) -> dict[str, Any]:
        """Return the assembled response. Raise UpstreamProtocol if the stream held none or broke off."""
        if not self._choices:
            raise UpstreamProtocol("upstream: the stream contained no answer; at least one choice is needed")
        if not self.finished:
            raise UpstreamProtocol("upstream: the stream ended without a finish reason; the answer is incomplete")
        is_text = any(choice.texts for choice in self._choices.values())
        # llama.cpp alone sends timings, and it alone writes "" where OpenAI writes null.
        empty_content = "" if "timings" in self._top else None
        answer = self._top | {
            "object": "text_completion" if is_text else "chat.completion",
            "choices": [
                choice.result(index, is_text=is_text, empty_content=empty_content)
                for index, choice in sorted(self._choices.items())
            ],
        }
        return answer if self._usage is None else answer | {"usage": dict(self._usage)}


def _adds_text_alone(chunk: Any, field: str) -> bool:
    (choice,) = chunk["choices"]
    beside = [value for key, value in choice.items() if key != "delta"]
    name = "tool_calls" if field == ARGUMENTS else field
    beside += [value for key, value in choice["delta"].items() if key not in (name, "role")]
    return not any(isinstance(value, str | list | dict) and value for value in beside)


class _Room:
    """Merges what arrives into tables, whose texts are `StringIO`, within so many bytes of memory."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = self._left = limit_bytes

    def take(self, n_bytes: int) -> None:
        self._left -= n_bytes
        if self._left < 0:
            message = f"upstream: an answer takes more than {self._limit} bytes of memory; at most that many are kept"
            raise UpstreamProtocol(message)

    def add_text(self, table: dict[str, Any], key: str, piece: str) -> None:
        text = table.get(key)
        if not isinstance(text, StringIO):
            self.take(_NEW_KEY_BYTES + len(key))
            text = table[key] = StringIO(newline="\n")
        self.take(_size_of(piece))
        text.write(piece)

    def keep(
        self, table: dict[str, Any], key: str, value: Any, *, first_wins: bool = False, join_lists: bool = True
    ) -> None:
        """Merge a value: lists add up; otherwise the last non-null value counts, or the first non-empty one."""
        before = table.get(key)
        if key not in table:
            self.take(_NEW_KEY_BYTES + len(key))
        if join_lists and isinstance(value, list):
            self.take(_size_of(value))
            if not isinstance(before, list):
                table[key] = []  # a copy, so that it may grow in place
            table[key].extend(value)
        elif (not before) if first_wins else (value is not None or key not in table):
            if value is not before:
                self.take(_size_of(value) - _size_of(before))
            table[key] = value

    def add_function(self, table: dict[str, Any], key: str, delta: Mapping[str, Any]) -> None:
        """Names and arguments arrive in pieces; a name that is repeated whole is not doubled."""
        if not isinstance(table.get(key), dict):
            table[key] = {}
        function = table[key]
        for name, value in delta.items():
            before = function.get(name)
            if value is None and name in function:
                continue
            if not isinstance(value, str):
                self.keep(function, name, value, join_lists=False)
            elif name != "name" or not isinstance(before, StringIO) or before.getvalue() != value:
                self.add_text(function, name, value)


def _size_of(value: Any) -> int:
    if isinstance(value, str):
        return len(value) if value.isascii() else 4 * len(value)
    if not isinstance(value, list | dict) or not value:
        return 0
    try:
        return _OBJECT_FACTOR * len(encode_json(value))
    except RecursionError:
        raise UpstreamProtocol("upstream: an answer is nested too deeply") from None


def _plain(table: Any) -> Any:
    """Return a table with its texts as strings, and anything else as it is."""
    if not isinstance(table, dict):
        return table
    return {key: value.getvalue() if isinstance(value, StringIO) else value for key, value in table.items()}


class _ChoiceParts:
    def __init__(self, room: _Room) -> None:
        self.finish_reason: str | None = None
        self.texts: dict[str, Any] = {}  # of a plain completion
        self.message = _Message(room)
        self._room = room
        self._logprobs: list[bytes] | None = None  # as received: parsed objects would take six times the memory
        self._others: dict[str, Any] = {}

    def add(self, choice: Mapping[str, Any]) -> None:
        for key, value in choice.items():
            if key == "delta":
                if isinstance(value, Mapping):
                    self.message.add(value)
            elif key == "text":
                self._room.add_text(self.texts, key, value if isinstance(value, str) else "")
            elif key == "finish_reason":
                self.finish_reason = self.finish_reason if value is None else value
            elif key == "logprobs":
                self._logprobs = self._logprobs or []
                if isinstance(value, Mapping):
                    self._logprobs.append(encode_json(value))
                    self._room.take(len(self._logprobs[-1]))
            elif key != "index":
                self._room.keep(self._others, key, value)

    def result(self, index: int, *, is_text: bool, empty_content: str | None) -> dict[str, Any]:
        body: dict[str, Any] = {"index": index, "finish_reason": self.finish_reason, **self._others}
        if self._logprobs is not None:
            joined, counted = dict[str, Any](), _Room(sys.maxsize)  # their room is taken
            for raw in self._logprobs:
                for key, part in decode_json(raw).items():
                    counted.keep(joined, key, part)
            body["logprobs"] = joined if self._logprobs else None
        if is_text:
            return body | {"text": "", **_plain(self.texts)}
        return body | {"message": self.message.result(empty_content)}


class _Message:
    def __init__(self, room: _Room) -> None:
        self._room = room
        self._texts: dict[str, Any] = {}
        self._parts: list[Any] | None = None  # content as a list of parts, as some vendors send it
        self._others: dict[str, Any] = {}
        self._calls: dict[tuple[int, int], dict[str, Any]] = {}  # (0, index), or (1, its number) without an index
        self._n_without_index = 0
        self._function: dict[str, Any] = {}  # "function_call", if there is one

    def add(self, delta: Mapping[str, Any]) -> None:
        for key, value in delta.items():
            if key in _STREAM_ONLY:
                continue
            if key == "tool_calls":
                self._add_calls(value)
            elif key == "function_call":
                if isinstance(value, Mapping):
                    self._room.add_function(self._function, key, value)
            elif key == "content" and isinstance(value, list):
                self._add_parts(value)
            elif isinstance(value, str) and key != "role":
                self.add_text(key, value)
            else:
                self._room.keep(self._others, key, value, first_wins=key == "role")

    def add_text(self, key: str, text: str) -> None:
        if key == "content" and self._parts is not None:
            self._add_parts([{"type": "text", "text": text}] if text else [])
        else:
            self._room.add_text(self._texts, key, text)

    def _add_parts(self, parts: list[Any]) -> None:
        if self._parts is None:
            before = self._texts.pop("content", None)
            self._parts = [{"type": "text", "text": before}] if before is not None and before.tell() else []
        for part in parts:
            if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
                self._room.take(_size_of(part))
                self._parts.append(part)
                continue
            last = self._parts[-1] if self._parts else None
            if not isinstance(last, dict) or not isinstance(last.get("text"), StringIO):
                last = {**part, "text": None}
                self._room.take(_size_of(last))
                self._parts.append(last)
            self._room.add_text(last, "text", part["text"])

    def _add_calls(self, calls: Any) -> None:
        for delta in calls if isinstance(calls, list) else ():
            if not isinstance(delta, Mapping):
                continue
            call = self._call_for(delta)
            for key, value in delta.items():
                if key == "index" or value is None:
                    continue
                if key == "function" and isinstance(value, Mapping):
                    self._room.add_function(call, key, value)
                elif value or key not in call:
                    self._room.keep(call, key, value, join_lists=False)

    def add_arguments(self, index: int, text: str) -> bool:
        """Add to the arguments of a call that has some; return False if there is none."""
        function = self._calls.get((0, index), {}).get("function")
        if not isinstance(function, dict) or ARGUMENTS not in function:
            return False
        self._room.add_text(function, ARGUMENTS, text)
        return True

    def _call_for(self, delta: Mapping[str, Any]) -> dict[str, Any]:
        index, name = delta.get("index"), delta.get("id")
        place = (0, index) if isinstance(index, int) else (1, self._n_without_index)
        if place[0] and name and self._calls.get(place, {}).get("id") not in (None, name):
            self._n_without_index += 1
            place = (1, self._n_without_index)
        if place not in self._calls:
            if len(self._calls) == MOST_CALLS:
                raise UpstreamProtocol(f"upstream: a message has more than {MOST_CALLS} tool calls; at most that many")
            self._room.take(_NEW_CHOICE_BYTES)
            self._calls[place] = {}
        return self._calls[place]

    def result(self, empty_content: str | None) -> dict[str, Any]:
        message: dict[str, Any] = {"role": self._others.get("role") or "assistant", "content": None}
        message |= {key: value for key, value in self._others.items() if key not in ("role", "content")}
        message |= _plain(self._texts)
        if self._parts is not None:
            message["content"] = [_plain(part) for part in self._parts]
        if self._calls:
            calls = [self._calls[place] for place in sorted(self._calls)]
            message["tool_calls"] = [{key: _plain(value) for key, value in call.items()} for call in calls]
        message |= {key: _plain(value) for key, value in self._function.items()}
        if not message["content"]:
            # Null beside calls and refusals, as OpenAI has it.
            beside = self._calls or self._function or message.get("refusal")
            has_text = "content" in self._texts and not message.get("refusal")
            message["content"] = empty_content if beside and not has_text else ""
        return message


class CallParts:
    def __init__(self, limit_bytes: int = LIMIT_BYTES) -> None:
        self._message = _Message(_Room(limit_bytes))

    def add(self, delta: Delta) -> list[Any]:
        """Add a delta; return its parts of calls. Raise UpstreamProtocol if they take too much room."""
        parts = decode_json(delta.tool_calls) if is_given(delta.tool_calls) else []
        self._message.add({"tool_calls": parts})
        return parts if isinstance(parts, list) else []

    def add_arguments(self, index: int, text: str) -> None:
        """Add to the arguments of a call. Raise UpstreamProtocol for too many, or if there is no such call."""
        if not self._message.add_arguments(index, text):
            raise UpstreamProtocol(f"upstream: arguments came for call {index}, which has not begun")

    @property
    def calls(self) -> list[Any]:
        return calls_of(self._message.result(None))


def first_message(body: object) -> Mapping[str, Any]:
    """Return the message of a completion's first choice; {} if it has none."""
    message = next((within(choice, "message") for choice in items_in(body, "choices")), None)
    return message if isinstance(message, dict) else {}


def calls_of(message: Mapping[str, Any]) -> list[Any]:
    return [call for call in items_in(message, "tool_calls") if isinstance(call, dict)]


def _error_words(error: Any) -> str:
    if not isinstance(error, Mapping):
        return ""
    words = [str(error[key])[:64] for key in ("type", "code") if isinstance(error.get(key), str | int)]
    return f" ({', '.join(words)})" if words else ""


# ---- responses that are relayed unchanged: the usage, id and end that they report

LAST_EVENTS = 6  # usage, end and error are in the last few events of every API's stream
_ID = re.compile(r'^\s*\{\s*"id"\s*:\s*"([^"\\]{1,200})"')
_TRUNCATED = ("length", "max_tokens", "max_output_tokens")
# The Messages API counts cache reads and writes beside `input_tokens`, not inside.
_BESIDE_INPUT = ("cache_read_input_tokens", "cache_creation_input_tokens")


@dataclass(slots=True)
class AnswerFacts:
    """What a response reports about itself. None: not reported."""

    prompt_tokens: int | None = None  # all of the prompt, cached parts included
    cached_tokens: int | None = None
    completion_tokens: int | None = None  # everything generated, the thought included
    reasoning_tokens: int | None = None
    response_id: str | None = None
    truncated: bool = False  # a token cap cut it
    failed: bool = False  # the upstream's own error, inside a response that had begun

    def note(self, value: Any) -> None:
        if not isinstance(value, dict):
            return
        # Responses events wrap the response in `response`, the first Messages event in `message`.
        inner = next((one for one in (value.get("response"), value.get("message")) if isinstance(one, dict)), value)
        name = inner.get("id")
        if isinstance(name, str) and name:
            self.response_id = name
        if (usage := _usage_in(value)) is not None:
            self.note_usage(usage)
        self.truncated = self.truncated or _is_truncated(value) or (inner is not value and _is_truncated(inner))
        failed = value.get("type") in ("error", "response.failed") or inner.get("status") == "failed"
        self.failed = self.failed or failed or bool(value.get("error"))

    def note_usage(self, usage: Mapping[str, Any]) -> None:
        """Take over a usage: the last one counts, field by field. One of zeros is ignored."""
        prompt = _first_count(usage, "prompt_tokens", "input_tokens")
        completion = _first_count(usage, "completion_tokens", "output_tokens")
        if not prompt and not completion:
            return
        beside = [parse_token_count(usage.get(key)) for key in _BESIDE_INPUT]
        self.prompt_tokens = (prompt or 0) + sum(n or 0 for n in beside) or self.prompt_tokens
        self.completion_tokens = self.completion_tokens if completion is None else completion
        inside = _detail(usage, "cached_tokens", "prompt_tokens_details", "input_tokens_details")
        cached = inside if beside[0] is None else beside[0]
        self.cached_tokens = self.cached_tokens if cached is None else cached
        thought = _detail(usage, "reasoning_tokens", "completion_tokens_details", "output_tokens_details")
        self.reasoning_tokens = self.reasoning_tokens if thought is None else thought


def read_answer(head: bytes, tail: bytes, *, events: bool) -> AnswerFacts:
    """Read a response, `events` or one JSON body, from its first and last bytes, which may overlap."""
    facts = AnswerFacts()
    for value in _event_values(head, tail) if events else _body_values(head, tail):
        facts.note(value)
    return facts


def _event_values(head: bytes, tail: bytes) -> Iterator[Any]:
    yield from _parse_events(SseSplitter(limit_bytes=2**30).feed(head)[:2])
    values = _parse_events(last_events(tail, LAST_EVENTS))
    if not any(_usage_in(value) is not None for value in values):
        # A last event that repeats the whole response may be longer than what was kept of it.
        yield from _usage_alone(tail)
    yield from values


def _parse_events(frames: Sequence[Frame]) -> list[Any]:
    values = []
    for frame in frames:
        with suppress(UpstreamProtocol):  # [DONE], cut or foreign
            values.append(decode_json(frame.data or b"null"))
    return values


def _body_values(head: bytes, tail: bytes) -> Iterator[Any]:
    try:
        yield decode_json(tail)
    except UpstreamProtocol:
        if match := _ID.match(head[:512].decode("utf-8", "replace")):
            yield {"id": match.group(1)}
        yield from _usage_alone(tail)


def _usage_alone(tail: bytes) -> Iterator[Any]:
    _, mark, rest = tail.decode("utf-8", "replace").rpartition('"usage":')
    with suppress(ValueError, RecursionError):
        if mark:
            yield {"usage": json.JSONDecoder().raw_decode(rest.lstrip())[0]}


def _usage_in(value: Any) -> Mapping[str, Any] | None:
    for path in (("usage",), ("response", "usage"), ("message", "usage")):
        if isinstance(usage := within(value, *path), dict):
            return usage
    if isinstance(value, dict) and "tokens_predicted" in value:  # llama.cpp's own completion
        return {
            "prompt_tokens": value.get("tokens_evaluated"),
            "completion_tokens": value["tokens_predicted"],
            "prompt_tokens_details": {"cached_tokens": within(value, "timings", "cache_n")},
        }
    return None


def _first_count(usage: Mapping[str, Any], *names: str) -> int | None:
    for name in names:
        if name in usage:
            return parse_token_count(usage[name])
    return None


def _detail(usage: Mapping[str, Any], key: str, *names: str) -> int | None:
    for name in names:
        if isinstance(details := usage.get(name), dict):
            return parse_token_count(details.get(key))
    return None


def _is_truncated(value: Mapping[str, Any]) -> bool:
    reasons = [choice.get("finish_reason") for choice in items_in(value, "choices") if isinstance(choice, dict)]
    reasons += [value.get("stop_reason"), within(value, "delta", "stop_reason")]
    reasons.append(within(value, "incomplete_details", "reason"))
    return value.get("stop_type") == "limit" or any(r in _TRUNCATED for r in reasons if r)

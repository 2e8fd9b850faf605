"""Puts a streamed completion together again: the object that the upstream would have sent at once.

It knows how the parts of a stream add up, for chat and for plain completions. An answer that grows too large is an
error of the upstream's protocol.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from suffice.errors import UpstreamError, UpstreamProtocol
from suffice.upstream.wire import DONE_DATA, MOST_CHOICES, decode_json, encode_json

# Fields that exist only in streams: padding against traffic analysis, progress reports.
_STREAM_ONLY = frozenset({"obfuscation", "prompt_progress"})
_FIRST_WINS = frozenset({"id", "model"})
_LISTED = ("choices", "object", "usage", "error")
LIMIT_BYTES = 8 * 2**20
MOST_CALLS = 1_024  # tool calls of one message
_MOST_PIECES = 4_096  # of a text, before they are joined: a piece of one character takes 60 bytes
_OBJECT_FACTOR = 4  # bytes in memory for a byte of JSON, about
_NEW_KEY_BYTES = 1_024
_NEW_CHOICE_BYTES = 2_048


class Assembler:
    """Collects the chunks of one stream; `result` is the non-streamed answer.

    limit_bytes  an answer that takes more memory than this raises UpstreamProtocol

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
        self._usage: Mapping[str, Any] | None = None
        self._done = False
        self._template, self._is_plain_template = b"", False

    @property
    def finished(self) -> bool:
        return bool(self._choices) and all(c.finish_reason is not None for c in self._choices.values())

    @property
    def usage(self) -> Mapping[str, Any] | None:
        """The last usage that was not null, as the upstream wrote it."""
        return self._usage

    def add(self, chunk: Mapping[str, Any] | bytes) -> None:
        """Take the next chunk, parsed or as an event's data. After `[DONE]` nothing counts any more.

        Raises UpstreamProtocol for data that is no JSON or too much, UpstreamError for an error frame.
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

    def add_repeated(self, template: bytes, field: str, texts: Sequence[str]) -> bool:
        """Take chunks that equal an earlier one but for the text in one field of their only choice's delta.

        template  one of them, with any text
        False: more than the text adds up in such chunks, and they are to be added one by one. Raises as `add` does.
        """
        if template != self._template:
            self._template, self._is_plain_template = template, _adds_text_alone(decode_json(template), field)
        if self._done or not self._is_plain_template or 0 not in self._choices:
            return False
        self._choices[0].add_texts(field, texts)
        return True

    def _add_top(self, chunk: Mapping[str, Any]) -> None:
        usage = chunk.get("usage")
        if isinstance(usage, Mapping):
            self._usage = usage
        for key, value in chunk.items():
            if key not in _LISTED and key not in _STREAM_ONLY:
                _keep(self._room, self._top, key, value, first_wins=key in _FIRST_WINS, join_lists=False)

    def _add_choices(self, choices: Any) -> None:
        if not isinstance(choices, list):
            return
        if len(choices) > MOST_CHOICES:
            raise _too_many_choices()
        for choice in choices:
            if isinstance(choice, Mapping):
                index = choice.get("index")
                self._parts_of(index if isinstance(index, int) else 0).add(choice)

    def _parts_of(self, index: int) -> _ChoiceParts:
        parts = self._choices.get(index)
        if parts is None:
            if len(self._choices) == MOST_CHOICES:
                raise _too_many_choices()
            self._room.take(_NEW_CHOICE_BYTES)
            parts = self._choices[index] = _ChoiceParts(self._room)
        return parts

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


def _adds_text_alone(chunk: Any, field: str) -> bool:
    """Is a second chunk like this one, but for the text in `field`, nothing but more of that text?"""
    (choice,) = chunk["choices"]
    beside = [value for key, value in choice.items() if key != "delta"]
    beside += [value for key, value in choice["delta"].items() if key not in (field, "role")]
    return not any(isinstance(value, str | list | dict) and value for value in beside)


def _too_many_choices() -> UpstreamProtocol:
    return UpstreamProtocol(f"upstream: an answer has more than {MOST_CHOICES} choices; at most that many are allowed")


class _Room:
    """The memory that is left for one answer."""

    __slots__ = ("_left", "_limit")

    def __init__(self, limit_bytes: int) -> None:
        self._limit = self._left = limit_bytes

    def take(self, n_bytes: int) -> None:
        """Use some of it. Raises UpstreamProtocol when there is none."""
        self._left -= n_bytes
        if self._left < 0:
            raise UpstreamProtocol(
                f"upstream: an answer takes more than {self._limit} bytes of memory; at most that many are kept"
            )

    def take_for(self, value: Any, before: Any = None) -> None:
        """Use what a JSON value needs; what it replaces is given back."""
        self.take(_size_of(value) - _size_of(before))


def _size_of(value: Any) -> int:
    """About the bytes that a JSON value takes in memory."""
    if isinstance(value, str):
        return len(value) if value.isascii() else 4 * len(value)
    if not isinstance(value, list | dict) or not value:
        return 0
    try:
        return _OBJECT_FACTOR * len(encode_json(value))
    except RecursionError:
        raise UpstreamProtocol("upstream: an answer is nested too deeply") from None


class _Text:
    """A text that arrives in pieces."""

    __slots__ = ("_pieces", "_room", "n_chars")

    def __init__(self, room: _Room) -> None:
        self._room, self._pieces, self.n_chars = room, list[str](), 0

    def add(self, piece: str) -> None:
        self._room.take(len(piece) if piece.isascii() else 4 * len(piece))
        self.n_chars += len(piece)
        self._pieces.append(piece)
        if len(self._pieces) > _MOST_PIECES:
            self._pieces = [self.whole()]

    def whole(self) -> str:
        return "".join(self._pieces)


class _ChoiceParts:
    """What one choice has collected."""

    def __init__(self, room: _Room) -> None:
        self.finish_reason: str | None = None
        self.is_text = False
        self._room = room
        self._text = _Text(room)
        self._message = _Message(room)
        self._logprobs: list[bytes] = []  # as they came: as objects they would take six times the memory
        self._has_logprobs = False
        self._others: dict[str, Any] = {}

    def add(self, choice: Mapping[str, Any]) -> None:
        for key, value in choice.items():
            if key == "delta":
                if isinstance(value, Mapping):
                    self._message.add(value)
            elif key == "text":
                self.is_text = True
                self._text.add(value if isinstance(value, str) else "")
            elif key == "finish_reason":
                self.finish_reason = self.finish_reason if value is None else value
            elif key == "logprobs":
                self._has_logprobs = True
                self._add_logprobs(value)
            elif key != "index":
                _keep(self._room, self._others, key, value)

    def add_texts(self, field: str, texts: Sequence[str]) -> None:
        for text in texts:
            self._message.add_string(field, text)

    def _add_logprobs(self, value: Any) -> None:
        if isinstance(value, Mapping):
            self._logprobs.append(encode_json(value))
            self._room.take(len(self._logprobs[-1]))

    def _joined_logprobs(self) -> dict[str, Any] | None:
        known: dict[str, Any] | None = None
        for raw in self._logprobs:
            known = {} if known is None else known
            for key, part in decode_json(raw).items():
                _keep(None, known, key, part)
        return known

    def result(self, index: int, *, is_text: bool, empty_content: str | None) -> dict[str, Any]:
        body: dict[str, Any] = {"index": index, "finish_reason": self.finish_reason, **self._others}
        if self._has_logprobs:
            body["logprobs"] = self._joined_logprobs()
        if is_text:
            body["text"] = self._text.whole()
        else:
            body["message"] = self._message.result(empty_content)
        return body


class _Message:
    """The deltas of one message. Strings are joined at the end, so many deltas stay cheap."""

    def __init__(self, room: _Room) -> None:
        self._room = room
        self._strings: dict[str, _Text] = {}
        self._content_parts: list[Any] | None = None  # content as a list of parts, as some vendors send it
        self._others: dict[str, Any] = {}
        self._calls: list[dict[str, Any]] = []
        self._has_calls = False
        self._call_of: dict[int, dict[str, Any]] = {}
        self._function: dict[str, Any] | None = None  # its texts as `_Text`

    def add(self, delta: Mapping[str, Any]) -> None:
        for key, value in delta.items():
            if key in _STREAM_ONLY:
                continue
            if key == "tool_calls":
                self._add_calls(value)
            elif key == "function_call":
                if isinstance(value, Mapping):
                    self._function = {} if self._function is None else self._function
                    _join_function(self._room, self._function, value)
            elif key == "content" and isinstance(value, list):
                self._add_parts(value)
            elif key == "role":
                _keep(self._room, self._others, key, value, first_wins=True)
            elif isinstance(value, str):
                self.add_string(key, value)
            else:
                _keep(self._room, self._others, key, value)

    def add_string(self, key: str, value: str) -> None:
        if key == "content" and self._content_parts is not None:
            self._add_parts([{"type": "text", "text": value}] if value else [])
            return
        if key not in self._strings:
            self._room.take(_NEW_KEY_BYTES + len(key))
            self._strings[key] = _Text(self._room)
        self._strings[key].add(value)

    def _add_parts(self, parts: list[Any]) -> None:
        if self._content_parts is None:
            before = self._strings.pop("content", None)
            self._content_parts = [{"type": "text", "text": before}] if before is not None and before.n_chars else []
        for part in parts:
            last = self._content_parts[-1] if self._content_parts else None
            if not _is_text_part(part):
                self._room.take_for(part)
                self._content_parts.append(part)
            elif isinstance(last, dict) and isinstance(last.get("text"), _Text):
                last["text"].add(part["text"])
            else:
                self._room.take_for({**part, "text": ""})
                text = _Text(self._room)
                text.add(part["text"])
                self._content_parts.append({**part, "text": text})

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
                if not isinstance(call.get(key), dict):
                    call[key] = {}
                _join_function(self._room, call[key], value)
            elif value or key not in call:
                _keep(self._room, call, key, value, join_lists=False)

    def _call_for(self, delta: Mapping[str, Any]) -> dict[str, Any]:
        """The call that a delta belongs to: by index, else by a new id, else the one before."""
        index, name = delta.get("index"), delta.get("id")
        if isinstance(index, int):
            if index not in self._call_of:
                self._call_of[index] = self._new_call()
            return self._call_of[index]
        last = self._calls[-1] if self._calls else None
        if last is None or (name and last.get("id") not in (None, name)):
            last = self._new_call()
            self._calls.append(last)
        return last

    def _new_call(self) -> dict[str, Any]:
        if len(self._calls) + len(self._call_of) == MOST_CALLS:
            raise UpstreamProtocol(f"upstream: a message has more than {MOST_CALLS} tool calls; at most that many")
        self._room.take(_NEW_CHOICE_BYTES)
        return {}

    def result(self, empty_content: str | None) -> dict[str, Any]:
        message: dict[str, Any] = {"role": self._others.get("role") or "assistant", "content": None}
        message |= {key: value for key, value in self._others.items() if key not in ("role", "content")}
        message |= {key: text.whole() for key, text in self._strings.items()}
        if self._content_parts is not None:
            message["content"] = [_plain(part) for part in self._content_parts]
        if self._has_calls:
            calls = [self._call_of[i] for i in sorted(self._call_of)] + self._calls
            message["tool_calls"] = [
                {**call, "function": _plain(call["function"])} if "function" in call else call for call in calls
            ]
        if self._function is not None:
            message["function_call"] = _plain(self._function)
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
    room: _Room | None,
    known: dict[str, Any],
    key: str,
    value: Any,
    *,
    first_wins: bool = False,
    join_lists: bool = True,
) -> None:
    """Lists add up; of other values the last that is not null counts, or the first that says something.

    room  None: it was taken before
    """
    if room is not None and key not in known:
        room.take(_NEW_KEY_BYTES + len(key))
    before = known.get(key)
    if join_lists and isinstance(value, list):
        if room is not None:
            room.take_for(value)
        if not isinstance(before, list):
            known[key] = []  # ours, so that it may grow in place
        known[key].extend(value)
    elif (not before) if first_wins else (value is not None or key not in known):
        if room is not None and value is not before:
            room.take_for(value, before)
        known[key] = value


def _join_function(room: _Room, function: dict[str, Any], delta: Mapping[str, Any]) -> None:
    """Names and arguments arrive in pieces; a name that is sent again whole is not doubled."""
    for key, value in delta.items():
        before = function.get(key)
        if value is None and key in function:
            continue
        if not isinstance(value, str):
            _keep(room, function, key, value, join_lists=False)
        elif not isinstance(before, _Text):
            room.take(_NEW_KEY_BYTES + len(key))
            function[key] = _Text(room)
            function[key].add(value)
        elif not (key == "name" and before.n_chars == len(value) and before.whole() == value):
            before.add(value)


def _plain(table: Any) -> Any:
    """A table whose texts are whole."""
    if not isinstance(table, dict):
        return table
    return {key: value.whole() if isinstance(value, _Text) else value for key, value in table.items()}


def _is_text_part(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str)


def _named(error: Any) -> str:
    """The machine-readable words of an error. Its message stays out: it may quote a key or a prompt."""
    if not isinstance(error, Mapping):
        return ""
    words = [str(error[key])[:64] for key in ("type", "code") if isinstance(error.get(key), str | int)]
    return f" ({', '.join(words)})" if words else ""

"""Reads chunks that differ from an earlier one only in their text, without parsing the equal bytes again. Pure.

The text is one of the delta, or a part of the arguments of a tool call.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile
from types import MappingProxyType
from typing import Any

import msgspec
from msgspec.structs import replace

from suffice.upstream.wire import (
    REASONING_FIELDS,
    Choice,
    Chunk,
    Delta,
    Frame,
    TokenDetails,
    WireUsage,
    decode_chunk,
    decode_json,
    encode_json,
    is_given,
)

ARGUMENTS = "arguments"  # the field of a text that belongs to a call
_NEVER = b"\x00"  # no event begins with it
_MAX_TRIES = 4  # patterns in a row without a match: this upstream's chunks do not repeat
_VALUE = rb'"usage":(?:null|\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\})'
_USAGE = re.compile(b",%b|%b," % (_VALUE, _VALUE))
# What counts up from event to event: its number in OpenAI's Responses, and the usage in every chunk of a chat.
_COUNTS = ("sequence_number", "total_tokens", "completion_tokens", "reasoning_tokens")
_COUNT = re.compile("|".join(f'(?<="{name}":)[0-9]+' for name in _COUNTS).encode())
_MOST_DIGITS = 15
WINDOW_BYTES = 16 * 1024  # of a read with many chunks, how much is processed at once

_string: Callable[[bytes], str] = msgspec.json.Decoder(str).decode
_strings: Callable[[bytes], list[str]] = msgspec.json.Decoder(list[str]).decode


class TextPattern:
    """One chunk with a hole for its text, which is in `field` of the delta; `template` has another text in the hole.

    Numbers behind the text that count up, such as those of a usage, are holes too.
    """

    def __init__(self) -> None:
        self._before = self._after = self._between = _NEVER
        self._n_before = self._n_after = self._n_around = 1
        self._edited: tuple[bytes, bytes] | None = None  # what the client gets around the text; None: the same
        self._until_count = b""  # what follows the text up to the first number; b"": there is none
        self._behind: list[bytes] = []  # what follows each number
        self._places: Mapping[bytes, int] = {}  # of the numbers by name
        self._last: list[int] = []  # the numbers of the last chunk that matched
        self._form = b""  # what follows the text, with marks for the numbers
        self._usage: WireUsage | None = None  # of the chunk that was learned
        self._matched = False
        self._tries = 0
        self.field, self.template = "", b""
        self.call = 0  # index of the call that the text belongs to, if it is one of ARGUMENTS
        self.counts_tokens = False  # whether each chunk carries a usage

    @property
    def learns(self) -> bool:
        return self._matched or self._tries < _MAX_TRIES

    @property
    def usage(self) -> WireUsage | None:
        """The usage in the last chunk that matched; None: such chunks carry none."""
        return None if self._usage is None else self._usage_of(self._last)

    def _usage_of(self, numbers: Sequence[int]) -> WireUsage:
        assert self._usage is not None
        known, completion, reasoning = self._usage, *map(self._places.get, (b"completion_tokens", b"reasoning_tokens"))
        return WireUsage(
            prompt_tokens=known.prompt_tokens,
            completion_tokens=known.completion_tokens if completion is None else numbers[completion],
            prompt_tokens_details=known.prompt_tokens_details,
            completion_tokens_details=None if reasoning is None else TokenDetails(None, numbers[reasoning]),
        )

    def run_in(self, data: bytes, at: int) -> tuple[list[str], bytes, int]:
        """Return texts, bytes for the client and end of the matching chunks from `at` on.

        At most WINDOW_BYTES are read, to bound the cost. A frame without a match must be parsed as any other.
        """
        if not data.startswith(self._before, at):
            return [], b"", at
        if self._until_count:
            # As below; most often each number is one more.
            after = self._form % (*(numbers := [number + 1 for number in self._last]),)
            middle = b"" if at or not data.endswith(after) else data[self._n_before : -len(after)]
            text = _string_in(middle) if middle else ""
            if not text:
                return self._counted_run_in(data, at)
            self._matched, self._last = True, numbers
            return [text], data if self._edited is None else middle.join(self._edited), len(data)
        if not at and len(data) < 2 * self._n_around and data.endswith(self._after):
            # One chunk, as in nearly every read of a paced stream.
            middle = data[self._n_before : -self._n_after]
            if text := _string_in(middle):
                self._matched = True
                return [text], data if self._edited is None else middle.join(self._edited), len(data)
        *parts, last = data[at + self._n_before : at + WINDOW_BYTES].split(self._between)
        texts = _strings_in(parts) if parts else []
        if len(texts) < len(parts):
            last = parts[len(texts)]
        part = last[: max(0, last.find(self._after))]  # the run's last chunk; something else follows
        parts = [*parts[: len(texts)], part]
        if text := _string_in(part):
            texts.append(text)
        else:
            parts.pop()
        end = at + len(parts) * self._n_around + sum(map(len, parts))
        self._matched = self._matched or bool(texts)
        if self._edited is None or not parts:
            return texts, data[at:end], end
        before, after = self._edited
        return texts, before + (after + before).join(parts) + after, end

    def _counted_run_in(self, data: bytes, at: int) -> tuple[list[str], bytes, int]:
        middle, *rest = data[at + self._n_before : at + WINDOW_BYTES].split(self._until_count)
        last = self._behind[-1]
        middles = list[bytes]()
        tails = list[bytes]()
        for piece in rest:
            tail, goes_on, following = piece.partition(self._between)
            tail = tail if goes_on else piece[: max(0, piece.find(last))]  # the run's last chunk
            is_one = len(self._behind) == 1 and len(tail) <= _MOST_DIGITS and tail.isdigit()
            if not (is_one or self._numbers_in(tail + last)):
                break
            middles.append(middle)
            tails.append(tail)
            middle = following
            if not goes_on:
                break
        texts = _strings_in(middles) if middles else []
        if not texts:
            return [], b"", at
        n, self._matched = len(texts), True
        self._last = [*map(int, self._numbers_in(tails[n - 1] + last))]
        end = at + n * (self._n_before + len(self._until_count) + len(last)) + sum(map(len, (*middles[:n], *tails[:n])))
        if self._edited is None:
            return texts, data[at:end], end
        before, after = self._edited
        return texts, before + (after + before).join(middles[:n]) + after, end

    def _numbers_in(self, data: bytes) -> list[bytes]:
        """Return the numbers in the end of a chunk; none if something else is there."""
        numbers, at = list[bytes](), 0
        for behind in self._behind:
            stop = data.find(behind, at, at + _MOST_DIGITS + len(behind))
            number = data[at : max(at, stop)]
            if not number.isdigit():
                return []
            numbers.append(number)
            at = stop + len(behind)
        return numbers

    def learn(
        self,
        frame: Frame,
        chunk: Chunk,
        *,
        without_usage: bool = False,
        decode: Callable[[bytes], Chunk] = decode_chunk,
        names: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Learn the bytes around the text of `frame`, whose only choice is text.

        decode, names  of an API that is not chat: its data as a chunk, and how it names the fields of texts
        """
        self._tries = 1 if self._matched else self._tries + 1
        self._matched = False
        field_and_text = _only_text(chunk)
        if field_and_text is None or frame.data is None or not frame.raw.endswith(b"data: " + frame.data + b"\n\n"):
            return
        field, text, call = field_and_text
        head = frame.raw[: -len(frame.data) - 2]
        cut = _around(frame.raw, names.get(field, field), text)
        if cut is None or head.count(b"\n") > 1 or not cut[0].startswith(head):
            return
        inner = cut[0][len(head) :], cut[1][:-2]  # of the data alone
        if not _is_text_hole(inner, chunk, field, text, decode):
            return
        edited = _without_usage(cut) if without_usage else None
        if (without_usage and edited is None) or _COUNT.search(b"".join((cut[0], *(edited or ())))):
            return
        if not self._learn_counts(cut[1], chunk, lambda tail: decode((inner[0] + tail)[:-2])):
            self._before = _NEVER
            return
        self.field = field
        self.call = call
        (self._before, self._after) = cut
        self._edited = edited
        self.template = b"?".join(inner if edited is None else (edited[0][len(head) :], edited[1][:-2]))
        self._n_before, self._n_after = len(self._before), len(self._after)
        self._n_around = self._n_before + self._n_after
        self._between = (self._behind[-1] if self._behind else self._after) + self._before

    def _learn_counts(self, tail: bytes, chunk: Chunk, decode: Callable[[bytes], Chunk]) -> bool:
        """Learn the numbers in what follows the text; return False if the usage is more or less than these."""
        mark, *behind = _COUNT.split(tail)
        self._until_count = mark if behind else b""
        self._behind = behind
        self._usage = chunk.usage
        self._form = b"%d".join(part.replace(b"%", b"%%") for part in (mark, *behind))
        if max(map(len, given := _COUNT.findall(tail)), default=0) > _MOST_DIGITS:
            return False
        self._last = [*map(int, given)]
        names = [part[:-2].rpartition(b'"')[2] for part in (mark, *behind)][: len(behind)]
        self._places = {name: n for n, name in enumerate(names)}  # the last one where a name occurs again
        self.counts_tokens = chunk.usage is not None
        if not self.counts_tokens:
            return True
        # With another number in each place, the usage must be what is read from these places.
        numbers = range(10_001, 10_001 + len(behind))
        return bool(numbers) and decode(self._form % tuple(numbers)).usage == self._usage_of(numbers)


def _string_in(middle: bytes) -> str:
    try:
        return _string(b'"%b"' % middle)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return ""


def _strings_in(middles: list[bytes]) -> list[str]:
    joined = b'","'.join(middles)
    # Decode all as one list if the only quotation marks are ours and none of them is escaped.
    if joined.count(b'"') == 2 * (len(middles) - 1) and joined.find(b'\\"') < 0 and joined[-1:] != b"\\":
        with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError):
            texts = _strings(b'["%b"]' % joined)
            return texts if all(texts) else texts[: texts.index("")]
    return list(takewhile(bool, map(_string_in, middles)))


def _only_text(chunk: Chunk) -> tuple[str, str, int] | None:
    """Return the field and the text of a chunk that adds nothing else, and the index of the call that it adds to."""
    if not chunk.choices or len(chunk.choices) != 1 or is_given(chunk.error):
        return None
    choice, delta = chunk.choices[0], chunk.choices[0].delta
    if choice.index != 0 or choice.finish_reason is not None or is_given(choice.logprobs):
        return None
    if delta is None or delta.refusal or is_given(delta.function_call):
        return None
    texts = [(name, text, 0) for name in ("content", *REASONING_FIELDS) if (text := getattr(delta, name))]
    if is_given(delta.tool_calls):
        call = _growing_call(delta)
        return None if texts or call is None else (ARGUMENTS, call["function"][ARGUMENTS], call["index"])
    return texts[0] if len(texts) == 1 else None


def _growing_call(delta: Delta) -> dict[str, Any] | None:
    """Return the only call of a delta, if nothing but its arguments grow."""
    match decode_json(delta.tool_calls):
        case [{"index": int(), "function": {"arguments": str(text), **others}, **beside} as call] if text:
            beside.pop("type", None)
            return None if any(others.values()) or any(beside.values()) else call
    return None


def _around(raw: bytes, field: str, text: str) -> tuple[bytes, bytes] | None:
    name, value = f'"{field}"'.encode(), encode_json(text)
    at = raw.find(value, raw.find(name) + len(name)) + 1
    return (raw[:at], raw[at + len(value) - 2 :]) if at else None


def _is_text_hole(
    inner: tuple[bytes, bytes], chunk: Chunk, field: str, text: str, decode: Callable[[bytes], Chunk]
) -> bool:
    """Check that the hole is the text: with another text in it, the chunk must decode to that text."""
    other = "!" if text == "?" else "?"
    changed = decode(other.encode().join(inner))
    is_changed = (_only_text(changed) or ())[:2] == (field, other)
    return is_changed and _with_text(changed, field, other) == _with_text(chunk, field, other)


def _with_text(chunk: Chunk, field: str, text: str) -> Chunk:
    """Return a chunk of one text with another text, and if that belongs to a call, as if the call were the first."""
    (choice,) = chunk.choices or [Choice()]
    assert choice.delta is not None
    fields: dict[str, Any] = {field: text}
    if field == ARGUMENTS and (call := _growing_call(choice.delta)):
        call |= {"index": 0, "function": call["function"] | fields}
        fields = {"tool_calls": msgspec.Raw(encode_json([call]))}
    return replace(chunk, choices=[replace(choice, delta=replace(choice.delta, **fields))])


def _without_usage(cut: tuple[bytes, bytes]) -> tuple[bytes, bytes] | None:
    before, after = (_USAGE.sub(b"", side, count=1) for side in cut)
    body = decode_json(_data(cut))
    if len(before) + len(after) < sum(map(len, cut)) and isinstance(body, dict):
        body.pop("usage", None)
        if decode_json(_data((before, after))) == body:
            return before, after
    return None


def _data(cut: tuple[bytes, bytes], text: bytes = b"?") -> bytes:
    return text.join(cut)[6:-2]

"""Reads chunks that differ from an earlier one only in their text, without parsing the equal bytes again. Pure."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping
from itertools import takewhile
from types import MappingProxyType

import msgspec
from msgspec.structs import replace

from suffice.upstream.wire import REASONING_FIELDS, Chunk, Frame, decode_chunk, decode_json, is_given

_NEVER = b"\x00"  # no event begins with it
_MAX_TRIES = 4  # patterns in a row without a match: this upstream's chunks do not repeat
_NO_USAGE = b'"usage":null'
_NUMBER = re.compile(rb'(?<="sequence_number":)\d+')  # of an event, in OpenAI's Responses
WINDOW_BYTES = 16 * 1024  # of a read with many chunks, how much is processed at once

_string: Callable[[bytes], str] = msgspec.json.Decoder(str).decode
_strings: Callable[[bytes], list[str]] = msgspec.json.Decoder(list[str]).decode


class TextPattern:
    """One chunk with a hole for its text, which is in `field` of the delta; `template` has another text in the hole."""

    def __init__(self) -> None:
        self._before = self._after = self._between = _NEVER
        self._n_before = self._n_after = self._n_around = 1
        self._edited: tuple[bytes, bytes] | None = None  # what the client gets around the text; None: the same
        self._until_number = b""  # what follows the text up to the event's number; b"": it has none
        self._matched = False
        self._tries = 0
        self.field, self.template = "", b""

    @property
    def learns(self) -> bool:
        return self._matched or self._tries < _MAX_TRIES

    def text_of(self, raw: bytes) -> str:
        """Return the text of a frame that matches; "" if it must be parsed as any other."""
        if self._until_number:
            texts, _, end = self._numbered_run_in(raw, 0)
            return texts[0] if end == len(raw) and len(texts) == 1 else ""
        if not raw.startswith(self._before) or not raw.endswith(self._after):
            return ""
        text = _string_in(raw[self._n_before : -self._n_after])
        self._matched = self._matched or bool(text)
        return text

    def run_in(self, data: bytes, at: int) -> tuple[list[str], bytes, int]:
        """Return texts, bytes and end of the matching chunks from `at` on, within WINDOW_BYTES to bound the cost."""
        if self._until_number:
            return self._numbered_run_in(data, at)
        if not data.startswith(self._before, at):
            return [], b"", at
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

    def _numbered_run_in(self, data: bytes, at: int) -> tuple[list[str], bytes, int]:
        mark, after, n_before = self._until_number, self._after, self._n_before
        if not at and len(data) < 2 * (self._n_around + len(mark)) and data.endswith(after):
            # One event, as in nearly every read of a paced stream.
            cut = data.rfind(mark)
            is_numbered = data[cut + len(mark) : -self._n_after].isdigit()
            if is_numbered and data.startswith(self._before) and (text := _string_in(data[n_before:cut])):
                self._matched = True
                return [text], data, len(data)
        middles, ends, end = list[bytes](), [at], at
        while data.startswith(self._before, end) and end - at < WINDOW_BYTES:
            cut = data.find(mark, end + n_before)
            number = cut + len(mark)
            stop = data.find(after, number)
            if cut < 0 or stop < 0 or not data[number:stop].isdigit():
                break
            middles.append(data[end + n_before : cut])
            ends.append(end := stop + self._n_after)
        texts = _strings_in(middles) if middles else []
        self._matched = self._matched or bool(texts)
        end = ends[len(texts)]
        return texts, data[at:end], end

    def edit(self, frame: Frame) -> Frame:
        if self._edited is None:
            return frame
        raw = frame.raw[self._n_before : -self._n_after].join(self._edited)
        return Frame(raw, raw[6:-2])

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
        field, text = field_and_text
        head = frame.raw[: -len(frame.data) - 2]
        cut = _around(frame.raw, names.get(field, field), text)
        if cut is None or head.count(b"\n") > 1 or not cut[0].startswith(head):
            return
        inner = cut[0][len(head) :], cut[1][:-2]  # of the data alone
        if not _is_text_hole(inner, chunk, field, text, decode):
            return
        edited = _without_usage(cut) if without_usage else None
        if without_usage and edited is None:
            return
        mark, *rest = _NUMBER.split(cut[1])
        if len(rest) > 1 or _NUMBER.search(cut[0]):
            return
        self._until_number, cut = (mark, (cut[0], rest[0])) if rest else (b"", cut)
        self.field, (self._before, self._after), self._edited = field_and_text[0], cut, edited
        self.template = b"?".join(inner)
        self._n_before, self._n_after = len(self._before), len(self._after)
        self._n_around, self._between = self._n_before + self._n_after, self._after + self._before


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


def _only_text(chunk: Chunk) -> tuple[str, str] | None:
    if not chunk.choices or len(chunk.choices) != 1 or chunk.usage is not None or is_given(chunk.error):
        return None
    choice, delta = chunk.choices[0], chunk.choices[0].delta
    if choice.index != 0 or choice.finish_reason is not None or is_given(choice.logprobs):
        return None
    if delta is None or delta.refusal or delta.calls_tool:
        return None
    texts = [(name, text) for name in ("content", *REASONING_FIELDS) if (text := getattr(delta, name))]
    return texts[0] if len(texts) == 1 else None


def _around(raw: bytes, field: str, text: str) -> tuple[bytes, bytes] | None:
    name, value = f'"{field}"'.encode(), f'"{text}"'.encode("utf-8", "replace")
    at = raw.find(value, raw.find(name) + len(name)) + 1
    return (raw[:at], raw[at + len(value) - 2 :]) if at else None


def _is_text_hole(
    inner: tuple[bytes, bytes], chunk: Chunk, field: str, text: str, decode: Callable[[bytes], Chunk]
) -> bool:
    """Check that the hole is the text: with another text in it, the chunk must decode to that text."""
    other = "!" if text == "?" else "?"
    expected = [
        replace(choice, delta=replace(choice.delta, **{field: other}))
        for choice in chunk.choices or ()
        if choice.delta is not None
    ]
    return decode(other.encode().join(inner)) == replace(chunk, choices=expected)


def _without_usage(cut: tuple[bytes, bytes]) -> tuple[bytes, bytes] | None:
    for part in (b"," + _NO_USAGE, _NO_USAGE + b","):
        before, after = (side.replace(part, b"") for side in cut)
        body = decode_json(_data(cut))
        if len(before) + len(after) < sum(map(len, cut)) and isinstance(body, dict):
            body.pop("usage", None)
            if decode_json(_data((before, after))) == body:
                return before, after
    return None


def _data(cut: tuple[bytes, bytes], text: bytes = b"?") -> bytes:
    return text.join(cut)[6:-2]

"""The wire format: server-sent events in and out, and chunks typed as far as Suffice reads them. Pure.

    bytes ──SseSplitter──▶ Frame ──decode_chunk──▶ Chunk ──reasoning_of──▶ text

`Frame.raw` always holds the exact bytes, so relaying never depends on decoding.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from functools import partial
from itertools import chain, repeat
from typing import Annotated, Any, NoReturn, TypeAlias, TypeVar

import msgspec

from suffice.errors import UpstreamProtocol

DONE = b"data: [DONE]\n\n"
DONE_DATA = b"[DONE]"
PING = b": ping\n\n"
FRAME_LIMIT_BYTES = 8 * 2**20
LINES_LIMIT = 10_000  # of one event
MOST_ITEMS = 50_000  # values in one JSON text of an upstream
MOST_DIGITS = 64  # of a number: no meaningful one is longer, and parsing longer ones takes long
MOST_CHOICES = 128  # in one event, and in one answer: OpenAI's own limit for `n`
REASONING_FIELDS = ("reasoning", "reasoning_content", "thinking")

_BOM = b"\xef\xbb\xbf"
_LINE_END = re.compile(rb"\r\n?|\n")
# Two line ends in a row. After "\r\r" it waits for nothing: a following "\n" is one more
# blank line, which means nothing, so a stream with bare "\r" is never held back by one frame.
_FRAME_END = re.compile(rb"\n(?:\n|\r\n?)|\r(?:\r|\n(?:\n|\r\n?))")
_LONGEST_END = 4


class Frame(msgspec.Struct, frozen=True, gc=False):
    raw: bytes  # exact bytes, blank line included; all of them joined give the input
    data: bytes | None  # data lines joined by "\n"; None: there is none (comment, retry, id)


class SseSplitter:
    """Cuts bytes into server-sent events (LF, CRLF, CR) in linear time; UpstreamProtocol beyond `limit_bytes`."""

    __slots__ = ("_at_start", "_has_cr", "_limit", "_rest")

    def __init__(self, limit_bytes: int = FRAME_LIMIT_BYTES) -> None:
        self._limit = limit_bytes
        self._rest = bytearray()  # grows in place: many tiny pieces must not be copied each time
        self._has_cr = False  # one "\r" seen: the thorough pattern is used from then on
        self._at_start = True  # no frame was cut yet, so a byte-order mark may still come

    @property
    def holds(self) -> bool:
        return bool(self._rest)

    def feed(self, data: bytes) -> list[Frame]:
        known = len(self._rest)
        if not self._has_cr:
            self._has_cr = data.find(b"\r") >= 0  # faster than `in`, which first takes it for a number
            if not known and not self._has_cr and (at := _only_data_at(data)) and len(data) <= self._limit:
                self._at_start = False
                return [Frame(data, data[at:-2])]
        if self._has_cr:
            self._rest += data
            raws = self._cut_at_any_end(max(0, known - _LONGEST_END + 1))
        elif known:
            self._rest += data
            has_end = self._rest.find(b"\n\n", known - 1) >= 0
            raws = self._cut_at_line_feeds(bytes(self._rest)) if has_end else []
        else:
            raws = self._cut_at_line_feeds(data)
        longest = max(map(len, raws), default=0)
        if max(longest, len(self._rest)) > self._limit:
            message = f"upstream: an event has more than {self._limit} bytes; at most that many are allowed"
            raise UpstreamProtocol(message)
        return [self._frame(raw) for raw in raws]

    def close(self) -> list[Frame]:
        """Return what is left without a blank line: at most one frame, often a torn one."""
        rest = bytes(self._rest)
        self._rest.clear()
        return [self._frame(rest)] if rest else []

    def _cut_at_line_feeds(self, data: bytes) -> list[bytes]:
        parts = data.split(b"\n\n")
        self._rest[:] = parts.pop()
        return [part + b"\n\n" for part in parts]

    def _cut_at_any_end(self, start: int) -> list[bytes]:
        if start == 0 and (parts := _split_at_crlf(self._rest)):
            self._rest = parts.pop()
            return [bytes(part) + b"\r\n\r\n" for part in parts]
        raws, cut = [], 0
        data = bytes(self._rest) if _FRAME_END.search(self._rest, start) else b""
        for match in _FRAME_END.finditer(data):
            end = match.end()
            if end == len(data) and match.group() != b"\r\r" and data.endswith(b"\r"):
                break  # its "\n" may still follow
            raws.append(data[cut:end])
            cut = end
        del self._rest[:cut]
        return raws

    def _frame(self, raw: bytes) -> Frame:
        if not self._at_start and not self._has_cr and (at := _only_data_at(raw)):
            return Frame(raw, raw[at:-2])
        body = raw
        if self._at_start:
            self._at_start = False
            body = raw.removeprefix(_BOM)
        line = body.rstrip(b"\r\n")
        if line.startswith(b"data:") and b"\n" not in line and b"\r" not in line:
            return Frame(raw, line[5:].removeprefix(b" "))
        return _parse_lines(raw, body)


def last_events(tail: bytes, n: int) -> list[Frame]:
    """Return the last `n` events of a stream's tail, the first of which may be cut, without parsing the rest."""
    plain = tail.replace(b"\r\n", b"\n").replace(b"\r", b"\n").rstrip(b"\n")
    cut = b"\n\n".join(plain.rsplit(b"\n\n", n)[-n:])
    return SseSplitter(limit_bytes=len(cut) + 2).feed(cut + b"\n\n")[-n:]


def _split_at_crlf(data: bytearray) -> list[bytearray]:
    parts = data.split(b"\r\n\r\n")
    plain = data.count(b"\n\r") == len(parts) - 1 and b"\n\n" not in data and b"\r\r" not in data
    return parts if plain else []


def _only_data_at(event: bytes) -> int:
    """Return where the data begins in an event of one data line, which its name may precede; 0 for any other bytes."""
    at = 6
    if event.startswith(b"event: "):
        at = event.find(b"\n", 7) + 7
    if event.find(b"data: ", at - 6, at) < 0:
        return 0
    return at if event.find(b"\n", at) == len(event) - 2 and event.endswith(b"\n\n") else 0


def _parse_lines(raw: bytes, body: bytes) -> Frame:
    """Parse one event by the rules of the HTML standard's event-stream format."""
    if body.count(b"\n") + body.count(b"\r") > LINES_LIMIT:
        raise UpstreamProtocol(f"upstream: an event has more than {LINES_LIMIT} lines; at most that many are allowed")
    fields = [line.partition(b":") for line in _LINE_END.split(body)]
    lines = [value.removeprefix(b" ") for name, _, value in fields if name == b"data"]
    return Frame(raw, b"\n".join(lines) if lines else None)


# ---- bounds

_UNCOUNTED_BYTES = 32 * 1024  # a shorter JSON text is cheap to decode whatever it holds
_SLICE_BYTES = 256 * 1024
_DIGITS_AS_ZERO = bytes.maketrans(b"123456789", b"000000000")
_LONG_NUMBER = b"0" * (MOST_DIGITS + 1)


def count_items(raw: bytes, most: int) -> tuple[int, int]:
    """Return (values, keys) of a JSON text without decoding it, in linear time; stop early beyond `most` values.

    It counts commas, colons and opening brackets outside strings: in valid JSON, values and keys less one. The decoder
    refuses anything else. Raise ValueError for a number that is too long: parsing it takes quadratic time.
    """
    n_items = 1
    n_keys = 0
    inside = 0
    held = b""
    for at in range(0, len(raw), _SLICE_BYTES):
        part = held + raw[at : at + _SLICE_BYTES]
        # A backslash at the end belongs to the next slice, unless it is itself escaped.
        cut = len(part) - (len(part) - len(part.rstrip(b"\\"))) % 2
        held = part[cut:]
        pieces = part[:cut].replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')
        outside = b"".join(pieces[inside::2])
        inside ^= (len(pieces) - 1) & 1
        n_keys += outside.count(b":")
        if len(outside) > MOST_DIGITS and _LONG_NUMBER in outside.translate(_DIGITS_AS_ZERO):
            raise ValueError(f"a number has more than {MOST_DIGITS} digits")
        n_items += len(outside) - len(outside.translate(None, b",:[{"))
        if n_items > most:
            break
    return n_items, n_keys


def finite(text: str) -> float:
    """Parse a JSON number; raise ValueError if too large. msgspec takes 100 times as long for some, such as 1e308."""
    value = float(text)
    if value - value != 0.0:
        raise ValueError("a number is too large")
    return value


# ---- chunks

_Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0, lt=2**53)]
_NOTHING = msgspec.Raw(b"")
T = TypeVar("T", bound=msgspec.Struct)


class TokenDetails(msgspec.Struct, frozen=True, gc=False):
    cached_tokens: _Count | None = None
    reasoning_tokens: _Count | None = None


class WireUsage(msgspec.Struct, frozen=True, gc=False):
    """Token counts as the upstream reports them. None: not given, or not a count (negative, a word)."""

    prompt_tokens: _Count | None = None
    completion_tokens: _Count | None = None
    prompt_tokens_details: TokenDetails | None = None
    completion_tokens_details: TokenDetails | None = None

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens that a prefix cache served; 0 if not reported."""
        return (self.prompt_tokens_details and self.prompt_tokens_details.cached_tokens) or 0

    @property
    def reasoning_tokens(self) -> int | None:
        """Generated tokens before the thought closed; None if not reported."""
        details = self.completion_tokens_details
        return details.reasoning_tokens if details else None


class Delta(msgspec.Struct, frozen=True, gc=False):
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    thinking: str | None = None
    refusal: str | None = None
    tool_calls: msgspec.Raw = _NOTHING  # b"": absent; see `is_given`
    function_call: msgspec.Raw = _NOTHING

    @property
    def calls_tool(self) -> bool:
        return is_given(self.tool_calls) or is_given(self.function_call)


class Choice(msgspec.Struct, frozen=True, gc=False):
    """One choice of a chunk, of chat (`delta`) or of plain completions (`text`)."""

    index: int = 0
    delta: Delta | None = None
    text: str | None = None
    finish_reason: str | None = None
    logprobs: msgspec.Raw = _NOTHING  # read with `logprobs_of`


class Chunk(msgspec.Struct, frozen=True, gc=False):
    """One chunk of a stream. Every field may be missing; fields that Suffice does not read are left out."""

    id: str | None = None
    model: str | None = None
    choices: list[Choice] | None = None
    usage: WireUsage | None = None
    error: msgspec.Raw = _NOTHING  # b"": none; else the upstream's own error value


class TokenLogprob(msgspec.Struct, frozen=True, gc=False):
    """One token, its natural-log probability, and the alternatives that the upstream listed."""

    token: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError)
_decode_any: Callable[[bytes], Any] = msgspec.json.Decoder(float_hook=finite).decode
_decode_fast: Callable[[bytes], Chunk] = msgspec.json.Decoder(Chunk).decode


def is_given(raw: msgspec.Raw) -> bool:
    """Return whether the chunk has this field and it is not null or an empty list."""
    return bytes(raw) not in (b"", b"null", b"[]")


def decode_chunk(data: bytes) -> Chunk:
    """Decode an event: odd values become None, other JSON is empty. Raise UpstreamProtocol for bad or huge JSON."""
    _check_items(data)
    try:
        return _decode_fast(data)
    except _UNREADABLE:
        return _tolerant(Chunk, decode_json(data) if data.strip() else None) or Chunk()


def decode_json(data: bytes) -> Any:
    """Parse strict JSON, lone surrogates as U+FFFD. Raise UpstreamProtocol for anything else, too deep or too large."""
    _check_items(data)
    try:
        return _decode_any(data)
    except _UNREADABLE:
        pass
    try:
        return _clean(json.loads(data.decode(), parse_constant=_refuse, parse_float=finite))
    except (ValueError, RecursionError):
        message = f"upstream: an event of {len(data)} bytes is not JSON; every event must be one JSON value"
        raise UpstreamProtocol(message) from None


def within(value: object, *path: str) -> Any:
    """Return what is at a path of keys in nested JSON objects; None if a part of it is missing or no object."""
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def items_in(value: object, *path: str) -> list[Any]:
    """Return the list at a path of keys; [] if there is none."""
    items = within(value, *path)
    return items if isinstance(items, list) else []


def _check_items(data: bytes) -> None:
    if len(data) <= _UNCOUNTED_BYTES:
        return
    try:
        n_items, _ = count_items(data, MOST_ITEMS)
    except ValueError as error:
        raise UpstreamProtocol(f"upstream: an event is not valid JSON: {error}") from None
    if n_items > MOST_ITEMS:
        raise UpstreamProtocol(f"upstream: an event has more than {MOST_ITEMS} values; at most that many are allowed")


def _refuse(constant: str) -> NoReturn:
    raise ValueError(constant)


def _clean(value: Any) -> Any:
    if isinstance(value, dict):
        return {_clean(key): _clean(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_clean(item) for item in value]
    if isinstance(value, str) and not value.isascii():
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return value


def _tolerant(kind: type[T], raw: Any) -> T | None:
    """Return an object as `kind`, its fields as far as they can be read; None for anything else."""
    if not isinstance(raw, Mapping):
        return None
    if kind is Delta and isinstance(raw.get("content"), list):
        raw = _without_parts(raw)
    return kind(**{name: read(raw[name]) for name, read in _READERS[kind] if name in raw})


def _without_parts(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a delta whose content is a list of parts, as some vendors send it, with texts instead."""
    parts = [part for part in raw["content"] if isinstance(part, Mapping)]
    thoughts = [part for part in parts if part.get("type") == "thinking"]
    others = [part for part in parts if part.get("type") != "thinking"]
    thought = raw.get("thinking") or _parts_text(thoughts, "thinking")
    return {**raw, "content": _parts_text(others, "text"), "thinking": thought}


def _parts_text(parts: list[Mapping[str, Any]], key: str) -> str | None:
    texts = []
    for part in parts:
        value = part.get(key)
        if isinstance(value, list):
            value = _parts_text([inner for inner in value if isinstance(inner, Mapping)], "text")
        texts.append(_text(value) or "")
    return "".join(texts) or None


def _choices(raw: Any) -> list[Choice] | None:
    if not isinstance(raw, list):
        return None
    return [choice for one in raw[:MOST_CHOICES] if (choice := _tolerant(Choice, one)) is not None]


def _text(value: Any) -> str | None:
    if isinstance(value, str):
        return value
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def parse_token_count(value: Any) -> int | None:
    """Parse a count, also one written as a float; None if it cannot be a token count."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return int(value) if 0 <= value < 2**53 else None


_READER_OF_TYPE: Mapping[Any, Callable[[Any], Any]] = {
    int: lambda value: parse_token_count(value) or 0,
    str | None: _text,
    _Count | None: parse_token_count,
    msgspec.Raw: lambda value: msgspec.Raw(msgspec.json.encode(value)),
    list[Choice] | None: _choices,
    Delta | None: partial(_tolerant, Delta),
    WireUsage | None: partial(_tolerant, WireUsage),
    TokenDetails | None: partial(_tolerant, TokenDetails),
}
_READERS: Mapping[type, list[tuple[str, Callable[[Any], Any]]]] = {
    kind: [(field.name, _READER_OF_TYPE[field.type]) for field in msgspec.structs.fields(kind)]
    for kind in (Chunk, Choice, Delta, WireUsage, TokenDetails)
}


def reasoning_of(delta: Delta) -> tuple[str, str]:
    """Return (reasoning text, its field), by the first of `REASONING_FIELDS`; ("", "") for none."""
    if delta.reasoning:
        return delta.reasoning, "reasoning"
    if delta.reasoning_content:
        return delta.reasoning_content, "reasoning_content"
    return (delta.thinking, "thinking") if delta.thinking else ("", "")


def logprobs_of(choice: Choice) -> tuple[TokenLogprob, ...]:
    """Return the token log-probabilities of a choice in chat's or the older completions' shape; () for any other."""
    raw = bytes(choice.logprobs)
    if raw in (b"", b"null"):
        return ()
    try:
        table = decode_json(raw)
    except UpstreamProtocol:
        return ()
    if listed := items_in(table, "content"):
        return tuple(read for item in listed if (read := _chat_logprob(item)))
    tokens, values = items_in(table, "tokens"), items_in(table, "token_logprobs")
    tops = chain(items_in(table, "top_logprobs"), repeat(None))
    return tuple(
        TokenLogprob(str(token), float(value), _pairs(top.items() if isinstance(top, Mapping) else ()))
        for token, value, top in zip(tokens, values, tops, strict=False)
        if _is_number(value)
    )


def _chat_logprob(item: Any) -> TokenLogprob | None:
    if not isinstance(item, Mapping) or not _is_number(item.get("logprob")):
        return None
    rivals = [t for t in items_in(item, "top_logprobs") if isinstance(t, Mapping)]
    pairs = _pairs((t.get("token"), t.get("logprob")) for t in rivals)
    return TokenLogprob(str(item.get("token", "")), float(item["logprob"]), pairs)


def _pairs(items: Any) -> tuple[tuple[str, float], ...]:
    return tuple((str(token), float(value)) for token, value in items if _is_number(value))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e9 <= value <= 100


# ---- writing


def encode_json(obj: Any) -> bytes:
    """Encode compact UTF-8; lone surrogates stay escapes instead of failing."""
    try:
        return msgspec.json.encode(obj)
    except UnicodeEncodeError:
        return json.dumps(obj, separators=(",", ":")).encode("ascii")


def encode_frame(obj: Any) -> bytes:
    return b"data: " + encode_json(obj) + b"\n\n"


def error_body(
    message: str,
    type: str = "invalid_request_error",  # noqa: A002  OpenAI's own word
    param: str | None = None,
    code: str | None = None,
) -> bytes:
    return encode_json({"error": {"message": message, "type": type, "param": param, "code": code}})


def error_frame(
    message: str,
    type: str = "upstream_error",  # noqa: A002  OpenAI's own word
    code: str | None = "upstream_error",
) -> bytes:
    """Return an error inside a stream that has begun: the one form that every client notices."""
    return b"data: " + error_body(message, type, None, code) + b"\n\n"

"""Reads calls from logs of model traffic, and detects the format of a file.

openai    {"request": …, "response": …}, the Batch API's lines, or a bare chat completion
          (OpenAI API reference, "Chat" and "Batch")
litellm   StandardLoggingPayload, one per line, and rows of the proxy's spend logs
          (docs.litellm.ai, "StandardLoggingPayload Specification")
langfuse  observations of type GENERATION, from the API (camel case) or an export (snake case)
          (langfuse.com docs, "Public API" and "Blob Storage Export Field Reference")
vllm      text lines that `--enable-log-requests --enable-log-outputs` writes:
              Received request ID: prompt: '…', params: SamplingParams(n=1, …), prompt_token_ids: […], …
              Request ID details: prompt: '…', …             newer versions, at level DEBUG
              Generated response ID: output: '…', output_token_ids: […], finish_reason: stop
          (vllm/entrypoints/logger.py; not tested with the log of a live server)
"""

from __future__ import annotations

import ast
import calendar
import hashlib
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from suffice.errors import ConfigError
from suffice.files import open_unpacked
from suffice.upstream.wire import REASONING_FIELDS, parse_token_count

THINK = ("<think>", "</think>")
PROMPT_COUNTS = ("input", "promptTokens", "prompt_tokens")
ANSWER_COUNTS = ("output", "completionTokens", "completion_tokens")
FINISHED = frozenset({"success", "completed", "200", ""})


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedCall:
    """One completed call of a model. None: the log does not say."""

    prompt: str  # hash, equal for equal prompts; "": unknown
    texts: tuple[str, ...]  # the visible answer of each choice
    thoughts: tuple[str, ...]  # the reasoning of each choice; "": none
    model: str = ""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None  # over all choices, reasoning included
    reasoning_tokens: int | None = None  # part of `completion_tokens`
    at_s: float | None = None  # Unix time of the start


def prompt_key(prompt: object) -> str:
    if prompt in (None, "", []):
        return ""
    return hashlib.blake2b(msgspec.json.encode(prompt), digest_size=12).hexdigest()


def read_openai(item: Mapping[str, Any]) -> LoggedCall | None:
    request = _mapping(item.get("request")) or _mapping(item.get("body")) or item
    request = _mapping(request.get("body")) or request
    response = _mapping(item.get("response")) or item
    response = _mapping(response.get("body")) or response
    prompt = request.get("messages") or request.get("prompt") or request.get("input")
    at = _first(item, "created_at", "timestamp", "time", "start_time", "startTime") or response.get("created")
    return read_completion(response, prompt=prompt, at=at)


def read_litellm(item: Mapping[str, Any]) -> LoggedCall | None:
    """Read a StandardLoggingPayload or a row of the spend logs; None for failed calls and cache hits."""
    if str(item.get("status") or "").lower() not in FINISHED or item.get("cache_hit") in (True, "True", "true"):
        return None
    response = item.get("response")
    if isinstance(response, str):
        response = _decoded(response) or {"choices": [{"message": {"content": response}}]}
    messages = item.get("messages")
    prompt = _decoded(messages) or messages if isinstance(messages, str) else messages
    return read_completion(_mapping(response) or {}, prompt=prompt, at=item.get("startTime"), counts=item)


def read_langfuse(item: Mapping[str, Any]) -> LoggedCall | None:
    """Read one observation; None if its type is not GENERATION."""
    if str(item.get("type", "GENERATION")).upper() != "GENERATION":
        return None
    prompt, output = _value(item.get("input")), _value(item.get("output"))
    if isinstance(prompt, Mapping) and "messages" in prompt:
        prompt = prompt["messages"]
    response: Mapping[str, Any]
    if isinstance(output, Mapping) and "choices" in output:
        response = output
    else:
        messages = output if isinstance(output, list) else [{"content": output} if isinstance(output, str) else output]
        if isinstance(output, Mapping) and not ("content" in output or "role" in output):
            return None
        response = {"choices": [{"message": m} for m in messages if isinstance(m, Mapping)]}
    details = _mapping(_value(_first(item, "usageDetails", "usage_details", "usage"))) or {}
    counts = {**details, **{k: v for k, v in item.items() if k in ("promptTokens", "completionTokens", "model")}}
    return read_completion(response, prompt=prompt, at=_first(item, "startTime", "start_time"), counts=counts)


READERS: Mapping[str, Callable[[Mapping[str, Any]], LoggedCall | None]] = {
    "openai": read_openai,
    "litellm": read_litellm,
    "langfuse": read_langfuse,
}


def detect_log_format(item: Mapping[str, Any]) -> str | None:
    if "traceId" in item or ("trace_id" in item and "call_type" not in item) or "usageDetails" in item:
        return "langfuse"
    if "call_type" in item or ("response_cost" in item) or ("spend" in item and "startTime" in item):
        return "litellm"
    if _mapping(item.get("response")) or "choices" in item:
        return "openai"
    return None


# ---- shared by the readers


def read_completion(
    response: Mapping[str, Any], *, prompt: object, at: object, counts: Mapping[str, Any] | None = None
) -> LoggedCall | None:
    """Read a chat or plain completion of OpenAI's API; None: no answer.

    at      a number of seconds or ISO 8601
    counts  what the log says itself of tokens and model, where the completion does not
    """
    listed = response.get("choices")
    choices = [_read_choice(c) for c in listed if isinstance(c, Mapping)] if isinstance(listed, list) else []
    if not choices or not any(text or thought for text, thought in choices):
        return None
    usage, others = _mapping(response.get("usage")) or {}, counts or {}
    details = _mapping(usage.get("completion_tokens_details")) or {}
    return LoggedCall(
        prompt=prompt_key(prompt),
        texts=tuple(text for text, _ in choices),
        thoughts=tuple(thought for _, thought in choices),
        model=str(response.get("model") or others.get("model") or ""),
        prompt_tokens=_first_count(usage.get("prompt_tokens"), *(others.get(name) for name in PROMPT_COUNTS)),
        completion_tokens=_first_count(usage.get("completion_tokens"), *(others.get(name) for name in ANSWER_COUNTS)),
        reasoning_tokens=_first_count(details.get("reasoning_tokens"), others.get("reasoning")),
        at_s=parse_moment(at),
    )


def _first_count(*values: object) -> int | None:
    return next((count for count in map(parse_token_count, values) if count is not None), None)


def _read_choice(choice: Mapping[str, Any]) -> tuple[str, str]:
    message = _mapping(choice.get("message")) or {}
    text = text_of(message.get("content")) or text_of(choice.get("text"))
    thought = next((t for name in REASONING_FIELDS if (t := text_of(message.get(name)))), "")
    if not thought and THINK[1] in text:
        thought, _, text = text.partition(THINK[1])
        thought = thought.partition(THINK[0])[2] or thought
    return text, thought


def text_of(content: object) -> str:
    """The text of a message's content, given as text or as parts."""
    if isinstance(content, str):
        return content
    parts = [p.get("text") for p in content if isinstance(p, Mapping)] if isinstance(content, list) else []
    return "".join(p for p in parts if isinstance(p, str))


def parse_moment(value: object) -> float | None:
    """Unix time from seconds, milliseconds or ISO 8601 (UTC if it has no zone); None if unreadable."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value / 1000 if value > 1e11 else float(value) if value > 0 else None
    if not isinstance(value, str):
        return None
    try:
        when = datetime.fromisoformat(value)
    except ValueError:
        return None
    return (when if when.tzinfo is not None else when.replace(tzinfo=UTC)).timestamp()


def _mapping(value: object) -> Mapping[str, Any] | None:
    return value if isinstance(value, Mapping) else None


def _value(value: object) -> object:
    return _decoded(value) or value if isinstance(value, str) and value[:1] in "[{" else value


def _decoded(text: str | bytes) -> Any:
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError):
        return None


def _first(item: Mapping[str, Any], *names: str) -> Any:
    return next((item[name] for name in names if item.get(name) is not None), None)


_STRING = r"(?P<{}>'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|None)"
_HEAD = re.compile(r"\b(?:INFO|DEBUG|WARNING)\s+(?P<month>\d\d)-(?P<day>\d\d)\s+(?P<h>\d\d):(?P<m>\d\d):(?P<s>\d\d)")
_REQUEST = re.compile(r"\b(?:Received request|Request) (?P<id>\S+?):? (?:details: )?prompt: " + _STRING.format("text"))
_RESPONSE = re.compile(
    r"\bGenerated response (?P<id>\S+?)(?P<stream> \(streaming (?:delta|complete)\))?: output: "
    + _STRING.format("text")
    + r"(?:, output_token_ids: (?P<tokens>\[[^\]]*\]|None|\([^)]*\)))?"
)
_PROMPT_IDS = re.compile(r"prompt_token_ids: \[(?P<ids>[\d, ]*)\]")
LINE_MARK = re.compile(r"\b(?:Received request|Generated response) \S+")
YEAR = 2000  # any leap year; only differences matter


def read_vllm_log(lines: Iterable[str]) -> Iterator[LoggedCall]:
    """The calls whose answer was logged. Skips the chunks of a stream, whose whole answer follows them."""
    prompts: dict[str, tuple[str, int | None]] = {}
    for line in lines:
        if (match := _REQUEST.search(line)) is not None:
            ids = _PROMPT_IDS.search(line)
            n_prompt = None if ids is None else _length(ids["ids"])
            prompts[match["id"]] = prompt_key(_unquoted(match["text"])), n_prompt
        elif (match := _RESPONSE.search(line)) is not None and match["stream"] != " (streaming delta)":
            prompt, n_prompt = prompts.pop(match["id"], ("", None))
            output = _unquoted(match["text"])
            thought, closed, text = output.partition(THINK[1])
            yield LoggedCall(
                prompt=prompt,
                texts=(text if closed else output,),
                thoughts=(thought.removeprefix(THINK[0]) if closed else "",),
                prompt_tokens=n_prompt,
                completion_tokens=_length(match["tokens"]),
                at_s=_moment(line),
            )


def _unquoted(text: str) -> str:
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    return value if isinstance(value, str) else ""


def _length(listed: str | None) -> int | None:
    if listed is None or listed == "None":
        return None
    return len([one for one in listed.strip("[]()").split(",") if one.strip()])


def _moment(line: str) -> float | None:
    head = _HEAD.search(line)
    if head is None:
        return None
    month, day, hours, minutes, seconds = (int(head[name]) for name in ("month", "day", "h", "m", "s"))
    return float(calendar.timegm((YEAR, month, day, hours, minutes, seconds)))


FORMATS = (*READERS, "vllm")
LOOKED_AT = 200  # first lines of a file from which its format is detected


@dataclass(slots=True)
class Log:
    calls: list[LoggedCall] = field(default_factory=list)
    formats: list[str] = field(default_factory=list)  # one per file
    n_records: int = 0  # lines, or items of a JSON array
    n_left_out: int = 0  # of these: failed, cached, without an answer, or unreadable


def read_logs(paths: Sequence[Path], *, as_format: str | None = None) -> Log:
    """Read calls from files, gzipped if the suffix is `.gz`. Raise ConfigError that names the file."""
    log = Log()
    for path in paths:
        try:
            name = as_format or _format(path)
            calls = _read_vllm(path) if name == "vllm" else [item and READERS[name](item) for item in _records(path)]
        except (OSError, EOFError, zlib.error) as error:
            raise ConfigError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
        finished = [call for call in calls if isinstance(call, LoggedCall)]
        if not finished:
            raise ConfigError(f"{path}: contains no completed call with an answer in the format {name!r}")
        log.formats.append(name)
        log.calls += finished
        log.n_records += len(calls)
        log.n_left_out += len(calls) - len(finished)
    return log


def _read_vllm(path: Path) -> list[LoggedCall]:
    with open_unpacked(path) as file:
        return list(read_vllm_log(line.decode("utf-8", "replace") for line in file))


def _format(path: Path) -> str:
    with open_unpacked(path) as file:
        head = [line.decode("utf-8", "replace") for line in islice(file, LOOKED_AT)]
    if any(LINE_MARK.search(line) and not line.lstrip().startswith("{") for line in head):
        return "vllm"
    for item in islice(_records(path), LOOKED_AT):
        name = detect_log_format(item) if item is not None else None
        if name is not None:
            return name
    raise ConfigError(f"{path}: has an unknown format; known: {', '.join(FORMATS)}; name one with --format")


def _records(path: Path) -> Iterator[Mapping[str, Any] | None]:
    with open_unpacked(path) as file:
        if file.read(1) != b"[":
            file.seek(0)
            for line in file:
                if not line.isspace():
                    item = _decoded(line)
                    yield item if isinstance(item, Mapping) else None
            return
        file.seek(0)
        whole = file.read()
    try:
        items = msgspec.json.decode(whole)
    except (msgspec.DecodeError, UnicodeError) as error:
        raise ConfigError(f"{path}: starts like a JSON array but is not valid JSON ({error})") from None
    yield from (item if isinstance(item, Mapping) else None for item in items)

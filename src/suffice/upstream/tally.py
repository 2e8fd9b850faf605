"""What a relayed answer says of itself, pure: its tokens, its id, whether it was cut short or failed.

Only the first and the last bytes of an answer are looked at, so that a long one costs no more than a short one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from suffice.errors import UpstreamProtocol
from suffice.upstream.wire import SseSplitter, decode_json, last_events

LAST_EVENTS = 6  # usage, end and error stand in the last few events of every API's stream
_ID = re.compile(r'^\s*\{\s*"id"\s*:\s*"([^"\\]{1,200})"')
_COUNT_LIMIT = 2**53  # a larger count is no count
# Where each API puts its counts; the first name that is there counts.
_PROMPT = ("prompt_tokens", "input_tokens")
_COMPLETION = ("completion_tokens", "output_tokens")
_PROMPT_DETAILS = ("prompt_tokens_details", "input_tokens_details")
_COMPLETION_DETAILS = ("completion_tokens_details", "output_tokens_details")
# Messages count what the cache read and what it wrote beside `input_tokens`, not inside.
_BESIDE_INPUT = ("cache_read_input_tokens", "cache_creation_input_tokens")


@dataclass(slots=True)
class AnswerFacts:
    """What an answer said of itself. None: nothing."""

    prompt_tokens: int | None = None  # all of the prompt, cached parts included
    cached_tokens: int | None = None
    completion_tokens: int | None = None  # everything generated, the thought included
    reasoning_tokens: int | None = None
    response_id: str | None = None
    truncated: bool = False  # a token cap cut it
    failed: bool = False  # the upstream's own error, inside an answer that had begun


def read_answer(head: bytes, tail: bytes, *, events: bool) -> AnswerFacts:
    """Read an answer, `events` or one JSON body, from its first and its last bytes, which may overlap."""
    told = AnswerFacts()
    for value in _values(head, tail) if events else _bodies(head, tail):
        _take(told, value)
    return told


def _values(head: bytes, tail: bytes) -> Iterator[Any]:
    """The events that say something of the whole: the first two, then the last few."""
    splitter = SseSplitter(limit_bytes=2**30)
    yield from _parsed([frame.data for frame in splitter.feed(head)[:2]])
    values = list(_parsed([frame.data for frame in last_events(tail, LAST_EVENTS)]))
    if not any(_usage_in(value) is not None for value in values):
        # One last event that repeats the whole answer may be longer than what was kept of it.
        yield from _usage_alone(tail)
    yield from values


def _parsed(datas: list[bytes | None]) -> Iterator[Any]:
    for data in datas:
        try:
            yield decode_json(data or b"null")
        except UpstreamProtocol:
            continue  # [DONE], cut or foreign: nothing to learn


def _bodies(head: bytes, tail: bytes) -> Iterator[Any]:
    """A whole body; of one too long to be kept its id and its usage alone."""
    try:
        yield decode_json(tail)
    except UpstreamProtocol:
        if match := _ID.match(head[:512].decode("utf-8", "replace")):
            yield {"id": match.group(1)}
        yield from _usage_alone(tail)


def _usage_alone(tail: bytes) -> Iterator[Any]:
    text = tail.decode("utf-8", "replace")
    at = text.rfind('"usage":')
    if at < 0:
        return
    try:
        usage, _ = json.JSONDecoder().raw_decode(text[at + 8 :].lstrip())
    except (ValueError, RecursionError):
        return
    yield {"usage": usage}


def _take(told: AnswerFacts, value: Any) -> None:
    if not isinstance(value, Mapping):
        return
    # Responses wrap the answer in their events as `response`, messages in their first one as `message`.
    inner = next((value[k] for k in ("response", "message") if isinstance(value.get(k), Mapping)), value)
    name = inner.get("id")
    if isinstance(name, str) and name:
        told.response_id = name
    _take_usage(told, _usage_in(value))
    told.truncated = told.truncated or _is_truncated(value) or _is_truncated(inner)
    failed = value.get("type") in ("error", "response.failed") or inner.get("status") == "failed"
    told.failed = told.failed or failed or bool(value.get("error"))


def _usage_in(value: Any) -> Mapping[str, Any] | None:
    if not isinstance(value, Mapping):
        return None
    for holder in (value, value.get("response"), value.get("message")):
        if isinstance(holder, Mapping) and isinstance(holder.get("usage"), Mapping):
            return holder["usage"]  # type: ignore[no-any-return]
    if "tokens_predicted" in value:  # llama.cpp's own completion
        timings = value.get("timings")
        cached = timings.get("cache_n") if isinstance(timings, Mapping) else None
        return {
            "prompt_tokens": value.get("tokens_evaluated"),
            "completion_tokens": value["tokens_predicted"],
            "prompt_tokens_details": {"cached_tokens": cached},
        }
    return None


def _take_usage(told: AnswerFacts, usage: Mapping[str, Any] | None) -> None:
    """The last word counts; what it leaves out stays as it was. A usage of zeros says nothing."""
    if usage is None:
        return
    prompt, completion = _first(usage, _PROMPT), _first(usage, _COMPLETION)
    if not prompt and not completion:
        return
    beside = [_count(usage.get(key)) for key in _BESIDE_INPUT]
    if whole := (prompt or 0) + sum(n or 0 for n in beside):
        told.prompt_tokens = whole
    if completion is not None:
        told.completion_tokens = completion
    cached = beside[0] if beside[0] is not None else _detail(usage, _PROMPT_DETAILS, "cached_tokens")
    told.cached_tokens = told.cached_tokens if cached is None else cached
    thought = _detail(usage, _COMPLETION_DETAILS, "reasoning_tokens")
    told.reasoning_tokens = told.reasoning_tokens if thought is None else thought


def _first(usage: Mapping[str, Any], names: tuple[str, ...]) -> int | None:
    return next((_count(usage[name]) for name in names if name in usage), None)


def _detail(usage: Mapping[str, Any], names: tuple[str, ...], key: str) -> int | None:
    return next((_count(usage[n].get(key)) for n in names if isinstance(usage.get(n), Mapping)), None)


def _count(value: Any) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return int(value) if 0 <= value < _COUNT_LIMIT else None


def _is_truncated(value: Mapping[str, Any]) -> bool:
    """Did a token cap end it, in the words of any of the APIs?"""
    delta, details = value.get("delta"), value.get("incomplete_details")
    reasons = [value.get("stop_reason")]
    reasons += [delta.get("stop_reason")] if isinstance(delta, Mapping) else []
    reasons += [details.get("reason")] if isinstance(details, Mapping) else []
    choices = value.get("choices")
    if isinstance(choices, list):
        reasons += [c.get("finish_reason") for c in choices if isinstance(c, Mapping)]
    return any(r in ("length", "max_tokens", "max_output_tokens") for r in reasons) or value.get("stop_type") == "limit"

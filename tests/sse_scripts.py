"""Odd streams of servers, byte for byte: what clients were measured with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from suffice_testing import Script


def _chunk(delta: Mapping[str, Any], finish_reason: str | None = None, **top: Any) -> bytes:
    body = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}],
        **top,
    }
    return b"data: " + json.dumps(body, ensure_ascii=False).encode() + b"\n\n"


_ROLE = _chunk({"role": "assistant", "content": ""})
_TEXT = _chunk({"content": "The answer is "}) + _chunk({"content": "42 \u5317\U0001f642"})
_FINISH = _chunk({}, "stop")
_USAGE = (
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"m","choices":[],'
    b'"usage":{"prompt_tokens":5,"completion_tokens":9,"total_tokens":14}}\n\n'
)
_DONE = b"data: [DONE]\n\n"
_ERROR = b'data: {"error":{"message":"upstream died","type":"upstream_error","param":null,"code":"upstream_error"}}\n\n'
_NULL_CHOICES = (
    b'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":null,"usage":null}\n\n'
)
_PLAIN = (_ROLE, _TEXT, _FINISH, _DONE)


def _whole(*pieces: bytes) -> Script:
    return Script(pieces=pieces)


SCRIPTS: dict[str, Script] = {
    "ok": _whole(_ROLE, _TEXT, _FINISH, _USAGE, _DONE),
    "eof_no_done": _whole(_ROLE, _TEXT, _FINISH),
    "eof_no_finish": _whole(_ROLE, _TEXT),
    "done_no_finish": _whole(_ROLE, _TEXT, _DONE),
    "err_frame_done": _whole(_ROLE, _TEXT, _ERROR, _DONE),
    "err_event_done": _whole(_ROLE, _TEXT, b"event: error\n" + _ERROR, _DONE),
    "comment_ping": _whole(_ROLE, b": ping\n\n", _TEXT, b":\n\n", _FINISH, _DONE),
    "retry_only": _whole(b"retry: 1000\n\n", *_PLAIN),
    "crlf": _whole(*(piece.replace(b"\n", b"\r\n") for piece in _PLAIN)),
    "nospace": _whole(*(piece.replace(b"data: ", b"data:") for piece in _PLAIN)),
    "bom": _whole(b"\xef\xbb\xbf" + _ROLE, _TEXT, _FINISH, _DONE),
    "badjson": _whole(_ROLE, _TEXT, b"data: {oops\n\n", _FINISH, _DONE),
    "after_done": _whole(*_PLAIN, _chunk({"content": "LATE"})),
    "null_choices": _whole(_ROLE, _TEXT, _FINISH, _NULL_CHOICES, _DONE),
    "custom_field": _whole(_ROLE, _TEXT, _chunk({}, "stop", policy={"v": "p7"}), _DONE),
    "custom_finish": _whole(_ROLE, _TEXT, _chunk({}, "early_stop"), _DONE),
    "custom_event": _whole(_ROLE, _TEXT, _FINISH, b'event: policy\ndata: {"v":1}\n\n', _DONE),
    "two_finish": _whole(_ROLE, _TEXT, _FINISH, _FINISH, _DONE),
    "bytewise": _whole(*(bytes((b,)) for b in _ROLE + _TEXT + _FINISH + _USAGE + _DONE)),
    "done_then_hang": Script(pieces=_PLAIN, end="hang", hang_s=6.0),
    "truncated": Script(pieces=(_ROLE, _TEXT), end="torn"),
}

"""Byte streams that are played as they stand: odd ones written by hand, and recorded ones.

It knows bytes and how they end. It refuses to know what they mean: whoever reads them decides.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from suffice.testing.reply import FakeRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """A response body, cut into the HTTP chunks it is sent in.

    end  "whole": the body is completed; "torn": the connection closes inside it; "hang": silence for
         `hang_s` before it is completed
    """

    pieces: tuple[bytes, ...]
    end: Literal["whole", "torn", "hang"] = "whole"
    hang_s: float = 0.0
    delay_s: float = 0.0  # before each piece
    status: int = 200
    content_type: str = "text/event-stream"
    keep_alive: bool = False  # may the connection be used again?

    @property
    def body(self) -> bytes:
        """All of it, as a client that reads on would get it."""
        return b"".join(self.pieces)


@dataclass(frozen=True, slots=True)
class Replay:
    """Plays a recorded body verbatim, from a file or from bytes.

    piece_bytes  size of the HTTP chunks; 0: one chunk for all
    """

    source: str | Path | bytes
    piece_bytes: int = 0
    delay_s: float = 0.0
    content_type: str = "text/event-stream"

    def __call__(self, seen: FakeRequest) -> Script:  # noqa: ARG002  the record is the same for everyone
        """The recorded body as a script."""
        body = self.source if isinstance(self.source, bytes) else Path(self.source).read_bytes()
        size = self.piece_bytes or max(1, len(body))
        return Script(
            pieces=tuple(body[at : at + size] for at in range(0, len(body), size)),
            delay_s=self.delay_s,
            content_type=self.content_type,
        )


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

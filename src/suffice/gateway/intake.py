"""Reads a client's request body, strictly where we read it and not at all where we do not. Pure.

What cannot be JSON, or could mean two things, is refused with a 4xx in OpenAI's shape; a field that
only the upstream reads goes through, and the upstream's verdict comes back.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import msgspec

from suffice.browsers import host_name
from suffice.errors import BadRequest, TooLarge
from suffice.settings import Server

OVERRIDES = ("api_base", "base_url", "api_key", "extra_headers", "user_config", "custom_llm_provider")
MAX_HEADERS = 256
MAX_HEAD_CHARS = 64 * 1024   # names and values together
KNOWN_OPTIONS = ("samples", "policy_version", "conversation_id")
_KEY = re.compile(rb'"\s*:')


@dataclass(frozen=True, slots=True, kw_only=True)
class Intake:
    """A chat request as far as the gateway reads it."""

    raw: bytes                     # as it came
    body: dict[str, Any]           # parsed, without `suffice` and without override fields
    changed: bool                  # was anything taken out? Then `raw` may not be forwarded
    stripped: tuple[str, ...]      # override fields that were taken out
    options: Mapping[str, Any]     # the object `suffice`
    has_options: bool
    model: str
    stream: bool
    wants_usage: bool              # a usage chunk in the stream


def check_head(headers: list[tuple[str, str]]) -> None:
    """Refuse heads that are too large, and hosts and encodings that could mean two things. Raises BadRequest."""
    n_chars, n_hosts = 0, 0
    for name, value in headers:
        n_chars += len(name) + len(value)
        if name == "host":
            n_hosts += 1
            if n_hosts > 1 or host_name(value) is None:
                raise BadRequest("Host header: must be one plain host name with an optional port", code="bad_host")
        elif name == "transfer-encoding" and value.strip().lower() != "chunked":
            raise BadRequest("transfer-encoding: must be chunked alone", code="bad_transfer_encoding")
    if len(headers) > MAX_HEADERS or n_chars > MAX_HEAD_CHARS:
        raise BadRequest(
            f"headers: at most {MAX_HEADERS} and {MAX_HEAD_CHARS} characters are accepted",
            status=431, code="headers_too_large",
        )  # fmt: skip


def check_body_headers(headers: list[tuple[str, str]], limit_bytes: int) -> None:
    """Refuse a body by what its headers say of it, before any of it is read. Raises BadRequest."""
    named = dict(reversed(headers))  # of a header that came twice the first one counts
    if named.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
        raise BadRequest(
            "content-encoding: compressed request bodies are not accepted; send the JSON as it is",
            status=415, code="unsupported_encoding",
        )  # fmt: skip
    length = named.get("content-length", "0")
    if length.isdecimal() and int(length[:20]) > limit_bytes:
        raise TooLarge(f"body: longer than {limit_bytes} bytes")
    kind = ", ".join(value for name, value in headers if name == "content-type")
    if kind != "application/json" and kind.partition(";")[0].strip().lower() != "application/json":
        # A page of another site may send a body without a type, as text and as a form, and nothing else unasked.
        message = f"content-type: got {kind[:100]!r}; must be application/json"
        raise BadRequest(message, status=415, code="unsupported_media_type")


def parse_json(raw: bytes, limits: Server) -> dict[str, Any]:
    """One JSON object: UTF-8, no repeated keys, no NaN, bounded depth. Raises BadRequest."""
    if not raw.strip():
        raise BadRequest("body: is empty; must be a JSON object", code="empty_body")
    if len(raw) > limits.max_body_bytes:
        raise TooLarge(f"body: longer than {limits.max_body_bytes} bytes")
    body: Any
    body, exact = _decode(raw)
    if not isinstance(body, dict):
        raise BadRequest(f"body: must be a JSON object, got {_kind(body)}", code="not_an_object")
    n_keys = _keys_and_depth(body, limits.max_depth)
    if not exact and n_keys != len(_KEY.findall(raw)):
        _decode_slowly(raw)  # raises when a key is repeated; an escaped quote only looked like a key
    if not body:
        raise BadRequest("body: is an empty object; `model` and `messages` are needed", code="empty_body")
    return body


def _decode(raw: bytes) -> tuple[Any, bool]:
    """Decode fast; where the fast decoder will not, slowly and strictly. True: checked for repeats."""
    try:
        return msgspec.json.decode(raw), False
    except RecursionError:
        raise BadRequest("body: is nested too deeply", code="too_deep") from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _decode_slowly(raw), True


def _decode_slowly(raw: bytes) -> Any:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadRequest(f"body: is not UTF-8 at byte {error.start}", code="bad_encoding") from None
    if text.startswith("\ufeff"):
        raise BadRequest("body: begins with a byte order mark; send plain UTF-8", code="bad_encoding")
    try:
        return json.loads(
            text, object_pairs_hook=_unique,
            parse_constant=_no_constant, parse_float=_finite, parse_int=_bounded,
        )  # fmt: skip
    except RecursionError:
        raise BadRequest("body: is nested too deeply", code="too_deep") from None
    except json.JSONDecodeError as error:
        raise BadRequest(f"body: is no JSON at character {error.pos}: {error.msg}", code="bad_json") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [k for k, _ in pairs]
        twice = next(n for n in names if names.count(n) > 1)
        raise BadRequest(f"body: the key {twice[:80]!r} stands twice", param=twice[:80], code="repeated_key")
    return found


def _no_constant(name: str) -> NoReturn:
    raise BadRequest(f"body: {name} is no JSON number", code="bad_json")


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise BadRequest("body: holds a number that is too large", code="bad_json")
    return value


def _bounded(text: str) -> int | float:
    return int(text) if len(text) <= 400 else _finite(text)


def _keys_and_depth(body: dict[str, Any], limit: int) -> int:
    """Count all keys; refuse nesting beyond `limit`."""
    n_keys, depth = 0, 1
    level: list[Any] = [body]
    while level:
        if depth > limit:
            raise BadRequest(f"body: is nested deeper than {limit} levels", code="too_deep")
        inner: list[Any] = []
        for node in level:
            values = node
            if type(node) is dict:
                n_keys += len(node)
                values = node.values()
            for value in values:
                if type(value) is dict or type(value) is list:  # nothing else comes out of a JSON parser
                    inner.append(value)  # noqa: PERF401 - twice as fast as extending by a generator
        level, depth = inner, depth + 1
    return n_keys


def read_chat(raw: bytes, limits: Server) -> Intake:
    """Read a chat request. Raises BadRequest for what we read and cannot."""
    body = parse_json(raw, limits)
    stripped = tuple(k for k in OVERRIDES if k in body)
    has_options = "suffice" in body
    options: Any = body.pop("suffice", None)
    for key in stripped:
        del body[key]
    if has_options and not isinstance(options, dict):
        raise BadRequest(f"suffice: must be an object, got {_kind(options)}", param="suffice")
    _check_options(options or {})
    model = body.get("model", "")
    if not isinstance(model, str):
        raise BadRequest(f"model: must be a string, got {_kind(model)}", param="model")
    stream = body.get("stream")
    if stream is not None and not isinstance(stream, bool):
        raise BadRequest(f"stream: must be true or false, got {_kind(stream)}", param="stream")
    wanted = body.get("stream_options")
    return Intake(
        raw=raw,
        body=body,
        changed=has_options or bool(stripped),
        stripped=stripped,
        options=options or {},
        has_options=has_options,
        model=model,
        stream=bool(stream),
        wants_usage=isinstance(wanted, dict) and wanted.get("include_usage") is True,
    )


def _check_options(options: Mapping[str, Any]) -> None:
    for key in options:
        if key not in KNOWN_OPTIONS:
            known = ", ".join(KNOWN_OPTIONS)
            raise BadRequest(f"suffice.{key[:80]}: unknown option; known: {known}", param="suffice")
    samples = 1 if options.get("samples") is None else options["samples"]
    if not isinstance(samples, int) or isinstance(samples, bool) or not 1 <= samples <= 256:
        raise BadRequest("suffice.samples: must be a whole number from 1 to 256", param="suffice.samples")
    for key in ("policy_version", "conversation_id"):
        if not isinstance(options.get(key), str | None):
            raise BadRequest(f"suffice.{key}: must be a string", param=f"suffice.{key}")


def _kind(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, int | float):
        return "a number"
    names: dict[type, str] = {str: "a string", list: "a list", dict: "an object"}
    return names.get(type(value), type(value).__name__)

"""Parses a client's request body, strictly where Suffice uses it; the upstream validates all other fields.

It also says which requests are governed: those whose reply a stop could not change beyond their thought.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import field, replace
from typing import Any, NoReturn, TypeVar

import msgspec

from suffice.asgi import host_name
from suffice.errors import BadRequest, TooLarge
from suffice.gateway.exchange import MAX_HEADERS
from suffice.records import frozen_struct
from suffice.serving.route import BuiltRoute
from suffice.settings import Server, Upstream
from suffice.signals.query import query_signals
from suffice.types import Kind, Query, ReplyForm
from suffice.upstream.drivers import (
    STOPS,
    are_clients,
    continuing_methods,
    finish_methods,
    has_field,
    reply_form,
    stop_words,
)
from suffice.upstream.wire import MOST_DIGITS, count_items, encode_json, finite, items_in, within

T = TypeVar("T")

OVERRIDES = ("api_base", "base_url", "api_key", "extra_headers", "user_config", "custom_llm_provider")
MAX_HEAD_CHARS = 64 * 1024  # names and values together
KNOWN_OPTIONS = ("samples", "policy_version", "conversation_id")
AT_ONCE_BYTES = 64 * 1024  # a longer body is parsed in a thread
MOST_ESCAPES = 2_000_000  # backslashes: each costs as much time as 30 other characters
MOST_NAME_CHARS = 1_000  # of a model's or conversation's name, in the log
# Fields with which a stop could change the requested result, by the counted reason: OpenAI's, then
# their equivalents in llama.cpp, vLLM, SGLang and OpenRouter.
_BLOCKING_BY_REASON: Mapping[str, str] = {
    "tools": "functions web_search_options plugins",
    "response_format": "grammar",  # llama.cpp constrains the thought by it, too
    "logprobs": "n_probs prompt_logprobs",
    "stop": "ignore_eos",
    "modalities": "modalities audio",
    "prediction": "prediction",
    "n": "best_of use_beam_search",
}
BLOCKING = {name: reason for reason, names in _BLOCKING_BY_REASON.items() for name in names.split()}
_REASON_OF_FORM: Mapping[ReplyForm, str] = {"text": "tools", "json": "response_format", "tools": "tools"}
TEXT_PARTS = ("text", "refusal")  # parts of a message that chat templates write as text
_READER = ThreadPoolExecutor(max_workers=1, thread_name_prefix="suffice-parsing")


@frozen_struct
class ParsedRequest:
    raw: bytes  # as received
    body: dict[str, Any]  # parsed, without `suffice` and without override fields
    changed: bool = False  # fields were removed or changed: do not forward `raw`
    stripped: tuple[str, ...] = ()  # override fields that were removed
    options: Mapping[str, Any] = field(default_factory=dict)  # the object `suffice`
    has_options: bool = False
    model: str
    stream: bool
    wants_usage: bool = False  # a usage chunk in the stream
    wants_chunk_usage: bool = False  # usage in every chunk
    identity: bytes = b""  # equal for equal bodies: `raw`, or its digest if long
    prompt: str | None = None  # digest of long messages; None: they are short
    as_chat: dict[str, Any] | None = None  # a request of another API in chat's form

    @property
    def chat(self) -> dict[str, Any]:
        return self.body if self.as_chat is None else self.as_chat

    @property
    def forwarded(self) -> bytes:
        return encode_json(self.body) if self.changed else self.raw

    def streamed(self, *, with_usage: bool, in_chunks: bool = False) -> dict[str, Any]:
        """Return the body of a stream. `in_chunks`: usage in every chunk, for a run that may be cut off."""
        body = self.body | {"stream": True}
        if not with_usage:
            return body
        options = body.get("stream_options")
        options = options if isinstance(options, dict) else {}
        more = {"continuous_usage_stats": True} if in_chunks else {}
        return body | {"stream_options": options | {"include_usage": True} | more}

    def for_model(self, model: str | None) -> ParsedRequest:
        if model is None or model == self.model:
            return self
        self.body["model"] = self.chat["model"] = model
        return replace(self, changed=True)


def check_head(headers: list[tuple[str, str]], *, via: str = "") -> None:
    """Raise BadRequest for heads that are too large, ambiguous hosts and transfer encodings, and our own calls.

    via  name of this gateway in the header `via` of its calls; "": none
    """
    n_chars, n_hosts = 0, 0
    for name, value in headers:
        n_chars += len(name) + len(value)
        if name == "host":
            n_hosts += 1
            if n_hosts > 1 or host_name(value) is None:
                raise BadRequest("Host header: must be one plain host name with an optional port", code="bad_host")
        elif name == "transfer-encoding" and value.strip().lower() != "chunked":
            raise BadRequest("transfer-encoding: must be chunked alone", code="bad_transfer_encoding")
        elif name == "via" and via and via in value:
            message = "this gateway sent the request itself: an upstream's url leads back to it; need the model server"
            raise BadRequest(message, status=508, code="loop_detected")
    if len(headers) > MAX_HEADERS or n_chars > MAX_HEAD_CHARS:
        message = f"headers: at most {MAX_HEADERS} and {MAX_HEAD_CHARS} characters are accepted"
        raise BadRequest(message, status=431, code="headers_too_large")


def check_body_headers(headers: list[tuple[str, str]], limit_bytes: int, *, is_json: bool = True) -> None:
    """Raise BadRequest for a body that its headers rule out, before reading it."""
    named = dict(reversed(headers))  # the first of repeated headers counts
    if is_json and named.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
        message = "content-encoding: compressed request bodies are not accepted; send the JSON as it is"
        raise BadRequest(message, status=415, code="unsupported_encoding")
    length = named.get("content-length", "0")
    if length.isdecimal() and int(length[:20]) > limit_bytes:
        raise TooLarge(f"body: longer than {limit_bytes} bytes")
    kind = ", ".join([value for name, value in headers if name == "content-type"])
    if is_json and kind.partition(";")[0].strip().lower() != "application/json":
        # Without a preflight, pages of other sites can send only text, forms and bodies without a type.
        message = f"content-type: got {kind[:100]!r}; must be application/json"
        raise BadRequest(message, status=415, code="unsupported_media_type")


async def read_aside(read: Callable[[bytes, Server], T], raw: bytes, limits: Server) -> T:
    """Parse a longer body in the one reader thread, so that other requests are served meanwhile."""
    if len(raw) <= AT_ONCE_BYTES:
        return read(raw, limits)
    return await asyncio.get_running_loop().run_in_executor(_READER, read, raw, limits)


def parse_json(raw: bytes, limits: Server) -> dict[str, Any]:
    """Parse a JSON object: UTF-8, no repeated keys, no NaN, bounded depth and number of values. Raise BadRequest."""
    if not raw.strip():
        raise BadRequest("body: is empty; must be a JSON object", code="empty_body")
    if len(raw) > limits.max_body_bytes:
        raise TooLarge(f"body: longer than {limits.max_body_bytes} bytes")
    if raw.count(b"\\") > MOST_ESCAPES:
        raise BadRequest(f"body: holds more than {MOST_ESCAPES} escapes", status=413, code="too_many_items")
    try:
        n_items, n_keys = count_items(raw, limits.max_items)
    except ValueError as error:
        raise BadRequest(f"body: {error}, so it is too large", code="bad_json") from None
    if n_items > limits.max_items:
        message = f"body: holds more than {limits.max_items} values ([server] max_items)"
        raise BadRequest(message, status=413, code="too_many_items")
    body = _decode(raw)
    if not isinstance(body, dict):
        raise BadRequest(f"body: must be a JSON object, got {_kind(body)}", code="not_an_object")
    if _keys_and_depth(body, limits.max_depth) != n_keys:
        _decode_slowly(raw)  # a key is repeated; this raises and names it
    if not body:
        raise BadRequest("body: is an empty object; `model` and `messages` are needed", code="empty_body")
    return body


def _decode(raw: bytes) -> Any:
    try:
        return _decode_fast(raw)
    except RecursionError:
        raise BadRequest("body: is nested too deeply", code="too_deep") from None
    except (msgspec.MsgspecError, ValueError):
        return _decode_slowly(raw)


def _decode_slowly(raw: bytes) -> Any:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadRequest(f"body: is not UTF-8 at byte {error.start}", code="bad_encoding") from None
    if text.startswith("\ufeff"):
        raise BadRequest("body: begins with a byte order mark; send plain UTF-8", code="bad_encoding")
    try:
        return _STRICT.decode(text)
    except RecursionError:
        raise BadRequest("body: is nested too deeply", code="too_deep") from None
    except json.JSONDecodeError as error:
        raise BadRequest(f"body: is not JSON at character {error.pos}: {error.msg}", code="bad_json") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        seen = set[str]()
        repeated = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise BadRequest(f"body: the key {repeated[:80]!r} appears twice", param=repeated[:80], code="repeated_key")
    return table


def _no_constant(name: str) -> NoReturn:
    raise BadRequest(f"body: {name} is not a JSON number", code="bad_json")


def _finite(text: str) -> float:
    try:
        return finite(text)
    except ValueError:
        raise BadRequest("body: holds a number that is too large", code="bad_json") from None


def _bounded(text: str) -> int | float:
    return int(text) if len(text) <= MOST_DIGITS else _finite(text)


_decode_fast: Callable[[bytes], Any] = msgspec.json.Decoder(float_hook=_finite).decode
_STRICT = json.JSONDecoder(
    object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite, parse_int=_bounded
)


def _keys_and_depth(body: dict[str, Any], limit: int) -> int:
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
                if type(value) is dict or type(value) is list:  # the only containers of a JSON parser
                    inner.append(value)  # noqa: PERF401 - twice as fast as extending by a generator
        level, depth = inner, depth + 1
    return n_keys


def read_chat(raw: bytes, limits: Server) -> ParsedRequest:
    """Raise BadRequest for invalid fields among those that Suffice uses."""
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
    return ParsedRequest(
        raw=raw,
        body=body,
        changed=has_options or bool(stripped),
        stripped=stripped,
        options=options or {},
        has_options=has_options,
        model=model[:MOST_NAME_CHARS],
        stream=bool(stream),
        wants_usage=isinstance(wanted, dict) and wanted.get("include_usage") is True,
        wants_chunk_usage=isinstance(wanted, dict) and wanted.get("continuous_usage_stats") is True,
        **_digests(raw, body),
    )


def _digests(raw: bytes, body: Mapping[str, Any]) -> dict[str, Any]:
    if len(raw) <= AT_ONCE_BYTES:
        return {"identity": raw}
    identity, messages = hashlib.blake2b(raw, digest_size=32).digest(), encode_json(body.get("messages"))
    if len(messages) <= AT_ONCE_BYTES:
        return {"identity": identity}
    return {"identity": identity, "prompt": hashlib.blake2b(messages, digest_size=32).hexdigest()}


class _NamedFields(msgspec.Struct):
    model: msgspec.Raw = msgspec.Raw(b'""')
    stream: msgspec.Raw = msgspec.Raw(b"")


_decode_named = msgspec.json.Decoder(_NamedFields).decode


def read_unparsed(raw: bytes) -> ParsedRequest:
    """Read the model, and whether it streams, of a body that an engine alone understands."""
    model, stream = "", False
    with suppress(msgspec.MsgspecError, UnicodeDecodeError, RecursionError):  # the engine will refuse it
        if raw[:1] == b"{":
            fields = _decode_named(raw)
            model = msgspec.json.decode(fields.model, type=str) if len(fields.model) <= MOST_NAME_CHARS else ""
            stream = fields.stream == b"true"
    return ParsedRequest(raw=raw, body={}, model=model, stream=stream)


def _check_options(options: Mapping[str, Any]) -> None:
    for key in options:
        if key not in KNOWN_OPTIONS:
            known = ", ".join(KNOWN_OPTIONS)
            raise BadRequest(f"suffice.{key[:80]}: unknown option; known: {known}", param="suffice")
    samples = 1 if options.get("samples") is None else options["samples"]
    if not isinstance(samples, int) or isinstance(samples, bool) or not 1 <= samples <= 256:
        raise BadRequest("suffice.samples: must be a whole number from 1 to 256", param="suffice.samples")
    for key in ("policy_version", "conversation_id"):
        read_text(options, key, MOST_NAME_CHARS, where="suffice.")


def check_known(table: Mapping[str, Any], known: Sequence[str], where: str = "") -> None:
    """Raise BadRequest for a field that is not among these; `where` is the path of the table, with its dot."""
    for key in table:
        if key not in known:
            raise BadRequest(f"{where}{key[:80]}: unknown field; known: {', '.join(known)}", param=f"{where}{key[:80]}")


def read_text(table: Mapping[str, Any], key: str, most_chars: int, *, where: str = "") -> str | None:
    """Return a field; None if it is null or missing. Raise BadRequest for anything but a text of so many characters."""
    value = table.get(key)
    if value is not None and (not isinstance(value, str) or len(value) > most_chars):
        message = f"{where}{key}: must be a string of at most {most_chars} characters"
        raise BadRequest(message, param=f"{where}{key}")
    return value


_KINDS = {bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "a list", dict: "an object"}


def _kind(value: object) -> str:
    return "null" if value is None else _KINDS.get(type(value), type(value).__name__)


def query_of(body: Mapping[str, Any], kind: Kind, n_samples: int) -> Query:
    """Return the query features of a governed request, without the body's `metadata`, which may name a person.

    Requests with tools, and those under a schema, are classes of their own.
    """
    form, planned = reply_form(body), n_samples if kind == "samples" else None
    query_class = "" if form == "text" else form
    return query_signals(last_question(body), metadata={}, query_class=query_class, planned_steps=planned)


def last_question(body: Mapping[str, Any]) -> str | None:
    of_users = (message for message in reversed(items_in(body, "messages")) if within(message, "role") == "user")
    content = within(next(of_users, None), "content")
    if not isinstance(content, list):
        return content if isinstance(content, str) else None
    texts = [text for part in content if isinstance(text := within(part, "text"), str)]
    return "\n".join(texts) if texts else None


# --------------------------------------------------------------------------- which requests are governed


def n_samples(route: BuiltRoute, options: Mapping[str, Any]) -> int:
    if route.settings.kind != "samples":
        return 1
    samples, limit = int(options.get("samples") or route.settings.samples), route.settings.max_extra_calls + 1
    if samples > limit:
        message = f"suffice.samples: got {samples}; at most {limit} on this route"
        raise BadRequest(message, param="suffice.samples", code="too_many_samples")
    return samples


def ungoverned(
    route: BuiltRoute, body: Mapping[str, Any], options: Mapping[str, Any], upstream: Upstream | None
) -> str | None:
    """Return why this request must pass through unchanged, or None if it is governed."""
    kind, messages = route.settings.kind, body.get("messages")
    if route.settings.mode == "off":
        return "off"
    if kind == "rounds":
        return "rounds"
    if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) for m in messages):
        return "messages"
    if body.get("n") not in (None, 1) or isinstance(body.get("n"), bool):
        return "n"
    if blocking := [reason for name, reason in BLOCKING.items() if name in body and has_field(body, name)]:
        return blocking[0]
    form = reply_form(body)
    if form not in route.settings.reply_forms or not are_clients(body.get("tools")):
        return _REASON_OF_FORM[form]
    if kind == "samples":
        return "samples=1" if n_samples(route, options) == 1 else None
    return _hindrance(route, body, messages, upstream)


def _hindrance(
    route: BuiltRoute, body: Mapping[str, Any], messages: Sequence[Mapping[str, Any]], upstream: Upstream | None
) -> str | None:
    """Return why the thought of this request cannot be cut, or could not without changing its reply; None: it can."""
    if any(_shows_more_than_text(m.get("content")) for m in messages):
        return "images"  # continuing a thought needs a prompt of text only
    if messages[-1].get("role") == "assistant" or body.get("continue_final_message"):
        return "prefill"  # the answer begins with the client's text, which may hold a thought
    return None if upstream is None else _unkept(route, body, upstream)


def _unkept(route: BuiltRoute, body: Mapping[str, Any], upstream: Upstream) -> str | None:
    """Return what a stopped reply could not keep of the request; None: it keeps everything."""
    tags, form = (upstream.think_open, upstream.think_close), reply_form(body)
    if any(word in tag or tag in word for word in stop_words(body) for tag in tags):
        return "stop"  # it asks for the thought alone
    findings = route.findings
    if finish_methods(upstream, body, findings) or route.settings.arms or not finish_methods(upstream, {}):
        return None
    if continuing_methods(upstream, body, findings):
        return "logprobs"
    stopless = {name: value for name, value in body.items() if name != "stop" and name not in STOPS}
    return "stop" if continuing_methods(upstream, stopless, findings) else _REASON_OF_FORM[form]


def _shows_more_than_text(content: Any) -> bool:
    return isinstance(content, list) and any(
        not isinstance(part, dict) or part.get("type") not in TEXT_PARTS for part in content
    )

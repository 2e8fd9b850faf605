"""Renders a chat as the model server's own template does, and counts its tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, TypeVar

import msgspec

from suffice.errors import UpstreamError, UpstreamProtocol
from suffice.settings import Driver, Template
from suffice.upstream.client import Headers, UpstreamClient
from suffice.upstream.continuation import Prompt
from suffice.upstream.drivers import DRIVERS
from suffice.upstream.wire import encode_json

T = TypeVar("T")

TIMEOUT_S = 5.0


async def render_prompt(
    client: UpstreamClient, body: Mapping[str, Any], headers: Headers, *, driver: Driver, text: bool
) -> Prompt | None:
    """Return the prompt and its token count; without `text`, maybe only the count. None: nothing can render it.

    Raise UpstreamError.
    """
    facts, template = DRIVERS[driver], client.settings.template
    if template is not None:
        own = Prompt(text=write_prompt(template, body["messages"]), n_tokens=None)
        return await _counted(client, own, body, headers) if facts.counts_prompts else own
    wanted = ("messages", "tools", "chat_template_kwargs", "reasoning_effort")
    fields = {k: body[k] for k in wanted if k in body}
    if facts.writes_prompt == "apply-template":
        prompt = await _required(client, "/apply-template", fields, "prompt", str, headers)
        whole = {"content": prompt, "add_special": True, "parse_special": True}
        tokens = await ask_field(client, "/tokenize", whole, "tokens", headers)
        return Prompt(text=prompt, n_tokens=len(tokens) if isinstance(tokens, list) else None)
    if facts.writes_prompt == "tokenize":
        fields.pop("reasoning_effort", None)
        fields |= {"messages": name_thoughts(body["messages"]), "add_generation_prompt": True}
        model, written = {"model": body.get("model")}, None
        listed: list[Any] = await _required(client, "/tokenize", model | fields, "tokens", list, headers)
        if text:
            # `return_token_strs` would write spaces and bytes in the tokenizer's own symbols. Without the option SGLang
            # leaves out the template's own tokens.
            options = {**model, "tokens": listed, "skip_special_tokens": False}
            written = await _required(client, "/detokenize", options, facts.detokenized, str, headers)
        return Prompt(text=written, n_tokens=len(listed))
    return None


async def _counted(client: UpstreamClient, prompt: Prompt, body: Mapping[str, Any], headers: Headers) -> Prompt:
    fields, count = {"model": body.get("model"), "prompt": prompt.text, "add_special_tokens": False}, None
    with suppress(UpstreamError):
        count = await ask_field(client, "/tokenize", fields, "count", headers)
    return replace(prompt, n_tokens=count if isinstance(count, int) else None)


async def _required(
    client: UpstreamClient, path: str, fields: Mapping[str, Any], key: str, kind: type[T], headers: Headers
) -> T:
    value = await ask_field(client, path, fields, key, headers)
    if not isinstance(value, kind):
        raise UpstreamProtocol(f"{path}: the upstream returned no {key}")
    return value


async def ask_field(
    client: UpstreamClient,
    path: str,
    fields: Mapping[str, Any],
    key: str,
    headers: Headers,
    timeout_s: float = TIMEOUT_S,
) -> Any:
    """Return one field of a short answer, None if it has no such field. Raise UpstreamError."""
    status, answer, _ = await client.fetch(path, encode_json(fields), headers, timeout_s=timeout_s)
    if status != 200:
        raise UpstreamProtocol(f"{path}: the upstream answered {status}")
    try:
        return msgspec.json.decode(answer).get(key)
    except (msgspec.DecodeError, AttributeError):
        raise UpstreamProtocol(f"{path}: the upstream's answer is not a JSON object") from None


def name_thoughts(messages: Sequence[Any]) -> list[Any]:
    """Return the messages with each earlier thought under both of its names: vLLM's `/tokenize` reads only `reasoning`.

    Its chat endpoint reads both, so without this the two would render different prompts.
    """
    return [
        {**message, "reasoning": message["reasoning_content"]}
        if isinstance(message, Mapping) and message.get("reasoning_content") and message.get("reasoning") is None
        else message
        for message in messages
    ]


def write_prompt(template: Template, messages: Sequence[Any]) -> str:
    """Render messages by the configured template. Raise UpstreamProtocol for a message that is more than text."""
    text = template.begin
    for message in messages:
        turn = template.turn.replace("{role}", str(message.get("role", "user")))
        text += turn.replace("{content}", _text_of(message.get("content")))
    return text + template.generate


def _text_of(content: Any) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    if not parts or not all(isinstance(p, Mapping) and isinstance(p.get("text"), str) for p in parts):
        raise UpstreamProtocol("template: a message contains more than text")
    return "".join(p["text"] for p in parts)

"""Anthropic's Messages API: its requests as chat, and its events as chat chunks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import msgspec

from suffice.episode.apis.events import ApiFormat, Block, NativeEvents, call_chunk, delta_chunk, event_frame
from suffice.episode.chain_reader import StreamState
from suffice.types import Usage
from suffice.upstream.wire import Choice, Chunk, Frame, encode_json, items_in, within

_FINISH_OF_STOP = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
_STOP_OF_FINISH = {finish: stop for stop, finish in reversed(_FINISH_OF_STOP.items())}
_KINDS = {"thinking": "thought", "text": "text", "tool_use": "call"}


class MessagesEvents(NativeEvents):
    _names: ClassVar[Mapping[str, str]] = {"content": "text", "arguments": "partial_json"}
    _message: Mapping[str, Any] = {}  # the engine's own first event
    _end: Mapping[str, Any] = {}  # its stop reason and sequence
    _counts: Mapping[str, Any] = {}  # usage, as the engine names it

    def _fold(self, kind: str, event: dict[str, Any]) -> Chunk | None:
        if kind == "content_block_delta":
            return self._fold_delta(event.get("delta"))
        if kind == "content_block_start":
            return self._fold_block(event.get("content_block"))
        if kind == "content_block_stop":
            if self._open is not None:
                self._open.is_open = False
        elif kind == "message_start" and isinstance(message := event.get("message"), dict):
            counts = message.get("usage")
            self._message, self._counts = message, counts if isinstance(counts, dict) else {}
            usage = msgspec.structs.replace(self._usage(counts), completion_tokens=None)  # none was generated yet
            self._facts.completion_tokens = None
            return Chunk(id=message.get("id"), model=message.get("model"), usage=usage)
        elif kind == "message_delta":
            return self._fold_end(event)
        elif kind == "message_stop":
            return None
        elif kind == "error":
            return Chunk(error=msgspec.Raw(encode_json(event.get("error") or "error")))
        return Chunk()

    def _fold_block(self, block: Any) -> Chunk:
        if not isinstance(block, dict):
            return Chunk()
        kind = str(block.get("type"))
        self._begin(_KINDS.get(kind, "other"), dict(block))  # type: ignore[arg-type]
        if kind == "tool_use":
            self._n_calls += 1
            function = {"name": block.get("name"), "arguments": ""}
            return call_chunk(self._n_calls - 1, id=block.get("id"), type="function", function=function)
        if kind in _KINDS:
            return delta_chunk(**{"thinking" if kind == "thinking" else "content": self._add(block.get(kind))})
        # A hidden thought, or a tool that the server calls: nothing after it may be cut.
        return call_chunk(self._n_calls, type=kind)

    def _fold_delta(self, delta: Any) -> Chunk:
        kind = within(delta, "type")
        if kind == "thinking_delta":
            return delta_chunk(thinking=self._add(delta.get("thinking")))
        if kind == "text_delta":
            return delta_chunk(content=self._add(delta.get("text")))
        if kind == "input_json_delta":
            return call_chunk(max(0, self._n_calls - 1), function={"arguments": self._add(delta.get("partial_json"))})
        last = self._open
        if last is not None and isinstance(delta, dict):  # a signature, a citation
            for name, value in delta.items():
                if name == "citation":
                    last.fields["citations"] = [*(last.fields.get("citations") or ()), value]
                elif name != "type" and self._keep(value):
                    last.fields[name] = value
        return Chunk()

    def _fold_end(self, event: dict[str, Any]) -> Chunk:
        delta = event.get("delta")
        self._end = delta if isinstance(delta, dict) else {}
        if isinstance(event.get("usage"), dict):
            self._counts = {**self._counts, **event["usage"]}
        reason = self._end.get("stop_reason")
        finish = _FINISH_OF_STOP.get(str(reason), str(reason)) if reason is not None else None
        return Chunk(choices=[Choice(finish_reason=finish)], usage=self._usage(event.get("usage")))

    # ---- writing

    def _with_report(self, event: dict[str, Any], report: dict[str, Any]) -> dict[str, Any]:
        self._end = {**self._end, "suffice": report}
        return event | {"suffice": report}

    def end_mark(self) -> list[Frame]:
        return [event_frame({"type": "message_stop"})]

    def text(self, state: StreamState, text: str) -> list[Frame]:  # noqa: ARG002
        last = self._open
        frames = self._opened({"type": "text", "text": ""}) if last is None or last.kind != "text" else []
        return [*frames, self._delta("text_delta", "text", self._add(text))]

    def _open_call(self, state: StreamState, call_id: str, name: str) -> list[Frame]:  # noqa: ARG002
        return self._opened({"type": "tool_use", "id": call_id, "name": name, "input": {}})

    def _arguments(self, text: str) -> Frame:
        return self._delta("input_json_delta", "partial_json", text)

    def closing(
        self,
        state: StreamState,  # noqa: ARG002
        finish: str,
        *,
        usage: Usage | None,
        report: dict[str, Any] | None,
    ) -> list[Frame]:
        self._end = {"stop_reason": _STOP_OF_FINISH.get(finish, finish), "stop_sequence": None}
        if usage is not None:
            self._counts = {**self._counts, **_counts_of(usage, self._counts)}
        event = {"type": "message_delta", "delta": self._end, "usage": dict(self._counts)}
        if report is not None:
            event = self._with_report(event, report)
        return [*self._closed(), event_frame(event), *self.end_mark()]

    def _opened(self, block: dict[str, Any]) -> list[Frame]:
        frames = self._closed()
        self._begin(_KINDS[block["type"]], block)  # type: ignore[arg-type]
        start = {"type": "content_block_start", "index": len(self._blocks) - 1, "content_block": block}
        return [*frames, event_frame(start)]

    def _closed(self) -> list[Frame]:
        last, frames = self._open, list[Frame]()
        if last is None:
            return frames
        if last.kind == "thought" and "signature" not in last.fields:
            last.fields["signature"] = ""  # clients expect one; an engine whose thoughts can be cut checks none
            frames.append(self._delta("signature_delta", "signature", ""))
        last.is_open = False
        return [*frames, event_frame({"type": "content_block_stop", "index": len(self._blocks) - 1})]

    def _delta(self, kind: str, name: str, text: str) -> Frame:
        delta = {"type": kind, name: text}
        return event_frame({"type": "content_block_delta", "index": len(self._blocks) - 1, "delta": delta})

    def body(self) -> dict[str, Any]:
        end = {key: value for key, value in self._end.items() if key in ("stop_reason", "stop_sequence", "suffice")}
        content = [_content_of(block) for block in self._blocks]
        return {**self._message, "content": content, **end, "usage": dict(self._counts)}


def _content_of(block: Block) -> dict[str, Any]:
    if block.kind == "call":
        try:
            return block.fields | {"input": msgspec.json.decode(block.text or "{}")}
        except msgspec.MsgspecError:
            return block.fields | {"input": {}}  # cut by the cap
    name = {"thought": "thinking", "text": "text"}.get(block.kind)
    return block.fields if name is None else block.fields | {name: block.text}


def _counts_of(usage: Usage, before: Mapping[str, Any]) -> dict[str, int]:
    """Return a usage in Anthropic's terms: cached tokens are counted beside the input, where the engine names them."""
    if not usage.prompt_tokens:
        return {"output_tokens": usage.completion_tokens}
    if "cache_read_input_tokens" not in before:
        return {"input_tokens": usage.prompt_tokens, "output_tokens": usage.completion_tokens}
    created = before.get("cache_creation_input_tokens") or 0
    return {
        "input_tokens": max(0, usage.prompt_tokens - usage.cached_tokens - created),
        "output_tokens": usage.completion_tokens,
        "cache_read_input_tokens": usage.cached_tokens,
    }


# ---- requests as chat

_SAME = ("model", "stream", "temperature", "top_p", "top_k", "thinking", "max_tokens")
_READ = frozenset({*_SAME, "system", "messages", "stop_sequences", "tools", "tool_choice", "metadata", "output_config"})
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}


def messages_as_chat(body: Mapping[str, Any]) -> tuple[dict[str, Any], str | None]:
    """Return a request as a chat request, and why it cannot be governed (None: it can)."""
    chat = {name: value for name, value in body.items() if name not in _READ or name in _SAME}
    refusals = list[str]()
    messages = _system_of(body.get("system"))
    for turn in items_in(body, "messages"):
        messages += _turn_as_chat(turn, refusals)
    chat["messages"] = messages
    if body.get("stop_sequences"):
        chat["stop"] = body["stop_sequences"]
    if isinstance(user := within(body, "metadata", "user_id"), str):
        chat["user"] = user
    if body.get("tools"):
        chat |= _tools_as_chat(body, refusals)
    if body.get("output_config"):
        chat |= _output_as_chat(body["output_config"], refusals)
    return chat, next(iter(refusals), None)


def _system_of(system: Any) -> list[dict[str, Any]]:
    if isinstance(system, list):
        texts = [part.get("text") for part in system if isinstance(part, dict)]
        system = "".join(text for text in texts if isinstance(text, str))
    return [{"role": "system", "content": system}] if isinstance(system, str) and system else []


def _turn_as_chat(turn: Any, refusals: list[str]) -> list[dict[str, Any]]:
    if not isinstance(turn, dict):
        refusals.append("messages")
        return []
    role, content = turn.get("role"), turn.get("content")
    if not isinstance(content, list):
        return [{"role": role, "content": content}]
    message: dict[str, Any] = {"role": role}
    parts = list[dict[str, Any]]()
    calls = list[dict[str, Any]]()
    results = list[dict[str, Any]]()
    for block in content:
        kind = within(block, "type")
        if kind == "text":
            parts.append({"type": "text", "text": block.get("text")})
        elif kind == "thinking":
            message["reasoning_content"] = message.get("reasoning_content", "") + str(block.get("thinking") or "")
        elif kind == "tool_use":
            arguments = encode_json(block.get("input") or {}).decode()
            function = {"name": block.get("name"), "arguments": arguments}
            calls.append({"id": block.get("id"), "type": "function", "function": function})
        elif kind == "tool_result":
            text = _result_text(block.get("content"), refusals)
            results.append({"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": text})
        else:
            refusals.append("images" if kind in ("image", "document") else "signed")
    if calls:
        message["tool_calls"] = calls
    message["content"] = parts[0]["text"] if len(parts) == 1 else parts or ""
    return [*results, message] if parts or calls or "reasoning_content" in message else results


def _result_text(content: Any, refusals: list[str]) -> str:
    if not isinstance(content, list):
        return content if isinstance(content, str) else ""
    if any(within(part, "type") != "text" for part in content):
        refusals.append("images")
    return "\n".join(str(part.get("text", "")) for part in content if isinstance(part, dict))


def _tools_as_chat(body: Mapping[str, Any], refusals: list[str]) -> dict[str, Any]:
    tools, choice = items_in(body, "tools"), body.get("tool_choice")
    if not all(isinstance(tool, dict) and tool.get("type") in (None, "custom") for tool in tools):
        refusals.append("server_tools")
        return {"tools": tools}
    functions = [
        {
            "type": "function",
            "function": {
                "name": tool.get("name"),
                "description": tool.get("description") or "",
                "parameters": tool.get("input_schema") or {},
            },
        }
        for tool in tools
    ]
    chat: dict[str, Any] = {"tools": functions}
    if isinstance(choice, dict):
        named = {"type": "function", "function": {"name": choice.get("name")}}
        chat["tool_choice"] = named if choice.get("type") == "tool" else _CHOICES.get(str(choice.get("type")), "auto")
        if choice.get("disable_parallel_tool_use"):
            chat["parallel_tool_calls"] = False
    return chat


def _output_as_chat(config: Any, refusals: list[str]) -> dict[str, Any]:
    schema, effort = within(config, "format", "schema"), within(config, "effort")
    if not isinstance(config, dict) or set(config) - {"format", "effort"}:
        refusals.append("output_config")
    chat = {} if effort is None else {"reasoning_effort": effort}
    if schema is not None:
        chat["response_format"] = {"type": "json_schema", "json_schema": {"name": "output", "schema": schema}}
    return chat


# ---- the API


def _effort(level: str) -> dict[str, Any]:
    return {"thinking": {"type": "disabled"}} if level == "none" else {"output_config": {"effort": level}}


# docs.claude.com, "Extended thinking": a budget has at least 1,024 tokens.
MESSAGES = ApiFormat(
    path="/v1/messages",
    events=MessagesEvents,
    as_chat=messages_as_chat,
    own_driver="anthropic",
    has_own_key=True,
    effort=_effort,
    no_tool={"type": "none"},
    budget=lambda n: {"thinking": {"type": "enabled", "budget_tokens": max(1024, n)}},
)

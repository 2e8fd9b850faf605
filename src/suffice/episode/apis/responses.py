"""OpenAI's Responses API: its requests as chat, and its events as chat chunks."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import msgspec

from suffice.episode.apis.events import ApiFormat, Block, NativeEvents, call_chunk, delta_chunk, event_frame
from suffice.episode.chain_reader import StreamState
from suffice.types import Usage
from suffice.upstream.wire import Choice, Chunk, Frame, encode_json, items_in, parse_token_count, within

_KINDS = {"reasoning": "thought", "message": "text", "function_call": "call"}
_REASONS = {"max_output_tokens": "length", "content_filter": "content_filter"}
_INCOMPLETE = {finish: reason for reason, finish in _REASONS.items()}
_DONE_PART = {"thought": "reasoning_text", "text": "output_text"}
_DELTAS = {
    "response.reasoning_text.delta": "reasoning",
    "response.output_text.delta": "content",
    "response.refusal.delta": "refusal",
}


class ResponsesEvents(NativeEvents):
    _names: ClassVar[Mapping[str, str]] = dict.fromkeys(("content", "reasoning", "arguments"), "delta")
    _response: Mapping[str, Any] = {}  # as the engine described it last
    _has_part = False  # the open item has an open part
    _held_sequence: int | None = None

    def _fold(self, kind: str, event: dict[str, Any]) -> Chunk | None:
        self._sequence = parse_token_count(event.get("sequence_number", self._sequence))
        if kind in _DELTAS:
            return delta_chunk(**{_DELTAS[kind]: self._add(event.get("delta"))})
        match kind:
            case "response.function_call_arguments.delta":
                arguments = {"arguments": self._add(event.get("delta"))}
                return call_chunk(max(0, self._n_calls - 1), function=arguments)
            case "response.output_item.added":
                return self._fold_item(event.get("item"))
            case "response.output_item.done":
                self._end_item(event.get("item"))
            case "response.content_part.added":
                self._has_part = True
            case "response.created" | "response.in_progress" | "response.queued":
                return self._fold_response(event)
            case "response.completed" | "response.incomplete" | "response.cancelled":
                self.is_over = True
                return self._fold_end(event)
            case "response.failed" | "error":
                return Chunk(error=msgspec.Raw(encode_json(within(event, "response", "error") or "error")))
        return Chunk()

    def _fold_response(self, event: dict[str, Any]) -> Chunk:
        response = event.get("response")
        self._response = response if isinstance(response, dict) else {}
        return Chunk(id=self._response.get("id"), model=self._response.get("model"))

    def _end_item(self, item: Any) -> None:
        last = self._open
        if last is not None:
            last.is_open = self._has_part = False
            last.fields = item if isinstance(item, dict) else last.fields

    def _fold_item(self, item: Any) -> Chunk:
        if not isinstance(item, dict):
            return Chunk()
        kind = str(item.get("type"))
        self._begin(_KINDS.get(kind, "other"), item)  # type: ignore[arg-type]
        if kind == "function_call":
            self._n_calls += 1
            function = {"name": item.get("name"), "arguments": ""}
            return call_chunk(self._n_calls - 1, id=item.get("call_id"), type="function", function=function)
        # Nothing may be cut after a tool that the server calls itself.
        return Chunk() if kind in _KINDS else call_chunk(self._n_calls, type=kind)

    def _fold_end(self, event: dict[str, Any]) -> Chunk:
        chunk = self._fold_response(event)
        reason = within(event, "response", "incomplete_details", "reason")
        finish = "tool_calls" if any(block.kind == "call" for block in self._blocks) else "stop"
        if reason is not None:
            finish = _REASONS.get(str(reason), str(reason))
        choices = [Choice(finish_reason=finish)]
        return msgspec.structs.replace(chunk, choices=choices, usage=self._usage(self._response.get("usage")))

    def hold(self) -> None:
        super().hold()
        self._held_sequence = self._sequence

    def rewind(self) -> None:
        super().rewind()
        self._sequence = self._held_sequence

    # ---- writing

    def _with_report(self, event: dict[str, Any], report: dict[str, Any]) -> dict[str, Any]:
        self._response = {**self._response, "suffice": report}
        return event | {"response": self._response}

    def text(self, state: StreamState, text: str) -> list[Frame]:
        frames, last = list[Frame](), self._open
        if last is None or last.kind != "text":
            item = {"type": "message", "role": "assistant", "content": []}
            frames = self._opened(state, "msg", item)
            part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
            frames.append(self._event("response.content_part.added", content_index=0, part=part))
            self._has_part = True
        delta = {"content_index": 0, "delta": self._add(text), "logprobs": []}
        return [*frames, self._event("response.output_text.delta", **delta)]

    def _open_call(self, state: StreamState, call_id: str, name: str) -> list[Frame]:
        item = {"type": "function_call", "call_id": call_id, "name": name, "arguments": ""}
        return self._opened(state, "fc", item)

    def _arguments(self, text: str) -> Frame:
        return self._event("response.function_call_arguments.delta", delta=text)

    def closing(
        self, state: StreamState, finish: str, *, usage: Usage | None, report: dict[str, Any] | None
    ) -> list[Frame]:
        frames = self._closed()
        reason = _INCOMPLETE.get(finish)
        known = {"id": state.id, "object": "response", "created_at": self._created_s, "model": self._model}
        self._response = known | dict(self._response)
        self._response |= {
            "status": "completed" if reason is None else "incomplete",
            "incomplete_details": None if reason is None else {"reason": reason},
            "output": [block.fields for block in self._blocks],
        }
        if usage is not None:
            self._response["usage"] = _usage_of(usage)
        if report is not None:
            self._response["suffice"] = report
        kind = "response.completed" if reason is None else "response.incomplete"
        self.is_over = self.is_ours = True
        return [*frames, self._numbered({"type": kind, "response": self._response})]

    def _opened(self, state: StreamState, prefix: str, item: dict[str, Any]) -> list[Frame]:
        frames = self._closed()
        # An id of its own that a replay would give it again: from the response's id and the item's place.
        name = f"{prefix}_{str(state.id).partition('_')[2] or state.id}{len(self._blocks)}"
        self._begin(_KINDS[item["type"]], {"id": name, **item, "status": "in_progress"})  # type: ignore[arg-type]
        return [*frames, self._item_event("response.output_item.added", self._blocks[-1])]

    def _closed(self) -> list[Frame]:
        last, frames = self._open, list[Frame]()
        if last is None:
            return frames
        part_kind = _DONE_PART.get(last.kind)
        if last.kind == "call":
            last.fields = last.fields | {"arguments": last.text}
            frames.append(self._event("response.function_call_arguments.done", arguments=last.text))
        elif part_kind is not None:
            part: dict[str, Any] = {"type": part_kind, "text": last.text}
            part |= {"annotations": [], "logprobs": []} if last.kind == "text" else {}
            last.fields = last.fields | {"content": [part]}
            done = {"content_index": 0, "text": last.text} | ({"logprobs": []} if last.kind == "text" else {})
            if self._has_part:  # an engine that opens none, ends none
                frames.append(self._event(f"response.{part_kind}.done", **done))
                frames.append(self._event("response.content_part.done", content_index=0, part=part))
        last.fields = last.fields | {"status": "completed"}
        frames.append(self._item_event("response.output_item.done", last))
        last.is_open = self._has_part = False
        return frames

    def _item_event(self, kind: str, block: Block) -> Frame:
        return self._numbered({"type": kind, "output_index": len(self._blocks) - 1, "item": block.fields})

    def _event(self, kind: str, **fields: Any) -> Frame:
        place = {"item_id": self._blocks[-1].fields.get("id"), "output_index": len(self._blocks) - 1}
        return self._numbered({"type": kind, **place, **fields})

    def _numbered(self, event: dict[str, Any]) -> Frame:
        if self._sequence is not None:
            self._sequence += 1
            event["sequence_number"] = self._sequence
        return event_frame(event)

    def body(self) -> dict[str, Any]:
        return dict(self._response)


def _usage_of(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


# ---- requests as chat

_SAME = (
    *("model", "stream", "temperature", "top_p", "top_logprobs", "user", "safety_identifier"),
    *("parallel_tool_calls",),
)
_READ = frozenset(
    {*_SAME, "instructions", "input", "max_output_tokens", "tools", "tool_choice", "text", "store", "include"}
    | {"reasoning"}
    | {"metadata", "truncation", "background", "previous_response_id", "conversation", "prompt", "service_tier"}
    | {"stream_options", "prompt_cache_key", "max_tool_calls"}
)
_ELSEWHERE = {  # what refers to text that only the engine has, by the counted reason
    "background": "background",
    "previous_response_id": "stateful",
    "conversation": "stateful",
    "prompt": "stateful",
    "max_tool_calls": "server_tools",
}


def responses_as_chat(body: Mapping[str, Any]) -> tuple[dict[str, Any], str | None]:
    """Return a request as a chat request, and why it cannot be governed (None: it can)."""
    chat = {name: value for name, value in body.items() if name not in _READ or name in _SAME}
    refusals = [reason for name, reason in _ELSEWHERE.items() if body.get(name)]
    messages, instructions = list[dict[str, Any]](), body.get("instructions")
    if isinstance(instructions, str) and instructions:
        messages.append({"role": "system", "content": instructions})
    for item in items_of(body):
        _add_item(messages, item, refusals)
    chat["messages"] = messages
    if body.get("max_output_tokens") is not None:
        chat["max_tokens"] = body["max_output_tokens"]
    if (effort := within(body, "reasoning", "effort")) is not None:
        chat["reasoning_effort"] = effort
    if body.get("truncation") == "auto":
        refusals.append("truncation")
    if body.get("include"):
        refusals.append("include")
    if body.get("tools"):
        chat |= _tools_as_chat(body, refusals)
    if (written := within(body, "text", "format")) and within(written, "type") != "text":
        schema = {key: value for key, value in written.items() if key != "type"} if isinstance(written, dict) else {}
        chat["response_format"] = {"type": within(written, "type")} | ({"json_schema": schema} if schema else {})
    return chat, next(iter(refusals), None)


def _add_item(messages: list[dict[str, Any]], item: Any, refusals: list[str]) -> None:
    kind = within(item, "type") or ("message" if isinstance(item, dict) and "role" in item else None)
    last = messages[-1] if messages else {}
    match kind:
        case "message":
            parts = _parts_of(item.get("content"), refusals)
            if last.get("role") == item.get("role") == "assistant" and "content" not in last:
                last["content"] = parts
            else:
                messages.append({"role": item.get("role"), "content": parts})
        case "function_call":
            function = {"name": item.get("name"), "arguments": item.get("arguments")}
            call = {"id": item.get("call_id"), "type": "function", "function": function}
            if last.get("role") != "assistant":
                messages.append(last := {"role": "assistant"})
            last.setdefault("tool_calls", []).append(call)
            last.setdefault("content", "")
        case "function_call_output":
            output = _parts_of(item.get("output"), refusals)
            messages.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": output})
        case "reasoning":
            texts = [within(part, "text") for part in items_in(item, "content")]
            if item.get("encrypted_content") or not texts:
                refusals.append("signed")
            thought = "".join(text for text in texts if isinstance(text, str))
            messages.append({"role": "assistant", "reasoning_content": thought})
        case _:
            refusals.append("stateful" if kind == "item_reference" else "messages" if kind is None else "server_tools")


def _parts_of(content: Any, refusals: list[str]) -> Any:
    if not isinstance(content, list):
        return content
    parts = [part for part in content if within(part, "type") in ("input_text", "output_text", "text", "refusal")]
    if len(parts) < len(content):
        refusals.append("images")
    texts = [{"type": "text", "text": part.get("text", part.get("refusal"))} for part in parts]
    return texts[0]["text"] if len(texts) == 1 else texts


def _tools_as_chat(body: Mapping[str, Any], refusals: list[str]) -> dict[str, Any]:
    tools, choice = items_in(body, "tools"), body.get("tool_choice")
    if not all(within(tool, "type") == "function" for tool in tools):
        refusals.append("server_tools")
        return {"tools": tools}
    named = ("name", "description", "parameters", "strict")
    functions = [{k: tool[k] for k in named if tool.get(k) is not None} for tool in tools]
    chat: dict[str, Any] = {"tools": [{"type": "function", "function": function} for function in functions]}
    if isinstance(choice, dict):
        if choice.get("type") != "function":
            refusals.append("server_tools")
        choice = {"type": "function", "function": {"name": choice.get("name")}}
    return chat if choice is None else chat | {"tool_choice": choice}


# ---- conversations that a request refers to by the id of a response


def items_of(body: Mapping[str, Any]) -> list[Any]:
    text = body.get("input")
    return [{"role": "user", "content": text}] if isinstance(text, str) else items_in(body, "input")


def as_input(response: Mapping[str, Any]) -> Iterable[Any]:
    """Return items of an output as a later request carries them: a thought only where a call followed it."""
    waiting = deque(item for item in items_in(response, "output") if isinstance(item, dict))
    while waiting:
        item = waiting.popleft()
        if item.get("type") != "reasoning" or (waiting and waiting[0].get("type") == "function_call"):
            yield item


def with_conversation(items: bytes, body: Mapping[str, Any]) -> dict[str, Any]:
    """Return a request that refers to a response as one that carries the `items` of its conversation."""
    whole = {name: value for name, value in body.items() if name != "previous_response_id"}
    return whole | {"input": [*msgspec.json.decode(items), *items_of(body)]}


RESPONSES = ApiFormat(
    path="/v1/responses",
    events=ResponsesEvents,
    as_chat=responses_as_chat,
    effort=lambda level: {"reasoning": {"effort": level}},
)

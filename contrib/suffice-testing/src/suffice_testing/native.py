"""A fake's reply in the shapes of Anthropic's Messages and of OpenAI's Responses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from suffice.upstream.wire import encode_json
from suffice_testing.dialects import ServerBehaviour
from suffice_testing.generate import Completion, Token
from suffice_testing.reply import FakeCall, Reply
from suffice_testing.send import CREATED, ReplyShape

_STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}
Events = list[dict[str, Any]]


def _encode(obj: Any) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (obj["type"].encode(), encode_json(obj))


class NativeShape(ReplyShape):
    end_mark = b""
    encode = staticmethod(_encode)

    def __init__(self, seen: FakeCall, reply: Reply, server: ServerBehaviour, completion_id: str) -> None:
        super().__init__(seen, reply, server, completion_id)
        self._parts: list[dict[str, Any]] = []
        self._open = ""  # channel of the open part; "": none
        self._n_call = -1

    def token(self, run: Completion, token: Token) -> Events:  # noqa: ARG002
        channel = token.channel
        if self._reply.reasoning_field.startswith("inline") and channel in ("reasoning", "tag"):
            channel = "answer"
        if channel == "tag" or (not token.text and channel != "tool"):
            return []
        events: Events = []
        if channel != self._open or (channel == "tool" and token.call != self._n_call):
            events = [*self._end_part(), *self._begin_part(channel, token.call)]
            self._open, self._n_call = channel, token.call
        return [*events, self._delta(channel, token.text)]

    def _begin_part(self, channel: str, call: int) -> Events:
        raise NotImplementedError

    def _end_part(self) -> Events:
        raise NotImplementedError

    def _delta(self, channel: str, text: str) -> dict[str, Any]:  # type: ignore[override]
        raise NotImplementedError

    def _whole(self, runs: Sequence[Completion]) -> Events:
        events = self.opening(runs[0])
        for token in runs[0].shown:
            events += self.token(runs[0], token)
        return events + self.closing(runs, finish=runs[0].finish_reason is not None)


class MessagesShape(NativeShape):
    end_mark = _encode({"type": "message_stop"})

    @staticmethod
    def error_body(message: str, code: str) -> bytes:  # noqa: ARG004
        return encode_json({"type": "error", "error": {"type": "api_error", "message": message}})

    @staticmethod
    def error_frame(message: str, type: str = "api_error", code: str | None = "died") -> bytes:  # noqa: A002, ARG004
        return _encode({"type": "error", "error": {"type": type, "message": message}})

    def _head(self) -> dict[str, Any]:
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "content": [],
            "model": self._request.model,
            "stop_reason": None,
            "stop_sequence": None,
            "usage": self._counts(0),
            **self._reply.extra,
        }

    def _counts(self, n_output_tokens: int) -> dict[str, int]:
        cached = self._seen.cached_tokens
        new = self._seen.prompt_tokens - cached
        return {"cache_read_input_tokens": cached, "input_tokens": new, "output_tokens": n_output_tokens}

    def opening(self, run: Completion) -> Events:  # noqa: ARG002
        return [{"type": "message_start", "message": self._head()}]

    def _begin_part(self, channel: str, call: int) -> Events:
        block: dict[str, Any] = {"type": "text", "text": ""}
        if channel == "reasoning":
            block = {"type": "thinking", "thinking": ""}
        elif channel == "tool":
            made = self._reply.tool_calls[call]
            block = {"type": "tool_use", "id": made.id, "name": made.name, "input": {}}
        self._parts.append(block)
        return [{"type": "content_block_start", "index": len(self._parts) - 1, "content_block": dict(block)}]

    def _end_part(self) -> Events:
        if not self._open:
            return []
        stop = {"type": "content_block_stop", "index": len(self._parts) - 1}
        if self._open != "reasoning":
            return [stop]
        return [self._event({"type": "signature_delta", "signature": ""}), stop]

    def _delta(self, channel: str, text: str) -> dict[str, Any]:  # type: ignore[override]
        if channel == "reasoning":
            return self._event({"type": "thinking_delta", "thinking": text})
        if channel == "tool":
            return self._event({"type": "input_json_delta", "partial_json": text})
        return self._event({"type": "text_delta", "text": text})

    def _event(self, delta: dict[str, Any]) -> dict[str, Any]:
        return {"type": "content_block_delta", "index": len(self._parts) - 1, "delta": delta}

    def closing(self, runs: Sequence[Completion], *, finish: bool) -> Events:
        reason = _STOP_REASONS.get(str(runs[0].finish_reason), runs[0].finish_reason)
        delta = {"stop_reason": reason, "stop_sequence": None}
        usage = {"output_tokens": self._seen.n_tokens_sent}
        end = [{"type": "message_delta", "delta": delta, "usage": usage}] if finish else []
        return [*self._end_part(), *end]

    def body(self, runs: Sequence[Completion]) -> dict[str, Any]:
        message, texts = self._head(), dict[int, list[str]]()
        for event in self._whole(runs):
            if event["type"] == "message_delta":
                message |= event["delta"] | {"usage": self._counts(self._seen.n_tokens_sent)}
            elif event["type"] == "content_block_delta":
                texts.setdefault(event["index"], []).append(next(v for k, v in event["delta"].items() if k != "type"))
        for index, part in enumerate(self._parts):
            text = "".join(texts.get(index, ()))
            if part["type"] == "tool_use":
                part["input"] = msgspec.json.decode(text or "{}")
            elif part["type"] == "thinking":
                part |= {"thinking": text, "signature": ""}
            else:
                part["text"] = text
        return message | {"content": self._parts}


class ResponsesShape(NativeShape):
    def __init__(self, seen: FakeCall, reply: Reply, server: ServerBehaviour, completion_id: str) -> None:
        super().__init__(seen, reply, server, completion_id)
        self._id = f"resp_fake{seen.request.nth}"
        self._llama = self._llama and not server.numbers_events
        self._n_events = 0
        self._texts: list[str] = []

    @staticmethod
    def error_frame(message: str, type: str = "api_error", code: str | None = "died") -> bytes:  # noqa: A002, ARG004
        return _encode({"type": "error", "code": code, "message": message, "param": None, "sequence_number": 0})

    def _numbered(self, *events: dict[str, Any]) -> Events:
        """llama.cpp numbers no events and describes no response before its end."""
        if self._llama:
            return [{k: v for k, v in e.items() if k not in ("output_index", "content_index")} for e in events]
        for event in events:
            event["sequence_number"] = self._n_events
            self._n_events += 1
        return list(events)

    def _response(self, status: str, **fields: Any) -> dict[str, Any]:
        whole = {
            "id": self._id,
            "object": "response",
            "created_at": CREATED,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "model": self._request.model,
            "output": [],
            "usage": None,
            **self._reply.extra,
        }
        return {k: whole[k] for k in ("id", "object", "status")} if self._llama and not fields else whole | fields

    def opening(self, run: Completion) -> Events:  # noqa: ARG002
        begun = self._response("in_progress")
        kinds = ("response.created", "response.in_progress")
        return self._numbered(*({"type": kind, "response": begun} for kind in kinds))

    def _begin_part(self, channel: str, call: int) -> Events:
        place, names = len(self._parts), {"reasoning": "rs", "tool": "fc"}
        item: dict[str, Any] = {"id": f"{names.get(channel, 'msg')}_{self._id[5:]}_{place}", "status": "in_progress"}
        part: dict[str, Any] = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        if channel == "reasoning":
            item |= {"type": "reasoning", "summary": [], "content": [], "encrypted_content": None}
            part = {"type": "reasoning_text", "text": ""}
        elif channel == "tool":
            made = self._reply.tool_calls[call]
            item |= {"type": "function_call", "call_id": made.id, "name": made.name, "arguments": ""}
        else:
            item |= {"type": "message", "role": "assistant", "content": []}
        self._parts.append(item)
        self._texts.append("")
        events: Events = [{"type": "response.output_item.added", "output_index": place, "item": dict(item)}]
        if channel != "tool" and not (self._llama and channel == "reasoning"):
            begun = self._place() | {"content_index": 0, "part": part}
            events.append({"type": "response.content_part.added"} | begun)
        return self._numbered(*events)

    def _place(self) -> dict[str, Any]:
        return {"item_id": self._parts[-1]["id"], "output_index": len(self._parts) - 1}

    def _delta(self, channel: str, text: str) -> dict[str, Any]:  # type: ignore[override]
        self._texts[-1] += text
        event: dict[str, Any] = {"content_index": 0, "delta": text} | self._place()
        kind = "response.reasoning_text.delta"
        if channel == "tool":
            kind = "response.function_call_arguments.delta"
            del event["content_index"]
        elif channel == "answer":
            kind = "response.output_text.delta"
            event["logprobs"] = []
        (made,) = self._numbered(event)
        return made | {"type": kind}

    def _end_part(self) -> Events:
        if not self._open:
            return []
        item, text, place = self._parts[-1], self._texts[-1], self._place()
        item["status"] = "completed"
        events: Events = []
        if self._open == "tool":
            item["arguments"] = text
            events.append({"type": "response.function_call_arguments.done", "arguments": text} | place)
        else:
            kind = "reasoning_text" if self._open == "reasoning" else "output_text"
            more: dict[str, Any] = {} if self._open == "reasoning" else {"annotations": [], "logprobs": []}
            part = {"type": kind, "text": text} | more
            item["content"] = [part]
            place |= {"content_index": 0}
            if not (self._llama and self._open == "reasoning"):
                done: dict[str, Any] = {"text": text} | ({"logprobs": []} if more else {})
                events.append({"type": f"response.{kind}.done"} | done | place)
                events.append({"type": "response.content_part.done", "part": part} | place)
        last = {"type": "response.output_item.done", "output_index": len(self._parts) - 1, "item": item}
        return self._numbered(*events, last)

    def closing(self, runs: Sequence[Completion], *, finish: bool) -> Events:
        ended = self._end_part()
        cut = runs[0].finish_reason == "length"
        status = "incomplete" if cut else "completed"
        details = {"reason": "max_output_tokens"} if cut else None
        whole = self._response(status, output=self._parts, incomplete_details=details, usage=self._counts())
        return [*ended, *(self._numbered({"type": f"response.{status}", "response": whole}) if finish else [])]

    def _counts(self) -> dict[str, Any]:
        seen = self._seen
        return {
            "input_tokens": seen.prompt_tokens,
            "input_tokens_details": {"cached_tokens": seen.cached_tokens},
            "output_tokens": seen.n_tokens_sent,
            "output_tokens_details": {"reasoning_tokens": seen.n_reasoning_tokens},
            "total_tokens": seen.prompt_tokens + seen.n_tokens_sent,
        }

    def body(self, runs: Sequence[Completion]) -> dict[str, Any]:
        response: dict[str, Any] = self._whole(runs)[-1]["response"]
        return response


SHAPES: Mapping[str, type[NativeShape]] = {"/messages": MessagesShape, "/responses": ResponsesShape}

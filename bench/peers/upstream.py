"""The model server of the benchmark: writes prepared bytes, so that the gateways are what is measured.

A bare asyncio protocol in a process of its own. How it answers is set by `GET /set?...` before a
measurement, never by the request, because some gateways rewrite requests:

    chunks    data events of one stream, the role, the end and the usage included
    gap_ms    pause between two chunks of a stream; 0: as fast as the socket takes them
    usage     1: an empty `"usage": null` stands in every chunk, as some engines write it when asked for usage
    channel   the field of the delta that carries the text of the thought

A request that offers tools is answered with a call instead of a text.

Each chunk has about 300 bytes and is written by itself. Paced chunks follow a clock of their own, so a
slow reader gets the same number of chunks a second.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

CHUNK_BYTES = 300
BARE_BYTES = 197  # a chunk of the thought without the model's name
TEXT = "so the sum of these two terms is 17 then and half of what we had before is 24 or 3.5 we carry one over"
END = b"0\r\n\r\n"


@dataclass(slots=True)
class Plan:
    """What every connection answers now."""

    chunks: int = 200
    gap_ms: float = 0.0
    usage: int = 0
    channel: str = "reasoning_content"
    frames: list[bytes] = field(default_factory=list)
    calls: list[bytes] = field(default_factory=list)  # the same stream with a tool call in place of its text
    messages: list[bytes] = field(default_factory=list)  # the same stream in Anthropic's Messages, as vLLM writes it
    responses: list[bytes] = field(default_factory=list)  # … and in OpenAI's Responses

    def of(self, target: bytes, body: bytes) -> list[bytes]:
        frames = self.calls if b'"tools":' in body else self.frames
        return {b"messages": self.messages, b"responses": self.responses}.get(target.rpartition(b"/")[2], frames)

    def prepare(self) -> None:
        """Write the stream out once: a role, mostly thought, a short answer, the end, the usage."""
        rng = random.Random(5)
        words = TEXT.split()
        n_text = self.chunks - 3
        n_thought = max(1, round(n_text * 0.85))
        deltas: list[dict[str, Any]] = [{"role": "assistant", "content": None}]
        for at in range(n_text):
            name = self.channel if at < n_thought else "content"
            text = f" {rng.choice(words)}" + ("\n" if at % 16 == 15 else "")
            deltas.append({name: text})
        self.frames = self._stream(deltas, "stop")
        call = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"words":"'}}
        calls = [call, *({"function": {"arguments": one["content"].strip()}} for one in deltas[n_thought + 2 :])]
        calls[-1]["function"]["arguments"] += '"}'
        deltas_of_calls = [*deltas[: n_thought + 1], *({"tool_calls": [{"index": 0} | one]} for one in calls)]
        self.calls = self._stream(deltas_of_calls, "tool_calls")
        texts = [str(next(iter(delta.values()))) for delta in deltas[1:]]
        self.messages = [_event(event) for event in _messages(texts, n_thought)]
        self.responses = [
            _event(event | {"sequence_number": n}) for n, event in enumerate(_responses(texts, n_thought))
        ]

    def _stream(self, deltas: list[dict[str, Any]], finish_reason: str) -> list[bytes]:
        n_text = len(deltas) - 1
        usage = {"prompt_tokens": 30, "completion_tokens": n_text, "total_tokens": 30 + n_text}
        events = [self._frame([{"index": 0, "delta": d, "finish_reason": None}]) for d in deltas]
        events.append(self._frame([{"index": 0, "delta": {}, "finish_reason": finish_reason}]))
        return [_chunked(event) for event in (*events, self._frame([], usage), b"data: [DONE]\n\n")]

    def _frame(self, choices: list[object], usage: dict[str, int] | None = None) -> bytes:
        """One event; the model's long name, the same in each, brings a chunk of the thought to about CHUNK_BYTES."""
        body: dict[str, object] = {
            "choices": choices,
            "created": 1_760_000_000,
            "id": "chatcmpl-4fX7bFqkS0lJ1iQ2cN8tUwYz",
            "model": "m" * (CHUNK_BYTES - BARE_BYTES),
            "object": "chat.completion.chunk",
        }
        if usage is not None or self.usage:
            body["usage"] = usage
        return b"data: " + json.dumps(body, separators=(",", ":")).encode() + b"\n\n"


def _messages(texts: list[str], n_thought: int) -> list[dict[str, Any]]:
    message = {"id": "msg_1", "type": "message", "role": "assistant", "content": [], "model": "m"}
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": message | {"usage": {"input_tokens": 30, "output_tokens": 0}}}
    ]
    for index, (name, part) in enumerate((("thinking", texts[:n_thought]), ("text", texts[n_thought:]))):
        events.append({"type": "content_block_start", "content_block": {"type": name, name: ""}, "index": index})
        deltas = ({"type": f"{name}_delta", name: text} for text in part)
        events += [{"type": "content_block_delta", "delta": delta, "index": index} for delta in deltas]
        events.append({"type": "content_block_stop", "index": index})
    usage = {"input_tokens": 30, "output_tokens": len(texts)}
    events.append({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": usage})
    return [*events, {"type": "message_stop"}]


def _responses(texts: list[str], n_thought: int) -> list[dict[str, Any]]:
    response: dict[str, Any] = {"id": "resp_1", "object": "response", "status": "in_progress", "model": "m"}
    events: list[dict[str, Any]] = [{"response": response | {"output": []}, "type": "response.created"}]
    items: list[dict[str, Any]] = []
    for index, (kind, part) in enumerate((("reasoning", texts[:n_thought]), ("output", texts[n_thought:]))):
        item = {"id": f"item_{index}", "type": "reasoning" if kind == "reasoning" else "message", "content": []}
        place = {"content_index": 0, "item_id": item["id"], "output_index": index}
        events.append({"item": item, "output_index": index, "type": "response.output_item.added"})
        deltas = [{"delta": text} | place | {"type": f"response.{kind}_text.delta"} for text in part]
        events += deltas
        done = item | {"content": [{"text": "".join(part), "type": f"{kind}_text"}]}
        events.append({"item": done, "output_index": index, "type": "response.output_item.done"})
        items.append(done)
    usage = {"input_tokens": 30, "output_tokens": len(texts), "total_tokens": 30 + len(texts)}
    whole = response | {"output": items, "usage": usage, "status": "completed", "incomplete_details": None}
    return [*events, {"response": whole, "type": "response.completed"}]


def _event(event: dict[str, Any]) -> bytes:
    data = json.dumps(event, separators=(",", ":")).encode()
    return _chunked(b"event: %b\ndata: %b\n\n" % (event["type"].encode(), data))


def _chunked(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


PLAN = Plan()
STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
CALL = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": json.dumps({"words": "so " * 60})}}


def _body(finish_reason: str, **message: Any) -> bytes:
    choice = {"index": 0, "finish_reason": finish_reason, "message": {"role": "assistant"} | message}
    usage = {"prompt_tokens": 30, "completion_tokens": 60, "total_tokens": 90}
    name, at_s = "chatcmpl-4fX7bFqkS0lJ1iQ2cN8tUwYz", 1_760_000_000
    body = {"id": name, "object": "chat.completion", "created": at_s, "model": "m", "choices": [choice]}
    return json.dumps(body | {"usage": usage}).encode()


BODY = _body("stop", content="The answer is 408. " * 10)
BODY_WITH_CALL = _body("tool_calls", content=None, tool_calls=[CALL])


def _plain(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)


class Connection(asyncio.Protocol):
    """One connection; requests come one after another."""

    def __init__(self) -> None:
        self.received = b""
        self.writing: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        if self.writing is not None:
            self.writing.cancel()

    def data_received(self, data: bytes) -> None:
        self.received += data
        while (end := self.received.find(b"\r\n\r\n")) >= 0:
            head = self.received[:end].lower()
            at = head.find(b"content-length:")
            size = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            if len(self.received) < end + 4 + size:
                return
            target = self.received.split(b" ", 2)[1]
            body = self.received[end + 4 : end + 4 + size]
            self.received = self.received[end + 4 + size :]
            self.answer(target, body)

    def answer(self, target: bytes, body: bytes) -> None:
        if target.startswith(b"/set?"):
            for key, value in parse_qsl(target[5:].decode()):
                setattr(PLAN, key, type(getattr(PLAN, key))(value))
            PLAN.prepare()
            self.transport.write(_plain(b"{}"))
        elif b'"stream":true' not in body.replace(b" ", b""):
            self.transport.write(_plain(BODY_WITH_CALL if b'"tools":' in body else BODY))
        elif PLAN.gap_ms:
            self.writing = asyncio.create_task(self.paced(PLAN.of(target, body), PLAN.gap_ms / 1e3))
        else:
            self.transport.write(STREAM_HEAD)
            for frame in PLAN.of(target, body):
                self.transport.write(frame)
            self.transport.write(END)

    async def paced(self, frames: list[bytes], gap_s: float) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        self.transport.write(STREAM_HEAD)
        for frame in frames:
            self.transport.write(frame)
            due += gap_s
            await asyncio.sleep(due - loop.time())
        self.transport.write(END)


async def main() -> None:
    PLAN.prepare()
    server = await asyncio.get_running_loop().create_server(Connection, "127.0.0.1", int(sys.argv[1]))
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())

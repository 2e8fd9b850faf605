"""Read streams of Messages and of Responses as their clients do, and fail where a strict one would."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

QUESTION = "How much is 2 + 2?"
BODIES: Mapping[str, dict[str, Any]] = {
    "/v1/messages": {"model": "m", "max_tokens": 500, "messages": [{"role": "user", "content": QUESTION}]},
    "/v1/responses": {"model": "m", "input": QUESTION},
}


@dataclass
class Answered:
    """What a client of either API has at the end."""

    thought: str = ""
    text: str = ""
    calls: list[tuple[str, Any]] = field(default_factory=list)
    finish: str | None = None
    usage: Mapping[str, Any] = field(default_factory=dict)
    report: Mapping[str, Any] | None = None
    ids: set[str] = field(default_factory=set)
    error: Any = None


def events_of(raw: bytes) -> list[dict[str, Any]]:
    """The events; each has its type in its first line and in its data."""
    assert raw == b"" or raw.endswith(b"\n\n"), raw[-80:]
    events = []
    for block in raw.decode().split("\n\n")[:-1]:
        if block.startswith(":"):
            continue
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        events.append(event)
    return events


def read_messages(raw: bytes) -> Answered:
    answer, blocks, open_index = Answered(), list[dict[str, Any]](), -1
    events = events_of(raw)
    for n, event in enumerate(events):
        match event["type"]:
            case "message_start":
                assert n == 0
                answer.ids.add(event["message"]["id"])
                answer.usage = event["message"]["usage"]
            case "content_block_start":
                assert open_index == -1
                assert event["index"] == len(blocks)
                open_index = event["index"]
                blocks.append(event["content_block"] | {"json": ""})
            case "content_block_delta":
                assert event["index"] == open_index
                kind = event["delta"]["type"]
                name = {"thinking_delta": "thinking", "text_delta": "text", "input_json_delta": "json"}.get(kind)
                assert name in (None, "json", blocks[-1]["type"])
                if name is not None:
                    blocks[-1][name] += next(v for k, v in event["delta"].items() if k != "type")
            case "content_block_stop":
                assert event["index"] == open_index
                open_index = -1
            case "message_delta":
                assert open_index == -1
                answer.finish, answer.report = event["delta"]["stop_reason"], event.get("suffice")
                answer.usage = {**answer.usage, **event["usage"]}
            case "message_stop":
                assert answer.finish is not None
                assert n == len(events) - 1
            case "error":
                answer.error = event["error"]
    return _of_blocks(answer, blocks)


def _of_blocks(answer: Answered, blocks: list[dict[str, Any]]) -> Answered:
    answer.thought = "".join(b["thinking"] for b in blocks if b["type"] == "thinking")
    answer.text = "".join(b["text"] for b in blocks if b["type"] == "text")
    answer.calls = [
        (b["name"], json.loads(b["json"] or "{}") if "json" in b else b["input"])
        for b in blocks
        if b["type"] == "tool_use"
    ]
    return answer


def read_message(body: dict[str, Any]) -> Answered:
    answer = Answered(finish=body["stop_reason"], usage=body["usage"], report=body.get("suffice"), ids={body["id"]})
    return _of_blocks(answer, body["content"])


def read_responses(raw: bytes) -> Answered:
    answer, events, added, done = Answered(), events_of(raw), list[dict[str, Any]](), list[dict[str, Any]]()
    texts: dict[str, str] = {}
    numbers = [event["sequence_number"] for event in events if "sequence_number" in event]
    assert numbers == list(range(len(numbers)))
    assert len(numbers) in (0, len(events))
    for event in events:
        kind = event["type"]
        if kind == "response.output_item.added":
            assert len(added) == len(done)
            added.append(event["item"])
            texts[event["item"]["id"]] = ""
        elif kind.endswith(".delta"):
            assert event["item_id"] == added[-1]["id"]
            texts[event["item_id"]] += event["delta"]
        elif kind.endswith("_text.done"):
            assert event["text"] == texts[event["item_id"]]
        elif kind == "response.output_item.done":
            assert event["item"]["id"] == added[-1]["id"]
            assert _text_of(event["item"]) == texts[event["item"]["id"]]
            done.append(event["item"])
        elif kind in ("response.completed", "response.incomplete"):
            assert event is events[-1]
            assert [item["id"] for item in event["response"]["output"]] == [item["id"] for item in done]
            ids = {e["response"]["id"] for e in events if "response" in e}
            assert len(ids) == 1
            return read_response(event["response"])
        elif kind == "error":
            answer.error = event
    answer.thought = "".join(texts[item["id"]] for item in added if item["type"] == "reasoning")
    answer.text = "".join(texts[item["id"]] for item in added if item["type"] == "message")
    return answer


def _text_of(item: Mapping[str, Any]) -> str:
    return item["arguments"] if item["type"] == "function_call" else "".join(p["text"] for p in item["content"])


def read_response(body: dict[str, Any]) -> Answered:
    details = body["incomplete_details"]
    answer = Answered(finish=body["status"], usage=body["usage"], report=body.get("suffice"), ids={body["id"]})
    answer.finish = details["reason"] if details else answer.finish
    items = body["output"]
    answer.thought = "".join(_text_of(item) for item in items if item["type"] == "reasoning")
    answer.text = "".join(_text_of(item) for item in items if item["type"] == "message")
    answer.calls = [(i["name"], json.loads(i["arguments"])) for i in items if i["type"] == "function_call"]
    return answer


STREAMS = {"/v1/messages": read_messages, "/v1/responses": read_responses}
WHOLES = {"/v1/messages": read_message, "/v1/responses": read_response}


def read_answer(path: str, raw: bytes, *, stream: bool) -> Answered:
    return STREAMS[path](raw) if stream else WHOLES[path](json.loads(raw))

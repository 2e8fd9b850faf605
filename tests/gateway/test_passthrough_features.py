"""F19, feature by feature: governed or passed through, said so on record, and never wrong.

Each row is tried on both kinds, in off, observe and enforce, as a stream and as a body, and compared with
the same request made directly.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from suffice.gateway.request_parsing import BLOCKING
from suffice_testing import FakeUpstream, Reply, ToolCall
from tests.gateway.conftest import Serve
from tests.gateway.served import Answer, Served, chat

TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
CALLS = Reply(
    reasoning=("so\n", "it\n"), answer=(), tool_calls=(ToolCall(id="c1", name="add", arguments=('{"a":', " 1}")),)
)
TEXT = Reply(reasoning=("so\n", "it\n", "is\n", "then\n"), answer=("It ", "is ", "4"))
MIXED = [{"type": "text", "text": "hi"}]
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
SOUND = {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}
FILE = {"type": "file", "file": {"file_id": "f-1"}}


def user(content: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}]}


@dataclass(frozen=True)
class Row:
    """A feature, and why it passes through by kind; None: it is governed."""

    fields: Mapping[str, Any]
    reasoning: str | None
    samples: str | None


def both(fields: Mapping[str, Any], reason: str | None) -> Row:
    return Row(fields, reason, reason)


ROWS: dict[str, Row] = {
    "nothing special": both({}, None),
    "n = 2": both({"n": 2}, "n"),
    "n = 1": both({"n": 1}, None),
    "tools, called": both({"tools": [TOOL], "tool_choice": "auto"}, None),
    "tools, not called": both({"tools": [TOOL]}, None),
    "no tools": both({"tools": [], "parallel_tool_calls": True}, None),
    "functions": both({"functions": [{"name": "f"}]}, "tools"),
    "a tool that the server runs": both({"tools": [{"type": "code_interpreter"}]}, "tools"),
    "web search": both({"web_search_options": {"search_context_size": "low"}}, "tools"),
    "JSON": both({"response_format": {"type": "json_object"}}, None),
    "schema": both({"response_format": {"type": "json_schema", "json_schema": {"name": "s"}}}, None),
    "llama.cpp's schema": both({"json_schema": {"type": "object"}}, None),
    "llama.cpp's grammar": both({"grammar": "root ::= [0-9]+"}, "response_format"),
    "vLLM's schema": both({"guided_json": {"type": "object"}}, None),
    "vLLM's outputs": both({"structured_outputs": {"choice": ["a"]}}, None),
    "SGLang's pattern": both({"regex": "[0-9]+"}, None),
    "log-probabilities": both({"logprobs": True, "top_logprobs": 2}, None),
    "no log-probabilities": both({"logprobs": False, "top_logprobs": 0}, None),
    "llama.cpp's probabilities": both({"n_probs": 2}, "logprobs"),
    "stop": both({"stop": ["never said"]}, None),
    "stop inside a tag": Row({"stop": ["think>"]}, "stop", None),
    "no stop": both({"stop": None}, None),
    "stop tokens": both({"stop_token_ids": [2]}, None),
    "beam search": both({"use_beam_search": True}, "n"),
    "image": Row(user([*MIXED, IMAGE]), "images", None),
    "sound": Row(user([SOUND, *MIXED]), "images", None),
    "file": Row(user([*MIXED, FILE]), "images", None),
    "text in parts": both(user(MIXED), None),
    "an answer begun": Row(
        {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "It is"}]}, "prefill", None
    ),
    "sound as answer": both({"modalities": ["text", "audio"], "audio": {"voice": "a"}}, "modalities"),
    "unknown fields": both({"quantum": {"a": [None, 1.5]}, "reasoning_effort": "low", "metadata": {"b": "c"}}, None),
}
STOPS = {"policy": "stable-answer", "streak": 1_000}


N_DECIDING = 2  # samples that agree, of three


def plain(answer: Answer) -> dict[str, Any]:
    """What a client reads of one answer."""
    return {"text": answer.text, "thought": answer.thought, "finish": answer.finish}


async def seen(g: Served, name: str, row: Row, stream: bool, kind: str, direct: Answer) -> None:
    n_before = len(g.fake.completions)
    body = (
        chat(stream=stream) | {"stream_options": {"include_usage": True}} | dict(row.fields)
        if stream
        else (chat() | dict(row.fields))
    )
    through = await g.ask(body)
    calls = g.fake.completions[n_before:]
    assert through.status == 200, name
    reason = getattr(row, kind) if g.gateway.deployment.routes[0].settings.mode != "off" else "off"
    if reason is not None:
        assert through.raw == direct.raw or plain_ids(through.raw) == plain_ids(direct.raw), name
        assert len(calls) == 1
        assert calls[0].body == body, name
        return
    if kind == "reasoning":
        assert plain(through) == plain(direct), name
        assert through.usage == direct.usage, name
        assert len(calls) == 1
    else:
        assert (through.text, through.finish) == (direct.text, direct.finish), name
        assert through.usage["completion_tokens"] == N_DECIDING * direct.usage["completion_tokens"]
        assert len(calls) == N_DECIDING
    for call in calls:
        for key, value in row.fields.items():
            assert call.body[key] == value, (name, key)


def plain_ids(raw: bytes) -> bytes:
    """The bytes without the fake's running number, which stands in the ids."""
    return re.sub(rb"-fake-\d+", b"", raw)


@pytest.mark.slow(keep=7)
@pytest.mark.parametrize("mode", ["off", "observe", "enforce"])
@pytest.mark.parametrize("kind", ["reasoning", "samples"])
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "body"])
async def test_each_feature_is_governed_or_passed_through_and_never_wrong(
    serve: Serve, kind: str, mode: str, stream: bool
) -> None:
    route = {"kind": kind, "mode": mode, "uncertified": True, "audit_share": 0.0, "scorer": "number"}
    # One at a time, or a third sample is cut off wherever it happens to be when two have decided the vote.
    route |= {"samples": 3, "wave": 1} if kind == "samples" else {"policy": STOPS}

    def says(request: Any) -> Reply:
        return CALLS if request.body.get("tool_choice") else TEXT

    async with FakeUpstream(says) as other, serve(says, route=route) as g:
        for name, row in ROWS.items():
            body = chat(stream=stream) | dict(row.fields)
            body |= {"stream_options": {"include_usage": True}} if stream else {}
            await seen(g, name, row, stream, kind, await g.ask(body, url=other.url))
        episodes = [e.episode for e in await g.episodes(len(ROWS))]
        reasons = ["off" if mode == "off" else getattr(row, kind) for row in ROWS.values()]
        assert sorted(map(str, (e.request.ungoverned for e in episodes))) == sorted(map(str, reasons))
        assert {e.outcome.end_reason for e in episodes} == {"done"}
        assert {e.outcome.degraded for e in episodes} == {()}


@pytest.mark.slow(keep=14)
@pytest.mark.parametrize("field_name", BLOCKING)
async def test_every_blocking_field_blocks(serve: Serve, field_name: str) -> None:
    """Walks the table, so that a field added tomorrow is tested today."""
    async with serve(TEXT, route={"mode": "observe"}) as g:
        answer = await g.ask(chat() | {field_name: [1]})
        assert answer.status == 200
        assert g.fake.completions[0].body[field_name] == [1]
        assert (await g.episode()).request.ungoverned == BLOCKING[field_name]


@pytest.mark.parametrize(
    ("kind", "mode", "goes_on"),
    [
        ("reasoning", "off", True),
        ("reasoning", "observe", True),
        ("reasoning", "enforce", False),
        ("samples", "observe", False),
    ],
)
async def test_a_conversation_id_goes_up_only_where_nothing_is_ever_cut(
    serve: Serve, kind: str, mode: str, goes_on: bool
) -> None:
    """llama.cpp generates on after its caller has left when the request names a conversation."""
    async with serve(TEXT, route={"kind": kind, "mode": mode, "uncertified": True, "samples": 2}) as g:
        assert (await g.ask(chat(), headers={"x-conversation-id": "c-1"})).status == 200
        assert {c.request.header("x-conversation-id") for c in g.fake.calls} == {"c-1" if goes_on else None}

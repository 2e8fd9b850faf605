"""Every recorded and every written stream goes through the gateway: the bytes, what a client reads, the counts."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

from suffice.doctor.examine import NOT_VERIFIED
from suffice_testing import Script
from tests.gateway.conftest import Serve
from tests.gateway.served import Answer, Served
from tests.house.tree import ROOT
from tests.wire.read import Stream, all_streams

STREAMS = {stream.name: stream for stream in all_streams()}
CHATS = [name for name, s in STREAMS.items() if s.is_chat and s.expect.get("finish")]
GOVERNED = [name for name in CHATS if not {"tools", "logprobs", "structured_outputs"} & set(STREAMS[name].request)]
GOVERNED = [n for n in GOVERNED if STREAMS[n].request["messages"][-1]["role"] != "assistant" and STREAMS[n].is_events]
OTHER_APIS = [n for n, s in STREAMS.items() if s.path in ("/v1/messages", "/v1/responses") and s.is_events]
STOPPABLE = [name for name in GOVERNED if STREAMS[name].expect["thought"]]


def script(stream: Stream, piece: int = 0) -> Script:
    """The body as it came, or in pieces of some bytes."""
    size = piece or len(stream.body)
    pieces = tuple(stream.body[at : at + size] for at in range(0, len(stream.body), size))
    end: Any = "torn" if "cancelled" in stream.name else "whole"
    return Script(pieces=pieces, end=end, content_type="text/event-stream" if stream.is_events else "application/json")


def played(stream: Stream, piece: int = 0) -> dict[str, Any]:
    path = stream.path.removeprefix("/v1")
    return {"paths": {f"{stream.method} {path}": script(stream, piece)}}


async def send(g: Served, one: Stream, **changes: Any) -> Answer:
    raw = json.dumps(one.request | changes).encode()
    async with g.session.post(g.url + one.path, data=raw, headers={"content-type": "application/json"}) as answer:
        return Answer(answer.status, {k.lower(): v for k, v in answer.headers.items()}, await answer.read())


def counts(usage: dict[str, Any]) -> tuple[int, int, int]:
    """Prompt, completion and cached tokens of a usage in any of the APIs' words."""
    beside = usage.get("cache_read_input_tokens"), usage.get("cache_creation_input_tokens")
    prompt = usage.get("prompt_tokens", usage.get("input_tokens", 0)) + sum(n or 0 for n in beside)
    details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details") or {}
    cached = beside[0] if beside[0] is not None else details.get("cached_tokens")
    return prompt, usage.get("completion_tokens", usage.get("output_tokens", 0)), cached or 0


def test_the_table_lists_every_file_that_was_not_recorded_from_a_live_server() -> None:
    unverified = dict(line.split(": ") for line in NOT_VERIFIED if ": " in line)
    n_shapes = Counter[str]()
    for name, stream in STREAMS.items():
        head = stream.head
        assert head["source"], name
        if head["evidence"] == "recorded":
            assert head["engine"].startswith(("llama.cpp", "vLLM", "SGLang")), name
            assert bool(head["date"]), name
        else:
            (engine,) = (one for one in unverified if head["engine"].startswith(one))
            n_shapes[engine] += 1
    assert n_shapes == {engine: len(shapes.split("; ")) for engine, shapes in unverified.items()}
    page = (ROOT / "docs" / "reference" / "promises.md").read_text(encoding="utf-8")
    assert not [engine for engine in unverified if engine not in page]


@pytest.mark.parametrize("name", OTHER_APIS)
@pytest.mark.parametrize("piece", [0, 5])
async def test_streams_of_other_apis_are_governed_byte_for_byte(serve: Serve, name: str, piece: int) -> None:
    stream = STREAMS[name]
    async with serve(fake=played(stream, piece)) as g:
        assert (await send(g, stream)).raw == stream.body
        episode = await g.episode()
        assert (episode.request.ungoverned, episode.outcome.degraded) == (None, ())
        usage = episode.outcome.usage
        assert usage is not None
        assert (usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens) == counts(stream.expect["usage"])


@pytest.mark.slow(keep=14)
@pytest.mark.parametrize("name", STREAMS)
async def test_in_off_the_bytes_are_equal_and_the_counts_are_right(serve: Serve, name: str) -> None:
    stream = STREAMS[name]
    relay = {} if stream.path.startswith("/v1") else {"server": {"relay": [f"{stream.method} {stream.path}"]}}
    async with serve(fake=played(stream), route={"mode": "off"}, **relay) as g:
        answer = await send(g, stream)
        assert answer.status == 200
        assert answer.raw[: len(stream.body)] == stream.body
        outcome = await g.outcome()
        assert len(outcome.calls) == 1
        if "cancelled" in name:
            assert (outcome.end_reason, len(answer.errors)) == ("upstream_error", 1)
            return
        assert answer.raw == stream.body
        assert outcome.end_reason in ("done", "truncated")
        assert (outcome.end_reason == "truncated") == (stream.expect.get("finish") == "length" or _capped(stream))
        if usage := stream.expect.get("usage"):
            call = outcome.calls[0]
            assert (call.prompt_tokens, call.completion_tokens, call.cached_tokens) == counts(usage)
            assert call.source == "provider" or "embeddings" in name


def _capped(stream: Stream) -> bool:
    return b'"stop_reason":"max_tokens"' in stream.body or b'"stop_type":"limit"' in stream.body


@pytest.mark.slow(keep=11)
@pytest.mark.parametrize("piece", [0, 7])
@pytest.mark.parametrize("name", GOVERNED)
async def test_observed_it_says_the_same(serve: Serve, name: str, piece: int) -> None:
    stream = STREAMS[name]
    async with serve(fake=played(stream, piece), route={"mode": "observe"}) as g:
        answer = await send(g, stream)
        assert text_and_thought(answer) == (stream.expect["text"], stream.expect["thought"])
        assert answer.finish == stream.expect["finish"]
        assert answer.done
        outcome = await g.outcome()
        assert outcome.end_reason in ("done", "truncated")
        assert outcome.degraded == ()
        if usage := stream.expect.get("usage"):
            assert answer.usage is None or counts(answer.usage) == counts(usage)
            assert outcome.usage is not None
            assert (outcome.usage.prompt_tokens, outcome.usage.completion_tokens) == counts(usage)[:2]
        body = await send(g, stream, stream=False)
        assert body.json["choices"][0]["finish_reason"] == stream.expect["finish"]


def text_and_thought(answer: Answer) -> tuple[str, str]:
    """Text and thought of a stream, under all the names and in parts, as a client of that engine reads them."""
    text = thought = ""
    for delta in [c.get("delta") or {} for chunk in answer.chunks for c in chunk.get("choices") or ()]:
        thought += delta.get("reasoning") or delta.get("reasoning_content") or ""
        content = delta.get("content") or ""
        parts: list[Any] = content if isinstance(content, list) else [{"text": content}]
        text += "".join(part.get("text", "") for part in parts)
        thought += "".join(inner["text"] for part in parts for inner in part.get("thinking", ()))
    return text, thought


@pytest.mark.parametrize("name", STOPPABLE)
async def test_enforced_a_stop_ends_it_and_the_answer_is_the_continuations(serve: Serve, name: str) -> None:
    stream = STREAMS[name]
    route = {
        "mode": "enforce",
        "uncertified": True,
        "audit_share": 0.0,
        "scorer": "number",
        "policy": {"policy": "fixed-budget", "max_tokens": 2},
        "steps": {"min_tokens": 2, "growth": 1.0, "boundary": "tokens"},
    }
    async with serve(fake=played(stream, 200), route=route, upstream={"finish": ["raw"]}) as g:
        answer = await send(g, stream)
        text, thought = text_and_thought(answer)
        assert stream.expect["thought"].startswith(thought)
        assert (text, answer.finish, answer.done) == ("ok", "stop", True)
        assert answer.report["stopped"] is True
        outcome = await g.outcome()
        assert (outcome.end_reason, outcome.stopped, outcome.finish_method) == ("stopped", True, "raw")

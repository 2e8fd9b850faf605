"""Streams of Responses and Messages, cut anywhere and with any text: relayed, read, and closed after a stop."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suffice.episode.apis.events import ApiFormat, NativeEvents
from suffice.episode.apis.messages import MESSAGES
from suffice.episode.apis.responses import RESPONSES
from suffice.episode.chain_reader import ChainReader, Segmenter, StreamState
from suffice.episode.checkpoints import Checkpoint
from suffice.episode.ledger import Ledger
from suffice.episode.stream_relay import ClientView, StreamRelay
from suffice.scoring.base import build_scorer
from suffice.settings import Steps
from suffice.types import Usage
from suffice.upstream.client import Call
from suffice.upstream.wire import Choice, Delta, Frame
from tests.episode.runs import BytesCall, Kept, request
from tests.gateway.api_streams import read_answer

# Texts that look like the events around them, and what JSON writes as escapes.
TEXTS = st.lists(
    st.one_of(
        st.sampled_from(
            ["a", "b", ' "', "\\", "\n\n", "é", "\u2028", '"sequence_number":7', '"},"index":0}', "</think>"]
        ),
        st.text(min_size=1, max_size=4),
    ),
    min_size=1,
    max_size=12,
)
BOTH = pytest.mark.parametrize("api", [MESSAGES, RESPONSES], ids=["messages", "responses"])


def encoded(event: dict[str, Any]) -> bytes:
    data = json.dumps(event, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "replace")
    return b"event: %b\ndata: %b\n\n" % (event["type"].encode(), data)


def stream_of(api: ApiFormat, thought: list[str], answer: list[str], *, numbered: bool) -> list[bytes]:
    """The events of one answer; without numbers, as llama.cpp writes Responses."""
    events: list[dict[str, Any]] = []
    parts = (("thinking", "reasoning", thought), ("text", "output", answer))
    if api is MESSAGES:
        usage = {"input_tokens": 3, "output_tokens": 0}
        events.append({"type": "message_start", "message": {"id": "m1", "model": "m", "usage": usage}})
        for index, (name, _, texts) in enumerate(parts):
            events.append({"type": "content_block_start", "index": index, "content_block": {"type": name, name: ""}})
            deltas = [{"type": f"{name}_delta", name: text} for text in texts]
            events += [{"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas]
            events.append({"type": "content_block_stop", "index": index})
        usage = {"output_tokens": len(thought) + len(answer)}
        events.append({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": usage})
        return [encoded(event) for event in [*events, {"type": "message_stop"}]]
    response = {"id": "r1", "status": "in_progress", "model": "m"}
    events.append({"response": response, "type": "response.created"})
    items = []
    for index, (_, kind, texts) in enumerate(parts):
        item: dict[str, Any] = {
            "id": f"i{index}",
            "type": "reasoning" if kind == "reasoning" else "message",
            "content": [],
        }
        events.append({"item": item, "output_index": index, "type": "response.output_item.added"})
        for text in texts:
            place = {"delta": text, "item_id": f"i{index}", "output_index": index}
            events.append(place | {"sequence_number": 0, "type": f"response.{kind}_text.delta"})
        items.append(item | {"content": [{"type": f"{kind}_text", "text": "".join(texts)}]})
        events.append({"item": items[-1], "output_index": index, "type": "response.output_item.done"})
    n_tokens = len(thought) + len(answer)
    usage = {"input_tokens": 3, "output_tokens": n_tokens, "total_tokens": 3 + n_tokens}
    whole = response | {"status": "completed", "incomplete_details": None, "output": items, "usage": usage}
    events.append({"response": whole, "type": "response.completed"})
    for n, event in enumerate(events):
        event.pop("sequence_number", None)
        if numbered:
            place = event.pop("type")
            event |= {"sequence_number": n, "type": place}
    return [encoded(event) for event in events]


def relay_of(api: ApiFormat, pieces: list[bytes]) -> tuple[StreamRelay, Kept]:
    ledger, kept = Ledger(request(), 0.0), Kept()
    steps = Steps(min_tokens=1, growth=1.0, boundary="tokens")
    reader = ChainReader(
        ledger.open_call("main"),
        ledger,
        segmenter=Segmenter(steps),
        scorer=build_scorer("number"),
        tags=("<think>", "</think>"),
    )
    view = ClientView(usage=True, object=False, joined=True, events=api.new_events(model="m"))
    return StreamRelay(cast(Call, BytesCall(list(pieces))), reader, kept, view), kept


def cut(data: bytes, at: list[int]) -> list[bytes]:
    ends = sorted({n % (len(data) + 1) for n in at} | {0, len(data)})
    return [data[a:b] for a, b in pairwise(ends)]


@BOTH
@settings(deadline=None)
@given(thought=TEXTS, answer=TEXTS, at=st.lists(st.integers(0, 10_000), max_size=12), numbered=st.booleans())
async def test_every_byte_goes_through_and_every_text_is_read(
    api: ApiFormat, thought: list[str], answer: list[str], at: list[int], numbered: bool
) -> None:
    events = stream_of(api, thought, answer, numbered=numbered)
    raw = b"".join(events)
    for pieces in (cut(raw, at), events):
        relay, kept = relay_of(api, pieces)
        while not relay.reader.state.ended:
            await relay.advance(to_step=True)
        assert kept.raw == raw
        assert relay.reader.thought == "".join(thought)
        assert relay.reader.answer_text == "".join(answer).rpartition("</think>")[2]
        assert relay.reader.account.completion_tokens == len(thought) + len(answer)
        if isinstance(relay.events, NativeEvents):
            output = read_answer(api.path, json.dumps(relay.events.body()).encode(), stream=False)
            assert (output.thought, output.text) == ("".join(thought), "".join(answer))


@BOTH
@settings(deadline=None)
@given(
    thought=TEXTS,
    answer=TEXTS,
    at=st.lists(st.integers(0, 10_000), max_size=12),
    n_read=st.integers(1, 12),
    n_held=st.integers(0, 12),
    numbered=st.booleans(),
)
async def test_a_stop_anywhere_in_the_thought_is_closed_as_the_api_wants_it(
    api: ApiFormat, thought: list[str], answer: list[str], at: list[int], n_read: int, n_held: int, numbered: bool
) -> None:
    """Events that were held back, and never delivered, leave no trace in what is written after them."""
    events = stream_of(api, [*thought, "end"], answer, numbered=numbered)
    relay, kept = relay_of(api, cut(b"".join(events), at))
    points: list[Checkpoint] = []
    while len(points) < n_read and relay.reader.is_in_thought:
        points += await relay.advance()
    if not relay.reader.is_in_thought:
        return
    seen = kept.raw
    relay.hold()
    for _ in range(n_held):
        if relay.reader.is_in_thought:
            await relay.advance()
    relay.abandon()
    state, usage = relay.reader.state, Usage(prompt_tokens=3, completion_tokens=9)
    frames: list[Frame] = [*relay.events.text(state, "4"), *relay.events.text(state, "2")]
    frames += relay.events.closing(state, "stop", usage=usage, report={"stopped": True})
    assert kept.raw == seen
    output = read_answer(api.path, seen + b"".join(frame.raw for frame in frames), stream=True)
    assert output.text == "42"
    assert "".join([*thought, "end"]).startswith(output.thought)
    assert (output.usage["output_tokens"], output.report) == (9, {"stopped": True})
    assert isinstance(relay.events, NativeEvents)
    whole = read_answer(api.path, json.dumps(relay.events.body()).encode(), stream=False)
    assert (whole.thought, whole.text, whole.report) == (output.thought, output.text, output.report)


@BOTH
def test_a_rerun_that_refuses_says_so(api: ApiFormat) -> None:
    refused = Choice(delta=Delta(refusal="I will not."))
    events = api.new_events(model="m")
    assert isinstance(events, NativeEvents)
    frame = events.rerun().rewritten(StreamState(), refused, None, None, None)
    assert frame is not None
    assert b"I will not." in frame.raw

"""A run can be stopped inside its thought and nowhere else, however its bytes arrive."""

from __future__ import annotations

import asyncio
import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suffice.episode.stream_relay import ClientView
from suffice.errors import UpstreamDown, UpstreamError, UpstreamProtocol
from suffice.gateway.exchange import HANG_UP, WRITE_NOW, BodyDelivery, Exchange
from suffice.settings import Steps
from suffice.upstream.assemble import Assembler
from tests.drawn import examples
from tests.episode.runs import chunk, run_of

DONE = b"data: [DONE]\n\n"
WORDS = st.sampled_from(
    [
        "so",
        " it",
        " is",
        "\n",
        ".\n\n",
        " 北京",
        "🙂",
        "👩‍👩‍👧",
        "e\u0301",
        " 🇩🇪",
        "\u200d",
        " 4",
        " ",
        "<",
        "</",
        "</thi",
        "nk>",
    ]
)
THOUGHTS = st.lists(WORDS, min_size=1, max_size=25).filter(lambda words: "</think>" not in "".join(words))
FIELDS = ("reasoning", "reasoning_content", "thinking", "inline", "opened")
INLINE = ("inline", "opened")  # in the content; "opened": the chat template wrote the opening tag
ENDINGS = ("answer", "tool", "function", "refusal")


def stream(field: str, thought: list[str], ending: str) -> list[bytes]:
    """A whole run's frames: its thought, then what must never be cut."""
    key = "content" if field in INLINE else field
    frames = [chunk({"role": "assistant", "content": None})]
    tags = (["<think>"] if field == "inline" else [], ["</think>"] if field in INLINE else [])
    words = [*tags[0], *thought, *tags[1]]
    frames += [chunk({key: word}) for word in words]
    if ending == "answer":
        frames += [chunk({"content": "\n"}), chunk({"content": "It is"}), chunk({"content": " 4"})]
    elif ending == "tool":
        first = {"index": 0, "id": "c", "function": {"name": "add", "arguments": '{"a":'}}
        second = {"index": 0, "function": {"arguments": "1}"}}
        frames += [chunk({"tool_calls": [call]}) for call in (first, second)]
    elif ending == "function":
        frames += [chunk({"function_call": {"name": "add", "arguments": "{}"}})]
    else:
        frames += [chunk({"refusal": "I will"}), chunk({"refusal": " not"})]
    return [*frames, chunk({}, "tool_calls" if ending == "tool" else "stop"), DONE]


def cut(raw: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted({place % (len(raw) + 1) for place in places}), len(raw)]
    return [raw[a:b] for a, b in pairwise(edges) if a != b]


def has_more_than_thought(client: Any, field: str) -> bool:
    """Did the client see anything behind the thought?"""
    for delta in client.deltas:
        if delta.get("tool_calls") or delta.get("function_call") or delta.get("refusal"):
            return True
        if field not in INLINE and delta.get("content"):
            return True
    return field in INLINE and "</think>" in client.joined("content")


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("field", FIELDS)
@given(thought=THOUGHTS, places=st.lists(st.integers(0, 10**6), max_size=40))
@settings(max_examples=examples(25))
def test_a_stop_is_possible_only_while_the_client_has_seen_nothing_but_thought(
    field: str, ending: str, thought: list[str], places: list[int]
) -> None:
    raw = b"".join(stream(field, thought, ending))

    async def go() -> None:
        run, client, ledger = run_of(cut(raw, places), opened=field == "opened")
        displayed = ""
        while not run.reader.state.ended:
            await run.relay.advance()
            assert raw.startswith(client.raw)  # byte for byte, whole frames only
            assert client.raw.endswith(b"\n\n") or not client.raw
            if not run.reader.is_in_thought:
                continue
            assert not has_more_than_thought(client, field)
            text = client.joined("content" if field in INLINE else field)
            if field in INLINE and run.reader.state.phase == "thinking":
                tag = "</think>"
                assert not any(text.endswith(tag[:n]) for n in range(1, len(tag)))
                assert text.lstrip().removeprefix("<think>").lstrip().startswith(run.reader.thought.lstrip())
            elif field not in INLINE:
                assert run.reader.thought == text
            assert run.reader.thought.startswith(displayed)
            displayed = run.reader.thought
        assert client.raw == raw
        assert client.ended == 1
        assert not run.reader.is_in_thought
        assert ledger.degraded == []
        if ending == "answer":
            assert ledger.reply.answer == "4"
        n_words = len(thought) + {"inline": 2, "opened": 1}.get(field, 0)
        assert ledger.calls[0].received_tokens >= n_words

    asyncio.run(go())


@pytest.mark.parametrize("boundary", ["line", "paragraph", "tokens"])
@pytest.mark.parametrize("field", FIELDS)
@given(thought=THOUGHTS, places=st.lists(st.integers(0, 10**6), max_size=30))
@settings(max_examples=examples(25))
def test_steps_are_prefixes_of_the_thought_and_their_tokens_add_up(
    field: str, boundary: Any, thought: list[str], places: list[int]
) -> None:
    raw = b"".join(stream(field, thought, "answer"))
    whole = "".join(thought)

    async def go() -> None:
        steps = Steps(boundary=boundary, min_tokens=2, growth=1.0, max_tokens=6)
        run, client, ledger = run_of(cut(raw, places), steps=steps, opened=field == "opened")
        used, last = 0, ""
        async for step in run.steps():
            used += step.tokens
            prefix, tokens = run.reader.thought_at(step.index)
            assert tokens == used
            assert prefix == last + step.text
            assert whole.lstrip().startswith(prefix.lstrip())
            prefix.encode()  # no half of a character
            last = prefix
        assert used <= ledger.calls[0].reasoning_tokens
        assert client.raw == raw

    asyncio.run(go())


def torn(field: str, frames: list[bytes], *, breaks: bool, stop_at: int) -> Exception:
    async def go() -> Exception:
        run, client, ledger = run_of(frames[:stop_at], breaks=breaks)
        with pytest.raises(UpstreamError) as raised:
            async for _ in run.steps():
                pass
        assert client.raw == b"".join(frames[:stop_at])
        assert client.ended == 0
        assert (type(run.relay.failure), str(run.relay.failure)) == (type(raised.value), str(raised.value))
        assert not run.reader.is_in_thought
        with pytest.raises(UpstreamError):
            await run.relay.rest()  # it stays broken for whoever asks later
        assert ledger.calls[0].close().cancelled
        return raised.value

    return asyncio.run(go())


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("stop_at", [0, 1, 2, 4, 6])
def test_a_stream_that_breaks_or_ends_without_a_finish_is_an_error(field: str, stop_at: int) -> None:
    frames = stream(field, ["so", " it\n", " is\n"], "answer")
    assert isinstance(torn(field, frames, breaks=True, stop_at=stop_at), UpstreamDown)
    assert isinstance(torn(field, frames, breaks=False, stop_at=stop_at), UpstreamProtocol)


async def test_a_finish_without_done_is_completed() -> None:
    frames = stream("reasoning", ["so\n"], "answer")[:-1]
    run, client, _ = run_of(frames)
    await run.relay.rest()
    assert client.raw == b"".join(frames) + DONE


async def test_what_comes_after_done_is_not_passed_on() -> None:
    frames = stream("reasoning", ["so\n"], "answer")
    run, client, _ = run_of([b"".join(frames) + chunk({"content": "LATE"})])
    await run.relay.rest()
    assert client.raw == b"".join(frames)


async def test_comments_stay_and_lone_retry_lines_go() -> None:
    frames = stream("reasoning", ["so\n"], "answer")
    run, client, _ = run_of([b": ping\n\n", b"retry: 1000\n\n", b"id: 7\n\n", *frames])
    await run.relay.rest()
    assert client.raw == b": ping\n\n" + b"".join(frames)


async def test_an_error_frame_ends_the_run_and_is_the_last_thing_seen() -> None:
    error = b'data: {"error":{"message":"no","type":"t","param":null,"code":"c"}}\n\n'
    frames = [*stream("reasoning", ["so", " it\n", " is\n"], "answer")[:4], error]
    run, client, ledger = run_of([*frames, DONE])
    steps = [step.text async for step in run.steps()]
    assert steps == ["so it\n"]
    assert client.raw == b"".join(frames)
    assert client.ended == 1
    assert ledger.end_reason == "upstream_error"


@pytest.mark.parametrize("usage", [True, False])
async def test_the_usage_chunk_reaches_only_those_who_asked(usage: bool) -> None:
    frames = stream("reasoning", ["so\n"], "answer")
    report = b'data: {"id":"c1","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":5}}\n\n'
    run, client, ledger = run_of([*frames[:-1], report, DONE], view=ClientView(usage=usage, object=False))
    await run.relay.rest()
    assert (report in client.raw) is usage
    usage_sent = ledger.usage()
    assert usage_sent is not None
    assert (usage_sent.prompt_tokens, usage_sent.completion_tokens) == (3, 5)


async def test_a_broken_segmenter_is_not_asked_again() -> None:
    frames = stream("reasoning", ["so", " it\n", " is\n", " well\n"], "answer")
    run, client, ledger = run_of(frames, steps=Steps(min_tokens=2, growth="broken"))  # type: ignore[arg-type]
    async for _ in run.steps():
        pass
    assert client.raw == b"".join(frames)
    assert ledger.degraded == ["segment"]
    assert not run.reader.is_in_thought


async def test_a_template_that_opened_the_thought_itself_does_not_spoil_the_answer() -> None:
    words = ["thinking", " of", " 5", "</think>", "It is", " 4"]
    frames = [*(chunk({"content": word}) for word in words), chunk({}, "stop"), DONE]
    run, client, ledger = run_of(frames)
    await run.relay.rest()
    assert client.raw == b"".join(frames)
    assert ledger.reply.answer == "4"
    assert run.reader.answer_text == "It is 4"


TOKENS = st.sampled_from([" so", " it", "\n", '"', "\\n", " is 4", "é", " and so on"])


@given(
    st.lists(st.tuples(st.sampled_from(["reasoning", "reasoning", "reasoning_content"]), TOKENS), max_size=20),
    st.lists(TOKENS, min_size=1, max_size=9),
    st.sampled_from([1, 2, 3, 7, 100]),
    st.integers(0, 3),
)
async def test_chunks_that_go_together_mean_what_they_mean_one_by_one(
    thought: list[tuple[str, str]], answer: list[str], per_read: int, n_cut: int
) -> None:
    frames = [chunk({"role": "assistant"}), *(chunk({field: text}) for field, text in thought)]
    frames += [b": ping\n\n", *(chunk({"content": text}) for text in answer), chunk({}, "stop"), DONE]
    data = b"".join(frames)
    size = per_read * len(frames[1]) + n_cut  # reads that end at events, near them and far from them
    reads = [data[at : at + size] for at in range(0, len(data), size)]
    report = []
    for joined, at_once in ((False, False), (True, False), (True, True)):
        view = ClientView(usage=True, object=False, joined=joined)
        run, client, ledger = run_of(reads, view=view, hands_over=at_once)
        steps = [step async for step in run.steps()]
        account = ledger.calls[0]
        report.append(
            (
                client.raw,
                steps,
                run.reader.thought,
                run.reader.answer_text,
                account.received_tokens,
                account.reasoning_tokens,
                ledger.reply.answer,
                run.reader.state,
                ledger.degraded,
            )
        )
    assert report[0] == report[1] == report[2]
    assert report[0][0] == data


@given(
    st.lists(st.tuples(st.sampled_from(["reasoning", "reasoning_content"]), TOKENS), max_size=20),
    st.lists(TOKENS, min_size=1, max_size=9),
    st.sampled_from([{}, {"token_ids": [1]}, {"service": "x", "usage": None}]),
    st.sampled_from([{}, {"signature": "s"}, {"content": None, "index": 0}, {"parts": [{"a": 1}]}]),
    st.sampled_from([1, 2, 3, 7, 100]),
    st.booleans(),
)
async def test_one_body_is_what_the_chunks_add_up_to(
    thought: list[tuple[str, str]],
    answer: list[str],
    top: dict[str, Any],
    beside: dict[str, Any],
    per_read: int,
    at_once: bool,
) -> None:
    """Whatever stands beside the text in each chunk, and however the chunks come."""
    frames = [chunk({"role": "assistant"}), *(chunk(beside | {field: text}, **top) for field, text in thought)]
    frames += [*(chunk(beside | {"content": text}, **top) for text in answer), chunk({}, "stop"), DONE]
    sent: list[bytes] = []

    async def hangs() -> Any:
        await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message.get("body", b""))

    scope = {"headers": [], "extensions": {HANG_UP: None, WRITE_NOW: None}}
    delivery = BodyDelivery(Exchange(scope, hangs, send, lambda: 0.0), 200, ())
    reads = [b"".join(frames[at : at + per_read]) for at in range(0, len(frames), per_read)]
    view = ClientView(usage=True, object=False, joined=True)
    run, _, _ = run_of(reads, view=view, hands_over=at_once, delivery=delivery)
    async for _ in run.steps():
        pass
    expected = Assembler()
    for frame in frames:
        expected.add(frame[6:-2])
    assert json.loads(b"".join(sent)) == expected.result()

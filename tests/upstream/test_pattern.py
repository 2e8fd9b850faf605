"""A repeated chunk read by its bytes says exactly what parsing it says."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from suffice.upstream.assemble import Assembler, CallParts
from suffice.upstream.pattern import ARGUMENTS, TextPattern
from suffice.upstream.wire import Chunk, Frame, SseSplitter, decode_chunk, encode_json
from tests.wire.read import Stream, all_streams

FIELDS = ("content", "reasoning", "reasoning_content", "thinking", ARGUMENTS)
TEXT = st.text(max_size=12)


def call_part(index: int, arguments: str, **more: Any) -> dict[str, Any]:
    return {"index": index, "function": {"arguments": arguments}, **more}


def chunk(field: str, text: str, **top: Any) -> dict[str, Any]:
    """A chunk that adds `text` to one field."""
    delta = {"tool_calls": [call_part(1, text)]} if field == ARGUMENTS else {field: text}
    choice = {"index": 0, "delta": delta, "finish_reason": None, "logprobs": None}
    return {"id": "c1", "object": "chat.completion.chunk", "model": "m", "choices": [choice], **top}


def frame(body: dict[str, Any], *, spaced: bool = False) -> Frame:
    """The frame as a server writes it, with or without white space in its JSON."""
    data = json.dumps(body, ensure_ascii=False).encode("utf-8", "replace") if spaced else encode_json(body)
    return Frame(b"data: " + data + b"\n\n", data)


def learnt(first: Frame, *, without_usage: bool = False) -> TextPattern:
    pattern = TextPattern()
    assert first.data is not None
    pattern.learn(first, decode_chunk(first.data), without_usage=without_usage)
    return pattern


def text_in(pattern: TextPattern, raw: bytes) -> str:
    """The text of one frame; "" where it must be parsed."""
    texts, _, end = pattern.run_in(raw, 0)
    return "".join(texts) if end == len(raw) else ""


@given(st.sampled_from(FIELDS), TEXT.filter(bool), TEXT, st.booleans())
def test_a_match_says_what_parsing_says(field: str, first: str, second: str, spaced: bool) -> None:
    pattern = learnt(frame(chunk(field, first), spaced=spaced))
    again = frame(chunk(field, second), spaced=spaced)
    text = text_in(pattern, again.raw)
    if text:
        assert again.data is not None
        read = decode_chunk(again.data).choices
        assert read is not None
        assert read[0].delta is not None
        if field == ARGUMENTS:
            assert json.loads(bytes(read[0].delta.tool_calls)) == [call_part(pattern.call, text)]
        else:
            assert getattr(read[0].delta, pattern.field) == text
        assert pattern.run_in(again.raw, 0)[1] is again.raw


@pytest.mark.parametrize("first", [" so", '{"city": "', "\\", "\n"])
@pytest.mark.parametrize("spaced", [False, True])
@pytest.mark.parametrize("field", FIELDS)
def test_ordinary_words_are_recognised(field: str, spaced: bool, first: str) -> None:
    pattern = learnt(frame(chunk(field, first), spaced=spaced))
    for text in (" 17", "é", "然后", " plus/minus", "?", "}", '"', "\\", "\n", 'say "so"\n', "\u2028"):
        assert text_in(pattern, frame(chunk(field, text), spaced=spaced).raw) == text
    assert pattern.field == field


@pytest.mark.parametrize(
    "other",
    [
        frame(chunk("reasoning", "")),
        frame(chunk("content", " so")),
        frame(chunk("reasoning", " so", created=2)),
        frame(chunk("reasoning", " so", error={"message": "m"})),
        Frame(b"data: [DONE]\n\n", b"[DONE]"),
        Frame(b": ping\n\n", None),
    ],
    ids=str,
)
def test_whatever_differs_is_left_to_the_parser(other: Frame) -> None:
    assert text_in(learnt(frame(chunk("reasoning", " so"))), other.raw) == ""


def test_a_bare_control_character_or_broken_utf8_is_left_to_the_parser() -> None:
    first = frame(chunk("reasoning", " so"))
    pattern = learnt(first)
    for bad in (b"\x01", b"\t", b"\xff", b"\xe4\xbd"):
        assert text_in(pattern, first.raw.replace(b" so", bad)) == ""


def choice_with(**fields: Any) -> dict[str, Any]:
    body = chunk("reasoning", " so")
    body["choices"][0] |= fields
    return body


@pytest.mark.parametrize(
    "body",
    [
        choice_with(finish_reason="stop"),
        choice_with(index=1),
        choice_with(logprobs={"content": [{"token": " so", "logprob": -0.1}]}),
        choice_with(delta={"reasoning": " so", "content": "4"}),
        choice_with(delta={"reasoning": " so", "reasoning_content": " so"}),
        choice_with(delta={"content": " so", "refusal": "no"}),
        choice_with(delta={"content": " so", "tool_calls": [{"index": 0}]}),
        choice_with(delta={"content": " so", "tool_calls": [call_part(0, " so")]}),
        choice_with(delta={"tool_calls": [call_part(0, " so", id="c1")]}),
        choice_with(delta={"tool_calls": [call_part(0, " so"), call_part(1, " so")]}),
        choice_with(delta={"tool_calls": [call_part(0, "")]}),
        choice_with(delta={"tool_calls": [{"function": {"arguments": " so"}}]}),
        choice_with(delta={"tool_calls": [{"index": 0, "function": {"name": "f", "arguments": " so"}}]}),
        choice_with(delta={"function_call": {"arguments": " so"}}),
        chunk("reasoning", " so", usage={"prompt_tokens": 1}),
        chunk("reasoning", " so", usage={"completion_tokens": None}),
        chunk("reasoning", " so", error={"code": "x"}),
        chunk("reasoning", " so") | {"choices": []},
    ],
    ids=str,
)
def test_only_a_chunk_that_says_one_text_is_learnt(body: dict[str, Any]) -> None:
    first = frame(body)
    assert text_in(learnt(first), first.raw) == ""


def test_a_text_that_stands_elsewhere_too_is_not_mistaken_for_the_field() -> None:
    body = {"note": {"reasoning": " so"}} | chunk("reasoning", " so")
    pattern = learnt(frame(body))
    assert text_in(pattern, frame(body | {"note": {"reasoning": " 17"}}).raw) == ""


def test_an_empty_usage_is_cut_out_and_nothing_else() -> None:
    pattern = learnt(frame(chunk("reasoning", " so", usage=None)), without_usage=True)
    again = frame(chunk("reasoning", " 17", usage=None))
    _, displayed, _ = pattern.run_in(again.raw, 0)
    assert json.loads(displayed[6:]) == chunk("reasoning", " 17")
    assert (displayed[:6], displayed[-2:]) == (b"data: ", b"\n\n")


@pytest.mark.parametrize("timings", [{"usage": None, "n": 1}, {"n": 1, "usage": None}, {"usage": None}], ids=str)
def test_an_empty_usage_that_stands_deeper_stays(timings: dict[str, Any]) -> None:
    body = chunk("reasoning", " so", usage=None, timings=timings)
    pattern = learnt(frame(body), without_usage=True)
    if text_in(pattern, frame(body).raw):
        _, displayed, _ = pattern.run_in(frame(body).raw, 0)
        assert json.loads(displayed[6:]) == chunk("reasoning", " so", timings=timings)


def test_chunks_that_never_repeat_are_given_up() -> None:
    pattern = TextPattern()
    for at in range(4):
        assert pattern.learns
        first = frame(chunk("reasoning", " so", created=at))
        pattern.learn(first, decode_chunk(first.data or b""), without_usage=False)
    assert not pattern.learns
    assert text_in(pattern, first.raw) == " so"
    assert pattern.learns


PIECES = st.one_of(
    st.builds(lambda text: frame(chunk("reasoning", text)), st.sampled_from([" so", "\n", '"', "\\", "é", ", ", "n"])),
    st.sampled_from(
        [
            frame(chunk("content", " 4")),
            frame(chunk("reasoning", "")),
            frame(chunk("reasoning", " so", created=2)),
            Frame(b": ping\n\n", None),
            Frame(b'data: {"choices":[{"delta":{"reasoning":"a","x":"b"}}]}\n\n', None),
        ]
    ),
)


@given(st.lists(PIECES, max_size=12), st.integers(0, 40))
def test_a_run_is_the_chunks_that_match_one_by_one(frames: list[Frame], n_cut: int) -> None:
    """Whatever follows, and wherever the read breaks off."""
    pattern = learnt(frame(chunk("reasoning", " so")))
    data = b"start" + b"".join(f.raw for f in frames)
    data = data[: max(5, len(data) - n_cut)]
    texts, sent, end = pattern.run_in(data, 5)
    expected, at = [], 5
    for each in frames:
        at += len(each.raw)
        text = text_in(pattern, each.raw)
        if not text or at > len(data):
            break
        expected.append((text, each.raw))
    assert texts == [text for text, _ in expected]
    assert sent == b"".join(raw for _, raw in expected) == data[5:end]


WORDS = st.sampled_from([" so", '"a": ', "\\", "é", "\n", "{", " 4"])


@given(st.lists(st.tuples(st.integers(0, 1), WORDS), max_size=30))
def test_arguments_of_parallel_calls_each_grow_by_their_own(pieces: list[tuple[int, str]]) -> None:
    begun = [call_part(n, "", id=f"c{n}", type="function") for n in (0, 1)]
    begun = [one | {"function": {"name": "f", "arguments": ""}} for one in begun]
    bodies = [choice_with(delta={"tool_calls": [one]}) for one in (*begun, *(call_part(*piece) for piece in pieces))]
    pattern, parts, fast, plain = TextPattern(), CallParts(), Assembler(), Assembler()
    for each in map(frame, [*bodies, choice_with(delta={}, finish_reason="tool_calls")]):
        assert each.data is not None
        plain.add(each.data)
        if text := text_in(pattern, each.raw):
            assert fast.add_repeated(pattern.template, pattern.field, [text])
            parts.add_arguments(pattern.call, text)
            continue
        read = decode_chunk(each.data)
        assert read.choices is not None
        assert read.choices[0].delta is not None
        fast.add(each.data)
        parts.add(read.choices[0].delta)
        pattern.learn(each, read)
    assert fast.result() == plain.result()
    assert parts.calls == plain.result()["choices"][0]["message"]["tool_calls"]


def test_a_long_read_is_looked_at_in_windows() -> None:
    pattern = learnt(frame(chunk("reasoning", " so")))
    data = frame(chunk("reasoning", " so")).raw * 1_000
    texts, sent, end = pattern.run_in(data, 0)
    assert 10 < len(texts) < 1_000
    assert sent == data[:end] == data[: len(data) * len(texts) // 1_000]


def test_an_empty_usage_is_cut_out_of_a_run_too() -> None:
    pattern = learnt(frame(chunk("reasoning", " so", usage=None)), without_usage=True)
    data = b"".join(frame(chunk("reasoning", text, usage=None)).raw for text in ("a", "\n", " b"))
    texts, sent, end = pattern.run_in(data, 0)
    assert (texts, end) == (["a", "\n", " b"], len(data))
    assert sent == b"".join(frame(chunk("reasoning", text)).raw for text in ("a", "\n", " b"))


def counted(field: str, text: str, n: int, **top: Any) -> dict[str, Any]:
    usage = {"prompt_tokens": 51, "total_tokens": 51 + n, "completion_tokens": n}
    return chunk(field, text, usage=usage | {"completion_tokens_details": {"reasoning_tokens": n - 1}}, **top)


WIRE = [stream for stream in all_streams() if stream.name.endswith("chat_continuous_usage")]


@pytest.mark.parametrize("stream", WIRE, ids=lambda stream: stream.name)
@pytest.mark.parametrize("is_edited", [False, True])
def test_real_chunks_with_a_usage_are_read_without_parsing_them(stream: Stream, is_edited: bool) -> None:
    splitter, pattern, n_matched = SseSplitter(), TextPattern(), 0
    for each in splitter.feed(stream.body):
        read = decode_chunk(each.data or b"") if each.data not in (None, b"[DONE]") else Chunk()
        if text := text_in(pattern, each.raw):
            n_matched += 1
            assert read.choices is not None
            assert (text, pattern.usage) == (getattr(read.choices[0].delta, pattern.field), read.usage)
            displayed = json.loads(pattern.run_in(each.raw, 0)[1][6:])
            whole = json.loads(each.data or b"")
            assert displayed == ({k: v for k, v in whole.items() if k != "usage"} if is_edited else whole)
        else:
            pattern.learn(each, read, without_usage=is_edited and read.usage is not None)
    assert n_matched >= 8
    assert WIRE


@given(
    st.lists(
        st.tuples(
            st.sampled_from([" so", "\n", '"', "\\", "é", '"usage":{', '"total_tokens":7']), st.integers(1, 10**6)
        ),
        min_size=1,
        max_size=8,
    ),
    st.integers(0, 60),
    st.booleans(),
)
def test_a_run_with_usages_is_the_chunks_one_by_one(pieces: list[tuple[str, int]], n_cut: int, is_edited: bool) -> None:
    pattern = learnt(frame(counted("reasoning", " so", 1)), without_usage=is_edited)
    frames = [frame(counted("reasoning", text, n)) for text, n in pieces]
    data = b"".join(each.raw for each in frames)
    n_whole = next(n for n in range(len(frames), -1, -1) if sum(len(f.raw) for f in frames[:n]) <= len(data) - n_cut)
    texts, sent, end = pattern.run_in(data[: len(data) - n_cut], 0)
    assert texts == [text for text, _ in pieces[:n_whole]]
    assert end == sum(len(each.raw) for each in frames[:n_whole])
    texts_alone = [frame(chunk("reasoning", text)) for text, _ in pieces]
    displayed = (texts_alone if is_edited else frames)[:n_whole]
    assert sent == b"".join(each.raw for each in displayed)
    if texts:
        assert pattern.usage == decode_chunk(frames[n_whole - 1].data or b"").usage


@given(
    st.lists(st.tuples(st.sampled_from([" so", '"', "\\", '"sequence_number":7']), st.integers(0, 10**6)), max_size=8)
)
def test_a_run_of_numbered_events_is_the_events_one_by_one(pieces: list[tuple[str, int]]) -> None:
    """Whatever their numbers, and up to the first event that has another form."""
    pattern = learnt(frame(chunk("reasoning", " so", sequence_number=1)))
    raws = [frame(chunk("reasoning", text, sequence_number=n)).raw for text, n in pieces]
    data = b"".join([*raws, frame(chunk("reasoning", " so", sequence_number="2")).raw])
    texts, sent, end = pattern.run_in(data, 0)
    assert (texts, sent, end) == ([text for text, _ in pieces], b"".join(raws), sum(map(len, raws)))


def test_counts_outside_of_the_usage_are_not_taken_for_it() -> None:
    beside = {"timings": {"completion_tokens": 3}}
    for body in (counted("reasoning", " so", 3, **beside), beside | counted("reasoning", " so", 3)):
        assert text_in(learnt(frame(body), without_usage=True), frame(body).raw) == ""

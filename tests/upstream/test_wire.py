"""Promises of the wire: nothing is torn, nothing is lost, nothing well-formed is refused."""

from __future__ import annotations

import itertools
import json
import time
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suffice.errors import UpstreamProtocol
from suffice.upstream.wire import (
    DONE,
    DONE_DATA,
    PING,
    Choice,
    Chunk,
    Delta,
    Frame,
    SseSplitter,
    decode_chunk,
    decode_json,
    encode_frame,
    error_body,
    error_frame,
    is_given,
    logprobs_of,
    reasoning_of,
)
from tests.drawn import examples
from tests.sse_scripts import SCRIPTS

few = settings(max_examples=examples(60))

WORDS = ("北京", "e\u0301", "👩\u200d🚀", "🇩🇪", "\u202eab", '{"a": "\\n"}')
CHUNKS = [
    b"data: " + json.dumps({"choices": [{"delta": {"content": word}}]}, ensure_ascii=False).encode() + b"\n\n"
    for word in WORDS
]
STREAM = b": hello\n\n" + b"".join(CHUNKS) + b"event: x\ndata: 1\ndata: 2\n\n" + DONE
CORPUS = {
    "lf": STREAM,
    "crlf": STREAM.replace(b"\n", b"\r\n"),
    "cr": STREAM.replace(b"\n", b"\r"),
    "bom": b"\xef\xbb\xbf" + STREAM,
    "bom crlf": b"\xef\xbb\xbf" + STREAM.replace(b"\n", b"\r\n"),
    "no space": STREAM.replace(b"data: ", b"data:"),
    "mixed": STREAM[:90].replace(b"\n", b"\r\n") + STREAM[90:200].replace(b"\n", b"\r") + STREAM[200:],
    "retry and id": b"retry: 1000\n\nid: 7\n\n" + STREAM,
    "no end": STREAM + b"data: torn",
}


def split(data: bytes, cuts: list[int], splitter: SseSplitter | None = None) -> list[Frame]:
    splitter = splitter or SseSplitter()
    edges = [0, *sorted(cuts), len(data)]
    frames = []
    for start, end in itertools.pairwise(edges):
        frames += splitter.feed(data[start:end])
    return frames + splitter.close()


def reference(data: bytes) -> list[bytes]:
    """The data by the letter of the HTML standard, written line by line and independent of ours."""
    result, lines = [], list[bytes]()
    text = data.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    for line in text.split(b"\n"):
        if not line:
            if lines:
                result.append(b"\n".join(lines))
            lines = []
        elif line.startswith(b"data"):
            rest = line[4:]
            assert not rest or rest.startswith(b":")
            lines.append(rest[1:].removeprefix(b" "))
    return result


@pytest.mark.parametrize("name", sorted(CORPUS))
def test_every_single_cut_gives_the_same_frames(name: str) -> None:
    data = CORPUS[name]
    whole = split(data, [])
    assert b"".join(frame.raw for frame in whole) == data
    for cut in range(len(data) + 1):
        assert split(data, [cut]) == whole, cut
    assert split(data, list(range(len(data)))) == whole


@pytest.mark.parametrize("name", sorted(set(CORPUS) - {"no end"}))
def test_frames_say_what_the_standard_says(name: str) -> None:
    read = [f.data for f in split(CORPUS[name], []) if f.data is not None]
    assert read == reference(CORPUS[name])


line_ends = st.sampled_from([b"\n", b"\r\n", b"\r"])
lines = st.sampled_from([b"", b"data", b"data:", b"data: x", b"data:  y", b"data:z", b": c", b"event: e", b"id: 1"])
cut_places = st.lists(st.integers(0, 120), max_size=8)


@few
@given(parts=st.lists(st.tuples(lines, line_ends), max_size=14), cuts=cut_places)
def test_any_mix_of_line_ends_and_cuts_reads_as_the_standard_has_it(
    parts: list[tuple[bytes, bytes]], cuts: list[int]
) -> None:
    data = b"".join(line + end for line, end in parts) + b"\n\n"
    frames = split(data, [min(cut, len(data)) for cut in cuts])
    assert frames == split(data, [])
    assert b"".join(frame.raw for frame in frames) == data
    assert [f.data for f in frames if f.data is not None] == reference(data)


def test_a_frame_is_given_out_as_soon_as_its_blank_line_is_there() -> None:
    for end in (b"\n\n", b"\r\n\r\n", b"\r\r"):
        frames = SseSplitter().feed(b"data: 1" + end)
        assert [f.data for f in frames] == [b"1"]


@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n"])
def test_the_frame_limit_holds_for_whole_and_for_endless_frames(end: bytes) -> None:
    exact = b"data: " + b"x" * (100 - 6 - len(end)) + end
    assert len(SseSplitter(100).feed(exact)) == 1
    for data in (b"data: y" + exact[6:], b"y" * 101):
        with pytest.raises(UpstreamProtocol, match="more than 100 bytes"):
            split(data, [], SseSplitter(100))
        with pytest.raises(UpstreamProtocol, match="more than 100 bytes"):
            split(data, list(range(len(data))), SseSplitter(100))


@pytest.mark.no_cover
@pytest.mark.parametrize("piece", [b"x", b"x\n", b"x\r\n"])
def test_tiny_pieces_without_an_end_cost_linear_time(piece: bytes) -> None:
    def cost_s(n: int) -> float:
        splitter, start_s = SseSplitter(), time.process_time()
        for _ in range(n):
            splitter.feed(piece)
        return time.process_time() - start_s

    cost_s(1_000)
    small, large = min(cost_s(5_000) for _ in range(3)), min(cost_s(40_000) for _ in range(2))
    assert large < 8 * small * 4  # quadratic work would make it 64 times as much


EXPECTED: dict[str, tuple[str, list[str], bool]] = {
    # text before [DONE], finish reasons, was [DONE] seen
    name: ("The answer is 42 北🙂", ["stop"], True)
    for name in SCRIPTS
} | {
    "eof_no_done": ("The answer is 42 北🙂", ["stop"], False),
    "eof_no_finish": ("The answer is 42 北🙂", [], False),
    "done_no_finish": ("The answer is 42 北🙂", [], True),
    "err_frame_done": ("The answer is 42 北🙂", [], True),
    "err_event_done": ("The answer is 42 北🙂", [], True),
    "custom_finish": ("The answer is 42 北🙂", ["early_stop"], True),
    "two_finish": ("The answer is 42 北🙂", ["stop", "stop"], True),
    "truncated": ("The answer is 42 北🙂", [], False),
}


def test_there_are_21_scripts() -> None:
    assert len(SCRIPTS) == 21


@pytest.mark.parametrize("name", sorted(SCRIPTS))
def test_every_script_is_read_for_what_it_means(name: str) -> None:
    splitter = SseSplitter()
    text, finishes, done, errors, n_bad = "", list[str](), False, 0, 0
    frames = [frame for piece in SCRIPTS[name].pieces for frame in splitter.feed(piece)] + splitter.close()
    for frame in frames:
        if frame.data is None or done:
            continue
        if frame.data == DONE_DATA:
            done = True
            continue
        try:
            chunk = decode_chunk(frame.data)
        except UpstreamProtocol:
            n_bad += 1
            continue
        errors += is_given(chunk.error)
        for choice in chunk.choices or ():
            text += (choice.delta and choice.delta.content) or ""
            finishes += [choice.finish_reason] if choice.finish_reason else []
    assert (text, finishes, done) == EXPECTED[name]
    assert errors == name.startswith("err_")
    assert n_bad == (name == "badjson")
    assert b"".join(f.raw for f in frames) == SCRIPTS[name].body


# ---- chunks

TYPICAL = (
    b'{"id":"c1","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":1,"delta":'
    b'{"role":"assistant","reasoning_content":"hm"},"finish_reason":null}],"usage":{"prompt_tokens":5,'
    b'"completion_tokens":9,"total_tokens":14,"prompt_tokens_details":{"cached_tokens":3},'
    b'"completion_tokens_details":{"reasoning_tokens":4}}}'
)


def test_a_typical_chunk_is_read() -> None:
    chunk = decode_chunk(TYPICAL)
    assert (chunk.id, chunk.model) == ("c1", "m")
    assert chunk.choices
    assert chunk.choices[0].index == 1
    assert chunk.choices[0].delta
    assert reasoning_of(chunk.choices[0].delta) == ("hm", "reasoning_content")
    assert chunk.usage
    assert (chunk.usage.cached_tokens, chunk.usage.reasoning_tokens) == (3, 4)
    assert chunk.usage.completion_tokens == 9


ODD: dict[str, tuple[str, Chunk]] = {
    "choices null": ('{"choices":null,"usage":null}', Chunk()),
    "list": ("[1]", Chunk()),
    "number": ("7", Chunk()),
    "null": ("null", Chunk()),
    "blank": ("  ", Chunk()),
    "choices is a word": ('{"choices":"x"}', Chunk()),
    "choice is a word": ('{"choices":["x",{"index":2.0,"text":"t"}]}', Chunk(choices=[Choice(2, text="t")])),
    "numeric id": ('{"id":12,"model":false}', Chunk(id="12")),
    "finish is a number": (
        '{"choices":[{"index":-1,"finish_reason":3}]}',
        Chunk(choices=[Choice(0, finish_reason="3")]),
    ),
    "delta is a word": ('{"choices":[{"delta":"x","index":"y"}]}', Chunk(choices=[Choice()])),
    "parts": (
        (
            '{"choices":[{"delta":{"content":[{"type":"thinking","thinking":[{"type":"text","text":"a"}]},'
            '{"type":"text","text":"b"},{"type":"text"},5]}}]}'
        ),
        Chunk(choices=[Choice(delta=Delta(content="b", thinking="a"))]),
    ),
    "lone surrogate": (
        '{"choices":[{"delta":{"content":"\\ud800x","reasoning":["\\ud83d"]}}]}',
        Chunk(choices=[Choice(delta=Delta(content="\ufffdx"))]),
    ),
}


@pytest.mark.parametrize("name", sorted(ODD))
def test_odd_but_well_formed_chunks_are_read_as_far_as_they_go(name: str) -> None:
    text, chunk = ODD[name]
    assert decode_chunk(text.encode()) == chunk


@pytest.mark.parametrize(
    ("value", "read"),
    [
        ("5", 5),
        ("5.0", 5),
        ("5.7", 5),
        ("-1", None),
        ("-0.5", None),
        ('"5"', None),
        ("true", None),
        ("null", None),
        ("1e300", None),
        ("[]", None),
    ],
)
def test_token_counts_are_counts_or_unknown(value: str, read: int | None) -> None:
    details = f'{{"cached_tokens":{value},"reasoning_tokens":{value}}}'
    data = (
        f'{{"usage":{{"prompt_tokens":{value},"completion_tokens":{value},"total_tokens":{value},'
        f'"prompt_tokens_details":{details},"completion_tokens_details":{details}}}}}'
    )
    usage = decode_chunk(data.encode()).usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens) == (read,) * 2
    assert (usage.cached_tokens, usage.reasoning_tokens) == (read or 0, read)


def test_usage_with_odd_details_keeps_the_rest() -> None:
    usage = decode_chunk(b'{"usage":{"prompt_tokens":5,"prompt_tokens_details":3}}').usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.cached_tokens, usage.reasoning_tokens) == (5, 0, None)


@pytest.mark.parametrize(
    "data",
    [
        b"{oops",
        b'{"a":NaN}',
        b'{"a":1}x',
        b"\xff\xfe",
        b'{"id":"\xff"}',
        b"[" * 20_000,
        b"{'a':1}",
        b'{"choices":[{"delta":{"content":"cut',
        b'{"n":' + b"9" * 5_000 + b"x}",
    ],
)
def test_what_is_not_json_is_refused_with_our_own_error(data: bytes) -> None:
    with pytest.raises(UpstreamProtocol, match="not JSON"):
        decode_chunk(data)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=6)
    | st.characters(categories=["Cs"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
chunk_like = st.fixed_dictionaries(
    {},
    optional={
        "id": json_values,
        "model": json_values,
        "usage": json_values,
        "error": json_values,
        "choices": json_values
        | st.lists(
            st.fixed_dictionaries(
                {},
                optional={
                    "index": json_values,
                    "text": json_values,
                    "finish_reason": json_values,
                    "logprobs": json_values,
                    "delta": json_values
                    | st.fixed_dictionaries(
                        {},
                        optional={
                            "content": json_values,
                            "reasoning": json_values,
                            "thinking": json_values,
                            "tool_calls": json_values,
                            "role": json_values,
                        },
                    ),
                },
            ),
            max_size=2,
        ),
    },
)


@settings(max_examples=examples(200))
@given(value=json_values | chunk_like)
def test_no_well_formed_json_ever_fails(value: Any) -> None:
    chunk = decode_chunk(json.dumps(value).encode())
    for choice in chunk.choices or ():
        for token in logprobs_of(choice):
            assert token.logprob == token.logprob
        if choice.delta is not None:
            text, field = reasoning_of(choice.delta)
            assert bool(text) == bool(field)
            assert isinstance(choice.delta.calls_tool, bool)
    msgspec.json.encode([c.finish_reason for c in chunk.choices or ()])  # no lone surrogate is left


def test_reasoning_that_is_sent_under_two_names_counts_once() -> None:
    assert reasoning_of(Delta(reasoning="a", reasoning_content="a")) == ("a", "reasoning")
    assert reasoning_of(Delta(thinking="a")) == ("a", "thinking")
    assert reasoning_of(Delta(reasoning="", content="a")) == ("", "")


def test_tool_calls_are_seen_whatever_they_look_like() -> None:
    for text, calls in (("null", False), ("[]", False), ('[{"index":0}]', True)):
        chunk = decode_chunk(b'{"choices":[{"delta":{"tool_calls":%s}}]}' % text.encode())
        assert chunk.choices
        assert chunk.choices[0].delta
        assert chunk.choices[0].delta.calls_tool is calls


def test_both_shapes_of_log_probabilities_say_the_same() -> None:
    rivals = b'[{"token":"7","logprob":-0.5},{"token":"8","logprob":-1}]'
    chat = b'{"content":[{"token":"7","logprob":-0.5,"top_logprobs":%s}]}' % rivals
    old = b'{"tokens":["7"],"token_logprobs":[-0.5],"top_logprobs":[{"7":-0.5,"8":-1}]}'
    read = [logprobs_of(Choice(logprobs=msgspec.Raw(raw))) for raw in (chat, old)]
    assert read[0] == read[1]
    assert read[0][0].top == (("7", -0.5), ("8", -1.0))


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"null",
        b"[]",
        b'{"content":null}',
        b'{"content":[3,{"token":"x"}]}',
        b'{"tokens":["a"]}',
        b'{"tokens":["a"],"token_logprobs":[null]}',
    ],
)
def test_missing_log_probabilities_are_none_at_all(raw: bytes) -> None:
    assert logprobs_of(Choice(logprobs=msgspec.Raw(raw))) == ()


# ---- writing


@few
@given(obj=json_values)
def test_what_we_write_is_one_frame_that_reads_back(obj: Any) -> None:
    frames = split(encode_frame(obj), [])
    assert len(frames) == 1
    assert frames[0].data is not None
    assert decode_json(frames[0].data) == without_surrogates(obj)


def without_surrogates(value: Any) -> Any:
    if isinstance(value, str):
        return "".join("\ufffd" if "\ud800" <= char <= "\udfff" else char for char in value)
    if isinstance(value, dict):
        return {key: without_surrogates(inner) for key, inner in value.items()}
    return [without_surrogates(inner) for inner in value] if isinstance(value, list) else value


def test_errors_have_openai_s_shape() -> None:
    body = json.loads(error_body("no", param="n", code="bad"))
    assert body == {"error": {"message": "no", "type": "invalid_request_error", "param": "n", "code": "bad"}}
    assert error_frame("gone").startswith(b'data: {"error":{"message":"gone","type":"upstream_error"')
    assert [f.data for f in split(PING + DONE, [])] == [None, DONE_DATA]

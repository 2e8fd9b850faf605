"""Promises of reassembly: the streamed answer and the direct one are the same object."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suffice.errors import UpstreamError, UpstreamProtocol
from suffice.upstream.assemble import Assembler
from suffice.upstream.wire import SseSplitter
from tests.drawn import examples
from tests.sse_scripts import SCRIPTS


def chunk(delta: dict[str, Any], finish: str | None = None, **top: Any) -> dict[str, Any]:
    return {
        "id": "c",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
        **top,
    }


def assembled(*chunks: dict[str, Any] | bytes) -> dict[str, Any]:
    assembler = Assembler()
    for each in chunks:
        assembler.add(each)
    return assembler.result()


def message(*deltas: dict[str, Any], **top: Any) -> dict[str, Any]:
    answer = assembled(*(chunk(delta, **top) for delta in deltas), chunk({}, "stop"))
    results: dict[str, Any] = answer["choices"][0]["message"]
    return results


def test_a_stream_becomes_the_direct_answer() -> None:
    assert assembled(
        chunk({"role": "assistant", "content": None}),
        chunk({"reasoning_content": "2+"}),
        chunk({"reasoning_content": "2"}),
        chunk({"content": "fo"}),
        chunk({"content": "ur"}),
        chunk({}, "stop"),
        {
            "id": "c",
            "object": "chat.completion.chunk",
            "created": 1,
            "model": "m",
            "choices": [],
            "usage": {"prompt_tokens": 1, "completion_tokens": 4, "total_tokens": 5},
            "timings": {"predicted_n": 4},
        },
        b"[DONE]",
    ) == {
        "id": "c",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "timings": {"predicted_n": 4},
        "usage": {"prompt_tokens": 1, "completion_tokens": 4, "total_tokens": 5},
        "choices": [
            {
                "index": 0,
                "finish_reason": "stop",
                "message": {"role": "assistant", "content": "four", "reasoning_content": "2+2"},
            }
        ],
    }


def call(index: int, name: str, arguments: str, **more: Any) -> dict[str, Any]:
    return {"index": index, "type": "function", "function": {"name": name, "arguments": arguments}, **more}


CALL = {"tool_calls": [call(0, "f", "{}", id="t")]}


@pytest.mark.parametrize(
    ("deltas", "top", "content"),
    [
        ([{"role": "assistant", "content": None}, CALL], {}, None),  # as OpenAI answers
        ([{"role": "assistant", "content": None}, CALL], {"timings": {}}, ""),  # as llama.cpp answers
        ([{"content": ""}, CALL], {}, ""),
        ([CALL], {}, None),
        ([{"content": "a"}, CALL], {}, "a"),
        ([{"content": None}, {"reasoning_content": "x"}], {}, ""),
        ([{"role": "assistant"}], {}, ""),
        ([{"content": "", "refusal": None}, {"refusal": "no"}], {}, None),
        ([{"function_call": {"name": "f", "arguments": "{}"}}], {}, None),
    ],
)
def test_no_text_is_null_or_empty_as_the_direct_answer_has_it(
    deltas: list[dict[str, Any]], top: dict[str, Any], content: str | None
) -> None:
    assert message(*deltas, **top)["content"] == content


def test_tool_calls_are_put_together_by_index() -> None:
    results = message(
        {"role": "assistant", "content": None},
        {"tool_calls": [call(1, "g", "", id="b")]},
        {"tool_calls": [call(0, "f", "{", id="a")]},
        {
            "tool_calls": [
                {"index": 0, "function": {"name": "f", "arguments": '"x":1}'}},
                {"index": 1, "id": "", "function": {"name": None, "arguments": "[]"}},
            ]
        },
    )
    assert results["tool_calls"] == [
        {"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"x":1}'}},
        {"id": "b", "type": "function", "function": {"name": "g", "arguments": "[]"}},
    ]


def test_tool_calls_without_an_index_are_told_apart_by_their_id() -> None:
    results = message(
        {"tool_calls": [{"id": "a", "function": {"name": "f", "arguments": "1"}}]},
        {"tool_calls": [{"function": {"arguments": "2"}}]},
        {"tool_calls": [{"id": "b", "function": {"name": "g", "arguments": {"x": 1}}}, "odd"]},
        {"tool_calls": None},
    )
    assert results["tool_calls"] == [
        {"id": "a", "function": {"name": "f", "arguments": "12"}},
        {"id": "b", "function": {"name": "g", "arguments": {"x": 1}}},
    ]


def test_unknown_fields_are_carried_over() -> None:
    answer = assembled(
        chunk({"x_note": "a", "obfuscation": "zz"}, policy={"v": 1}, citations=["u"], prompt_progress={}),
        {
            "choices": [{"index": 0, "delta": {"x_note": "b", "x_n": 1}, "stop_reason": None, "token_ids": [1]}],
            "citations": ["u", "v"],
            "system_fingerprint": None,
        },
        {
            "choices": [{"index": 0, "delta": {}, "finish_reason": "stop", "stop_reason": 7, "token_ids": [2]}],
            "policy": None,
        },
    )
    assert answer["policy"] == {"v": 1}
    assert answer["citations"] == ["u", "v"]
    assert answer["system_fingerprint"] is None
    assert "prompt_progress" not in answer
    choice = answer["choices"][0]
    assert (choice["stop_reason"], choice["token_ids"]) == (7, [1, 2])
    assert choice["message"] == {"role": "assistant", "content": "", "x_note": "ab", "x_n": 1}


def test_the_first_id_that_says_something_stays_and_the_last_word_of_the_rest() -> None:
    first, last = {**chunk({}), "id": ""}, {**chunk({}, "stop"), "id": "other", "created": 2}
    answer = assembled(first, chunk({}), last)
    assert (answer["id"], answer["created"]) == ("c", 2)


def test_log_probabilities_add_up_in_either_shape() -> None:
    def with_logprobs(part: Any, finish: str | None = None) -> dict[str, Any]:
        return {"choices": [{"index": 0, "delta": {}, "logprobs": part, "finish_reason": finish}]}

    answer = assembled(
        with_logprobs({"content": [1], "refusal": None}), with_logprobs({"content": [2]}), with_logprobs(None, "stop")
    )
    assert answer["choices"][0]["logprobs"] == {"content": [1, 2], "refusal": None}
    assert assembled(with_logprobs(None, "stop"))["choices"][0]["logprobs"] is None
    old = assembled(
        {"choices": [{"index": 0, "text": "a", "logprobs": {"tokens": ["a"], "token_logprobs": [-1]}}]},
        {
            "choices": [
                {
                    "index": 0,
                    "text": "b",
                    "logprobs": {"tokens": ["b"], "token_logprobs": [-2]},
                    "finish_reason": "length",
                }
            ]
        },
    )
    assert old["object"] == "text_completion"
    assert old["choices"][0]["text"] == "ab"
    assert old["choices"][0]["logprobs"] == {"tokens": ["a", "b"], "token_logprobs": [-1, -2]}


def test_content_in_parts_stays_in_parts() -> None:
    think = {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}
    part = {"type": "text", "text": "b"}
    results = message({"content": "a"}, {"content": [think]}, {"content": [part]}, {"content": "c"})
    assert results["content"] == [{"type": "text", "text": "a"}, think, {"type": "text", "text": "bc"}]


def test_several_choices_are_sorted_and_each_needs_its_end() -> None:
    assembler = Assembler()
    for index, finish in ((1, None), (0, "stop"), (1, "length")):
        assert not assembler.finished
        delta = {"content": str(index)}
        assembler.add({"choices": [{"index": index, "delta": delta, "finish_reason": finish}]})
    assert assembler.finished
    results = [(c["index"], c["message"]["content"], c["finish_reason"]) for c in assembler.result()["choices"]]
    assert results == [(0, "0", "stop"), (1, "11", "length")]


ZERO = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
TRUE = {"prompt_tokens": 5, "completion_tokens": 9, "total_tokens": 14}
HALF = {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}


@settings(max_examples=examples(80))
@given(usages=st.lists(st.sampled_from([None, ZERO, HALF, TRUE, "absent", 7]), min_size=1, max_size=6))
def test_the_last_usage_that_is_given_counts(usages: list[Any]) -> None:
    chunks = [chunk({"content": "x"}) if u == "absent" else chunk({"content": "x"}, usage=u) for u in usages]
    answer = assembled(*chunks, chunk({}, "stop"))
    given = [u for u in usages if isinstance(u, dict)]
    assert answer.get("usage") == (given[-1] if given else None)


BREAKS = {
    "eof_no_finish": UpstreamProtocol,
    "done_no_finish": UpstreamProtocol,
    "truncated": UpstreamProtocol,
    "badjson": UpstreamProtocol,
    "err_frame_done": UpstreamError,
    "err_event_done": UpstreamError,
}


@pytest.mark.parametrize("name", sorted(SCRIPTS))
def test_every_script_is_assembled_or_refused(name: str) -> None:
    splitter, assembler = SseSplitter(), Assembler()

    def run() -> dict[str, Any]:
        for frame in splitter.feed(SCRIPTS[name].body):
            if frame.data is not None:
                assembler.add(frame.data)
        return assembler.result()

    if name in BREAKS:
        with pytest.raises(BREAKS[name]):
            run()
        return
    answer = run()
    assert answer["choices"][0]["message"]["content"] == "The answer is 42 北🙂"
    assert answer["choices"][0]["finish_reason"] == ("early_stop" if name == "custom_finish" else "stop")
    assert answer["id"] == "chatcmpl-1"
    assert answer.get("policy") == ({"v": "p7"} if name == "custom_field" else None)
    assert "v" not in answer


def test_nothing_at_all_is_not_an_answer() -> None:
    with pytest.raises(UpstreamProtocol, match="contained no answer"):
        assembled(b"[DONE]")
    with pytest.raises(UpstreamProtocol, match="without a finish reason"):
        assembled(chunk({"content": "a"}))


def test_an_error_frame_never_repeats_what_the_upstream_said() -> None:
    secret = {"error": {"message": "key sk-123 is wrong", "type": "auth", "code": 401}}
    with pytest.raises(UpstreamError) as results:
        assembled(chunk({"content": "a"}), json.dumps(secret).encode())
    assert "sk-123" not in str(results.value)
    assert "auth, 401" in str(results.value)
    with pytest.raises(UpstreamError, match=r"carried an error$"):
        assembled({"error": "sk-123"})


odd_values = st.none() | st.integers(-2, 2) | st.text(max_size=2) | st.lists(st.integers(), max_size=2)
odd_chunk = st.fixed_dictionaries(
    {},
    optional={
        "id": odd_values,
        "usage": odd_values,
        "choices": odd_values
        | st.lists(
            odd_values
            | st.fixed_dictionaries(
                {},
                optional={
                    "index": odd_values,
                    "finish_reason": odd_values,
                    "logprobs": odd_values,
                    "text": odd_values,
                    "delta": odd_values
                    | st.fixed_dictionaries(
                        {},
                        optional={
                            "content": odd_values,
                            "role": odd_values,
                            "reasoning": odd_values,
                            "function_call": odd_values,
                            "tool_calls": odd_values
                            | st.lists(
                                st.fixed_dictionaries(
                                    {}, optional={"index": odd_values, "id": odd_values, "function": odd_values}
                                ),
                                max_size=2,
                            ),
                        },
                    ),
                },
            ),
            max_size=2,
        ),
    },
)


@settings(max_examples=examples(200))
@given(chunks=st.lists(odd_chunk | odd_values, max_size=5))
def test_no_well_formed_stream_crashes_or_is_changed(chunks: list[Any]) -> None:
    before = copy.deepcopy(chunks)
    assembler = Assembler()
    for each in chunks:
        assembler.add(each if isinstance(each, dict) else json.dumps(each).encode())
    assembler.add(b"  ")
    assembler.add(chunk({}, "stop"))
    if assembler.finished:
        json.dumps(assembler.result())
    assert chunks == before

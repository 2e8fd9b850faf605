"""The ways to close a thought: one builder for the probe and for the answer, and nothing of the client lost."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from suffice.settings import Driver, FinishMethod
from suffice.upstream.continuation import DRIVER_METHODS, SAMPLING, PrefillStripper, Prompt, build, closed_thought

PROMPT = Prompt(text="<|user|>2+2?<|assistant|><think>", n_tokens=5)
CLIENT: dict[str, Any] = {
    "model": "m", "messages": [{"role": "user", "content": "2+2?"}], "temperature": 0.5, "top_p": 0.9, "seed": 3,
    "max_tokens": 700, "tools": [], "stream": False, "metadata": {"secret": "x"}, "user": "u",
}  # fmt: skip
CLOSED = closed_thought("so it is  \n", closing="\n", think_close="</think>", answer_prefix="The answer is ")


def written(method: FinishMethod, **more: Any) -> Any:
    known: dict[str, Any] = {"prompt": PROMPT, "think_open": "<think>", "max_tokens": None}
    return build(method, CLIENT, CLOSED, **known | more)


def test_a_closed_thought_ends_in_its_tag_and_the_first_words_of_the_answer() -> None:
    assert CLOSED == "so it is\n</think>The answer is "


@given(st.text(max_size=60))
def test_the_thought_itself_is_only_trimmed_at_its_end(thought: str) -> None:
    closed = closed_thought(thought, closing="\n", think_close="</think>", answer_prefix="")
    assert closed == thought.rstrip() + "\n</think>"


@pytest.mark.parametrize("method", ["raw", "prefill"])
def test_sampling_goes_along_and_nothing_else_does(method: FinishMethod) -> None:
    body = written(method).body
    assert {k: body[k] for k in SAMPLING if k in CLIENT} == {k: CLIENT[k] for k in SAMPLING if k in CLIENT}
    assert body["model"] == "m"
    assert (body["stream"], body["stream_options"]) == (True, {"include_usage": True})
    assert not {"max_tokens", "tools", "metadata", "stop", "logprobs"} & set(body)


@pytest.mark.parametrize("method", ["raw", "prefill"])
def test_a_probe_differs_from_the_answer_only_in_being_cut_after_it(method: FinishMethod) -> None:
    answer = written(method)
    probe = written(method, max_tokens=16, stop=("\n",), logprobs=1)
    cut = {"max_tokens", "stop", "logprobs", "top_logprobs"}
    assert {k: v for k, v in probe.body.items() if k not in cut} == answer.body
    assert (probe.body["max_tokens"], probe.body["stop"]) == (16, ["\n"])
    assert (probe.path, probe.prefill) == (answer.path, answer.prefill)


def test_raw_goes_on_where_the_template_ends() -> None:
    made = written("raw")
    assert made.path == "/v1/completions"
    assert made.body["prompt"] == PROMPT.text + CLOSED
    assert made.prefill == ""


@pytest.mark.parametrize("end", ["<|assistant|>", "<|assistant|>\n"])
def test_raw_opens_the_thought_where_the_template_leaves_that_to_the_model(end: str) -> None:
    made = written("raw", prompt=Prompt(text=end, n_tokens=None))
    assert made.body["prompt"] == end + "<think>" + CLOSED
    opened = written("raw", prompt=Prompt(text="<|assistant|><think>\n", n_tokens=None))
    assert opened.body["prompt"].count("<think>") == 1


def test_prefill_adds_one_message_and_asks_for_its_continuation() -> None:
    made = written("prefill")
    assert made.path == "/v1/chat/completions"
    assert made.body["messages"] == [*CLIENT["messages"], {"role": "assistant", "content": "<think>" + CLOSED}]
    assert (made.body["continue_final_message"], made.body["add_generation_prompt"]) == (True, False)
    assert made.prefill == "<think>" + CLOSED
    assert len(CLIENT["messages"]) == 1


def test_what_cannot_be_written_is_said() -> None:
    with pytest.raises(ValueError, match="template"):
        written("raw", prompt=None)
    with pytest.raises(ValueError, match="native"):
        written("native")


def test_every_driver_has_its_ways() -> None:
    assert set(DRIVER_METHODS) == set(Driver.__args__)  # type: ignore[attr-defined]
    assert DRIVER_METHODS["openai"] == ()
    assert all(set(ways) <= set(FinishMethod.__args__) for ways in DRIVER_METHODS.values())  # type: ignore[attr-defined]


def cut_at(text: str, places: list[int]) -> list[str]:
    edges = [0, *sorted({place % (len(text) + 1) for place in places}), len(text)]
    return [text[a:b] for a, b in pairwise(edges)]


@given(st.text(max_size=20), st.text(max_size=20), st.lists(st.integers(0, 99), max_size=8))
def test_a_repeated_prefill_is_removed_however_it_arrives(prefill: str, answer: str, places: list[int]) -> None:
    strip = PrefillStripper(prefill)
    assert "".join(strip.feed(piece) for piece in cut_at(prefill + answer, places)) + strip.close() == answer


@given(st.text(min_size=1, max_size=20), st.text(max_size=20), st.lists(st.integers(0, 99), max_size=8))
def test_a_reply_without_the_prefill_loses_nothing(prefill: str, answer: str, places: list[int]) -> None:
    if answer.startswith(prefill):
        return
    strip = PrefillStripper(prefill)
    assert "".join(strip.feed(piece) for piece in cut_at(answer, places)) + strip.close() == answer

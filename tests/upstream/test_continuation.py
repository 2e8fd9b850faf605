"""The ways to close a thought: one builder for the probe and for the answer, and nothing of the client lost."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from suffice.episode.extra_calls import PrefillStripper
from suffice.errors import UpstreamProtocol
from suffice.settings import Driver, Effort, FinishMethod, Probe, Template, Upstream
from suffice.upstream.continuation import SAMPLING, Prompt, build_continuation, close_thought, cut_at
from suffice.upstream.drivers import DRIVERS
from suffice.upstream.prompts import write_prompt

PROMPT = Prompt(text="<|user|>2+2?<|assistant|><think>", n_tokens=5)
CLIENT: dict[str, Any] = {
    "model": "m",
    "messages": [{"role": "user", "content": "2+2?"}],
    "temperature": 0.5,
    "top_p": 0.9,
    "seed": 3,
    "max_tokens": 700,
    "tools": [],
    "stream": False,
    "metadata": {"secret": "x"},
    "user": "u",
}
THOUGHT = "so it is  \n"
PROBE = Probe(answer_prefix="The answer is ", reask_thought="I thought: {thought}", reask_ask="So?")
CLOSED = "so it is\n</think>The answer is "
ALL = [(driver, method) for driver, facts in DRIVERS.items() for method in facts.methods if method != "native"]
CUT = {"max_tokens", "stop", "logprobs", "top_logprobs"}


def written(method: FinishMethod, driver: Driver = "llama.cpp", **more: Any) -> Any:
    known: dict[str, Any] = {"prompt": PROMPT, "thought": THOUGHT, "body": CLIENT, "probe": PROBE, "settings": {}}
    given_ = known | more
    upstream = Upstream(url="http://up", driver=driver, **given_.pop("settings"))
    return build_continuation(method, given_.pop("body"), given_.pop("thought"), upstream=upstream, **given_)


def test_a_closed_thought_ends_in_its_tag_and_the_first_words_of_the_answer() -> None:
    assert close_thought(THOUGHT, Upstream(url="http://up"), PROBE) == CLOSED


@given(st.text(max_size=60))
def test_the_thought_itself_is_only_trimmed_at_its_end(thought: str) -> None:
    assert close_thought(thought, Upstream(url="http://up"), Probe(closing="\n")) == thought.rstrip() + "\n</think>"


@pytest.mark.parametrize(("driver", "method"), ALL)
def test_sampling_goes_along_and_nothing_else_does(driver: Driver, method: FinishMethod) -> None:
    body = written(method, driver).body
    assert {k: body[k] for k in SAMPLING if k in CLIENT} == {k: CLIENT[k] for k in SAMPLING if k in CLIENT}
    assert body["model"] == "m"
    # A probe that is given up reports nothing at its end, so an engine that can is asked for its counts before.
    counts = {"continuous_usage_stats": True} if driver in ("vllm", "sglang") else {}
    assert (body["stream"], body["stream_options"]) == (True, {"include_usage": True, **counts})
    assert not {"max_tokens", "tools", "metadata", "stop", "logprobs"} & set(body)


@pytest.mark.parametrize(("driver", "method"), ALL)
def test_a_probe_differs_from_the_answer_only_in_being_cut_after_it(driver: Driver, method: FinishMethod) -> None:
    answer = written(method, driver)
    probe = written(method, driver, max_tokens=16, trial=True)
    assert {k: v for k, v in probe.body.items() if k not in CUT} == answer.body
    assert probe.body["max_tokens"] == 16
    # A re-ask may think before it answers: its stop words are the reader's business.
    assert (probe.body.get("stop"), probe.stop) == ((None, ("\n",)) if method == "re-ask" else (["\n"], ()))
    assert (probe.path, probe.prefill, probe.answer_prefix) == (answer.path, answer.prefill, answer.answer_prefix)


@pytest.mark.parametrize(("driver", "method"), ALL)
def test_the_clients_own_messages_are_sent_unchanged_and_first(driver: Driver, method: FinishMethod) -> None:
    before = [dict(m) for m in CLIENT["messages"]]
    body = written(method, driver).body
    assert CLIENT["messages"] == before
    if method != "raw":
        assert body["messages"][:1] == before


def test_the_cap_has_the_name_that_the_client_gave_it() -> None:
    body = {k: v for k, v in CLIENT.items() if k != "max_tokens"} | {"max_completion_tokens": 9}
    assert written("re-ask", "openai", body=body, max_tokens=5).body["max_completion_tokens"] == 5
    assert written("raw", body=body, max_tokens=5).body["max_tokens"] == 5


def test_raw_goes_on_where_the_template_ends() -> None:
    made = written("raw")
    assert made.path == "/v1/completions"
    assert made.body["prompt"] == f"{PROMPT.text}{CLOSED}"
    assert made.prefill == ""


def test_vllm_is_told_that_the_templates_text_has_its_own_special_tokens() -> None:
    assert written("raw", "vllm").body["add_special_tokens"] is False


@pytest.mark.parametrize("end", ["<|assistant|>", "<|assistant|>\n"])
def test_raw_opens_the_thought_where_the_template_leaves_that_to_the_model(end: str) -> None:
    made = written("raw", prompt=Prompt(text=end, n_tokens=None))
    assert made.body["prompt"] == end + "<think>" + CLOSED
    opened = written("raw", prompt=Prompt(text="<|assistant|><think>\n", n_tokens=None))
    assert opened.body["prompt"].count("<think>") == 1


@pytest.mark.parametrize("driver", ["llama.cpp", "vllm"])
def test_prefill_adds_one_message_and_asks_for_its_continuation(driver: Driver) -> None:
    made = written("prefill", driver)
    assert made.path == "/v1/chat/completions"
    assert made.body["messages"][1:] == [{"role": "assistant", "content": "<think>" + CLOSED}]
    assert (made.body["continue_final_message"], made.body["add_generation_prompt"]) == (True, False)
    assert made.prefill == "<think>" + CLOSED


@pytest.mark.parametrize("opened", [True, False])
def test_sglang_puts_the_text_behind_its_generation_prompt_and_parses_no_thought(opened: bool) -> None:
    body = written("prefill", "sglang", thought="so", probe=Probe(), settings={"think_opened": opened}).body
    assert body["messages"][-1]["content"] == ("" if opened else "<think>") + "so\n</think>"
    assert (body["continue_final_message"], body["separate_reasoning"]) == (True, False)
    assert "add_generation_prompt" not in body


def test_deepseek_takes_the_thought_in_a_field_of_its_own_on_its_beta_path() -> None:
    made = written("prefill", "deepseek")
    assert made.path == "/beta/chat/completions"
    last = {"role": "assistant", "content": "The answer is ", "reasoning_content": "so it is", "prefix": True}
    assert made.body["messages"][-1] == last
    bare = written("prefill", "deepseek", thought="so", probe=Probe())
    assert bare.body["messages"][-1]["content"] == "\n"
    assert bare.answer_prefix == ""


@pytest.mark.parametrize("driver", ["mistral", "openrouter"])
def test_a_prefix_is_marked_as_one(driver: Driver) -> None:
    last = {"role": "assistant", "content": "<think>" + CLOSED, "prefix": True}
    assert written("prefill", driver).body["messages"][-1] == last


LOWEST: dict[Driver, dict[str, Any]] = {
    "openai": {"reasoning_effort": "low"},
    "llama.cpp": {"chat_template_kwargs": {"enable_thinking": False}, "reasoning_budget_tokens": 0},
    "vllm": {"chat_template_kwargs": {"enable_thinking": False, "thinking": False}},
    "sglang": {"chat_template_kwargs": {"enable_thinking": False, "thinking": False}},
    "deepseek": {"thinking": {"type": "disabled"}},
    "mistral": {"reasoning_effort": "none"},
    "openrouter": {"reasoning": {"effort": "none"}},
    "anthropic": {"thinking": {"type": "disabled"}},
}


@pytest.mark.parametrize("driver", LOWEST)
def test_a_re_ask_tells_the_thought_and_asks_for_the_answer_with_least_effort(driver: Driver) -> None:
    made = written("re-ask", driver)
    assert made.body["messages"][1:] == [
        {"role": "assistant", "content": "I thought: so it is"},
        {"role": "user", "content": "So?"},
    ]
    assert {k: made.body[k] for k in LOWEST[driver]} == LOWEST[driver]
    assert made.answer_prefix == made.prefill == ""
    assert made.added_chars == len("I thought: ") + len("So?")


def test_a_re_ask_keeps_what_else_the_client_told_the_template() -> None:
    body = CLIENT | {"chat_template_kwargs": {"enable_thinking": True, "language": "fr"}}
    made = written("re-ask", "vllm", body=body).body["chat_template_kwargs"]
    assert made == {"enable_thinking": False, "thinking": False, "language": "fr"}
    assert body["chat_template_kwargs"] == {"enable_thinking": True, "language": "fr"}


def test_the_owner_may_choose_the_least_effort() -> None:
    effort: Effort = "minimal"
    assert written("re-ask", "openai", settings={"lowest_effort": effort}).body["reasoning_effort"] == "minimal"


def test_a_thought_may_hold_anything_that_looks_like_a_template() -> None:
    made = written("re-ask", "openai", thought="{thought} {0} {}", probe=Probe(reask_thought="T: {thought}"))
    assert made.body["messages"][1]["content"] == "T: {thought} {0} {}"


def test_a_template_of_the_owner_writes_the_prompt() -> None:
    template = Template(begin="<s>", turn="[{role}]{content}\n", generate="[assistant]")
    messages = [{"role": "system", "content": "S"}, {"role": "user", "content": [{"type": "text", "text": "{role}"}]}]
    assert write_prompt(template, messages) == "<s>[system]S\n[user]{role}\n[assistant]"
    with pytest.raises(UpstreamProtocol, match="more than text"):
        write_prompt(template, [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}])


@pytest.mark.parametrize(
    ("text", "stop", "kept"),
    [
        ("4\nor 5", ("\n",), "4"),
        ("\n\n4\n", ("\n",), "\n\n4"),
        ("4", ("\n",), "4"),
        ("4\n", (), "4\n"),
        ("", ("x",), ""),
    ],
)
def test_a_reader_cuts_where_an_engine_would_have(text: str, stop: tuple[str, ...], kept: str) -> None:
    assert cut_at(text, stop) == kept


def test_what_cannot_be_written_is_said() -> None:
    for prompt in (None, Prompt(text=None, n_tokens=3)):
        with pytest.raises(ValueError, match="template"):
            written("raw", prompt=prompt)
    with pytest.raises(ValueError, match="native"):
        written("native")
    with pytest.raises(ValueError, match="anthropic"):
        written("prefill", "anthropic")


def test_every_driver_has_its_ways() -> None:
    assert len(DRIVERS) == 9
    assert all(set(facts.methods) <= set(FinishMethod.__args__) for facts in DRIVERS.values())  # type: ignore[attr-defined]
    assert all(facts.methods[-1] == "re-ask" for facts in DRIVERS.values())


def pieces_of(text: str, places: list[int]) -> list[str]:
    edges = [0, *sorted({place % (len(text) + 1) for place in places}), len(text)]
    return [text[a:b] for a, b in pairwise(edges)]


@given(st.text(max_size=20), st.text(max_size=20), st.lists(st.integers(0, 99), max_size=8))
def test_a_repeated_prefill_is_removed_however_it_arrives(prefill: str, answer: str, places: list[int]) -> None:
    strip = PrefillStripper(prefill)
    assert "".join(strip.feed(piece) for piece in pieces_of(prefill + answer, places)) + strip.close() == answer


@given(st.text(min_size=1, max_size=20), st.text(max_size=20), st.lists(st.integers(0, 99), max_size=8))
def test_a_reply_without_the_prefill_loses_nothing(prefill: str, answer: str, places: list[int]) -> None:
    if answer.startswith(prefill):
        return
    strip = PrefillStripper(prefill)
    assert "".join(strip.feed(piece) for piece in pieces_of(answer, places)) + strip.close() == answer
